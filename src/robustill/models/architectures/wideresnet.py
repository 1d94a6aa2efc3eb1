"""WideResNet with the names of weights of TRADES: conv1, block1.layer.0.bn1, block1.layer.0.convShortcut, bn1, fc.

Reference: Zagoruyko and Komodakis 2016, "Wide Residual Networks"; Zhang et al. 2019 (TRADES).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robustill.acceleration.layers import global_average_pool
from robustill.core.errors import ModelError
from robustill.models.layers import ImageSize, Normalize


class WideBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution; a shortcut that changes the shape starts after the first ReLU."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.changes_shape = in_width != width or stride != 1
        if self.changes_shape:
            self.convShortcut = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        out = F.relu(self.bn1(x))
        if self.changes_shape:
            x = self.convShortcut(out)
        return x + self.conv2(F.relu(self.bn2(self.conv1(out))))  # type: ignore[no-any-return]


class WideStage(nn.Module):
    """A sequence of blocks of one width, named `layer`."""

    def __init__(self, num_blocks: int, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(width, width, 1) for _ in range(num_blocks - 1)]
        self.layer = nn.Sequential(WideBlock(in_width, width, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        return self.layer(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Stem of 16 channels, three stages of 16, 32 and 64 times the width, BatchNorm, ReLU, pooling, linear."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int, sub_block1: bool) -> None:
        super().__init__()
        num_blocks = blocks_per_stage(depth, width)
        self.normalize = Normalize.identity(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(num_blocks, 16, 16 * width, 1)
        if sub_block1:
            self.sub_block1 = WideStage(num_blocks, 16, 16 * width, 1).requires_grad_(False)
        self.block2 = WideStage(num_blocks, 16 * width, 32 * width, 2)
        self.block3 = WideStage(num_blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        out = self.conv1(self.normalize(x))
        out = self.block3(self.block2(self.block1(out)))
        return self.fc(global_average_pool(F.relu(self.bn1(out))))  # type: ignore[no-any-return]


def blocks_per_stage(depth: int, width: int) -> int:
    """Return the number of blocks in each of the three stages: a block has two convolutions, and 4 more layers count.

    Raises:
        ModelError: a depth that is not 6n + 4, or a width below 1.

    Example:
        >>> blocks_per_stage(28, 10)
        4
    """
    if depth < 10 or (depth - 4) % 6:
        raise ModelError(f"a WideResNet of depth {depth} does not exist; expected 6n + 4: 10, 16, 22, 28, 34, 40, 70")
    if width < 1:
        raise ModelError(f"a WideResNet of width {width} has no channels; expected 1 or more")
    return (depth - 4) // 6


def wideresnet(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    depth: int = 28,
    width: int = 10,
    sub_block1: bool = False,
) -> WideResNet:
    """WideResNet-depth-width, ReLU; 36,479,194 parameters for WRN-28-10, 10 classes, RGB images.

    Args:
        num_classes: K.
        in_channels: C of the images.
        image_size: any size, as pooling is global.
        depth: 6n + 4.
        width: factor on 16, 32 and 64 channels.
        sub_block1: whether to add the frozen stage that TRADES checkpoints contain and no forward pass uses.
    """
    return WideResNet(depth, width, num_classes, in_channels, sub_block1)
