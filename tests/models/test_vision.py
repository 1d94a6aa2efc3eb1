"""Networks of timm and torchvision, with stand-ins for the packages, which may not be installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robustill as rb
from robustill.core.errors import CheckpointError, ModelError, RobustillError
from robustill.models import Normalize, build
from robustill.models.export import export_network
from robustill.models.loading import Shape, build_network, load_network
from robustill.models.vision import _operator_libraries, _small_patches, architecture_options, import_vision
from robustill.models.weights import file_sha256, tensors_sha256
from robustill.runs.directory import RunDirectory

CIFAR10 = Shape(num_classes=10, in_channels=3, image_size=(32, 32))
SMALL = Shape(num_classes=4, in_channels=3, image_size=(8, 8))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.4)


class TimmNetwork(nn.Module):
    """A network with the attributes of timm's: its classes and its published configuration."""

    def __init__(self, num_classes: int, in_chans: int = 3, **options: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.head = nn.Linear(in_chans, num_classes)
        self.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, 16, 16)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def config_of(name: str) -> SimpleNamespace:
    url = None if name == "vit_patch16" else "https://example.org/weights/net-0123.pth"
    return SimpleNamespace(
        mean=MEAN, std=STD, input_size=(3, 224, 224), fixed_input_size=name != "resnet18", hf_hub_id=None, url=url
    )


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(
        name: str, pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3, **options: Any
    ) -> TimmNetwork:
        overlay = options.pop("pretrained_cfg_overlay", None)
        if "width" in options:
            raise TypeError("no such keyword argument: width")
        if pretrained and overlay is None:
            torch.manual_seed(1)
        network = TimmNetwork(num_classes, in_chans, **options)
        if overlay is not None:
            network.load_state_dict(overlay["state_dict"])
        return network

    stand_in = SimpleNamespace(
        is_model=lambda name: name in ("resnet18", "vit_patch16"),
        list_models=lambda: ["resnet18", "vit"],
        get_pretrained_cfg=config_of,
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", stand_in)


class _Weights:
    url = "https://example.org/weights/tv.pth"

    def transforms(self) -> SimpleNamespace:
        return SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    models = SimpleNamespace(
        list_models=lambda module: ["resnet18", "vit_b_16"],
        get_model=lambda name, weights, num_classes, **options: TimmNetwork(num_classes, **options),
        get_model_weights=lambda name: SimpleNamespace(DEFAULT=_Weights()),
    )
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))


def assert_refused(spec: str, match: str, shape: Shape = CIFAR10, **more: Any) -> None:
    with pytest.raises(RobustillError, match=match) as caught:
        load_network(spec, shape=shape, **more)
    assert "\n" not in str(caught.value)


# --- teachers


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


# --- students


@pytest.mark.usefixtures("timm")
def test_a_timm_student_has_its_published_normalisation_and_the_classes_and_channels_of_the_data() -> None:
    student = build("timm:resnet18", num_classes=7, image_size=32, seed=0, drop_rate=0.1)
    inner: Any = student.get_submodule("network")
    assert (inner.num_classes, inner.head.in_features, inner.options) == (7, 3, {"drop_rate": 0.1})
    x = torch.full((2, 3, 32, 32), 0.6)
    expected = inner.head((x[:, :, 0, 0] - torch.tensor(MEAN)) / torch.tensor(STD))
    torch.testing.assert_close(student(x), expected)
    assert torch.equal(inner.head.weight, build("timm:resnet18", num_classes=7, seed=0)[1].head.weight)  # type: ignore[index]
    assert not torch.equal(inner.head.weight, build("timm:resnet18", num_classes=7, seed=1)[1].head.weight)  # type: ignore[index]
    grey: Any = build("timm:resnet18", num_classes=7, in_channels=1)
    assert grey.network.head.in_features == 1
    torch.testing.assert_close(grey.normalize.mean.flatten(), torch.tensor([0.4]))


@pytest.mark.usefixtures("timm")
def test_the_configured_mean_and_std_win_one_by_one() -> None:
    normalize: Any = build("timm:resnet18", num_classes=7, mean=[0.0, 0.1, 0.2]).normalize
    assert isinstance(normalize, Normalize)
    torch.testing.assert_close(normalize.mean.flatten(), torch.tensor([0.0, 0.1, 0.2]))
    torch.testing.assert_close(normalize.std.flatten(), torch.tensor(STD))


@pytest.mark.usefixtures("timm")
def test_a_transformer_is_built_for_the_size_of_the_images() -> None:
    def options(**more: Any) -> Any:
        return build("timm:vit_patch16", num_classes=7, **more).get_submodule("network").options

    assert options(image_size=32) == {"img_size": (32, 32), "patch_size": 4}
    assert options(image_size=32, patch_size=8) == {"img_size": (32, 32), "patch_size": 8}
    assert options(image_size=(224, 256)) == {"img_size": (224, 256)}


@pytest.mark.parametrize(
    ("size", "patch"), [((32, 32), 4), ((28, 28), 4), ((8, 8), 1), ((64, 96), 8), ((160, 160), 16), ((31, 31), 1)]
)
def test_patches_divide_the_image_into_at_most_eight_where_they_can(size: tuple[int, int], patch: int) -> None:
    assert _small_patches("vit_tiny_patch16_224", size, 224) == {"patch_size": patch}
    assert _small_patches("swin_tiny", size, 224) == {}


