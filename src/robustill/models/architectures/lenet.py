"""LeNet-5 with padded convolutions, for images of 8x8 pixels and more."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from robustill.models.layers import ImageSize, Normalize, feature_map_size


def lenet(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """Two 5x5 convolutions (6 and 16 channels), each with ReLU and 2x2 max-pooling; then 120, 84 and K units.

    Both convolutions are padded by 2, so that 8x8 images are large enough; the network takes images of one
    `image_size` only.

    Reference: LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    """
    height, width = feature_map_size(image_size, (2, 2, 0), (2, 2, 0))
    return nn.Sequential(
        OrderedDict(
            normalize=Normalize.identity(in_channels),
            conv1=nn.Conv2d(in_channels, 6, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * height * width, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, num_classes),
        )
    )
