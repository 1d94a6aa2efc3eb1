"""Residual networks of the verification papers: a stem of stride 2, k blocks, linear layers of 100 and K units.

Each takes images of one `image_size` only: the last feature map is flattened, not pooled.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robustill.models.architectures.small_cnn import normalized_sequential
from robustill.models.layers import ImageSize, Normalize, feature_map_size


class BiasedBlock(nn.Module):
    """Two 3x3 convolutions with bias, without BatchNorm, and a shortcut; ReLU after the sum."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_width != width:
            self.shortcut.append(nn.Conv2d(in_width, width, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet2B(nn.Module):
    """A stem of 8 channels and one stage of two blocks of 16 channels, without BatchNorm."""

    def __init__(self, num_classes: int, in_channels: int, image_size: ImageSize) -> None:
        super().__init__()
        height, columns = feature_map_size(image_size, (3, 2, 1), (3, 2, 1))
        self.normalize = Normalize.identity(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BiasedBlock(8, 16, 2), BiasedBlock(16, 16, 1))
        self.linear1 = nn.Linear(16 * height * columns, 100)
        self.linear2 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        out = self.layer1(F.relu(self.conv1(self.normalize(x))))
        return self.linear2(F.relu(self.linear1(out.flatten(1))))  # type: ignore[no-any-return]


class TwoPathBlock(nn.Module):
    """The sum of path_b, two 3x3 convolutions, and path_a, one 1x1 convolution, with BatchNorm; ReLU after the sum."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.path_b = nn.Sequential(
            nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        # In the checkpoints the layers of path_a are numbered from 1, after an identity.
        self.path_a = nn.Sequential(
            nn.Identity(), nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B,in_width,H,W] to [B,width,H/stride,W/stride], rounded up."""
        return F.relu(self.path_b(x) + self.path_a(x))


def resnet_2b(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> ResNet2B:
    """ResNet-2B of the verification competition: two blocks of 16 channels, no BatchNorm; 112,006 parameters.

    Reference: Wang et al. 2021, "Beta-CROWN".
    """
    return ResNet2B(num_classes, in_channels, image_size)


def resnet_2b2(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-2B with BatchNorm, blocks of 32 and 64 channels at stride 2; 176,230 parameters.

    Reference: Ferrari et al. 2022, "Complete Verification via Multi-Neuron Relaxation Guided Branch-and-Bound".
    """
    height, columns = feature_map_size(image_size, (3, 2, 1), (3, 2, 1), (3, 2, 1))
    return normalized_sequential(
        in_channels,
        nn.Conv2d(in_channels, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Sequential(TwoPathBlock(16, 32, 2)),
        nn.Sequential(TwoPathBlock(32, 64, 2)),
        nn.Flatten(),
        nn.Linear(64 * height * columns, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
