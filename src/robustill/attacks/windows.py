"""Square's patches on a traced network: each layer is recomputed only where the patch can have changed it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustill.attacks.reach import Interval, Reach, reach_of
from robustill.attacks.search import Search

# Above this share of the whole network's multiplications, windows no longer pay for their bookkeeping.
_WORTH_IT = 0.66

_POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd,
    torch.add, torch.sub, torch.mul, torch.div,
    torch.relu, torch.relu_, F.relu, F.relu6, F.silu, F.gelu, F.leaky_relu, torch.sigmoid, torch.tanh,
}  # fmt: skip
_POINTWISE_METHODS = {"relu", "sigmoid", "tanh", "add", "sub", "mul", "div"}


@dataclass
class _Span:
    """Rows, or columns, of an input that a node reads: its changed part itself, or an area around it or across it.

    Args:
        exact: the changed part is what is read.
        area: of the remembered map.
        into: where in the area the changed part goes; None if it does not meet the area.
        taken: which part of it.
    """

    exact: bool
    area: slice
    into: slice | None
    taken: slice | None


@dataclass
class _Line:
    """One axis of a patch: for every node the spans of its inputs, and where it can differ in its remembered map."""

    spans: dict[fx.Node, list[_Span]]
    changed: dict[fx.Node, slice]


class WindowedNetwork:
    """A light copy, read as layers that reach over pixels, layers that do not, and the rest, which sees whole images.

    Args:
        light: as `light_copy` returns it.
        image: one image, [1,C,H,W], to learn the sizes from.
    """

    def __init__(self, light: fx.GraphModule, image: Tensor) -> None:
        self.light = light
        self.sizes: dict[fx.Node, tuple[int, int]] = {}
        self.kinds: dict[fx.Node, Reach | str] = {}
        values = self._all_values(image)
        for node in light.graph.nodes:
            value = values.get(node)
            self.kinds[node] = self._kind(node, value, values)
            if isinstance(value, Tensor) and value.ndim == 4:
                self.sizes[node] = (value.shape[2], value.shape[3])
        # The inputs of each node that a patch changes in a part only.
        self.sources = {
            node: [source for source in node.all_input_nodes if self.kinds[source] != "whole"] for node in self.kinds
        }
        self.constants = {node: values[node] for node in light.graph.nodes if node.op == "get_attr"}
        self.input = next(node for node in light.graph.nodes if node.op == "placeholder")
        (self.output,) = next(node for node in light.graph.nodes if node.op == "output").all_input_nodes
        # How far each remembered feature map is padded; those that no layer reaches over are not remembered.
        self.margins = self._margins()
        self.lines: dict[tuple[int, Interval], _Line] = {}

    def share(self, side: int) -> float:
        """Multiplications that a patch of that side costs, as a share of the whole network's."""
        rows, columns = (self._changed(axis, Interval(0, side)) for axis in (0, 1))
        patch = whole = 0
        for node, kind in self.kinds.items():
            if isinstance(kind, Reach):
                height, width = self.sizes[node]
                patch += rows[node].length * columns[node].length * kind.weights
                whole += height * width * kind.weights
        return patch / whole if whole else 1.0

    def remember(self, images: Tensor) -> dict[fx.Node, Tensor]:
        """The feature maps that patches need, padded."""
        values = self._all_values(images)
        return {
            node: F.pad(values[node], (margin,) * 4).contiguous(memory_format=torch.channels_last)
            for node, margin in self.margins.items()
        }

    def patched(self, maps: dict[fx.Node, Tensor], top: int, left: int, patch: Tensor) -> dict[fx.Node, Any]:
        """Every node's value, of the local ones where the patch can have changed it; that of `output` are the logits.

        Args:
            maps: of `remember`.
            top: first row of the patch.
            left: its first column.
            patch: new pixels, [R,C,h,w].
        """
        rows = self._line(0, Interval(top, patch.shape[2]))
        columns = self._line(1, Interval(left, patch.shape[3]))
        values: dict[fx.Node, Any] = {**self.constants, self.input: patch}
        for node, kind in self.kinds.items():
            if node in values:
                continue
            if node.op == "output":
                break
            fetched = {
                source: _piece(values[source], maps, source, along, across)
                for source, along, across in zip(self.sources[node], rows.spans[node], columns.spans[node], strict=True)
            }
            if isinstance(kind, Reach):
                values[node] = kind.run(fetched[self.sources[node][0]])
                continue

            def argument(source: fx.Node, fetched: dict[fx.Node, Tensor] = fetched) -> Any:
                return fetched[source] if source in fetched else values[source]

            args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
            values[node] = self._call(node, args, kwargs)
        return values

    def accept(
        self, maps: dict[fx.Node, Tensor], top: int, left: int, values: dict[fx.Node, Any], images: Tensor
    ) -> None:
        """Write what a patch changed into the maps of some images, given by index."""
        patch = values[self.input]
        rows = self._line(0, Interval(top, patch.shape[2])).changed
        columns = self._line(1, Interval(left, patch.shape[3])).changed
        for node, feature_map in maps.items():
            feature_map[:, :, rows[node], columns[node]][images] = values[node][images]

    def _line(self, axis: int, patch: Interval) -> _Line:
        key = (axis, patch)
        if key not in self.lines:
            self.lines[key] = self._planned(axis, patch)
        return self.lines[key]

    def _planned(self, axis: int, patch: Interval) -> _Line:
        changed = self._changed(axis, patch)
        spans: dict[fx.Node, list[_Span]] = {}
        for node, kind in self.kinds.items():
            spans[node] = []
            for source in self.sources[node]:
                if isinstance(kind, Reach):
                    wanted = kind.needed(axis, changed[node])
                else:
                    wanted = changed.get(node) or Interval(0, self.sizes[source][axis])
                # What is wanted may leave out a part of what changed, where a stride jumps over it.
                common = changed[source].common(wanted)
                spans[node].append(
                    _Span(
                        exact=wanted == changed[source],
                        area=wanted.within(-self.margins.get(source, 0)),
                        into=common.within(wanted.start) if common else None,
                        taken=common.within(changed[source].start) if common else None,
                    )
                )
        return _Line(spans, {node: changed[node].within(-margin) for node, margin in self.margins.items()})

    def _changed(self, axis: int, patch: Interval) -> dict[fx.Node, Interval]:
        """Where each feature map can differ if the images do in a patch."""
        changed: dict[fx.Node, Interval] = {}
        for node, kind in self.kinds.items():
            if kind == "input":
                changed[node] = patch
            elif isinstance(kind, Reach):
                changed[node] = kind.changed(axis, changed[self.sources[node][0]], self.sizes[node][axis])
            elif kind == "pointwise":
                first, *others = self.sources[node]
                changed[node] = changed[first]
                for other in others:
                    changed[node] = changed[node].union(changed[other])
        return changed

    def _all_values(self, images: Tensor) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in self.light.graph.nodes:
                if node.op == "placeholder":
                    values[node] = images
                elif node.op == "output":
                    break
                else:
                    # ReLUs that overwrite their input are its only reader, so nothing remembered is overwritten.
                    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = self._call(node, args, kwargs)
        return values

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.light)
        if node.op == "call_module":
            return self.light.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _kind(self, node: fx.Node, value: object, values: dict[fx.Node, Any]) -> Reach | str:
        if node.op == "placeholder":
            return "input"
        sources = [source for source in node.all_input_nodes if self.kinds[source] != "whole"]
        if not (isinstance(value, Tensor) and value.ndim == 4 and sources):
            return "whole"
        module = self.light.get_submodule(str(node.target)) if node.op == "call_module" else None
        reach = reach_of(module)
        if reach is not None:
            return reach
        pointwise = (
            isinstance(module, _POINTWISE_MODULES)
            or (node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS)
            or (node.op == "call_method" and node.target in _POINTWISE_METHODS)
        )
        others = [values[source] for source in node.all_input_nodes if source not in sources]
        same_size = all(values[source].shape[2:] == value.shape[2:] for source in sources)
        constant = all(not isinstance(each, Tensor) or each.ndim == 0 or each.shape[-2:] == (1, 1) for each in others)
        return "pointwise" if pointwise and same_size and constant else "whole"

    def _margins(self) -> dict[fx.Node, int]:
        margins: dict[fx.Node, int] = {}
        for node, kind in self.kinds.items():
            if kind == "input":
                continue
            sources = self.sources[node]
            if isinstance(kind, Reach):
                wanted = max(kind.padding)
            elif kind == "whole" or len(sources) > 1:
                wanted = 0
            else:
                continue
            for source in sources:
                margins[source] = max(margins.get(source, 0), wanted)
        return margins


