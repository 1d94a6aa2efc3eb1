"""A run that is killed, damaged, shared or out of disk space continues to the same result, or gives one error line."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.small_runs import hold_the_lock, lines, small_config, train_until, tree, weights
from hostile_files.damage import DAMAGES, truncated
from robustill.config.files import dump_config, load_config
from robustill.config.schema import make_config
from robustill.core import checksums, files
from robustill.core.errors import RobustillError, RunError
from robustill.evaluation.targets import evaluate_run
from robustill.runs.directory import RunDirectory, split_checkpoint
from robustill.runs.dynamics import read_dynamics
from robustill.training.loop import train

EPOCHS = 3
# Processes that start with torch already imported, and with nothing else of this one.
PROCESSES = multiprocessing.get_context("forkserver")
# The first optimizer of a process would import the last of these, for seconds.
PROCESSES.set_forkserver_preload(["robustill.training.loop", "torch._dynamo"])
CONFIG = small_config(optim={"epochs": EPOCHS, "ema": 0.9})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, run, progress=False)
    return run


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped after its second epoch."""
    run = tmp_path_factory.mktemp("half") / "run"
    train_epochs(run, 2)
    return run


def train_epochs(run: Path, epochs: int) -> None:
    """Train CONFIG, and stop in the epoch after the given one without saving its state."""
    from robustill.training import loop as module

    original = module._Loop._train_epoch

    def stops(self, bar):  # type: ignore[no-untyped-def]
        if self.epochs_done == epochs:
            raise KeyboardInterrupt
        return original(self, bar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Loop, "_train_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, run, progress=False)


def same_result(run: Path, whole: Path) -> bool:
    names = ("last", "best", "last-ema", "best-ema")
    same_weights = all(weights(run, name) == weights(whole, name) for name in names)
    return same_weights and lines(run) == lines(whole) and tree(run / "dynamics") == tree(whole / "dynamics")


def copy(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / "run"))


# --- resuming


def test_a_stopped_run_resumes_bit_for_bit(half: Path, whole: Path, tmp_path: Path) -> None:
    run = copy(half, tmp_path)
    train(CONFIG, run, progress=False)
    assert same_result(run, whole)
    assert sorted(tree(run / "checkpoints")) == sorted(tree(whole / "checkpoints"))


def test_a_complete_run_is_not_changed(whole: Path, tmp_path: Path) -> None:
    run = copy(whole, tmp_path)
    before = tree(run)
    result = train(CONFIG, run, progress=False)
    assert tree(run) == before
    assert len(result.metrics) == EPOCHS


def test_a_kill_between_checkpoint_and_metrics_loses_nothing(whole: Path, tmp_path: Path) -> None:
    # The checkpoint of the last epoch is there, and nothing that is written after it.
    run = copy(whole, tmp_path)
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(text[:-1]) + text[-1][:10])
    (run / "checkpoints" / "best").unlink()
    RunDirectory(run).checkpoints.point("last", EPOCHS - 1)
    train(CONFIG, run, progress=False)
    assert same_result(run, whole)


def test_temporary_files_of_a_killed_run_are_removed(half: Path, whole: Path, tmp_path: Path) -> None:
    run = copy(half, tmp_path)
    shutil.copytree(run / "checkpoints" / "epoch-0002", run / "checkpoints" / ".epoch-0003.77.tmp")
    (run / "checkpoints" / ".best.77.tmp").write_text("epo")
    (run / ".metrics.jsonl.77.tmp").write_text("{")
    train(CONFIG, run, progress=False)
    assert same_result(run, whole)
    assert not [name for name in tree(run) if name.endswith(".tmp")]


def test_a_run_killed_in_its_first_write_can_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").touch()
    (run / ".config.yaml.77.tmp").write_text("seed")
    train(small_config(optim={"epochs": 1}), run, progress=False)
    assert weights(run)


# --- damage: every file of a stopped run, damaged in every way


