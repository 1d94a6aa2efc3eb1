"""Every file of a run is damaged in turn: `doctor` names it, and no reader returns a wrong value."""

from __future__ import annotations

import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.small_runs import small_config, tree
from hostile_files.damage import DAMAGES, deleted
from robustill.analysis.runs import read_run
from robustill.cli.doctor import Finding, examine_installation, examine_run
from robustill.core.errors import RobustillError, RunError
from robustill.core.files import exclusive_lock_in
from robustill.core.signals import Interrupted
from robustill.evaluation.state import EvaluationState
from robustill.evaluation.targets import evaluate_run
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import read_dynamics
from robustill.training import loop as module
from robustill.training.loop import train

SETTINGS = {"checkpoints": ["best"], "num_images": 12, "suite": "pgd-20", "progress": False, "batch_size": 5}
HALF = "test-best-pgd-12-images"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its third epoch, with one finished and one partial evaluation."""
    run = tmp_path_factory.mktemp("doctor") / "run"
    rate = module._Loop._set_rate

    def watched(self: module._Loop, step: int) -> float:
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        return rate(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Loop, "_set_rate", watched)
        patch.setattr("robustill.core.signals.PATIENCE", 600.0)
        with pytest.raises(Interrupted):
            train(small_config(optim={"epochs": 3, "ema": 0.9}), run, progress=False)
    evaluate_run(run, **SETTINGS)
    save = EvaluationState.save_part

    def stops(self: EvaluationState, number: int, arrays: dict[str, Any]) -> None:
        save(self, number, arrays)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaluationState, "save_part", stops)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, **{**SETTINGS, "suite": "pgd"})
    return run


def wrong(findings: list[Finding]) -> list[Finding]:
    return [each for each in findings if each.verdict == "wrong"]


def plain(value: Any) -> Any:
    """Return an equivalent of a value that compares by value."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return plain(vars(value)) if hasattr(value, "__dataclass_fields__") else value


READERS: dict[str, Callable[[Path], Any]] = {
    "config": lambda run: RunDirectory(run).config(),
    **{
        name: lambda run, name=name: RunDirectory(run).read_json(name)  # type: ignore[misc]
        for name in ("environment.json", "model.json", "split.json")
    },
    "metrics": lambda run: RunDirectory(run).metrics(),
    **{
        name: lambda run, name=name: RunDirectory(run).checkpoints.pointed(name)
        for name in ("best", "last", "best-ema")
    },  # type: ignore[misc]
    **{
        f"weights {name}": lambda run, name=name: RunDirectory(run).checkpoints.weights(name)
        for name in ("best", "last-ema")
    },  # type: ignore[misc]
    "checkpoint 1": lambda run: RunDirectory(run).checkpoints.read(1),
    "checkpoint 2": lambda run: RunDirectory(run).checkpoints.read(2),
    "latest": lambda run: RunDirectory(run).checkpoints.latest(),
    "unfinished": lambda run: RunDirectory(run).checkpoints.load_unfinished(3),
    "dynamics": read_dynamics,
    "half done": lambda run: EvaluationState(run / "evaluations" / HALF / ".state", {}, 5).part_size,
    "part": lambda run: EvaluationState(run / "evaluations" / HALF / ".state", {}, 7).load_part(0),
    **{
        f"report {key}": lambda run, key=key: getattr(read_run(run, "run"), key)  # type: ignore[misc]
        for key in ("config", "environment", "metrics", "best", "last", "evaluations")
    },
}
# A reader may find nothing: then its caller does without, or reports what is missing.
ABSENT = (None, [])


def read(run: Path) -> dict[str, Any]:
    """Return what every reader gives, or the error with which it refuses."""
    found = {}
    for name, reader in READERS.items():
        try:
            found[name] = plain(reader(run))
        except RobustillError as error:
            found[name] = error
    assert not any("\n" in str(each) for each in found.values() if isinstance(each, RobustillError))
    return found


@pytest.fixture(scope="module")
def whole(run: Path) -> dict[str, Any]:
    return read(run)


def damage_noticed(run: Path, whole: dict[str, Any]) -> bool:
    """Return whether any reader noticed the damage; check that none returns anything but what was written."""
    noticed = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, value in read(run).items():
            if isinstance(value, RobustillError) or value in ABSENT:
                noticed |= value != whole[name]
            elif name == "latest" and value != whole[name]:
                # The checkpoint before it, with a warning.
                assert value == whole["checkpoint 1"]
                assert caught
            else:
                assert value == whole[name], name
    return noticed or bool(caught)


EPOCHS = [f"checkpoints/epoch-000{epoch}" for epoch in (1, 2)]
FILES = [
    *("config.yaml environment.json model.json split.json metrics.jsonl".split()),
    *("checkpoints/best checkpoints/last checkpoints/best-ema".split()),
    *(
        f"{folder}/{name}"
        for folder in EPOCHS
        for name in "checksums.json model.safetensors ema.safetensors state.pt metrics.json".split()
    ),
    *("checkpoints/unfinished/checksums.json checkpoints/unfinished/state.pt".split()),
    *("dynamics/samples.npz dynamics/epoch-0001.npz dynamics/epoch-0002.npz".split()),
    *(f"evaluations/test-best-pgd-20-12-images/{name}" for name in ("records.npz", "summary.json")),
    *(f"evaluations/{HALF}/.state/{name}" for name in ("header.json", "part-00000.npz")),
]


