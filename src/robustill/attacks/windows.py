"""Square's patches on a traced network: each layer is recomputed only where the patch can have changed it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

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


@dataclass(frozen=True)
class Window:
    """A rectangle of a feature map."""

    top: int
    left: int
    height: int
    width: int

    def union(self, other: Window) -> Window:
        """The smallest rectangle around both."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        bottom = max(self.top + self.height, other.top + other.height)
        right = max(self.left + self.width, other.left + other.width)
        return Window(top, left, bottom - top, right - left)

    def of(self, images: Tensor, margin: int = 0) -> Tensor:
        """A view of these pixels; `margin` is that of the images around the feature map."""
        top, left = self.top + margin, self.left + margin
        return images[:, :, top : top + self.height, left : left + self.width]


@dataclass(frozen=True)
class Reach:
    """A layer whose output pixel reads a square of its input: convolution or pooling without padding of its own.

    Args:
        kernel: side of the square, dilation included.
        stride: of the output on the input.
        padding: zeros around the input.
        run: from the input, padding included, to the output.
        weights: multiplications for one output pixel.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    run: Callable[[Tensor], Tensor]
    weights: int

    def changed(self, window: Window, height: int, width: int) -> Window:
        """Where the output, of that size, can differ if the input does in a window.

        The rectangle's size depends on the window's alone, not on its place: kernels are made ready once per size.
        """
        top, rows = self._along(0, window.top, window.height, height)
        left, columns = self._along(1, window.left, window.width, width)
        return Window(top, left, rows, columns)

    def needed(self, window: Window) -> Window:
        """The input pixels that an output window reads; beyond the borders where there is padding."""
        (kh, kw), (sh, sw), (ph, pw) = self.kernel, self.stride, self.padding
        return Window(
            window.top * sh - ph, window.left * sw - pw, (window.height - 1) * sh + kh, (window.width - 1) * sw + kw
        )

    def _along(self, axis: int, start: int, count: int, size: int) -> tuple[int, int]:
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        out_count = min((count + kernel - 2) // stride + 1, size)
        first = -(-(start + padding - kernel + 1) // stride)
        return min(max(first, 0), size - out_count), out_count


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
        self.input = next(node for node in light.graph.nodes if node.op == "placeholder")

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

    def patched(
        self, maps: dict[fx.Node, Tensor], patch: Tensor, windows: dict[fx.Node, Window]
    ) -> tuple[Tensor, dict[fx.Node, Tensor]]:
        """Logits, and the changed windows of all feature maps.

        Args:
            maps: of `remember`.
            patch: new pixels, [R,C,h,w].
            windows: of `windows`, for the patch's place.
        """
        values: dict[fx.Node, Any] = {}

        def piece(source: fx.Node, wanted: Window) -> Tensor:
            window = windows[source]
            value: Tensor = values[source]
            if window == wanted:
                return value
            margin = self.margins[source]
            whole = wanted.of(maps[source], margin).clone(memory_format=torch.channels_last)
            # The wanted window may leave out a part of the changed one, where a stride jumps over it.
            top, left = max(window.top, wanted.top), max(window.left, wanted.left)
            bottom = min(window.top + window.height, wanted.top + wanted.height)
            right = min(window.left + window.width, wanted.left + wanted.width)
            if bottom > top and right > left:
                common = Window(top - wanted.top, left - wanted.left, bottom - top, right - left)
                common.of(whole).copy_(
                    Window(top - window.top, left - window.left, bottom - top, right - left).of(value)
                )
            return whole

        for node, kind in self.kinds.items():
            if kind == "input":
                values[node] = patch
            elif isinstance(kind, Reach):
                values[node] = kind.run(piece(node.all_input_nodes[0], kind.needed(windows[node])))
            elif node.op == "output":
                return values[node.all_input_nodes[0]], values
            else:
                wanted = windows.get(node)

                def argument(source: fx.Node, wanted: Window | None = wanted) -> Any:
                    if source not in windows:
                        return values[source]
                    return piece(source, wanted or Window(0, 0, *self.sizes[source]))

                values[node] = self._call(node, fx.map_arg(node.args, argument), fx.map_arg(node.kwargs, argument))
        raise AssertionError("a graph without an output")

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
        reach = _reach(module)
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
        self.changed: tuple[dict[fx.Node, Window], dict[fx.Node, Tensor]] | None = None

    def logits(self) -> Tensor:
        """See `canvas.Canvas`."""
        return self.search.logits(self.images)

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `canvas.Canvas`."""
        place = Window(top, left, patch.shape[2], patch.shape[3])
        self.tried = (place, patch)
        if not self._small(max(place.height, place.width)):
            self.maps = self.changed = None
            images = self.images.clone()
            place.of(images).copy_(patch)
            return self.search.logits(images)
        with self.search.counted(len(patch)), torch.no_grad():
            if self.maps is None:
                self.maps = self.network.remember(self.images)
            windows = self.network.windows(place)
            logits, values = self.network.patched(self.maps, patch.clone(memory_format=torch.channels_last), windows)
        self.changed = (windows, values)
        return logits.float()

    def accept(self, which: Tensor) -> None:
        """See `canvas.Canvas`."""
        rows = which.nonzero().squeeze(1)
        place, patch = self.tried
        place.of(self.images)[rows] = patch[rows]
        if self.changed is None:
            return
        windows, values = self.changed
        assert self.maps is not None
        for node, feature_map in self.maps.items():
            windows[node].of(feature_map, self.network.margins[node])[rows] = values[node][rows]

    def keep(self, which: Tensor) -> None:
        """See `canvas.Canvas`."""
        self.images = self.images[which].contiguous(memory_format=torch.channels_last)
        if self.maps is not None:
            self.maps = {node: feature_map[which] for node, feature_map in self.maps.items()}
        self.changed = None

    def _small(self, side: int) -> bool:
        if side not in self.worth_it:
            self.worth_it[side] = self.network.share(side) < _WORTH_IT
        return self.worth_it[side]


def _reach(module: nn.Module | None) -> Reach | None:
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        kernel = tuple(d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True))

        def convolve(x: Tensor, layer: nn.Conv2d = module) -> Tensor:
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)

        return Reach(kernel, module.stride, module.padding, convolve, module.weight.numel())  # type: ignore[arg-type]
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d) and _pair(module.padding) == (0, 0) and not module.ceil_mode:
        if getattr(module, "dilation", 1) not in (1, (1, 1)) or getattr(module, "return_indices", False):
            return None
        return Reach(_pair(module.kernel_size), _pair(module.stride), (0, 0), module, 1)
    return None


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
