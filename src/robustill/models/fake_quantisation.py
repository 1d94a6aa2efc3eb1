"""Convolutions and linear layers that round as an int8 file does, so that a network is trained for its export.

The weight is rounded to 255 levels for each output channel and the input of the layer to 256 levels, with a
straight-through gradient. A BatchNorm after the layer multiplies each of its output channels by a number, which a scale
for each channel absorbs: folding it before the export changes no rounding.

Reference: Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only
inference".
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RANGE = "input_range"
"""The name of the buffer with the lowest and highest input of a layer; nan before the first batch in train mode."""
_MOMENTUM = 0.05
_LEVELS = 255
_WEIGHT_LEVELS = 127


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution of a rounded input with a rounded weight; the bias stays as it is.

    The lowest and highest input are a moving average over the batches in train mode, as BatchNorm's statistics are.
    """

    input_range: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B,C,H,W] to [B,C',H',W']."""
        convolved: Tensor = self._conv_forward(_round_input(self, x), _round_weight(self.weight), self.bias)
        return convolved


class FakeQuantizedLinear(nn.Linear):
    """A linear layer of a rounded input and a rounded weight; the bias stays as it is. See `FakeQuantizedConv2d`."""

    input_range: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., C']."""
        return F.linear(_round_input(self, x), _round_weight(self.weight), self.bias)


_FAKE: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: FakeQuantizedConv2d, nn.Linear: FakeQuantizedLinear}
_REAL = {fake: real for real, fake in _FAKE.items()}


def fake_quantise(network: nn.Module) -> nn.Module:
    """Let every convolution and linear layer of a network round as an int8 file does, in place; return the network.

    Layers of other classes, such as a subclass of the user's, stay as they are.
    """
    for layer in network.modules():
        if type(layer) in _FAKE:
            layer.__class__ = _FAKE[type(layer)]
            weight = next(layer.parameters(recurse=False))
            layer.register_buffer(RANGE, torch.full((2,), float("nan"), device=weight.device))
    return network


def is_fake_quantised(network: nn.Module) -> bool:
    """Return whether a layer of a network rounds."""
    return any(type(layer) in _REAL for layer in network.modules())


def float_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose layers do not round, as it is exported."""
    copied = copy.deepcopy(network)
    for layer in copied.modules():
        if type(layer) in _REAL:
            layer.__class__ = _REAL[type(layer)]
            del layer._buffers[RANGE]
    return copied


def _round_weight(weight: Tensor) -> Tensor:
    """Round to multiples of max|w|/127 of each output channel."""
    largest = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-12).float()
    zeros = torch.zeros_like(largest, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        weight, largest / _WEIGHT_LEVELS, zeros, axis=0, quant_min=-_WEIGHT_LEVELS, quant_max=_WEIGHT_LEVELS
    )


def _round_input(layer: FakeQuantizedConv2d | FakeQuantizedLinear, x: Tensor) -> Tensor:
    """Round to 256 levels between the lowest and the highest input, both of which may be 0 at least."""
    if layer.training:
        with torch.no_grad():
            low, high = torch.aminmax(x.detach().float())
            here = torch.stack([low.clamp(max=0.0), high.clamp(min=0.0)])
            known = torch.where(layer.input_range.isnan(), here, layer.input_range)
            # In place, as BatchNorm's statistics are, so that copies of the buffers follow.
            layer.input_range.copy_(known + _MOMENTUM * (here - known))
    if bool(layer.input_range.isnan().any()):
        return x
    low, high = layer.input_range
    scale = ((high - low) / _LEVELS).clamp(min=1e-12)
    zero_point = (-low / scale).round().clamp(0, _LEVELS).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, 0, _LEVELS).to(x.dtype)