class WindowedCanvas:
    """As `PlainCanvas`, recomputing only windows once the patches are small.

    Args:
        search: passes through the model; on the light copy that `network` reads.
        network: the light copy, layer by layer.
        images: to begin with, [R,C,H,W].
    """

    def __init__(self, search: Search, network: WindowedNetwork, images: Tensor) -> None:
        self.search = search
        self.network = network
        self.images = images
        self.maps: dict[fx.Node, Tensor] | None = None
        self.worth_it: dict[int, bool] = {}
        self.tried = (0, 0, images)
        self.values: dict[fx.Node, Any] | None = None

    def logits(self) -> Tensor:
        """See `canvas.Canvas`."""
        return self.search.logits(self.images)

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `canvas.Canvas`."""
        self.tried = (top, left, patch)
        if not self._small(max(patch.shape[2:])):
            self.maps = self.values = None
            images = self.images.clone()
            images[:, :, top : top + patch.shape[2], left : left + patch.shape[3]] = patch
            return self.search.logits(images)
        with self.search.counted(len(patch)), torch.no_grad():
            if self.maps is None:
                self.maps = self.network.remember(self.images)
            patch = patch.clone(memory_format=torch.channels_last)
            self.values = self.network.patched(self.maps, top, left, patch)
            logits: Tensor = self.values[self.network.output]
        return logits.float()

    def accept(self, which: Tensor) -> None:
        """See `canvas.Canvas`."""
        rows = which.nonzero().squeeze(1)
        top, left, patch = self.tried
        self.images[:, :, top : top + patch.shape[2], left : left + patch.shape[3]][rows] = patch[rows]
        if self.values is not None and self.maps is not None:
            self.network.accept(self.maps, top, left, self.values, rows)

    def keep(self, which: Tensor) -> None:
        """See `canvas.Canvas`."""
        self.images = self.images[which].contiguous(memory_format=torch.channels_last)
        if self.maps is not None:
            self.maps = {node: feature_map[which] for node, feature_map in self.maps.items()}
        self.values = None

    def _small(self, side: int) -> bool:
        if side not in self.worth_it:
            self.worth_it[side] = self.network.share(side) < _WORTH_IT
        return self.worth_it[side]


def _piece(changed: Tensor, maps: dict[fx.Node, Tensor], source: fx.Node, along: _Span, across: _Span) -> Tensor:
    """What a node reads of an input: its changed part, or the remembered map with that part put in."""
    if along.exact and across.exact:
        return changed
    whole = maps[source][:, :, along.area, across.area].clone(memory_format=torch.channels_last)
    if along.into is not None and across.into is not None:
        whole[:, :, along.into, across.into] = changed[:, :, along.taken, across.taken]
    return whole
