"""The twin of an ONNX file in torch: the same operators, with a gradient that passes straight through each rounding.

An int8 file rounds its activations, whose gradient is zero almost everywhere. Its twin computes the same numbers, and
takes the gradient of x for that of round(x) inside the range of a quantisation, and zero outside. There is a twin of
files whose operators are those of ordinary networks for images; of others there is none.

Reference: Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons"; Jacob et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.core.randomness import generator
from robustill.models.onnx_file import OnnxNetwork

_TOLERANCE = 0.3
"""Of the twin's logits, relative to the file's, by their norms over all images.

In a deep network a few roundings to the other side change those that follow, and the logits may be rounded themselves.
An operator that is misunderstood changes them by more; what is misclassified the file decides anyway.
"""
_NUM_COMPARED = 32
_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}

Attributes = Mapping[str, Any]


class OnnxTwin(nn.Module):
    """The operators of an ONNX model as those of torch.

    Args:
        network: the file.

    Raises:
        KeyError: an operator that is not known here.
        ValueError: an operator with an option that is not known here.
    """

    def __init__(self, network: OnnxNetwork) -> None:
        super().__init__()
        import onnx

        model = onnx.load_model_from_string(network.model.content)
        self.normalize = network.normalize
        self.batch_size = network.model.batch_size
        self.constants: dict[str, str] = {}
        for each in model.graph.initializer:
            self._keep(each.name, onnx.numpy_helper.to_array(each))
        self.steps: list[tuple[Operator, list[str], str, dict[str, Any]]] = []
        quantised: dict[str, list[str]] = {}
        for node in model.graph.node:
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], onnx.numpy_helper.to_array(attributes["value"]))
                continue
            if node.domain not in ("", "ai.onnx") or len([name for name in node.output if name]) != 1:
                raise KeyError(node.op_type)
            operator, inputs, output = _OPERATORS[node.op_type], list(node.input), node.output[0]
            if self.constants.keys() >= {name for name in inputs if name}:
                # Such as weights that are stored as integers.
                self._keep(output, operator([self._constant(name) for name in inputs], attributes))
                continue
            if operator is _quantise and all(self._is_scalar(name) for name in inputs[1:]):
                quantised[output] = inputs
            if operator is _dequantise and quantised.get(inputs[0], [""])[1:] == inputs[1:]:
                # Both at once take a third of the time.
                operator, inputs = _round, quantised[inputs[0]]
            self.steps.append((operator, inputs, output, attributes))
        self.input_name, self.output_name = network.input_name, model.graph.output[0].name
        used = {self.output_name, *(name for _, inputs, _, _ in self.steps for name in inputs)}
        self.steps = [step for step in self.steps if step[2] in used]

    def _keep(self, name: str, array: Any) -> None:
        """Store a constant as a buffer, whose name may have no dots."""
        self.constants[name] = f"constant{len(self.constants)}"
        self.register_buffer(self.constants[name], array.clone() if isinstance(array, Tensor) else torch.tensor(array))

    def _constant(self, name: str) -> Any:
        return getattr(self, self.constants[name]) if name else None

    def _is_scalar(self, name: str) -> bool:
        """Return whether an input is one constant number, or left out."""
        return not name or (name in self.constants and self._constant(name).numel() == 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1], with a gradient."""
        values: dict[str, Any] = {name: getattr(self, buffer) for name, buffer in self.constants.items()}
        values[self.input_name] = x if self.normalize is None else self.normalize(x)
        for operator, inputs, output, attributes in self.steps:
            given = [values[name] if name else None for name in inputs]
            if operator is _reshape and self.batch_size is not None:
                # A file of one batch size may have it among its constants.
                given[1] = _any_batch_size(values[inputs[1]], self.batch_size)
            values[output] = operator(given, attributes)
        logits: Tensor = values[self.output_name]
        return logits


def build_twin(network: OnnxNetwork, image_shape: tuple[int, int, int]) -> OnnxTwin | None:
    """Return the twin of a file; None where it has operators that are not known here, or the twin has other logits.

    Args:
        network: the file.
        image_shape: C, H and W.
    """
    x = torch.rand(_NUM_COMPARED, *image_shape, generator=generator(0, "twin"))
    try:
        twin = OnnxTwin(network).eval().requires_grad_(False)
        leaf = x.clone().requires_grad_(True)
        with torch.enable_grad():
            logits = twin(leaf)
            (gradient,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), leaf)
    except Exception:  # A file may hold any graph: of one that is not understood there is no twin.
        return None
    expected = network(x)
    if logits.shape != expected.shape or not bool(gradient.isfinite().all()):
        return None
    # What all classes share decides nothing.
    found, wanted = (each - each.mean(dim=1, keepdim=True) for each in (logits.detach(), expected))
    return twin if float((found - wanted).norm()) <= _TOLERANCE * float(wanted.norm()) else None


Operator = Callable[[list[Any], Attributes], Tensor]


def _any_batch_size(sizes: Tensor, batch_size: int) -> Tensor:
    if int(sizes[0]) != batch_size:
        return sizes
    others = sizes.clone()
    others[0] = 0 if bool((sizes[1:] == -1).any()) else -1
    return others


def _quantise(given: list[Any], attributes: Attributes) -> Tensor:
    """Round to the integers of a type, with the gradient of x inside their range."""
    x, scale, *zero = given
    zero_point = zero[0] if zero and zero[0] is not None else torch.zeros((), dtype=torch.uint8)
    low, high = _RANGES[zero_point.dtype]
    axis = int(attributes.get("axis", 1))
    levels: Tensor = x / _along(scale, axis, x)
    rounded = levels + (levels.round() - levels).detach()
    levels = (rounded + _along(zero_point, axis, x).float()).clamp(low, high)
    return levels


