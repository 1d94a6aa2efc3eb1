"""A run records what it is made of, and is not resumed with another configuration, other images or other teachers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.small_runs import small_config, small_values, tree, weights
from robustill.config.files import dump_config
from robustill.config.schema import make_config
from robustill.core.device import environment, installed_version
from robustill.core.errors import RunError
from robustill.models.loading import load_network
from robustill.runs.directory import RunDirectory
from robustill.training import loop
from robustill.training.loop import train
from robustill.training.provenance import first_difference, start_run, used_packages
from robustill.training.setup import set_up_training
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
    return small_config(data={"name": "npz", "root": str(room / "data"), "validation": 30}, **changes)


def student(room: Path):  # type: ignore[no-untyped-def]
    return images(room, method={"name": "akd"}, teachers=[f"run:{room / 'teacher'}@best"])


def test_a_run_describes_its_network_split_and_machine(room: Path) -> None:
    run = RunDirectory(room / "student")
    setup = set_up_training(student(room), torch.device("cpu"))
    network, split, machine = (run.read_json(f"{name}.json") for name in ("model", "split", "environment"))
    assert network is not None
    assert split is not None
    assert machine is not None
    assert (network["name"], network["options"], network["image_size"]) == ("resnet8", {"width": 2}, [8, 8])
    assert network["classes"] == ["0", "1", "2", "3"]
    assert network["parameters"] == sum(parameter.numel() for parameter in setup.student.parameters())
    assert split["train"] == setup.split.train.tolist()
    assert split["validation"] == setup.split.validation.tolist()
    assert split["fingerprint"] == setup.dataset.fingerprint
    assert machine["versions"]["torch"] == torch.__version__


def test_a_teacher_is_described_with_its_accuracy(room: Path) -> None:
    page = RunDirectory(room / "student").read_json("teachers.json")
    assert page is not None
    (card,) = page["teachers"]
    spec = f"run:{room / 'teacher'}@best"
    setup, config = set_up_training(student(room), torch.device("cpu")), student(room)
    accuracies = validation_accuracy(
        load_network(spec).module,
        *setup.validation,
        config.threat.build(),
        steps=1,
        step_size=config.threat.eps / 4,
        seed=0,
    )
    assert (card["clean_accuracy"], card["robust_accuracy"]) == accuracies
    assert (card["spec"], card["sha256"], card["images"]) == (spec, weights(room / "teacher", "best"), 30)
    assert card["threat"] == {"norm": "linf", "eps": 0.1}
    assert card["trained"] == "at linf:0.1, 2 epochs"


def test_the_accuracy_of_a_teacher_is_printed(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_whole_data_set_is_not_listed_by_ids(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 0)
    config = small_config(
        data={"name": "npz", "root": str(tmp_path / "data"), "validation": 30, "train_size": None}, optim={"epochs": 1}
    )
    train(config, tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "split.json").read_text())["train"] == "the rest"


# --- the configuration


def values(spec: str = "run:teachers/0@best", **changes: Any) -> dict[str, Any]:
    given = {**small_values(), "method": {"name": "akd"}, "teachers": [{"spec": spec}], **changes}
    return make_config(given).model_dump(mode="json")


@pytest.mark.parametrize("spec", ["run:{}/teachers/0@best", "run:./teachers/../teachers/0@best"])
def test_runs_may_have_relative_or_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert first_difference(values(), values(spec.format(tmp_path))) is None
    first = values(initial="run:teachers/0@best")
    assert first_difference(first, values(initial=spec.format(tmp_path))) is None


def test_files_may_have_relative_or_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").touch()
    assert first_difference(values("a.pt"), values(str(tmp_path / "a.pt"))) is None


@pytest.mark.parametrize(
    ("spec", "absolute"),
    [
        ("timm:resnet18=a.pt", "timm:resnet18={}/a.pt"),
        ("robustbench:Wong2020Fast=a.pt", "robustbench:Wong2020Fast={}/a.pt"),
        ("hf:b", "hf:{}/./b"),
    ],
)
def test_files_behind_a_kind_may_have_relative_or_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, absolute: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").touch()
    Path("b").mkdir()
    assert first_difference(values(spec), values(absolute.format(tmp_path))) is None
    assert first_difference(values(spec), values(absolute.format("/elsewhere"))) is not None
    # Without a file, a name is no path.
    assert first_difference(values("timm:resnet18"), values(f"timm:{tmp_path}/resnet18")) is not None


@pytest.mark.parametrize("other", ["run:teachers/0@last", "run:elsewhere/teachers/0@best", "timm:resnet18"])
def test_another_network_makes_another_run(other: str) -> None:
    difference = first_difference(values(), values(other))
    assert difference is not None
    key, there, here = difference
    assert (key, there[0]["spec"], here[0]["spec"]) == ("teachers", "run:teachers/0@best", other)


def test_the_device_makes_no_other_run() -> None:
    moved = values(compute={"device": "cpu", "threads": 3}, data={**small_values()["data"], "root": "elsewhere"})
    assert first_difference(values(compute={"device": "auto"}), moved) is None
    assert first_difference(values(), values(seed=4)) == ("seed", 0, 4)


def test_a_run_of_another_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("run")
    start_run(run, dump_config(make_config(values())))
    start_run(run, dump_config(make_config(values(f"run:{tmp_path}/teachers/0@best"))))
    with pytest.raises(
        RunError, match=r"run was made by another configuration: teachers is .*0@best.* there and .*0@last"
    ):
        start_run(run, dump_config(make_config(values("run:teachers/0@last"))))


@pytest.mark.parametrize("value", [True, False])
def test_a_run_with_a_retired_setting_is_the_same_run(tmp_path: Path, value: bool) -> None:
    text = dump_config(make_config(values()))
    run = RunDirectory(tmp_path / "run")
    run.start(text.replace("compute:\n", f"compute:\n  cuda_graphs: {str(value).lower()}\n"))
    assert "cuda_graphs:" in (run.path / "config.yaml").read_text()
    start_run(run, text)
    assert make_config(run.config()) == make_config(values())


# --- the code of student and teacher


FACTOR = 1.0


def scaled(num_classes: int, in_channels: int, image_size: tuple[int, int], width: None = None) -> torch.nn.Module:
    """A linear network whose code depends on a number of this module."""

    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(FACTOR * x.flatten(1))

    H, W = image_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Scaled(in_channels * H * W, num_classes)


SCALED = f"{__name__}:scaled"


def stop_after(epochs: int, config: Any, run: Path) -> None:
    """Train some epochs of a run, as a process does that is killed at the beginning of the next."""
    train_epoch = loop._Loop._train_epoch

    def stopping(self: Any, bar: Any) -> Any:
        if self.epochs_done == epochs:
            raise KeyboardInterrupt
        return train_epoch(self, bar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "_train_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, run, progress=False)


def test_a_student_whose_code_has_changed_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(model={"name": SCALED, "width": None})
    stop_after(1, config, tmp_path / "run")
    before = tree(tmp_path / "run")
    monkeypatch.setattr(f"{__name__}.FACTOR", 0.9)
    message = r"computes something else than when epoch-0001 was saved \(its logits .*restore its code, or use another"
    with pytest.raises(RunError, match=message) as caught:
        train(config, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path / "run") == before
    monkeypatch.setattr(f"{__name__}.FACTOR", 1.0)
    train(config, tmp_path / "run", progress=False)
    train(config, tmp_path / "whole", progress=False)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    # A finished run is only read.
    before = tree(tmp_path / "run")
    monkeypatch.setattr(f"{__name__}.FACTOR", 0.9)
    train(config, tmp_path / "run", progress=False)
    assert tree(tmp_path / "run") == before


TRAIN_FACTOR = 1.0


def scaled_in_training(num_classes: int, in_channels: int, image_size: tuple[int, int], **_: Any) -> torch.nn.Module:
    """A linear network whose code in train mode depends on a number of this module."""

    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward((TRAIN_FACTOR if self.training else 1.0) * x.flatten(1))

    H, W = image_size
    return Scaled(in_channels * H * W, num_classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": f"{__name__}:scaled_in_training"}}, r"the student of .* \(in train mode its logits"),
        ({"method": {"name": "peerad", "peer": SCALED}}, r"the peer of .*run computes something .* \(its logits"),
        ({"method": {"name": "lbgat", "natural": SCALED}}, r"the guide of .*run computes something .* \(its logits"),
        (
            {"method": {"name": "peerad", "peer": f"{__name__}:scaled_in_training"}},
            r"the peer of .* \(in train mode its logits",
        ),
    ],
)
def test_a_forward_that_has_changed_in_training_or_in_a_peer_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    config = small_config(**changes)
    stop_after(1, config, tmp_path / "run")
    before = tree(tmp_path / "run")
    for name in ("FACTOR", "TRAIN_FACTOR"):
        monkeypatch.setattr(f"{__name__}.{name}", 0.9)
    with pytest.raises(RunError, match=message) as caught:
        train(config, tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path / "run") == before
    for name in ("FACTOR", "TRAIN_FACTOR"):
        monkeypatch.setattr(f"{__name__}.{name}", 1.0)
    train(config, tmp_path / "run", progress=False)
    train(config, tmp_path / "whole", progress=False)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_teacher_whose_code_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(method={"name": "akd"}, teachers=[SCALED])
    stop_after(1, config, tmp_path / "run")
    before = tree(tmp_path / "run")
    monkeypatch.setattr(f"{__name__}.FACTOR", 0.9)
    with pytest.raises(RunError, match=r"the code of teacher .*:scaled has changed since .* \(its logits"):
        train(config, tmp_path / "run", progress=False)
    assert tree(tmp_path / "run") == before
    # Runs of earlier versions have no fingerprint.
    directory = RunDirectory(tmp_path / "run")
    page = directory.read_json("teachers.json")
    assert page is not None
    del page["teachers"][0]["fingerprint"]
    directory.write_json("teachers.json", {"teachers": page["teachers"]})
    train(config, tmp_path / "run", progress=False)


# --- the environment


def in_environment(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Pretend that the process has other threads or versions."""
    here = {**environment(), **changes}
    monkeypatch.setattr("robustill.training.provenance.environment", lambda *_: here)
    return here


