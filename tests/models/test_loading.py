"""Networks by specification: the right weights, or one line that says what is wrong; nothing of a file is run."""

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
from robustill.models.loading import Shape, build_network, load_network
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


@pytest.mark.parametrize("what", ["best", "last", "epoch-1", "epoch-0002", "best-ema", "last-ema", "epoch-2-ema"])
def test_a_checkpoint_of_a_run(run: Path, what: str) -> None:
    network = load_network(f"run:{run}@{what}", shape=DIGITS)
    assert equal(network.module, RunDirectory(run).checkpoints.weights(what)[0])
    assert (network.sha256, network.epoch) == (weights(run, what), RunDirectory(run).checkpoints.resolve(what)[0])
    assert network.shape == DIGITS
    assert not network.module.training
    assert not any(parameter.requires_grad for parameter in network.module.parameters())


@pytest.mark.parametrize("tail", ["", "@"])
def test_best_is_what_is_meant_without_a_name(run: Path, tail: str) -> None:
    assert load_network(f"run:{run}{tail}").sha256 == weights(run, "best")


@pytest.mark.parametrize("what", ["nonsense", "epoch-9", "Best", "best@best", "../best"])
def test_an_unknown_name_lists_what_is_kept(run: Path, what: str) -> None:
    with pytest.raises(RunError, match="best, last, or one of those kept: epoch-1, epoch-2, epoch-3"):
        load_network(f"run:{run}@{what}")


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


def test_another_size_is_for_the_network_to_judge(run: Path) -> None:
    larger = Shape(num_classes=10, in_channels=1, image_size=(16, 16))
    assert load_network(f"run:{run}@best", shape=larger).module(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_runs_that_are_none(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunError, match="no run directory"):
        load_network(f"run:{tmp_path}@best")
    with pytest.raises(RunError, match="no run directory"):
        load_network("run:")
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "begun")
    with pytest.raises(RunError, match=r"has no model\.json"):
        load_network(f"run:{tmp_path / 'begun'}")


@pytest.mark.parametrize("change", [{"name": "nosuch"}, {"options": 3}, {"num_classes": "ten"}, {"image_size": None}])
def test_a_run_that_lies_about_its_network(run: Path, tmp_path: Path, change: dict) -> None:
    liar = RunDirectory(shutil.copytree(run, tmp_path / "liar"))
    page = liar.read_json("model.json")
    assert page is not None
    liar.write_json("model.json", {**page, **change})
    with pytest.raises(RobustillError) as caught:
        load_network(f"run:{liar.path}@best")
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
def test_a_file_of_weights(run: Path, tmp_path: Path, suffix: str) -> None:
    tensors = RunDirectory(run).checkpoints.weights("best")[0]
    file = tmp_path / f"w.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save({"state_dict": tensors}, file)
    network = load_network(str(file), shape=DIGITS, name="resnet8", options={"width": 2})
    assert equal(network.module, tensors)
    assert (network.config, network.epoch) == (None, None)


def test_a_file_needs_its_network(run: Path) -> None:
    file = str(run / "checkpoints" / "epoch-0001" / "model.safetensors")
    with pytest.raises(ModelError, match=r"say which network they belong to"):
        load_network(file, shape=DIGITS)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_network(file, shape=DIGITS, name="resnet8", options={"width": 3})
    with pytest.raises(CheckpointError, match="missing"):
        load_network(file, shape=DIGITS, name="lenet")


@pytest.mark.parametrize("spec", ["", "nowhere.pt", ".", "a\0b", "https://example.org/x.pt"])
def test_what_is_no_file(spec: str) -> None:
    with pytest.raises(CheckpointError, match="not found: expected run:DIR, run:DIR@best or a file of weights"):
        load_network(spec, shape=DIGITS, name="lenet")


def test_a_run_directory_alone_is_told_how_to_be_written(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"teacher is a run directory: write run:.*teacher@best"):
        load_network(str(run), shape=DIGITS)


class _Payload:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("payload-ran",)


def test_a_pickle_with_a_payload_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Payload()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="would run code when read"):
        load_network("evil.pt", shape=DIGITS, name="lenet")
    assert [each.name for each in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.parametrize("options", [{"width": 0}, {"width": -1}, {"width": "x"}, {"depth": 3}])
def test_options_that_cannot_be(options: dict) -> None:
    with pytest.raises(ModelError) as caught:
        build_network("resnet8", DIGITS, options)
    assert "\n" not in str(caught.value)
