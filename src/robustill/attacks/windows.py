"""Square's patches on a traced network: each layer is recomputed only where the patch can have changed it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustill.attacks.reach import Reach, Slices, Window, reach_of
from robustill.attacks.search import Search

# Above this share of the whole network's multiplications, windows no longer pay for their bookkeeping.
_WORTH_IT = 0.7

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
class _Piece:
    """A part of a node's value: its window itself, or an area of the remembered map with the window put in."""

    source: fx.Node
    area: Slices | None
    into: Slices | None
    taken: Slices | None

    def fetch(self, values: dict[fx.Node, Any], maps: dict[fx.Node, Tensor]) -> Tensor:
        value: Tensor = values[self.source]
        if self.area is None:
            return value
        whole = maps[self.source][self.area].clone(memory_format=torch.channels_last)
        if self.into is not None and self.taken is not None:
            whole[self.into].copy_(value[self.taken])
        return whole


@dataclass
class _Step:
    """One node to compute, from pieces of its inputs; `changed` is where its window lies in the remembered map."""

    node: fx.Node
    reach: Reach | None
    pieces: list[_Piece]
    changed: Slices | None


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
        # How far each remembered feature map is padded; those that no layer reaches over are not remembered.
        self.margins = self._margins()
        self.plans: dict[Window, list[_Step]] = {}
        self.input = next(node for node in light.graph.nodes if node.op == "placeholder")
        (self.output,) = next(node for node in light.graph.nodes if node.op == "output").all_input_nodes

    def share(self, side: int) -> float:
        """Multiplications that a patch of that side costs, as a share of the whole network's."""
        windows = self.windows(Window(0, 0, side, side))
        patch = whole = 0
        for node, kind in self.kinds.items():
            if isinstance(kind, Reach):
                height, width = self.sizes[node]
                window = windows[node]
                patch += window.height * window.width * kind.weights
                whole += height * width * kind.weights
        return patch / whole if whole else 1.0

    def windows(self, patch: Window) -> dict[fx.Node, Window]:
        """Where each feature map can differ if the images do in a patch."""
        windows: dict[fx.Node, Window] = {}
        for node, kind in self.kinds.items():
            if kind == "input":
                windows[node] = patch
            elif isinstance(kind, Reach):
                windows[node] = kind.changed(windows[node.all_input_nodes[0]], *self.sizes[node])
            elif kind == "pointwise":
                own = [windows[source] for source in node.all_input_nodes if source in windows]
                union = own[0]
                for other in own[1:]:
                    union = union.union(other)
                windows[node] = union
        return windows

    def remember(self, images: Tensor) -> dict[fx.Node, Tensor]:
        """The feature maps that patches need, padded."""
        values = self._all_values(images)
        return {
            node: F.pad(values[node], (margin,) * 4).contiguous(memory_format=torch.channels_last)
            for node, margin in self.margins.items()
        }

    def plan(self, place: Window) -> list[_Step]:
        """What to compute for a patch at one place, in order."""
        if place not in self.plans:
            self.plans[place] = self._planned(place)
        return self.plans[place]

    def _planned(self, place: Window) -> list[_Step]:
        windows = self.windows(place)
        steps = []
        for node, kind in self.kinds.items():
            if node.op == "output":
                continue
            pieces = []
            for source in node.all_input_nodes:
                if source not in windows:
                    continue
                if isinstance(kind, Reach):
                    wanted = kind.needed(windows[node])
                else:
                    wanted = windows.get(node) or Window(0, 0, *self.sizes[source])
                pieces.append(self._piece(source, windows[source], wanted))
            changed = windows[node].slices(-self.margins[node], -self.margins[node]) if node in self.margins else None
            steps.append(_Step(node, kind if isinstance(kind, Reach) else None, pieces, changed))
        return steps

    def _piece(self, source: fx.Node, window: Window, wanted: Window) -> _Piece:
        if window == wanted:
            return _Piece(source, None, None, None)
        margin = self.margins[source]
        # The wanted window may leave out a part of the changed one, where a stride jumps over it.
        common = window.common(wanted)
        return _Piece(
            source,
            wanted.slices(-margin, -margin),
            common.slices(wanted.top, wanted.left) if common else None,
            common.slices(window.top, window.left) if common else None,
        )

    def patched(self, maps: dict[fx.Node, Tensor], patch: Tensor, plan: list[_Step]) -> dict[fx.Node, Any]:
        """Every node's value where the patch can have changed it; the last step's are the logits.

        Args:
            maps: of `remember`.
            patch: new pixels, [R,C,h,w].
            plan: of `plan`, for the patch's place.
        """
        values: dict[fx.Node, Any] = {self.input: patch}
        for step in plan:
            if step.node in values:
                continue
            fetched = [piece.fetch(values, maps) for piece in step.pieces]
            if step.reach is not None:
                values[step.node] = step.reach.run(fetched[0])
                continue
            known = {piece.source: value for piece, value in zip(step.pieces, fetched, strict=True)}

            def argument(source: fx.Node, known: dict[fx.Node, Tensor] = known) -> Any:
                return known[source] if source in known else values[source]

            args, kwargs = fx.map_arg((step.node.args, step.node.kwargs), argument)
            values[step.node] = self._call(step.node, args, kwargs)
        return values

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
            sources = [source for source in node.all_input_nodes if self.kinds[source] != "whole"]
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
        self.tried: tuple[Window, Tensor] = (Window(0, 0, 0, 0), images)
        self.values: dict[fx.Node, Any] | None = None

    def logits(self) -> Tensor:
        """See `canvas.Canvas`."""
        return self.search.logits(self.images)

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `canvas.Canvas`."""
        place = Window(top, left, patch.shape[2], patch.shape[3])
        self.tried = (place, patch)
        if not self._small(max(place.height, place.width)):
            self.maps = self.values = None
            images = self.images.clone()
            images[place.slices()] = patch
            return self.search.logits(images)
        with self.search.counted(len(patch)), torch.no_grad():
            if self.maps is None:
                self.maps = self.network.remember(self.images)
            plan = self.network.plan(place)
            self.values = self.network.patched(self.maps, patch.clone(memory_format=torch.channels_last), plan)
            logits: Tensor = self.values[self.network.output]
        return logits.float()

    def accept(self, which: Tensor) -> None:
        """See `canvas.Canvas`."""
        rows = which.nonzero().squeeze(1)
        place, patch = self.tried
        self.images[place.slices()][rows] = patch[rows]
        if self.values is None or self.maps is None:
            return
        for step in self.network.plan(place):
            if step.changed is not None:
                self.maps[step.node][step.changed][rows] = self.values[step.node][rows]

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
