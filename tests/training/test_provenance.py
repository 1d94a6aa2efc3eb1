"""A run says what it is made of, and refuses to go on with other images or teachers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.small_runs import small_config, tree, weights
from robustill.core.errors import RunError
from robustill.models.loading import load_network
from robustill.runs.directory import RunDirectory
from robustill.training.loop import train
from robustill.training.setup import prepare
from robustill.training.validation import validation_accuracy


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("room")
    write_images(room / "data", 0)
    train(images(room), room / "teacher", progress=False)
    train(student(room), room / "student", progress=False)
    return room


def write_images(folder: Path, seed: int, permuted: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    pictures = np.random.default_rng(seed).integers(0, 256, (80, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(80) % 4
    for name in ("train.npz", "test.npz"):
        np.savez(folder / name, images=pictures, labels=labels[::-1] if permuted else labels)


def images(room: Path, **changes: object):  # type: ignore[no-untyped-def]
    return small_config(data={"name": "npz", "root": str(room / "data"), "validation": 20}, **changes)


def student(room: Path):  # type: ignore[no-untyped-def]
    return images(room, method={"name": "akd"}, teachers=[f"run:{room / 'teacher'}@best"])


def test_what_is_said_about_the_network_the_split_and_the_machine(room: Path) -> None:
    run = RunDirectory(room / "student")
    pieces = prepare(student(room), torch.device("cpu"))
    network, split, machine = (run.read_json(f"{name}.json") for name in ("model", "split", "environment"))
    assert network is not None
    assert split is not None
    assert machine is not None
    assert (network["name"], network["options"], network["image_size"]) == ("resnet8", {"width": 2}, [8, 8])
    assert network["classes"] == ["0", "1", "2", "3"]
    assert network["parameters"] == sum(parameter.numel() for parameter in pieces.student.parameters())
    assert split["train"] == pieces.split.train.tolist()
    assert split["validation"] == pieces.split.validation.tolist()
    assert split["fingerprint"] == pieces.dataset.fingerprint
    assert machine["versions"]["torch"] == torch.__version__


def test_a_teacher_is_described_by_what_it_can_do(room: Path) -> None:
    page = RunDirectory(room / "student").read_json("teachers.json")
    assert page is not None
    (card,) = page["teachers"]
    spec = f"run:{room / 'teacher'}@best"
    pieces, config = prepare(student(room), torch.device("cpu")), student(room)
    accuracies = validation_accuracy(
        load_network(spec).module,
        *pieces.validation,
        config.threat.build(),
        steps=1,
        step_size=config.threat.eps / 4,
        seed=0,
    )
    assert (card["clean_accuracy"], card["robust_accuracy"]) == accuracies
    assert (card["spec"], card["sha256"], card["images"]) == (spec, weights(room / "teacher", "best"), 20)
    assert card["threat"] == {"norm": "linf", "eps": 0.1}
    assert card["trained"] == "at linf:0.1, 2 epochs"


def test_what_is_said_is_shown(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(student(room), tmp_path / "run")
    assert f"teacher run:{room / 'teacher'}@best (at linf:0.1, 2 epochs): clean " in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 0, "permuted": True}])
def test_other_images_are_refused(room: Path, tmp_path: Path, other: dict) -> None:
    for part in ("data", "teacher"):
        shutil.copytree(room / part, tmp_path / part)
    train(student(tmp_path), tmp_path / "run", progress=False)
    before = tree(tmp_path / "run")
    write_images(tmp_path / "data", **other)
    with pytest.raises(RunError, match=r"began with other images \(fingerprint differs"):
        train(student(tmp_path), tmp_path / "run", progress=False)
    assert tree(tmp_path / "run") == before


def test_a_teacher_that_has_changed_is_refused(room: Path, tmp_path: Path) -> None:
    for part in ("data", "teacher"):
        shutil.copytree(room / part, tmp_path / part)
    train(student(tmp_path), tmp_path / "run", progress=False)
    before = tree(tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    train(images(tmp_path, seed=3), tmp_path / "teacher", progress=False)
    with pytest.raises(RunError, match=r"teacher run:.* has changed since .*: restore it, or use another --run"):
        train(student(tmp_path), tmp_path / "run", progress=False)
    assert tree(tmp_path / "run") == before


def test_a_whole_data_set_is_not_listed_image_by_image(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 0)
    config = small_config(
        data={"name": "npz", "root": str(tmp_path / "data"), "validation": 20, "train_size": None}, optim={"epochs": 1}
    )
    train(config, tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["train"] == "the rest"
