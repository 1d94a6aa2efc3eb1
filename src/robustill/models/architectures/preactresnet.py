"""Pre-activation ResNet-18, the network of the literature on single-step training and robust overfitting.

The names of the weights: conv1, layer1.0.bn1, layer1.0.conv1, layer2.0.shortcut.0, bn, linear.
Reference: He et al. 2016, "Identity Mappings in Deep Residual Networks".
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robustill.acceleration.layers import global_average_pool
from robustill.models.layers import ImageSize, Normalize


class PreActBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution, and a shortcut."""

    def __init__(self, in_width: int, width: int, stride: int, activated_shortcut: bool) -> None:
        super().__init__()
        self.activated_shortcut = activated_shortcut
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.has_shortcut = stride != 1 or in_width != width
        if self.has_shortcut:
            self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        out = F.relu(self.bn1(x))
        if self.has_shortcut:
            x = self.shortcut(out if self.activated_shortcut else x)
        return x + self.conv2(F.relu(self.bn2(self.conv1(out))))  # type: ignore[no-any-return]


class PreActResNet(nn.Module):
    """Stem, four stages of two pre-activation blocks, final BatchNorm and ReLU, pooling, linear."""

    def __init__(self, num_classes: int, in_channels: int, final_bn: bool, activated_shortcut: bool) -> None:
        super().__init__()
        self.normalize = Normalize.identity(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = _stage(64, 64, 1, activated_shortcut)
        self.layer2 = _stage(64, 128, 2, activated_shortcut)
        self.layer3 = _stage(128, 256, 2, activated_shortcut)
        self.layer4 = _stage(256, 512, 2, activated_shortcut)
        self.final_bn = final_bn
        if final_bn:
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        if self.final_bn:
            out = F.relu(self.bn(out))
        return self.linear(global_average_pool(out))  # type: ignore[no-any-return]


def _stage(in_width: int, width: int, stride: int, activated_shortcut: bool) -> nn.Sequential:
    return nn.Sequential(
        PreActBlock(in_width, width, stride, activated_shortcut), PreActBlock(width, width, 1, activated_shortcut)
    )


def preactresnet18(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    final_bn: bool = True,
    activated_shortcut: bool = True,
) -> PreActResNet:
    """PreAct ResNet-18, ReLU, CIFAR stem; 11,172,170 parameters for 10 classes of RGB images.

    Three variants are in use, and a file does not state which shortcut it was trained with: in robust overfitting (Rice
    et al. 2020) both options are true; in the code of Fast-AT (Wong et al. 2020) activated_shortcut is false; in the
    Fast-AT network of RobustBench both are false (11,171,146 parameters).

    Args:
        num_classes: K.
        in_channels: C of the images.
        image_size: any size, as pooling is global.
        final_bn: whether BatchNorm and ReLU come before the pooling.
        activated_shortcut: whether bn1 and ReLU come before the shortcut of a block that changes the shape, too.
    """
    return PreActResNet(num_classes, in_channels, final_bn, activated_shortcut)
