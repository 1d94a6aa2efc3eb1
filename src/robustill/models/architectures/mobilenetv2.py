"""MobileNetV2 for small images: the stem and the first stages keep the resolution, ReLU instead of ReLU6.

The names of the weights are those of the CIFAR networks in wide use: conv1, bn1, layers.0.conv1, layers.0.shortcut.0,
conv2, bn2, linear. Reference: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks".
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robustill.acceleration.layers import global_average_pool
from robustill.core.errors import ModelError
from robustill.models.layers import ImageSize, Normalize

# (expansion, channels, blocks, stride) of the paper's table 2; the second row has stride 1 for images of 32x32.
_STAGES = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; at stride 1 a shortcut, 1x1 if the number of channels changes."""

    def __init__(self, in_width: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_width
        self.stride = stride
        self.conv1 = nn.Conv2d(in_width, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride == 1 and in_width != width:
            self.shortcut.append(nn.Conv2d(in_width, width, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.stride == 1 else out  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """Stem, seventeen inverted residuals, a 1x1 convolution, pooling, linear."""

    def __init__(self, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        stem = _scaled_channels(32, width)
        last = max(1280, _scaled_channels(1280, width))
        self.normalize = Normalize.identity(in_channels)
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        blocks = []
        in_width = stem
        for expansion, channels, num_blocks, stride in _STAGES:
            for block in range(num_blocks):
                out_width = _scaled_channels(channels, width)
                blocks.append(InvertedResidual(in_width, out_width, expansion, stride if block == 0 else 1))
                in_width = out_width
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(in_width, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        out = self.layers(F.relu(self.bn1(self.conv1(self.normalize(x)))))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(global_average_pool(out))  # type: ignore[no-any-return]


def _scaled_channels(channels: int, width: float) -> int:
    """Return channels · width rounded to a multiple of 8, at least 8 and at least nine tenths of the product."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


def mobilenetv2(
    *, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32, width: float = 1.0
) -> MobileNetV2:
    """MobileNetV2 with the CIFAR stem; 2,296,922 parameters for 10 classes of RGB images.

    Args:
        num_classes: K.
        in_channels: C of the images.
        image_size: any size, as pooling is global.
        width: factor on all channels, rounded to multiples of 8; the last convolution has at least 1280.
    """
    if width <= 0:
        raise ModelError(f"mobilenetv2 of width {width} has no channels; expected a positive factor, such as 0.5")
    return MobileNetV2(num_classes, in_channels, width)
