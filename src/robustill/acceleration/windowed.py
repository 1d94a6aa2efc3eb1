"""Square's patches on a traced network: each layer is recomputed only where the patch can have changed it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustill.acceleration.layers import add_into, minus, over
from robustill.acceleration.receptive_field import Reach, reach_of
from robustill.acceleration.window_plan import Reading, RememberedMap, WindowPlan

Read = Callable[[RememberedMap, Reading, Tensor], Tensor]
"""From a map, where in it, and the part of it just computed anew, to what a node reads around each patch."""

_POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = {
    add_into, minus, over, operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd,
    torch.add, torch.sub, torch.mul, torch.div,
    torch.relu, torch.relu_, F.relu, F.relu6, F.silu, F.gelu, F.leaky_relu, torch.sigmoid, torch.tanh,
}  # fmt: skip
_POINTWISE_METHODS = {"relu", "sigmoid", "tanh", "add", "sub", "mul", "div"}


class WindowedNetwork:
    """A light copy, read as layers that reach over pixels, layers that do not, and the rest, which sees whole images.

    Args:
        light: as `folded_copy` returns it.
        image: one image, [1,C,H,W], to learn the sizes from.
    """

    def __init__(self, light: fx.GraphModule, image: Tensor) -> None:
        self.light = light
        self.sizes: dict[fx.Node, tuple[int, int]] = {}
        self.kinds: dict[fx.Node, Reach | str] = {}
        self.calls: dict[fx.Node, Callable[..., Any]] = {}
        # Nodes whose value no image changes.
        self.fixed: set[fx.Node] = set()
        values = self._all_values(image)
        for node in light.graph.nodes:
            value = values.get(node)
            if node.op != "placeholder" and self.fixed.issuperset(node.all_input_nodes):
                self.fixed.add(node)
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
        # How far each feature map is padded where a plan remembers it.
        self.margins = self._margins()
        self.device = image.device
        self.plans: dict[int, WindowPlan] = {}

    def share(self, side: int) -> float:
        """Multiplications that a patch of that side costs, as a share of the whole network's."""
        plan = self.plan(side)
        patch = whole = 0
        for node, kind in self.kinds.items():
            if isinstance(kind, Reach):
                height, width = self.sizes[node]
                patch += plan.height(node) * plan.width(node) * kind.weights
                whole += height * width * kind.weights
        return patch / whole if whole else 1.0

    def remember(self, images: Tensor, side: int) -> dict[fx.Node, RememberedMap]:
        """The feature maps that patches of that side need, padded."""
        values = self._all_values(images)
        return {node: RememberedMap(values[node], self.margins[node]) for node in self.plan(side).changes}

    def patched(
        self,
        maps: dict[fx.Node, RememberedMap],
        patch: Tensor,
        read: Read,
    ) -> dict[fx.Node, Any]:
        """Every node's value, of the local ones where the patch can have changed it; that of `output` are the logits.

        Args:
            maps: of `remember`.
            patch: new pixels, [R,C,h,w].
            read: what a node reads around each patch, from a map and the part of it just computed anew.
        """
        plan = self.plan(patch.shape[2])
        values: dict[fx.Node, Any] = {**self.constants, self.input: patch}
        for node, kind in self.kinds.items():
            if node in values:
                continue
            if node.op == "output":
                break
            fetched = {
                source: values[source] if reading is None else read(maps[source], reading, values[source])
                for source, reading in plan.readings[node].items()
            }
            if isinstance(kind, Reach):
                values[node] = kind.run(fetched[self.sources[node][0]])
                continue

            def argument(source: fx.Node, fetched: dict[fx.Node, Tensor] = fetched) -> Any:
                return fetched[source] if source in fetched else values[source]

            args, kwargs = fx.map_arg((node.args, node.kwargs), argument)
            values[node] = self._call(node, args, kwargs)
        return values

    def plan(self, side: int) -> WindowPlan:
        """What patches of that side change."""
        if side not in self.plans:
            self.plans[side] = WindowPlan(self.kinds, self.sources, self.sizes, self.margins, side, self.device)
        return self.plans[side]

    def _all_values(self, images: Tensor) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in self.light.graph.nodes:
                if node.op == "placeholder":
                    values[node] = images
                elif node.op != "output":
                    # ReLUs that overwrite their input are its only reader, so nothing remembered is overwritten.
                    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = self._call(node, args, kwargs)
        return values

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node not in self.calls:
            self.calls[node] = self._callable(node)
        return self.calls[node](*args, **kwargs)

    def _callable(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "get_attr":
            return lambda: operator.attrgetter(str(node.target))(self.light)
        if node.op == "call_module":
            return self.light.get_submodule(str(node.target))
        if node.op == "call_method":
            return lambda own, *args, **kwargs: getattr(own, str(node.target))(*args, **kwargs)
        assert callable(node.target)
        # Both summands may be remembered.
        return operator.add if node.target is add_into else node.target

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
        # What the whole image decides, as in squeeze-and-excitation, changes every pixel that it meets.
        others = [values[source] for source in node.all_input_nodes if source in self.fixed]
        local = len(sources) + len(others) == len(node.all_input_nodes)
        same_size = all(values[source].shape[2:] == value.shape[2:] for source in sources)
        constant = all(not isinstance(each, Tensor) or each.ndim == 0 or each.shape[-2:] == (1, 1) for each in others)
        return "pointwise" if pointwise and local and same_size and constant else "whole"

    def _margins(self) -> dict[fx.Node, int]:
        margins: dict[fx.Node, int] = {}
        for node, kind in self.kinds.items():
            wanted = kind.margin() if isinstance(kind, Reach) else 0
            for source in self.sources[node]:
                margins[source] = max(margins.get(source, 0), wanted)
        return margins