def test_the_table_of_files_is_complete(run: Path) -> None:
    assert sorted(FILES) == sorted(name for name, digest in tree(run).items() if digest and Path(name).name != "lock")
    assert wrong(examine_run(run)) == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_reported_and_no_wrong_value_is_read(
    run: Path, whole: dict[str, Any], tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy / name)
    noticed = damage_noticed(copy, whole)
    if name == "config.yaml" and damage is deleted:
        with pytest.raises(RunError, match=r"is no run directory \(it has no config.yaml\)"):
            examine_run(copy)
        return
    findings = wrong(examine_run(copy))
    # A damaged part of an evaluation is computed again; without its header the evaluation starts anew.
    if "part-00000" in name or (name.endswith("header.json") and damage is deleted):
        assert findings == []
        return
    assert noticed
    assert findings, name
    text = " ".join(f"{each.subject} {each.message}" for each in findings)
    assert Path(name).name in text or Path(name).parent.name in text


def flips(file: Path, count: int) -> Iterator[bytes]:
    content, draws = file.read_bytes(), random.Random(file.name)
    for _ in range(count):
        changed = bytearray(content)
        changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
        yield bytes(changed)


@pytest.mark.parametrize("count", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_no_wrong_value_is_read_after_a_flipped_bit(
    run: Path, whole: dict[str, Any], tmp_path: Path, count: int
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    for name in FILES:
        original = (copy / name).read_bytes()
        for changed in flips(copy / name, count):
            (copy / name).write_bytes(changed)
            damage_noticed(copy, whole)
            examine_run(copy)
        (copy / name).write_bytes(original)
    assert wrong(examine_run(copy)) == []


@pytest.mark.parametrize(("name", "key"), [("metrics.jsonl", "check"), ("model.json", "sha256")])
def test_a_renamed_checksum_is_reported(run: Path, tmp_path: Path, name: str, key: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / name).read_text()
    (copy / name).write_text(text.replace(f'"{key}"', f'"{key[:-1]}x"', 1))
    assert [each.subject for each in wrong(examine_run(copy))][:1] == [name]


def test_a_run_without_format_numbers_still_opens(run: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("# format 1, sha256", "# sha256", 1))
    metrics = copy / "metrics.jsonl"
    lines = [line.partition(', "check"')[0] + "}\n" for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(lines))
    for epoch in (1, 2):
        file = copy / "dynamics" / f"epoch-000{epoch}.npz"
        with np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files if name != "format"}
        np.savez(file, **arrays)
    assert read(copy) == whole
    assert wrong(examine_run(copy)) == []


@pytest.mark.parametrize("name", ["config.yaml", "model.json", "checkpoints/epoch-0002/checksums.json"])
def test_a_later_format_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / name).read_text()
    changed = text.replace("# format 1", "# format 7").replace('"format": 1', '"format": 7')
    assert changed != text
    (copy / name).write_text(changed)
    assert any("format 7, expected 1" in each.message for each in wrong(examine_run(copy)))


def test_a_changed_environment_is_a_note(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    page = RunDirectory(copy).read_json("environment.json")
    assert page is not None
    RunDirectory(copy).write_json("environment.json", {**page, "versions": {**page["versions"], "torch": "1.13"}})
    (note,) = (each for each in examine_run(copy) if each.verdict == "note")
    assert note.message.startswith("torch 1.13 there, ")


def test_this_installation_is_fine_and_a_missing_device_is_not() -> None:
    found = {each.subject: each for each in examine_installation("cpu")}
    assert wrong(list(found.values())) == []
    assert "bit for bit" in found["repeats"].message
    (finding,) = wrong(examine_installation("cuda:99"))
    assert finding.subject == "device"
    assert "cuda:99" in finding.message


def test_two_processes_cannot_write_the_same_evaluation(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    state = copy / "evaluations" / HALF / ".state"
    with exclusive_lock_in(state, "held"), pytest.raises(RunError, match="is being written by another process"):
        evaluate_run(copy, **{**SETTINGS, "suite": "pgd"})
    (records,) = evaluate_run(copy, **{**SETTINGS, "suite": "pgd"}).values()
    assert len(records) == 12
    assert not state.exists()


def test_a_lock_removes_the_folders_it_created(tmp_path: Path) -> None:
    with exclusive_lock_in(tmp_path / "a" / "b", "held"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_links_inside_a_run_are_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    for name in ("evaluations/X", "lock-2"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    found = [each for each in examine_run(tmp_path / "run") if "a link, which is not followed" in each.message]
    assert {each.subject for each in found} == {"evaluations/X", "lock-2"}
    assert {each.verdict for each in found} == {"wrong"}
