"""Finer features on small images: layers that halve the resolution keep it.

Networks that were published for images of 224×224 pixels halve them five times. Of 32×32 pixels that leaves a single
feature in each channel, and whatever the layers before it do at 2×2 and at 1×1 hardly depends on where things are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustill.core.contexts import evaluating
from robustill.core.errors import ModelError, first_line

_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def undo_strides(network: nn.Module, count: int, shape: tuple[int, int, int], name: str) -> None:
    """Set the stride of the first layers that reduce the resolution to 1; weights and their shapes stay.

    Layers that reduce the same resolution, as a strided convolution and its shortcut do, count as one.

    Args:
        network: changed in place.
        count: how many reductions are undone; each makes all later features twice as fine, and four times as many.
        shape: C, H and W of the images.
        name: of the network, for errors.

    Raises:
        ModelError: there are not so many, or the network fails without them.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.MaxPool2d(2))
        >>> undo_strides(network, 1, (3, 8, 8), "this one")
        >>> network(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """
    found: dict[Any, int] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found[layer] = max(inputs[0].shape[-2:])

    layers = [each for each in network.modules() if isinstance(each, _STRIDED)]
    hooks = [each.register_forward_pre_hook(note) for each in layers]
    try:
        _run(network, shape, name)
        for number in range(count):
            strided = {layer: size for layer, size in found.items() if _largest(layer.stride) > 1}
            if not strided:
                raise ModelError(f"{name} reduces the resolution {number} times only: undo_strides is {count}")
            for layer, size in strided.items():
                if size == max(strided.values()):
                    layer.stride = (1, 1) if isinstance(layer, nn.Conv2d) else 1
            _run(network, shape, name)
    finally:
        for hook in hooks:
            hook.remove()


def _largest(stride: Any) -> int:
    return int(stride if isinstance(stride, int) else max(stride))


@torch.no_grad()
def _run(network: nn.Module, shape: tuple[int, int, int], name: str) -> None:
    with evaluating(network):
        try:
            network(torch.zeros(1, *shape))
        except Exception as error:  # A network of somebody else's may raise anything.
            size = "×".join(str(each) for each in shape[1:])
            raise ModelError(
                f"{name} fails on images of {size} pixels with undo_strides ({first_line(error)}): leave it out"
            ) from None
