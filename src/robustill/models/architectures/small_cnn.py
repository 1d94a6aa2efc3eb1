"""Small CNNs of robustness and verification papers, with the names of weights of their public checkpoints.

Each takes images of one `image_size` only: the last feature map is flattened, not pooled.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from robustill.models.layers import ImageSize, Normalize, feature_map_size


def normalized_sequential(in_channels: int, *layers: nn.Module) -> nn.Sequential:
    """Return a Sequential of normalisation and the layers, named 0, 1, 2 ... as in a Sequential of the layers alone."""
    named: OrderedDict[str, nn.Module] = OrderedDict(normalize=Normalize.identity(in_channels))
    named.update({str(number): layer for number, layer in enumerate(layers)})
    return nn.Sequential(named)


def cnn_a(
    *, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32, width: int = 16, padding: int = 1
) -> nn.Sequential:
    """CNN-A of the verification papers: two 4x4 convolutions of stride 2, then 100 and K units; 214,918 parameters.

    The variant "base" has width 8; the variants with "p0" in their name have padding 0.

    Args:
        num_classes: K.
        in_channels: C of the images.
        image_size: the only size of images that the network takes.
        width: channels of the first convolution; the second has twice as many.
        padding: of both convolutions.

    Reference: Wong et al. 2018, "Scaling provable adversarial defenses"; Dathathri et al. 2020.
    """
    height, columns = feature_map_size(image_size, (4, 2, padding), (4, 2, padding))
    return normalized_sequential(
        in_channels,
        nn.Conv2d(in_channels, width, 4, stride=2, padding=padding),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * height * columns, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )


def cnn_deep(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """Four convolutions of 8 channels, then 100 and K units: "deep" of the verification papers; 54,902 parameters.

    Reference: Lu and Kumar 2020, "Neural Network Branching for Neural Network Verification".
    """
    height, columns = feature_map_size(image_size, (4, 2, 1), (4, 2, 1))
    return normalized_sequential(
        in_channels,
        nn.Conv2d(in_channels, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * height * columns, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )


def madry_cnn_tiny(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """Two 5x5 convolutions of stride 2 (4 and 8 channels), then 128 and K units; 52,506 parameters on MNIST.

    A reduced form, without pooling, of the MNIST network of Madry et al. 2018.
    """
    height, columns = feature_map_size(image_size, (5, 2, 2), (5, 2, 2))
    return normalized_sequential(
        in_channels,
        nn.Conv2d(in_channels, 4, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(4, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * height * columns, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


class TradesSmallCNN(nn.Module):
    """Two pairs of 3x3 convolutions with max-pooling, then 200, 200 and K units, dropout after the first."""

    def __init__(self, num_classes: int, in_channels: int, image_size: ImageSize) -> None:
        super().__init__()
        height, columns = feature_map_size(image_size, (3, 1, 0), (3, 1, 0), (2, 2, 0), (3, 1, 0), (3, 1, 0), (2, 2, 0))
        self.normalize = Normalize.identity(in_channels)
        self.feature_extractor = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 32, 3),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, 3),
                relu2=nn.ReLU(),
                maxpool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, 3),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(64, 64, 3),
                relu4=nn.ReLU(),
                maxpool2=nn.MaxPool2d(2),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(64 * height * columns, 200),
                relu1=nn.ReLU(),
                drop=nn.Dropout(0.5),
                fc2=nn.Linear(200, 200),
                relu2=nn.ReLU(),
                fc3=nn.Linear(200, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1]."""
        return self.classifier(self.feature_extractor(self.normalize(x)).flatten(1))  # type: ignore[no-any-return]


def trades_smallcnn(*, num_classes: int, in_channels: int = 3, image_size: ImageSize = 32) -> TradesSmallCNN:
    """The MNIST network of TRADES: four 3x3 convolutions, three linear layers, dropout; 312,202 parameters on MNIST.

    Reference: Zhang et al. 2019, "Theoretically Principled Trade-off between Robustness and Accuracy".
    """
    return TradesSmallCNN(num_classes, in_channels, image_size)
