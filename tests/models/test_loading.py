"""Networks by specification: the right weights or an error of one line, and no code of a file is run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.small_runs import small_config, weights
from robustill.core.errors import CheckpointError, ModelError, RobustillError, RunError
from robustill.models.loading import Shape, build_network, describe_run, load_network
from robustill.models.registry import build
from robustill.runs.directory import RunDirectory
from robustill.training.loop import train

DIGITS = Shape(num_classes=10, in_channels=1, image_size=(8, 8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "teacher"
    config = small_config(optim={"epochs": 3, "ema": 0.9}, keep_every=1)
    return train(config, run, progress=False).run


def equal(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[key], tensors[key]) for key in state)


@pytest.mark.parametrize("checkpoint", ["best", "last", "epoch-1", "epoch-0002", "best-ema", "last-ema", "epoch-2-ema"])
def test_a_checkpoint_of_a_run_is_loaded(run: Path, checkpoint: str) -> None:
    network = load_network(f"run:{run}@{checkpoint}", shape=DIGITS)
    assert equal(network.module, RunDirectory(run).checkpoints.weights(checkpoint)[0])
    assert (network.sha256, network.epoch) == (
        weights(run, checkpoint),
        RunDirectory(run).checkpoints.resolve(checkpoint)[0],
    )
    assert network.shape == DIGITS
    assert not network.module.training
    assert not any(parameter.requires_grad for parameter in network.module.parameters())


@pytest.mark.parametrize("tail", ["", "@"])
def test_the_best_checkpoint_is_the_default(run: Path, tail: str) -> None:
    assert load_network(f"run:{run}{tail}").sha256 == weights(run, "best")


@pytest.mark.parametrize("checkpoint", ["nonsense", "epoch-9", "Best"])
def test_an_unknown_checkpoint_lists_the_stored_ones(run: Path, checkpoint: str) -> None:
    with pytest.raises(RunError, match="best, last, or one of those kept: epoch-1, epoch-2, epoch-3"):
        load_network(f"run:{run}@{checkpoint}")


@pytest.mark.parametrize("checkpoint", ["best@best", "../best"])
def test_what_precedes_the_last_at_sign_is_the_directory(run: Path, checkpoint: str) -> None:
    with pytest.raises(RunError, match="is no run directory, it does not exist"):
        load_network(f"run:{run}@{checkpoint}")


@pytest.mark.parametrize(
    "shape",
    [
        Shape(num_classes=7, in_channels=1, image_size=(8, 8)),
        Shape(num_classes=10, in_channels=3, image_size=(8, 8)),
    ],
)
def test_a_run_for_other_images_is_refused(run: Path, shape: Shape) -> None:
    with pytest.raises(ModelError, match=r"was trained on 1×8×8 images, 10 classes; here are"):
        load_network(f"run:{run}@best", shape=shape)


def test_a_run_accepts_another_image_size(run: Path) -> None:
    larger = Shape(num_classes=10, in_channels=1, image_size=(16, 16))
    assert load_network(f"run:{run}@best", shape=larger).module(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_a_folder_without_a_trained_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunError, match="no run directory"):
        load_network(f"run:{tmp_path}@best")
    with pytest.raises(RunError, match="no run directory"):
        load_network("run:")
    (tmp_path / "started").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "started")
    with pytest.raises(RunError, match=r"has no model\.json"):
        load_network(f"run:{tmp_path / 'started'}")


@pytest.mark.parametrize("change", [{"name": "nosuch"}, {"options": 3}, {"num_classes": "ten"}, {"image_size": None}])
def test_a_run_with_a_false_description_is_refused(run: Path, tmp_path: Path, change: dict) -> None:
    false_run = RunDirectory(shutil.copytree(run, tmp_path / "false_run"))
    page = false_run.read_json("model.json")
    assert page is not None
    false_run.write_json("model.json", {**page, **change})
    with pytest.raises(RobustillError) as caught:
        load_network(f"run:{false_run.path}@best")
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(run: Path, tmp_path: Path) -> None:
    other = RunDirectory(shutil.copytree(run, tmp_path / "other"))
    page = other.read_json("model.json")
    assert page is not None
    other.write_json("model.json", {**page, "options": {"width": 4}})
    with pytest.raises(CheckpointError, match="of another shape"):
        load_network(f"run:{other.path}@best")


# --- files


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_a_file_of_weights_is_loaded(run: Path, tmp_path: Path, suffix: str) -> None:
    tensors = RunDirectory(run).checkpoints.weights("best")[0]
    file = tmp_path / f"w.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save({"state_dict": tensors}, file)
    network = load_network(str(file), shape=DIGITS, name="resnet8", options={"width": 2})
    assert equal(network.module, tensors)
    assert (network.config, network.epoch) == (None, None)


def test_a_file_of_another_network_names_those_that_it_fits(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    shape = Shape(num_classes=10, in_channels=3, image_size=(32, 32))
    save_file(build("resnet_2b2", num_classes=10).state_dict(), file)
    with pytest.raises(CheckpointError, match=r"These weights fit --model resnet_2b2$"):
        load_network(str(file), shape=shape, name="resnet8")
    save_file({"weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"image_size of the file$"):
        load_network(str(file), shape=shape, name="resnet8")


def test_a_file_needs_the_name_of_its_network(run: Path) -> None:
    file = str(run / "checkpoints" / "epoch-0001" / "model.safetensors")
    with pytest.raises(ModelError, match=r"name the network that they belong to"):
        load_network(file, shape=DIGITS)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_network(file, shape=DIGITS, name="resnet8", options={"width": 3})
    with pytest.raises(CheckpointError, match="missing"):
        load_network(file, shape=DIGITS, name="lenet")


@pytest.mark.parametrize("spec", ["", "nowhere.pt", ".", "a\0b", "https://example.org/x.pt"])
def test_a_missing_file_is_refused(spec: str) -> None:
    with pytest.raises(CheckpointError, match="not found: expected run:DIR, run:DIR@best or a file of weights"):
        load_network(spec, shape=DIGITS, name="lenet")


def test_a_run_directory_without_run_names_the_specification(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"teacher is a run directory: write run:.*teacher@best"):
        load_network(str(run), shape=DIGITS)


class _Payload:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("payload-ran",)


def test_a_pickle_with_a_payload_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Payload()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="would run code when read"):
        load_network("evil.pt", shape=DIGITS, name="lenet")
    assert [each.name for each in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.parametrize("options", [{"width": 0}, {"width": -1}, {"width": "x"}, {"depth": 3}])
def test_invalid_options_are_refused(options: dict) -> None:
    with pytest.raises(ModelError) as caught:
        build_network("resnet8", DIGITS, options)
    assert "\n" not in str(caught.value)


def test_a_run_is_described_by_method_threat_and_epochs() -> None:
    config = {"method": {"name": "at"}, "optim": {"epochs": 50}, "threat": {"norm": "linf", "eps": 4 / 255}}
    assert describe_run(config) == "at linf:4/255, 50 epochs"
    assert describe_run({**config, "method": {"name": "clean"}}) == "clean, 50 epochs"
    assert describe_run(None) == "a file of weights"
