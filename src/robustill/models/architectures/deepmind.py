"""The two SiLU networks of Gowal et al. and Rebuffi et al., with the names of weights of their PyTorch checkpoints.

Convolutions of stride 2 pad as TensorFlow's SAME does: on an even image by one row below and one column to the right.
The shortcuts of the PreAct ResNet are 3x3 convolutions of the block's input before its BatchNorm. The checkpoints hold
their normalisation as `mean` and `std`, [C,1,1]; here it is `normalize.mean` and `normalize.std`, as in every network,
and `load_public_weights` renames it.

Reference: Gowal et al. 2020, "Uncovering the Limits of Adversarial Training"; Rebuffi et al. 2021.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robustill.acceleration.layers import global_average_pool
from robustill.models.architectures.wideresnet import blocks_per_stage
from robustill.models.layers import ImageSize, Normalize


def _conv3x3(in_width: int, width: int, stride: int) -> nn.Conv2d:
    """Return a 3x3 convolution; at stride 2 the caller pads its input, see `_pad_same`."""
    return nn.Conv2d(in_width, width, 3, stride=stride, padding=1 if stride == 1 else 0, bias=False)


def _pad_same(x: Tensor, stride: int) -> Tensor:
    """Pad the input of a 3x3 convolution of stride 2 as TensorFlow's SAME does."""
    if stride == 1:
        return x
    return F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))


class SiluWideBlock(nn.Module):
    """Twice BatchNorm, SiLU and a 3x3 convolution; a shortcut that changes the shape starts after the first SiLU."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(in_width)
        self.conv_0 = _conv3x3(in_width, width, stride)
        self.batchnorm_1 = nn.BatchNorm2d(width)
        self.conv_1 = _conv3x3(width, width, 1)
        self.has_shortcut = in_width != width or stride != 1
        if self.has_shortcut:
            self.shortcut = nn.Conv2d(in_width, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        out = F.silu(self.batchnorm_0(x))
        if self.has_shortcut:
            x = self.shortcut(out)
        out = F.silu(self.batchnorm_1(self.conv_0(_pad_same(out, self.stride))))
        return x + self.conv_1(out)  # type: ignore[no-any-return]


class SiluWideStage(nn.Module):
    """A sequence of blocks of one width, named `block`."""

    def __init__(self, num_blocks: int, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        rest = [SiluWideBlock(width, width, 1) for _ in range(num_blocks - 1)]
        self.block = nn.Sequential(SiluWideBlock(in_width, width, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        return self.block(x)  # type: ignore[no-any-return]


class SiluWideResNet(nn.Module):
    """Stem of 16 channels, three stages of 16, 32 and 64 times the width, BatchNorm, SiLU, pooling, linear."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        num_blocks = blocks_per_stage(depth, width)
        self.normalize = Normalize.identity(in_channels)
        self.init_conv = _conv3x3(in_channels, 16, 1)
        self.layer = nn.Sequential(
            SiluWideStage(num_blocks, 16, 16 * width, 1),
            SiluWideStage(num_blocks, 16 * width, 32 * width, 2),
            SiluWideStage(num_blocks, 32 * width, 64 * width, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        out = self.layer(self.init_conv(self.normalize(x)))
        return self.logits(global_average_pool(F.silu(self.batchnorm(out))))  # type: ignore[no-any-return]


class SiluPreActBlock(nn.Module):
    """Twice BatchNorm, SiLU and a 3x3 convolution; a shortcut that changes the shape is a 3x3 convolution of x."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(in_width)
        self.conv_2d_1 = _conv3x3(in_width, width, stride)
        self.batchnorm_1 = nn.BatchNorm2d(width)
        self.conv_2d_2 = _conv3x3(width, width, 1)
        self.has_shortcut = in_width != width or stride != 1
        if self.has_shortcut:
            self.shortcut = _conv3x3(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        out = self.conv_2d_1(_pad_same(F.silu(self.batchnorm_0(x)), self.stride))
        out = self.conv_2d_2(F.silu(self.batchnorm_1(out)))
        if self.has_shortcut:
            x = self.shortcut(_pad_same(x, self.stride))
        return x + out  # type: ignore[no-any-return]


class SiluPreActResNet(nn.Module):
    """Stem of 64 channels, four stages of two blocks, BatchNorm, SiLU, pooling, linear."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.normalize = Normalize.identity(in_channels)
        self.conv_2d = _conv3x3(in_channels, 64, 1)
        self.layer_0 = nn.Sequential(SiluPreActBlock(64, 64, 1), SiluPreActBlock(64, 64, 1))
        self.layer_1 = nn.Sequential(SiluPreActBlock(64, 128, 2), SiluPreActBlock(128, 128, 1))
        self.layer_2 = nn.Sequential(SiluPreActBlock(128, 256, 2), SiluPreActBlock(256, 256, 1))
        self.layer_3 = nn.Sequential(SiluPreActBlock(256, 512, 2), SiluPreActBlock(512, 512, 1))
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        out = self.conv_2d(self.normalize(x))
        out = self.layer_3(self.layer_2(self.layer_1(self.layer_0(out))))
        return self.logits(global_average_pool(F.silu(self.batchnorm(out))))  # type: ignore[no-any-return]


def wideresnet_silu(
    *, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32, depth: int = 28, width: int = 10
) -> SiluWideResNet:
    """WideResNet-depth-width, SiLU, DeepMind's layout; 36,479,194 parameters for WRN-28-10, 10 classes, RGB images.

    The networks WRN-28-10, WRN-70-16 and WRN-106-16 (Swish) of Gowal et al. and Rebuffi et al. have
    (depth, width) = (28, 10), (70, 16), (106, 16).
    """
    return SiluWideResNet(depth, width, num_classes, in_channels)


def preactresnet18_silu(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> SiluPreActResNet:
    """PreAct ResNet-18, SiLU, DeepMind's layout; 12,548,426 parameters for 10 classes of RGB images."""
    return SiluPreActResNet(num_classes, in_channels)
