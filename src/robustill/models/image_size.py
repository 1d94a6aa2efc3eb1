"""Height and width, and what a convolution leaves of them."""

from __future__ import annotations

from robustill.errors import ModelError

ImageSize = int | tuple[int, int]
"""Pixels: one number for square images, or (height, width)."""


def map_size(image_size: ImageSize, *layers: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of the feature map after convolutions or poolings of (kernel, stride, padding).

    Raises:
        ModelError: nothing is left of the image.

    Example:
        >>> map_size(28, (5, 2, 2), (5, 2, 2))
        (7, 7)
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    left = [height, width]
    for kernel, stride, padding in layers:
        left = [(size + 2 * padding - kernel) // stride + 1 for size in left]
        if min(left) < 1:
            raise ModelError(
                f"images of {height}x{width} are too small for this network: nothing is left of them after its "
                "convolutions; choose a network with global pooling, such as resnet8"
            )
    return left[0], left[1]
