"""Networks that guess: the normalisation of their images that would mend it is named."""

import re

import pytest
import torch
from torch import nn

from robustill.config.schema import make_config
from robustill.core.chance import is_near_chance
from robustill.data.images import ImageDataset
from robustill.models.layers import Normalize
from robustill.models.normalisation import accuracy_warnings

CPU = torch.device("cpu")
DRAWS = torch.Generator().manual_seed(0)
# The classes are levels of grey.
CENTRES = (torch.arange(16.0) / 15).view(16, 1, 1, 1).expand(16, 3, 4, 4)
LABELS = torch.arange(128) % 16
IMAGES = (255 * (CENTRES[LABELS] + 0.003 * torch.randn(128, 3, 4, 4, generator=DRAWS)).clamp(0, 1)).to(torch.uint8)


def data(name="npz"):
    return ImageDataset(name=name, split="test", images=IMAGES, labels=LABELS, classes=tuple("abcdefghijklmnop"))


class Nearest(nn.Module):
    """The nearest of sixteen images, each normalised; as if it had been trained on such images."""

    def __init__(self, mean, std, inside=False):
        super().__init__()
        self.normalize = Normalize(mean, std) if inside else Normalize.identity(3)
        self.centres = Normalize(mean, std)(CENTRES).flatten(1)

    def forward(self, x):
        return -torch.cdist(self.normalize(x).flatten(1), self.centres)


@pytest.mark.parametrize(
    ("name", "mean", "std", "text"),
    [
        ("svhn", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), "--model.mean [0.4377, 0.4438, 0.4728] "),
        ("npz", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "--model.std ["),
        ("npz", (0.0,) * 3, (1 / 255,) * 3, "--model.std [0.0039216, 0.0039216, 0.0039216]"),
    ],
)
def test_a_missing_normalisation_is_named(name, mean, std, text):
    (line,) = accuracy_warnings(Nearest(mean, std), data(name), "the model", CPU)
    assert "\n" not in line
    assert "no better than guessing among 16 classes" in line
    assert text in line
    assert float(re.search(r"gives (\S+) on them", line)[1]) > 0.9


def test_a_network_with_its_normalisation_has_no_warning():
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    assert accuracy_warnings(Nearest(mean, std, inside=True), data("svhn"), "the model", CPU) == []


def test_the_networks_own_wrong_normalisation_is_replaced():
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    network = Nearest(mean, std)
    network.normalize = Normalize([5.0] * 3, [0.1] * 3)
    (line,) = accuracy_warnings(network, data("svhn"), "the model", CPU)
    assert "--model.mean [0.4377, 0.4438, 0.4728] --model.std [0.198, 0.201, 0.197]" in line


def test_an_untrained_network_is_said_to_guess():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 16))
    nn.init.zeros_(network[1].weight)
    (line,) = accuracy_warnings(network, data(), "teacher t", CPU)
    assert line.startswith(
        "teacher t is no better than guessing among 16 classes: right on .062 of 64 images; look for"
    )


def test_what_is_near_chance():
    assert is_near_chance(36, 200, 10)
    assert not is_near_chance(60, 200, 10)
    assert is_near_chance(110, 200, 2)
    assert not is_near_chance(160, 200, 2)
    assert not is_near_chance(20, 200, 100)


@pytest.mark.parametrize("given", [".49,.48,.45", "0.49, 0.48, 0.45", "(.49,.48,.45)", [0.49, 0.48, 0.45]])
def test_mean_and_std_may_lack_their_brackets(given):
    model = make_config({"model": {"name": "resnet8", "mean": given, "std": given}, "data": {"name": "svhn"}}).model
    assert model.mean == model.std == (0.49, 0.48, 0.45)