@pytest.mark.usefixtures("timm")
def test_a_student_that_cannot_be_built_is_an_error_of_one_line() -> None:
    def refused(match: str, name: str = "timm:resnet18", **options: Any) -> None:
        with pytest.raises(RobustillError, match=match) as caught:
            build(name, num_classes=7, **options)
        assert "\n" not in str(caught.value)

    refused("timm:resnet81 is unknown: did you mean resnet18", "timm:resnet81")
    refused("timm:resnet18 cannot be built with .*width", width=3)
    refused("has no option 'checkpoint_path': give a file of weights as pretrained", checkpoint_path="w.pth")
    refused("undo_strides is -1, expected a whole number from 0", undo_strides=-1)
    refused("timm:resnet18 reduces the resolution 0 times only: undo_strides is 1", undo_strides=1)
    refused("pretrained is 3, expected true, false or a file of weights", pretrained=3)


# --- published weights of students


@pytest.mark.usefixtures("timm")
def test_published_weights_come_from_a_file_or_the_cache_and_are_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = TimmNetwork(7)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    student: Any = build("timm:resnet18", num_classes=7, pretrained=str(tmp_path / "w.safetensors"))
    assert torch.equal(student.network.head.weight, published.head.weight)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / "net-0123.pth"
    with pytest.raises(CheckpointError, match=r"in no cache .*--model.pretrained FILE, or put it at .*net-0123.pth"):
        build("timm:resnet18", num_classes=7, pretrained=True)
    cached.parent.mkdir()
    torch.save(published.state_dict(), cached)
    student = build("timm:resnet18", num_classes=7, pretrained=True)
    assert torch.equal(student.network.head.weight, published.head.weight)
    with pytest.raises(CheckpointError, match="timm:vit_patch16 has no published weights: leave pretrained out"):
        build("timm:vit_patch16", num_classes=7, pretrained=True)


@pytest.mark.usefixtures("torchvision")
def test_a_torchvision_student_keeps_a_fresh_last_layer(tmp_path: Path) -> None:
    published, file = TimmNetwork(1000), str(tmp_path / "w.pth")
    torch.save(published.state_dict(), file)
    student: Any = build("torchvision:resnet18", num_classes=7, seed=0, pretrained=file)
    fresh: Any = build("torchvision:resnet18", num_classes=7, seed=0)
    assert torch.equal(student.network.head.weight, fresh.network.head.weight)
    same: Any = build("torchvision:resnet18", num_classes=1000, pretrained=file)
    assert torch.equal(same.network.head.weight, published.head.weight)
    torch.testing.assert_close(same.normalize.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))
    torch.save({"head.weight": torch.zeros(1000, 5), "head.bias": torch.zeros(1000)}, file)
    with pytest.raises(CheckpointError, match=r"do not fit torchvision:resnet18: head.weight"):
        build("torchvision:resnet18", num_classes=7, pretrained=file)


@pytest.mark.usefixtures("torchvision")
def test_torchvision_gets_the_image_size_of_a_transformer_and_three_channels() -> None:
    student: Any = build("torchvision:vit_b_16", num_classes=7, image_size=32)
    assert student.network.options == {"image_size": 32}
    with pytest.raises(ModelError, match="torchvision:resnet18 takes images of 3 channels; here are 1"):
        build("torchvision:resnet18", num_classes=7, in_channels=1)
    with pytest.raises(ModelError, match="torchvision:resnet17 is unknown: did you mean resnet18"):
        build("torchvision:resnet17", num_classes=7)


@pytest.mark.usefixtures("torchvision")
def test_torchvision_weights_are_loaded_from_a_file_only(tmp_path: Path) -> None:
    published = TimmNetwork(10)
    torch.save(published.state_dict(), tmp_path / "w.pth")
    network = load_network(f"torchvision:resnet18={tmp_path / 'w.pth'}", shape=CIFAR10)
    assert torch.equal(network.module.get_submodule("network.head").weight, published.head.weight)
    assert_refused("torchvision:resnet18", "has no local weights: give torchvision:resnet18=FILE")


def test_options_without_the_source_of_the_first_weights() -> None:
    options = {"pretrained": "w.pth", "drop_rate": 0.1}
    assert architecture_options("timm:resnet18", options) == {"drop_rate": 0.1}
    assert architecture_options("my_mod:net", options) == options


@pytest.mark.usefixtures("timm")
def test_a_run_of_a_timm_student_is_reopened_and_exported_without_its_first_weights(tmp_path: Path) -> None:
    torch.save(TimmNetwork(10, 1).state_dict(), tmp_path / "w.pth")
    overrides = ["--model", "timm:resnet18", "--model.pretrained", str(tmp_path / "w.pth"), "--data.train_size", "60"]
    overrides += "--data.validation 20 --optim.epochs 1 --attack.steps 1 --validation.steps 1".split()
    with pytest.warns(UserWarning, match=r"validation|guessing"):
        rb.train(rb.recipe("digits_at", overrides), tmp_path / "run", progress=False)
    (tmp_path / "w.pth").unlink()
    network = load_network(f"run:{tmp_path / 'run'}@best")
    assert network.architecture == "timm:resnet18"
    assert RunDirectory.existing(tmp_path / "run").read_json("model.json")["options"] == {}  # type: ignore[index]
    with pytest.warns(UserWarning, match="no better than guessing"):
        folder = export_network(f"run:{tmp_path / 'run'}@best", tmp_path / "net")
    assert tensors_sha256(folder.module) == tensors_sha256(network.module)


@pytest.mark.usefixtures("timm")
def test_a_stored_network_that_is_larger_than_its_weights_is_not_built(tmp_path: Path) -> None:
    network = build_network("timm:resnet18", SMALL, {})
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    page = '{"name": "timm:resnet18", "options": {}, "num_classes": 4000000000, "in_channels": 3, "image_size": [8, 8]}'
    (tmp_path / "config.json").write_text(page)
    assert_refused(
        f"hf:{tmp_path}",
        "more weights than its file",
        shape=Shape(num_classes=4000000000, in_channels=3, image_size=(8, 8)),
    )


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
