"""Hugging Face folders and functions, with stand-ins for packages that may not be installed."""

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


def assert_refused(spec: str, match: str, shape: Shape = CIFAR10, **more: Any) -> None:
    with pytest.raises(RobustillError, match=match) as caught:
        load_network(spec, shape=shape, **more)
    assert "\n" not in str(caught.value)


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