def test_a_finished_run_keeps_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small_config(), tmp_path / "run", progress=False)
    before = tree(tmp_path / "run")
    in_environment(monkeypatch, python="3.99", threads=64)
    train(small_config(), tmp_path / "run", progress=False)
    assert tree(tmp_path / "run") == before


def test_a_resumed_run_lists_its_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = small_config(optim={"epochs": 4}), tmp_path / "run"
    first = in_environment(monkeypatch, threads=1)
    stop_after(1, config, run)
    stop_after(2, config, run)
    page = RunDirectory(run).read_json("environment.json")
    assert page == first
    second = in_environment(monkeypatch, threads=2)
    message = r"another environment from epoch 3 on \(threads 2, before 1\): numbers may differ"
    with pytest.warns(UserWarning, match=message):
        stop_after(2, config, run)
    third = in_environment(monkeypatch, threads=3)
    with pytest.warns(UserWarning, match=r"from epoch 3 on \(threads 3, before 1\)"):
        stop_after(3, config, run)
    fourth = in_environment(monkeypatch, threads=3, cores=1000)
    train(config, run, progress=False)
    page = RunDirectory(run).read_json("environment.json")
    assert page is not None
    entries = page.pop("environments")
    assert page == first
    spans = [(each.pop("first_epoch"), each.pop("last_epoch")) for each in entries]
    assert spans == [(1, 2), (3, 3), (4, None)]
    assert entries == [first, third, fourth]
    assert second != third


