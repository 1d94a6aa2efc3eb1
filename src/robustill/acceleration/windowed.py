"""Evaluate a patched image by recomputing only the part of each feature map that the patch can change.

With windows, all of Square takes 1/2.7 of the processor time of the authors' code (ResNet-8 of width 16, l∞ 8/255, 48
images, exact mode, one thread: benchmarks/LOG.md, "AutoAttack against the authors' code"). Without them, for l2 and l1,
for networks that cannot be traced and for those whose windows have other logits, Square evaluates whole images.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustill.acceleration.layers import add_in_place, divide_channels, subtract_channels
from robustill.acceleration.receptive_field import ReceptiveField, receptive_field
from robustill.acceleration.window_plan import CachedFeatureMap, InputWindow, WindowPlan
from robustill.core.contexts import full_float32

ReadWindow = Callable[[CachedFeatureMap, InputWindow, Tensor], Tensor]
"""A map, the window to read and the recomputed part of the map, to what a node reads around each patch."""

_POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = {
    add_in_place, subtract_channels, divide_channels,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd,
    torch.add, torch.sub, torch.mul, torch.div,
    torch.relu, torch.relu_, F.relu, F.relu6, F.silu, F.gelu, F.leaky_relu, torch.sigmoid, torch.tanh,
}  # fmt: skip
_POINTWISE_METHODS = {"relu", "sigmoid", "tanh", "add", "sub", "mul", "div"}
# The logits from windows may differ from those of the whole image by this share of the largest.
_LOGIT_TOLERANCE = 1e-4


def windowed_network(graph: fx.GraphModule, image: Tensor) -> WindowedNetwork | None:
    """Return a network that can be evaluated in windows, or None where a patched image has other logits in windows.

    Windows take each feature map as its node returned it, so they are wrong where a later node overwrites a map that
    others read, as `out.add_(identity)` does.

    Args:
        graph: as `folded_copy` returns it.
        image: one image, [1,C,H,W].
    """
    network = WindowedNetwork(graph, image)
    with full_float32(), torch.no_grad():
        return network if network.matches(image) else None


class WindowedNetwork:
    """A traced network that can be evaluated in windows around a patch.

    Each node is of a kind: "input"; a ReceptiveField; "pointwise", whose output pixel reads the same pixel of its
    inputs; or "global", which reads whole feature maps and is computed as it is.

    Args:
        graph: as `folded_copy` returns it.
        image: one image, [1,C,H,W], from which the sizes of the feature maps are taken.
    """

    def __init__(self, graph: fx.GraphModule, image: Tensor) -> None:
        self.graph = graph
        self.sizes: dict[fx.Node, tuple[int, int]] = {}
        self.kinds: dict[fx.Node, ReceptiveField | str] = {}
        self.calls: dict[fx.Node, Callable[..., Any]] = {}
        # Nodes whose value does not depend on the image.
        self.image_independent: set[fx.Node] = set()
        values = self._evaluate_nodes(image)
        for node in graph.graph.nodes:
            value = values.get(node)
            if node.op != "placeholder" and self.image_independent.issuperset(node.all_input_nodes):
                self.image_independent.add(node)
            self.kinds[node] = self._classify(node, value, values)
            if isinstance(value, Tensor) and value.ndim == 4:
                self.sizes[node] = (value.shape[2], value.shape[3])
        # The inputs of each node that a patch changes only in part.
        self.sources = {
            node: [source for source in node.all_input_nodes if self.kinds[source] != "global"] for node in self.kinds
        }
        self.attributes = {node: values[node] for node in graph.graph.nodes if node.op == "get_attr"}
        self.input = next(node for node in graph.graph.nodes if node.op == "placeholder")
        (self.output,) = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes
        # The padding of each feature map where a plan caches it.
        self.margins = self._margins()
        self.device = image.device
        self.plans: dict[int, WindowPlan] = {}

    def cost_share(self, side: int) -> float:
        """Return the multiplications that a patch of that side costs, as a share of the whole network's."""
        plan = self.plan(side)
        patch = whole = 0
        for node, kind in self.kinds.items():
            if isinstance(kind, ReceptiveField):
                height, width = self.sizes[node]
                patch += plan.height(node) * plan.width(node) * kind.multiplications
                whole += height * width * kind.multiplications
        return patch / whole if whole else 1.0

    def cache_maps(self, images: Tensor, side: int) -> dict[fx.Node, CachedFeatureMap]:
        """Compute the feature maps that patches of that side need, padded."""
        values = self._evaluate_nodes(images)
        plan = self.plan(side)
        return {node: CachedFeatureMap(values[node], self.margins[node]) for node in plan.changed_windows}

    def evaluate_patch(
        self,
        maps: dict[fx.Node, CachedFeatureMap],
        patch: Tensor,
        read: ReadWindow,
    ) -> dict[fx.Node, Any]:
        """Return every node's value, in windows where it is local; the value of `output` is the logits.

        Args:
            maps: as `cache_maps` returns them.
            patch: new pixels, [R,C,h,w].
            read: returns what a node reads around each patch.
        """
        plan = self.plan(patch.shape[2])
        values: dict[fx.Node, Any] = {**self.attributes, self.input: patch}
        for node, kind in self.kinds.items():
            if node in values:
                continue
            if node.op == "output":
                break
            inputs = {
                source: values[source] if window is None else read(maps[source], window, values[source])
                for source, window in plan.input_windows[node].items()
            }
            if isinstance(kind, ReceptiveField):
                values[node] = kind.forward(inputs[self.sources[node][0]])
                continue

            def argument(source: fx.Node, inputs: dict[fx.Node, Tensor] = inputs) -> Any:
                return inputs[source] if source in inputs else values[source]

            args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
            values[node] = self._call(node, args, kwargs)
        return values

    def matches(self, image: Tensor) -> bool:
        """Return whether an image [1,C,H,W] with a patch in the middle has the logits of the whole network."""
        height, width = image.shape[2:]
        side = (min(height, width) + 7) // 8
        top, left = (height - side) // 2, (width - side) // 2
        patched = image.clone(memory_format=torch.channels_last)
        patch = patched[:, :, top : top + side, left : left + side]
        # Half the range away, so that every pixel of the patch is another one.
        patch.add_(0.5).remainder_(1)
        maps = self.cache_maps(image, side)
        values = self.evaluate_patch(
            maps, patch.clone(), lambda cached, window, part: cached.read_at(window, top, left, part)
        )
        logits, expected = values[self.output], self.graph(patched)
        return bool((logits - expected).abs().max() <= _LOGIT_TOLERANCE * expected.abs().max())

    def plan(self, side: int) -> WindowPlan:
        """Return the windows of patches of that side, computed once."""
        if side not in self.plans:
            self.plans[side] = WindowPlan(self.kinds, self.sources, self.sizes, self.margins, side, self.device)
        return self.plans[side]

    def _evaluate_nodes(self, images: Tensor) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in self.graph.graph.nodes:
                if node.op == "placeholder":
                    values[node] = images
                elif node.op != "output":
                    # A ReLU that overwrites its input is the only node that reads it, so no cached map is overwritten.
                    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = self._call(node, args, kwargs)
        return values

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node not in self.calls:
            self.calls[node] = self._callable(node)
        return self.calls[node](*args, **kwargs)

    def _callable(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "get_attr":
            return lambda: operator.attrgetter(str(node.target))(self.graph)
        if node.op == "call_module":
            return self.graph.get_submodule(str(node.target))
        if node.op == "call_method":
            return lambda own, *args, **kwargs: getattr(own, str(node.target))(*args, **kwargs)
        assert callable(node.target)
        # Both summands may be cached, and must not be overwritten.
        return operator.add if node.target is add_in_place else node.target

    def _classify(self, node: fx.Node, value: object, values: dict[fx.Node, Any]) -> ReceptiveField | str:
        """Return the kind of a node, from its value on one image and those of the nodes before it."""
        if node.op == "placeholder":
            return "input"
        sources = [source for source in node.all_input_nodes if self.kinds[source] != "global"]
        if not (isinstance(value, Tensor) and value.ndim == 4 and sources):
            return "global"
        module = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        field = receptive_field(module)
        if field is not None:
            return field
        pointwise = (
            (isinstance(module, _POINTWISE_MODULES) and not _normalises_by_batch(module))
            or (node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS)
            or (node.op == "call_method" and node.target in _POINTWISE_METHODS)
        )
        # A value that depends on the whole image, as in squeeze-and-excitation, changes every pixel it is applied to.
        others = [values[source] for source in node.all_input_nodes if source in self.image_independent]
        local = len(sources) + len(others) == len(node.all_input_nodes)
        same_size = all(values[source].shape[2:] == value.shape[2:] for source in sources)
        constant = all(not isinstance(each, Tensor) or each.ndim == 0 or each.shape[-2:] == (1, 1) for each in others)
        return "pointwise" if pointwise and local and same_size and constant else "global"

    def _margins(self) -> dict[fx.Node, int]:
        margins: dict[fx.Node, int] = {}
        for node, kind in self.kinds.items():
            margin = kind.margin() if isinstance(kind, ReceptiveField) else 0
            for source in self.sources[node]:
                margins[source] = max(margins.get(source, 0), margin)
        return margins


def _normalises_by_batch(module: nn.Module) -> bool:
    """Return whether a layer is a BatchNorm without running statistics: each of its values depends on all pixels."""
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is None
