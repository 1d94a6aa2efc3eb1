"""Residual networks for small images: a 3x3 stem of stride 1, no max-pooling.

The names of the weights are those of the CIFAR ResNets in wide use: conv1, bn1, layer1.0.conv1, layer2.0.shortcut.0,
linear. Reference: He et al. 2015, "Deep Residual Learning for Image Recognition".
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from robustill.acceleration.layers import global_average_pool
from robustill.models.layers import ImageSize, Normalize


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut; ReLU after the sum."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_width != width:
            self.shortcut.append(nn.Conv2d(in_width, width, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of basic blocks (the first keeps the resolution, each further one halves it), pooling, linear.

    Args:
        widths: channels of each stage; the stem has as many as the first stage.
        num_blocks: blocks in each stage.
        num_classes: K.
        in_channels: C of the images.
    """

    def __init__(self, widths: Sequence[int], num_blocks: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.normalize = Normalize.identity(in_channels)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.num_stages = len(widths)
        in_width = widths[0]
        for stage, (width, blocks) in enumerate(zip(widths, num_blocks, strict=True), start=1):
            first = BasicBlock(in_width, width, stride=1 if stage == 1 else 2)
            rest = [BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            in_width = width
        self.linear = nn.Linear(in_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        out = F.relu(self.bn1(self.conv1(self.normalize(x))))
        for stage in range(1, self.num_stages + 1):
            out = self.get_submodule(f"layer{stage}")(out)
        return self.linear(global_average_pool(out))  # type: ignore[no-any-return]


def resnet18(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32, width: int = 64) -> ResNet:
    """ResNet-18 with the CIFAR stem; 11,173,962 parameters for 10 classes of RGB images.

    Its stages have width, 2·width, 4·width and 8·width channels: 701,466 parameters at width 16, 2,797,610 at 32.
    """
    return ResNet([width, 2 * width, 4 * width, 8 * width], [2, 2, 2, 2], num_classes, in_channels)


def resnet34(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> ResNet:
    """ResNet-34 with the CIFAR stem; 21,282,122 parameters for 10 classes of RGB images."""
    return ResNet([64, 128, 256, 512], [3, 4, 6, 3], num_classes, in_channels)


def resnet8(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32, width: int = 16) -> ResNet:
    """Three stages of one basic block, of width, 2·width and 4·width channels: 78,042 parameters at width 16.

    It takes images of 8x8 pixels and more.
    """
    return ResNet([width, 2 * width, 4 * width], [1, 1, 1], num_classes, in_channels)
