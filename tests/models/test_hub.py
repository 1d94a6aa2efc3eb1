"""timm, Hugging Face folders and functions, with stand-ins for packages that may not be installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustill.core.errors import ModelError, RobustillError
from robustill.models.hub import _operator_libraries, import_vision
from robustill.models.loading import Shape, build_network, load_network
from robustill.models.weights import file_sha256, tensors_sha256

CIFAR10 = Shape(num_classes=10, in_channels=3, image_size=(32, 32))
SMALL = Shape(num_classes=4, in_channels=3, image_size=(8, 8))


class TimmNetwork(nn.Module):
    """A network with the attributes of timm's: its classes and its published configuration."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.head = nn.Linear(3, num_classes)
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.4), "input_size": (3, 16, 16)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3) -> TimmNetwork:
        torch.manual_seed(int(pretrained))
        return TimmNetwork(num_classes)

    stand_in = SimpleNamespace(
        is_model=lambda name: name == "resnet18", list_models=lambda: ["resnet18", "vit"], create_model=create_model
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)


def assert_refused(spec: str, match: str, shape: Shape = CIFAR10, **more: Any) -> None:
    with pytest.raises(RobustillError, match=match) as caught:
        load_network(spec, shape=shape, **more)
    assert "\n" not in str(caught.value)


def test_timm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert_refused("timm:resnet18", r"timm cannot be imported .*: pip install 'robustill\[vision\]'")


@pytest.mark.usefixtures("timm")
def test_timm_weights_are_loaded_from_a_file(tmp_path: Path) -> None:
    published = TimmNetwork(10)
    torch.save({"state_dict": published.state_dict()}, tmp_path / "w.pth")
    network = load_network(f"timm:resnet18={tmp_path / 'w.pth'}", shape=CIFAR10, image_size=16)
    assert network.sha256 == file_sha256(tmp_path / "w.pth")
    assert network.architecture == "timm resnet18"
    x = torch.full((2, 3, 32, 32), 0.6)
    cfg = published.pretrained_cfg
    expected = published.head((x[:, :, 0, 0] - torch.tensor(cfg["mean"])) / torch.tensor(cfg["std"]))
    torch.testing.assert_close(network.module(x), expected)
    assert_refused(f"timm:resnet18={tmp_path / 'w.pth'}", "of another shape", SMALL)
    assert_refused(f"timm:resnet18={tmp_path / 'none.pth'}", "none.pth: No such file")
    assert_refused(f"timm:resnet18={tmp_path / 'w.pth'}", "expected 0000", sha256="0" * 64)


@pytest.mark.usefixtures("timm")
def test_timm_weights_are_downloaded_only_on_request() -> None:
    assert_refused("timm:resnet18", r"has no local weights: give timm:resnet18=FILE, or download: true")
    assert_refused("timm:resnet18", "published for 1000 classes; here are 10", download=True)
    assert_refused("timm:resnet81", "timm:resnet81 is unknown: did you mean resnet18")
    assert_refused("timm:nothing", "is unknown: 2 names are known")
    assert_refused("timm:resnet18", "3 channels; here are 1", Shape(num_classes=1000, in_channels=1, image_size=(8, 8)))
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


def test_a_folder_is_loaded(folder: Path) -> None:
    network = load_network(f"hf:{folder}", shape=SMALL)
    assert network.sha256 == file_sha256(folder / "model.safetensors")
    assert network.architecture == "resnet8 width=2"
    expected = build_network("resnet8", SMALL, {"width": 2, "mean": [0.1] * 3, "std": [0.3] * 3}, seed=3).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(network.module(x), expected(x))
    assert_refused(f"hf:{folder}", r"was trained on 3×8×8 images, 4 classes; here are 3×32×32 images, 10 classes")
    assert_refused(f"hf:{folder}", "sha256", SMALL, sha256="f" * 64)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "does not describe one of our networks"),
        ("[]", "does not describe one of our networks"),
        ('{"name": "resnet8"}', "options, num_classes, in_channels, image_size is missing"),
        ('{"name": "resnet8", "options": [], "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "not keys"),
        ('{"name": "resnet8", "options": {}, "num_classes": 0, "in_channels": 3, "image_size": [8, 8]}', "positive"),
        ('{"name": "resnet9", "options": {}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "resnet8"),
        ('{"name": "os:system", "options": {}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "os:system"),
        ('{"name": "resnet8", "options": {"w": 2}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "'w'"),
        ('{"name": "resnet8", "options": {}, "num_classes": 4, "in_channels": 3, "image_size": [8, 8]}', "shape"),
    ],
)
def test_a_folder_with_a_false_description_is_refused(config: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(config)
    assert_refused(f"hf:{folder}", message, SMALL)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert_refused(f"hf:{folder}", "has no model.safetensors: expected config.json and model.safetensors", SMALL)


def test_a_repository_is_downloaded_only_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused("hf:owner/name", "is not a folder: .* or download: true", SMALL)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_refused("hf:owner/name", "huggingface_hub is not installed", SMALL, download=True)
    downloads: list[Any] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        downloads.append((repository, revision, allow_patterns))
        if repository != "owner/name":
            raise OSError("401\nunauthorised")
        return str(folder)

    stand_in = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    assert load_network("hf:owner/name@v1", shape=SMALL, download=True).architecture == "resnet8 width=2"
    assert downloads == [("owner/name", "v1", ["config.json", "model.safetensors"])]
    assert_refused("hf:owner/secret", r"cannot be downloaded \(401\): download it by hand", SMALL, download=True)


# --- functions


def own_network(*, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size[0] * image_size[1], num_classes))


def test_a_users_function_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_teachers", SimpleNamespace(own_network=own_network))
    network = load_network("my_teachers:own_network", shape=SMALL)
    expected = own_network(num_classes=4, in_channels=3, image_size=(8, 8))
    assert torch.equal(network.module[1].weight, expected[1].weight)
    assert network.sha256 == tensors_sha256(expected)
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    load_network("my_teachers:own_network", shape=SMALL, sha256=network.sha256)
    assert_refused("my_teachers:own_network", "has sha256", SMALL, sha256="0" * 64)
    assert_refused("my_teachers:other", "no function 'other'", SMALL)
    assert_refused("no_such_module:own_network", "cannot import 'no_such_module'", SMALL)
    assert_refused("my_teachers:own_network", "names its own network", SMALL, name="resnet8")


# --- imports of torchvision and timm


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    _operator_libraries.clear()


def test_missing_operators_of_torchvision_are_declared(packages: Path) -> None:
    (packages / "torchvision.py").write_text(
        "import torch\n"
        "complete = False\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
        "complete = True\n"
    )
    (packages / "needs_vision.py").write_text("import torchvision\nassert torchvision.complete\n")
    assert import_vision("needs_vision").__name__ == "needs_vision"
    assert hasattr(torch.ops.torchvision, "qnms")


def test_another_failing_import_is_an_error_of_one_line(packages: Path) -> None:
    (packages / "broken_vision.py").write_text("raise RuntimeError('no\\nluck')\n")
    with pytest.raises(ModelError, match=r"^broken_vision fails at import: no$"):
        import_vision("broken_vision")
    with pytest.raises(ModelError, match=r"pip install 'robustill\[vision\]'"):
        import_vision("missing_vision")