def test_the_packages_of_networks_and_of_the_optimizer_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_config(), tmp_path / "run", progress=False)
    assert set(environment()["versions"]) == {"robustill", "torch", "numpy", "pydantic", "safetensors"}
    setup = set_up_training(small_config(), torch.device("cpu"))
    assert used_packages(small_config(), setup) == []
    assert used_packages(small_config(model={"name": "torchvision:resnet18"}), setup) == ["torchvision"]
    optimizer = small_config(optim={"name": "timm:lion"})
    assert used_packages(optimizer, setup) == ["timm"]
    teacher = load_network(f"run:{tmp_path / 'run'}@best")
    with_teacher = replace(setup, teachers=(replace(teacher, architecture="timm:resnet18 (num_classes 10)"),))
    assert used_packages(small_config(), with_teacher) == ["timm"]
    versions = {"timm": installed_version("timm"), "pytest": installed_version("pytest")}
    assert environment(list(versions))["versions"] == {**environment()["versions"], **versions}
    monkeypatch.setattr("robustill.training.loop.used_packages", lambda *_: ["pytest"])
    train(small_config(), tmp_path / "new", progress=False)
    assert RunDirectory(tmp_path / "new").read_json("environment.json") == environment(["pytest"])


def test_a_damaged_environment_is_written_again(tmp_path: Path) -> None:
    stop_after(1, small_config(), tmp_path / "run")
    (tmp_path / "run" / "environment.json").write_text("{")
    train(small_config(), tmp_path / "run", progress=False)
    assert RunDirectory(tmp_path / "run").read_json("environment.json") == environment()