def _dequantise(given: list[Any], attributes: Attributes) -> Tensor:
    x, scale, *zero = given
    axis = int(attributes.get("axis", 1))
    shift = _along(zero[0], axis, x).float() if zero and zero[0] is not None else 0.0
    values: Tensor = (x.float() - shift) * _along(scale, axis, x)
    return values


class _Rounding(torch.autograd.Function):
    """Round to the integers of a range and back, with the gradient of x inside it; in a third of the operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, low: int, high: int) -> Tensor:
        levels = (x / scale).round_()
        ctx.save_for_backward(levels)
        ctx.range = low, high
        return levels.clamp(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (levels,) = ctx.saved_tensors
        low, high = ctx.range
        # This is zero at the ends of its range, which are no levels. A comparison and a product take four times longer.
        return torch.ops.aten.hardtanh_backward(gradient, levels, low - 0.5, high + 0.5), None, None, None


def _round(given: list[Any], attributes: Attributes) -> Tensor:
    """Quantise and dequantise with one scale."""
    x, scale, *zero = given
    zero_point = zero[0] if zero and zero[0] is not None else torch.zeros((), dtype=torch.uint8)
    low, high = (bound - int(zero_point) for bound in _RANGES[zero_point.dtype])
    rounded: Tensor = _Rounding.apply(x, float(scale), low, high)  # type: ignore[no-untyped-call]
    return rounded


def _along(value: Tensor, axis: int, x: Tensor) -> Tensor:
    """Return one value, or one for each index of an axis, in a shape that is multiplied with x."""
    if value.numel() == 1:
        return value.reshape(())
    return value.reshape([-1 if each == axis % x.ndim else 1 for each in range(x.ndim)])


def _convolve(given: list[Any], attributes: Attributes) -> Tensor:
    x, weight, *bias = given
    pads, strides, dilations = _window(attributes)
    left, right, top, bottom = pads
    padding = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, pads), (0, 0)
    groups = int(attributes.get("group", 1))
    return F.conv2d(x, weight, bias[0] if bias else None, strides, padding, dilations, groups)


def _window(attributes: Attributes) -> tuple[list[int], list[int], list[int]]:
    """Return padding in the order of torch, strides and dilations of a convolution or a pooling of images."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or attributes.get("ceil_mode", 0):
        raise ValueError("padding that depends on the size")
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return (
        [left, right, top, bottom],
        list(attributes.get("strides", [1, 1])),
        list(attributes.get("dilations", [1, 1])),
    )


def _max_pool(given: list[Any], attributes: Attributes) -> Tensor:
    pads, strides, dilations = _window(attributes)
    x = F.pad(given[0], pads, value=-torch.inf)
    return F.max_pool2d(x, list(attributes["kernel_shape"]), strides, 0, dilations)


def _average_pool(given: list[Any], attributes: Attributes) -> Tensor:
    pads, strides, _ = _window(attributes)
    if any(pads) and not attributes.get("count_include_pad", 0):
        raise ValueError("an average that leaves the padding out")
    return F.avg_pool2d(F.pad(given[0], pads), list(attributes["kernel_shape"]), strides)


def _multiply_matrices(given: list[Any], attributes: Attributes) -> Tensor:
    a, b, *c = given
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product if not c or c[0] is None else product + attributes.get("beta", 1.0) * c[0]


def _batch_norm(given: list[Any], attributes: Attributes) -> Tensor:
    x, weight, bias, mean, variance = given
    return F.batch_norm(x, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _clip(given: list[Any], attributes: Attributes) -> Tensor:
    x, *bounds = given
    low, high = [*bounds, None, None][:2]
    return torch.clamp(x, attributes.get("min", low), attributes.get("max", high))


def _reshape(given: list[Any], attributes: Attributes) -> Tensor:
    x, sizes = given
    return x.reshape([x.shape[n] if each == 0 else each for n, each in enumerate(sizes.tolist())])  # type: ignore[no-any-return]


def _mean(given: list[Any], attributes: Attributes) -> Tensor:
    x, *axes = given
    dims = axes[0].tolist() if axes else attributes["axes"]
    return x.mean(dim=list(dims), keepdim=bool(attributes.get("keepdims", 1)))  # type: ignore[no-any-return]


def _hard_sigmoid(given: list[Any], attributes: Attributes) -> Tensor:
    return (attributes.get("alpha", 0.2) * given[0] + attributes.get("beta", 0.5)).clamp(0, 1)  # type: ignore[no-any-return]


_OPERATORS: dict[str, Operator] = {
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "Conv": _convolve,
    "Gemm": _multiply_matrices,
    "MatMul": _multiply_matrices,
    "BatchNormalization": _batch_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda given, _: given[0].mean(dim=(2, 3), keepdim=True),
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Flatten": lambda given, attributes: given[0].flatten(_flat_axis(attributes)),
    "Transpose": lambda given, attributes: given[0].permute(*attributes["perm"]),
    "Identity": lambda given, _: given[0],
    "Add": lambda given, _: given[0] + given[1],
    "Sub": lambda given, _: given[0] - given[1],
    "Mul": lambda given, _: given[0] * given[1],
    "Div": lambda given, _: given[0] / given[1],
    "Relu": lambda given, _: given[0].relu(),
    "LeakyRelu": lambda given, attributes: F.leaky_relu(given[0], attributes.get("alpha", 0.01)),
    "Sigmoid": lambda given, _: given[0].sigmoid(),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda given, _: F.hardswish(given[0]),
    "Clip": _clip,
    "Concat": lambda given, attributes: torch.cat(given, dim=attributes["axis"]),
}


def _flat_axis(attributes: Attributes) -> int:
    axis = int(attributes.get("axis", 1))
    if axis != 1:
        raise ValueError("a flattening of the batch")
    return axis
