"""timm and Hugging Face folders, with stand-ins for packages that need not be here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustill.core.errors import RobustillError
from robustill.models.loading import Shape, build_network, load_network
from robustill.models.weights import file_sha256, tensors_sha256

CIFAR10 = Shape(num_classes=10, in_channels=3, image_size=(32, 32))
SMALL = Shape(num_classes=4, in_channels=3, image_size=(8, 8))


class Net(nn.Module):
    """As timm's: knows its classes and how it was published."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.head = nn.Linear(3, num_classes)
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.4), "input_size": (3, 16, 16)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3) -> Net:
        torch.manual_seed(int(pretrained))
        return Net(num_classes)

    stand_in = SimpleNamespace(
        is_model=lambda name: name == "resnet18", list_models=lambda: ["resnet18", "vit"], create_model=create_model
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)


def refused(spec: str, match: str, shape: Shape = CIFAR10, **more: Any) -> None:
    with pytest.raises(RobustillError, match=match) as caught:
        load_network(spec, shape=shape, **more)
    assert "\n" not in str(caught.value)


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("timm:resnet18", r"timm cannot be imported .*: pip install 'robustill\[vision\]'")


@pytest.mark.usefixtures("timm")
def test_timm_from_a_file(tmp_path: Path) -> None:
    published = Net(10)
    torch.save({"state_dict": published.state_dict()}, tmp_path / "w.pth")
    network = load_network(f"timm:resnet18={tmp_path / 'w.pth'}", shape=CIFAR10, image_size=16)
    assert network.sha256 == file_sha256(tmp_path / "w.pth")
    assert network.architecture == "timm resnet18"
    x = torch.full((2, 3, 32, 32), 0.6)
    cfg = published.pretrained_cfg
    expected = published.head((x[:, :, 0, 0] - torch.tensor(cfg["mean"])) / torch.tensor(cfg["std"]))
    torch.testing.assert_close(network.module(x), expected)
    refused(f"timm:resnet18={tmp_path / 'w.pth'}", "of another shape", SMALL)
    refused(f"timm:resnet18={tmp_path / 'none.pth'}", "none.pth: No such file")
    refused(f"timm:resnet18={tmp_path / 'w.pth'}", "expected 0000", sha256="0" * 64)


@pytest.mark.usefixtures("timm")
def test_timm_from_the_network_only_when_asked_and_for_its_own_classes() -> None:
    refused("timm:resnet18", r"has no weights here: give timm:resnet18=FILE, or download: true")
    refused("timm:resnet18", "published for 1000 classes; here are 10", download=True)
    refused("timm:resnet81", "timm:resnet81 is unknown: did you mean resnet18")
    refused("timm:nothing", "is unknown: 2 are known")
    refused("timm:resnet18", "3 channels; here are 1", Shape(num_classes=1000, in_channels=1, image_size=(8, 8)))
    imagenet = Shape(num_classes=1000, in_channels=3, image_size=(16, 16))
    network = load_network("timm:resnet18", shape=imagenet, download=True)
    assert network.trained == "timm, at 16 pixels"
    assert network.sha256 == tensors_sha256(network.module)
    assert network.sha256 == load_network("timm:resnet18", shape=imagenet, download=True).sha256


# --- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = build_network("resnet8", SMALL, {"width": 2, "mean": [0.1] * 3, "std": [0.3] * 3}, seed=3)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    page = {"name": "resnet8", "options": {"width": 2}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}
    (tmp_path / "config.json").write_text(json.dumps(page))
    return tmp_path


def test_a_folder(folder: Path) -> None:
    network = load_network(f"hf:{folder}", shape=SMALL)
    assert network.sha256 == file_sha256(folder / "model.safetensors")
    assert network.architecture == "resnet8 width=2"
    expected = build_network("resnet8", SMALL, {"width": 2, "mean": [0.1] * 3, "std": [0.3] * 3}, seed=3).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(network.module(x), expected(x))
    refused(f"hf:{folder}", r"was trained on 3×8×8 images, 4 classes; here are 3×32×32 images, 10 classes")
    refused(f"hf:{folder}", "sha256", SMALL, sha256="f" * 64)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("{", "does not describe a network of ours"),
        ("[]", "does not describe a network of ours"),
        ('{"name": "resnet8"}', "options, num_classes, in_channels, image_size is missing"),
        ('{"name": "resnet8", "options": [], "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "no keys"),
        ('{"name": "resnet8", "options": {}, "num_classes": 0, "in_channels": 3, "image_size": [8, 8]}', "positive"),
        ('{"name": "resnet9", "options": {}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "resnet8"),
        ('{"name": "os:system", "options": {}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "os:system"),
        ('{"name": "resnet8", "options": {"w": 2}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "'w'"),
        ('{"name": "resnet8", "options": {}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "shape"),
    ],
)
def test_a_folder_that_lies(page: str, said: str, folder: Path) -> None:
    (folder / "config.json").write_text(page)
    refused(f"hf:{folder}", said, SMALL)


def test_a_folder_that_lacks_a_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(f"hf:{folder}", "has no model.safetensors: expected config.json and model.safetensors", SMALL)


def test_a_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("hf:owner/name", "is no folder here: .* or download: true", SMALL)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf:owner/name", "huggingface_hub is not installed", SMALL, download=True)
    asked: list[Any] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        if repository != "owner/name":
            raise OSError("401\nunauthorised")
        return str(folder)

    stand_in = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    assert load_network("hf:owner/name@v1", shape=SMALL, download=True).architecture == "resnet8 width=2"
    assert asked == [("owner/name", "v1", ["config.json", "model.safetensors"])]
    refused("hf:owner/secret", r"cannot be fetched \(401\): fetch it by hand", SMALL, download=True)


# --- functions


def mine(*, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size[0] * image_size[1], num_classes))


def test_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_teachers", SimpleNamespace(mine=mine))
    network = load_network("my_teachers:mine", shape=SMALL)
    expected = mine(num_classes=4, in_channels=3, image_size=(8, 8))
    assert torch.equal(network.module[1].weight, expected[1].weight)
    assert network.sha256 == tensors_sha256(expected)
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    load_network("my_teachers:mine", shape=SMALL, sha256=network.sha256)
    refused("my_teachers:mine", "has sha256", SMALL, sha256="0" * 64)
    refused("my_teachers:yours", "no function 'yours'", SMALL)
    refused("no_such_module:mine", "cannot import 'no_such_module'", SMALL)
    refused("my_teachers:mine", "names its own network", SMALL, name="resnet8")