def attempted(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return (value, None) or (None, message of a RobustillError); any other exception fails the test."""
    try:
        return call(), None
    except RobustillError as error:
        return None, str(error)


FILES = (
    "config.yaml environment.json metrics.jsonl model.json split.json checkpoints/best checkpoints/best-ema "
    "checkpoints/last " + " ".join(
        f"checkpoints/epoch-000{epoch}/{name}"
        for epoch in (1, 2)
        for name in ("checksums.json", "ema.safetensors", "metrics.json", "model.safetensors", "state.pt")
    ) + " dynamics/samples.npz dynamics/epoch-0001.npz dynamics/epoch-0002.npz"
).split()  # fmt: skip


def test_the_table_of_files_is_complete(half: Path) -> None:
    assert sorted(FILES) == sorted(name for name, digest in tree(half).items() if digest and name != "lock")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_never_changes_the_result(
    half: Path, whole: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run = copy(half, tmp_path)
    damage(run / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, error = attempted(lambda: train(CONFIG, run, progress=False))
    said = " ".join(str(each.message) for each in caught)
    if error is not None:
        assert "\n" not in error
        assert name in error or str(run) in error
        return
    warned = "epoch-0002" in name or name.startswith("dynamics/epoch")
    assert ("damaged" in said or "missing" in said) == warned
    if name.startswith("dynamics/epoch"):
        assert name in attempted(lambda: read_dynamics(run))[1]
    else:
        assert tree(run / "dynamics") == tree(whole / "dynamics")
    # The best epoch of this run is its first: where its files are damaged, they are refused by name.
    assert lines(run) == lines(whole)
    for what in ("last", "best", "last-ema", "best-ema"):
        digest, refused = attempted(lambda what=what: weights(run, what))  # type: ignore[misc]
        if refused is None:
            assert digest == weights(whole, what)
        else:
            assert "epoch-0001" in name
            assert "damaged" in refused or "no checkpoint" in refused


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "model.json", "checkpoints/best", *FILES[9:14]])
def test_damage_never_changes_an_evaluation(
    whole: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run = copy(whole, tmp_path)
    RunDirectory(run).checkpoints.point("best", 1)
    expected = weights(run, "best")
    damage(run / name)
    found, error = attempted(
        lambda: evaluate_run(run, checkpoints=["best"], progress=False, num_images=10, suite="pgd-20")
    )
    if error is not None:
        assert "\n" not in error
        assert not (run / "evaluations").exists()
        return
    (records,) = found.values()
    # Files that hold other things than the weights do not matter here; a pointer may have lost its checksum alone.
    assert name not in ("config.yaml", "model.json", "checkpoints/epoch-0001/model.safetensors")
    assert records.conditions["checkpoint_sha256"] == expected
    assert records.conditions["threat"]["eps"] == CONFIG.threat.eps


def test_a_run_with_damaged_checkpoints_only_starts_over(half: Path, whole: Path, tmp_path: Path) -> None:
    run = copy(half, tmp_path)
    for epoch in (1, 2):
        truncated(run / "checkpoints" / f"epoch-000{epoch}" / "state.pt")
    with pytest.warns(UserWarning, match="damaged") as caught:
        train(CONFIG, run, progress=False)
    assert [str(each.message).split("; ")[-1] for each in caught] == ["going on from an earlier one", "starting over"]
    assert same_result(run, whole)


def test_a_checkpoint_of_another_epoch_is_refused(half: Path, whole: Path, tmp_path: Path) -> None:
    run = copy(half, tmp_path)
    (run / "checkpoints" / "epoch-0002").rename(run / "checkpoints" / "epoch-0003")
    with pytest.warns(UserWarning, match="another epoch"):
        train(CONFIG, run, progress=False)
    assert lines(run) == lines(whole)
    assert weights(run) == weights(whole)


class _Payload:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, ("payload-ran",)  # type: ignore[return-value]


def test_a_pickled_payload_in_a_state_is_not_run(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = copy(half, tmp_path)
    folder = run / "checkpoints" / "epoch-0002"
    torch.save({"epoch": 2, "has_ema": True, "optimizer": _Payload()}, folder / "state.pt")
    sums = json.loads((folder / "checksums.json").read_text())
    sums["sha256"]["state.pt"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.warns(UserWarning, match="damaged"):
        train(CONFIG, run, progress=False)
    assert not (tmp_path / "payload-ran").exists()


# --- somebody else's directory


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"threat": {"eps": 0.2}}, "threat.eps"),
        ({"seed": 1}, "seed"),
        ({"method": {"name": "trades"}}, "method.name"),
        ({"data": {"augmentation": ["flip"]}}, "data.augmentation"),
        ({"optim": {"epochs": 5}}, "optim.epochs"),
        ({"keep_every": 1}, "keep_every"),
    ],
)
def test_another_configuration_is_refused(whole: Path, change: dict, key: str) -> None:
    before = tree(whole)
    values = CONFIG.model_dump(mode="json")
    for name, value in change.items():
        # A method's options belong to its name.
        values[name] = {**values[name], **value} if isinstance(value, dict) and name != "method" else value
    changed = make_config(values)
    with pytest.raises(RunError, match=rf"was made by another configuration: {key} is"):
        train(changed, whole, progress=False)
    assert tree(whole) == before


def test_a_run_may_continue_with_other_compute_settings(whole: Path, tmp_path: Path) -> None:
    run = copy(whole, tmp_path)
    config = CONFIG.model_copy(update={"compute": CONFIG.compute.model_copy(update={"threads": None})})
    assert train(config, run, progress=False).best == RunDirectory(whole).checkpoints.pointed("best")


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"not empty and no run directory \(it holds thesis\.tex\)"):
        train(CONFIG, tmp_path, progress=False)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused_as_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        train(CONFIG, tmp_path / "file", progress=False)


def test_a_second_process_is_refused(half: Path, tmp_path: Path) -> None:
    run = copy(half, tmp_path)
    before = tree(run)
    held, release = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=hold_the_lock, args=(run, held, release))
    process.start()
    assert held.wait(600)
    with pytest.raises(RunError, match="in use by another process"):
        train(CONFIG, run, progress=False)
    release.set()
    process.join()
    assert tree(run) == before
    train(CONFIG, run, progress=False)


# --- a full or read-only disk


# Each is replaced in the module that calls it.
@pytest.mark.parametrize(("module", "call"), [(files, "write_bytes"), (checksums, "new_folder")])
def test_a_run_continues_after_a_full_disk(
    half: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: str
) -> None:
    run = copy(half, tmp_path)
    original = getattr(module, call)

    def full(path: Path, *rest: object):  # type: ignore[no-untyped-def]
        if "epoch-0003" in path.name or (call == "write_bytes" and (run / "checkpoints" / "epoch-0003").exists()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, call, full)
        with pytest.raises(RunError, match=r"epoch 3 cannot be written .*No space left on device") as caught:
            train(CONFIG, run, progress=False)
    assert "\n" not in str(caught.value)
    train(CONFIG, run, progress=False)
    assert same_result(run, whole)


def test_a_metrics_line_cut_off_by_a_full_disk_is_replaced(
    half: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(half, tmp_path)

    def cut(self: RunDirectory, line: dict) -> None:
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line)[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", cut)
        with pytest.raises(RunError, match="No space left"):
            train(CONFIG, run, progress=False)
    train(CONFIG, run, progress=False)
    assert same_result(run, whole)


# --- real kills


# The approximate number of moments of an uninterrupted run of CONFIG; a kill after its end does not count.
MOMENTS = 119


def killed(file: Path, run: Path, moment: int, kind: signal.Signals) -> bool:
    """Return whether a process that trains `run` was killed at this moment, before its end."""
    process = PROCESSES.Process(target=train_until, args=(file, run, moment, kind))
    process.start()
    process.join(600)
    assert process.exitcode in (0, -kind if kind == signal.SIGKILL else 128 + kind)
    return process.exitcode != 0


def check_result_after_kills(tmp_path: Path, whole: Path, kills: int, kinds: list[signal.Signals]) -> None:
    draws, file, hit = random.Random(0), tmp_path / "a.yaml", 0
    file.write_text(dump_config(CONFIG))
    for number in itertools.count():
        run = tmp_path / f"run-{number}"
        # The same run is killed up to three times before it may finish.
        for _ in range(3):
            hit += killed(file, run, draws.randint(1, MOMENTS), kinds[hit % len(kinds)])
        train(CONFIG, run, progress=False)
        assert same_result(run, whole)
        assert sorted(tree(run)) == sorted(tree(whole))
        if hit >= kills:
            break


def test_a_run_killed_three_times_ends_the_same(tmp_path: Path, whole: Path) -> None:
    check_result_after_kills(tmp_path, whole, 3, [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])


@pytest.mark.slow
def test_a_run_killed_thirty_times_ends_the_same(tmp_path: Path, whole: Path) -> None:
    check_result_after_kills(tmp_path, whole, 30, [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_the_same(tmp_path: Path, whole: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(dump_config(CONFIG))
    for moment in itertools.count(1):
        run = tmp_path / f"run-{moment}"
        if not killed(file, run, moment, signal.SIGKILL):
            break
        train(CONFIG, run, progress=False)
        assert same_result(run, whole), moment
        shutil.rmtree(run)
    assert MOMENTS * 0.8 < moment < MOMENTS * 1.2


# --- metrics and small files


def test_only_the_last_metrics_line_may_be_cut_off(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch, "validation_robust_accuracy": 0.1 * epoch})
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text + '{"epoch": 4')
    assert [line["epoch"] for line in run.metrics()] == [1, 2, 3]
    for damaged in (text.replace('"epoch": 2', '"epoch": 7'), text.replace("{", "", 1), text + text, "[]\n", "3\n"):
        (tmp_path / "metrics.jsonl").write_text(damaged)
        with pytest.raises(RunError, match="damaged in line"):
            run.metrics()


def test_a_changed_json_file_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("a.json", {"x": [1, 2.5, None, "ü"]})
    assert run.read_json("a.json") == {"x": [1, 2.5, None, "ü"], "format": 1}
    assert run.read_json("b.json") is None
    text = (tmp_path / "a.json").read_text()
    for changed in (text.replace("2.5", "3.5"), "[]", "3", "{}", "[" * 10**5, text.replace("1", "2", 1)):
        (tmp_path / "a.json").write_text(changed)
        with pytest.raises(RunError):
            run.read_json("a.json")


def test_a_json_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"format": 2, "x": 1}')
    with pytest.raises(RunError, match="format 2, expected 1"):
        RunDirectory(tmp_path).read_json("a.json")


def test_the_stored_configuration_repeats_the_run(whole: Path, tmp_path: Path) -> None:
    again = load_config(whole / "config.yaml")
    assert again == CONFIG
    train(again, tmp_path / "again", progress=False)
    assert same_result(tmp_path / "again", whole)


def test_a_checkpoint_is_split_off_at_the_last_at_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a@b", "c@best", "d", "d@last", "user@lab/e"):
        Path(folder).mkdir(parents=True)
    expected: dict[str, tuple[str, str | None]] = {
        "d": ("d", None),
        "d@best": ("d", "best"),
        "d@bset": ("d", "bset"),
        "missing@epoch-3-ema": ("missing", "epoch-3-ema"),
        "user@lab/e": ("user@lab/e", None),
        "user@lab/e@best": ("user@lab/e", "best"),
        "user@lab/": ("user@lab/", None),
        "a@b": ("a@b", None),
        "a@b@last": ("a@b", "last"),
        # A folder that is named like a checkpoint of another one is meant only where there is no other one.
        "c@best": ("c@best", None),
        "c@best@last": ("c@best", "last"),
        "d@last": ("d", "last"),
    }
    assert {source: split_checkpoint(source) for source in expected} == expected
