"""Evaluations of runs: folders, conditions, reuse of records, and files of weights of a run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.records_by_hand import save_records
from helpers.small_runs import small_config, tree, weights
from robustill.analysis.summary import summary
from robustill.core.device import environment
from robustill.core.errors import ConfigError, RobustillError
from robustill.evaluation import evaluate as evaluation
from robustill.evaluation import targets
from robustill.evaluation.evaluate import evaluate
from robustill.evaluation.targets import evaluate_file, evaluate_run
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.training.loop import train

QUICK: dict[str, Any] = {"num_images": 20, "suite": "pgd-20", "eps_curve": False, "progress": False}
NAMED = ["--model", "resnet8", "--model.width", "2", "--data", "digits", "--threat", "linf:0.1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("room") / "run"
    return train(small_config(optim={"ema": 0.9}), run, progress=False).run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_best_last_and_their_averages_are_evaluated(run: Path) -> None:
    evaluated = evaluate_run(run, **QUICK)
    names = [f"test-{what}-pgd-20-20-images" for what in ("best", "last", "best-ema", "last-ema")]
    assert list(evaluated) == [run / "evaluations" / name for name in names]
    for folder, records in evaluated.items():
        assert summary(Records.load(folder)) == summary(records)
        what = str(records.conditions["checkpoint"])
        assert records.conditions["checkpoint_sha256"] == weights(run, what)
        assert records.conditions["epoch"] == RunDirectory(run).checkpoints.resolve(what)[0]
        assert records.conditions["threat"]["eps"] == 0.1


def test_a_repeated_evaluation_writes_the_same_files(run: Path) -> None:
    evaluate_run(run, checkpoints=["last"], **QUICK)
    before = tree(run)
    evaluate_run(run, checkpoints="last", **QUICK)
    assert tree(run) == before


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The threat of every attack that starts."""
    started: list[Any] = []
    worst_case = evaluation.WorstCase
    monkeypatch.setattr(evaluation, "WorstCase", lambda *a: started.append(a[1]) or worst_case(*a))
    return started


def lines_beside_progress(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr since the last call, without those of progress bars and of times."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if " passes/s" not in line and " on this machine" not in line]


def test_finished_evaluations_are_read_with_a_notice(run: Path, attacks: list[Any], capsys: Any) -> None:
    arguments = {**QUICK, "progress": True, "threats": ["linf:0.1", "l2:0.2"], "checkpoints": ["best", "best-ema"]}
    first = evaluate_run(run, **arguments)
    assert len(attacks) == 4
    names = [f"run@{what} {threat}" for what in arguments["checkpoints"] for threat in arguments["threats"]]
    titles = [f"{name} ({number} of 4): " for number, name in enumerate(names, start=1)]
    guessing = "the model is no better than guessing among 10 classes: right on "
    assert [line.partition(guessing)[0] for line in lines_beside_progress(capsys)] == titles
    before = tree(run)
    again = evaluate_run(run, **arguments)
    assert len(attacks) == 4
    assert [summary(each) for each in again.values()] == [summary(each) for each in first.values()]
    assert [each.conditions for each in again.values()] == [each.conditions for each in first.values()]
    assert tree(run) == before
    lines = lines_beside_progress(capsys)
    assert [line.partition(guessing)[0] for line in lines[::2]] == titles
    assert lines[1::2] == [
        f"{title}evaluated on 2026-11-23 already, nothing is attacked; delete {folder} to attack again"
        for title, folder in zip(titles, first, strict=True)
    ]
    # Only the missing one is attacked again.
    shutil.rmtree(next(iter(first)))
    evaluate_run(run, **arguments)
    assert len(attacks) == 5
    assert tree(run) == before


def _with_conditions(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        records = Records.load(folder)
        save_records(replace(records, conditions={**records.conditions, **changes}), folder)

    return change


def _another_image(folder: Path) -> None:
    records = Records.load(folder)
    fewer = records.part(np.arange(len(records)) > 0)
    save_records(replace(fewer, conditions=records.conditions), folder)


def _another_answer(folder: Path) -> None:
    records = Records.load(folder)
    save_records(replace(records, clean_probabilities=records.clean_probabilities * 0.9 + 0.01), folder)


def _damaged(folder: Path) -> None:
    (folder / "records.npz").write_bytes((folder / "records.npz").read_bytes()[:-1])


def _summary_by_hand(folder: Path) -> None:
    page = json.loads((folder / "summary.json").read_text())
    page["results"]["robust_accuracy"] = 1.0
    (folder / "summary.json").write_text(json.dumps(page))


@pytest.mark.parametrize(
    "change",
    [
        _with_conditions(checkpoint_sha256="0" * 64),
        pytest.param(_with_conditions(data_fingerprint="0" * 64), marks=pytest.mark.slow),
        _with_conditions(versions={**environment()["versions"], "robustill": "0.0.1"}),
        _with_conditions(suite={"name": "pgd-20", "stages": []}),
        pytest.param(_with_conditions(precision="bf16 gradients, fp32 decisions"), marks=pytest.mark.slow),
        pytest.param(_with_conditions(seed=1), marks=pytest.mark.slow),
        _with_conditions(threat={"norm": "linf", "eps": 0.2, "text": "linf:0.2"}),
        _with_conditions(masking={"verdict": "none found", "images": 20}),
        pytest.param(_with_conditions(surrogate={"spec": "run:other", "sha256": "0" * 64}), marks=pytest.mark.slow),
        _another_image,
        _another_answer,
        _damaged,
        _summary_by_hand,
    ],
)
def test_records_of_other_conditions_are_attacked_again(
    run: Path, attacks: list[Any], change: Callable[[Path], None]
) -> None:
    (folder,) = evaluate_run(run, checkpoints=["last"], **QUICK)
    before = tree(folder)
    change(folder)
    (again,) = evaluate_run(run, checkpoints=["last"], **QUICK)
    assert len(attacks) == 2
    # Records of other images stay where they are.
    assert tree(again) == before


@pytest.mark.parametrize(
    "settings", [{"eps_curve": True}, {"pictures": False}, {"masking": True}, {"seed": 1}, {"num_images": 21}]
)
def test_other_settings_are_attacked_again(run: Path, attacks: list[Any], settings: dict[str, Any]) -> None:
    evaluate_run(run, checkpoints=["last"], **QUICK)
    evaluate_run(run, checkpoints=["last"], **QUICK | settings)
    assert len(attacks) == 2


def test_other_weights_under_the_same_name_are_attacked_again(run: Path, attacks: list[Any]) -> None:
    evaluate_run(run, checkpoints=["last"], **QUICK)
    first, last = (RunDirectory(run).checkpoints.folder(epoch) for epoch in (1, 2))
    shutil.rmtree(last)
    shutil.copytree(first, last)
    evaluate_run(run, checkpoints=["last"], **QUICK)
    assert len(attacks) == 2


SIGN = 1.0


def signed(num_classes: int, in_channels: int, image_size: tuple[int, int], width: None = None) -> nn.Module:
    """A linear network whose code depends on a number of this module."""

    class Signed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return SIGN * super().forward(x.flatten(1))

    H, W = image_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Signed(in_channels * H * W, num_classes)


def test_the_same_weights_in_other_code_are_attacked_again(
    tmp_path: Path, attacks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["--data", "digits", "--threat", "linf:0.1", "--model", f"{__name__}:signed"]
    for sign, attacked in ((1.0, 1), (1.0, 1), (-1.0, 2)):
        monkeypatch.setattr(f"{__name__}.SIGN", sign)
        evaluate_file(None, out=tmp_path / "out", overrides=overrides, **QUICK)
        assert len(attacks) == attacked


def test_the_same_weights_are_attacked_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = f"epoch-{RunDirectory(run).checkpoints.resolve('last')[0]}"
    threats = ["linf:0.1", "l2:0.2"]
    apart = [evaluate_run(run, checkpoints=[what], threats=threats, **QUICK) for what in ("last", last)]
    before = tree(run)
    shutil.rmtree(run / "evaluations")
    attacked = []
    monkeypatch.setattr(targets, "evaluate", lambda *a, **k: attacked.append(k["threat"]) or evaluate(*a, **k))
    evaluated = evaluate_run(run, checkpoints=["last", last], threats=threats, **QUICK)
    assert len(attacked) == 2
    assert list(evaluated) == [folder for each in apart for folder in each]
    assert tree(run) == before


def test_a_subset_has_a_folder_of_its_own(run: Path) -> None:
    whole = {**QUICK, "num_images": None}
    (folder,) = evaluate_run(run, checkpoints=["last"], **whole)
    assert folder.name == "test-last-pgd-20"
    before = tree(folder)
    evaluate_run(run, checkpoints=["last"], **QUICK)
    assert tree(folder) == before


def test_another_threat_has_a_folder_of_its_own(run: Path) -> None:
    (folder,) = evaluate_run(run, checkpoints=["last"], overrides=["--threat", "linf:8/255"], **QUICK)
    assert folder.name == "test-last-pgd-20-20-images-linf-8_255"
    assert Records.load(folder).conditions["threat"]["eps"] == 8 / 255


def test_other_images_have_a_folder_of_their_own(run: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"data-{number}").mkdir()
        digits = np.random.default_rng(number).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        for split in ("train", "test"):
            np.savez(tmp_path / f"data-{number}" / f"{split}.npz", images=digits, labels=np.arange(20) % 10)

    def folder_name(*overrides: str) -> str:
        (folder,) = evaluate_run(run, checkpoints=["last"], overrides=overrides, **QUICK)
        return folder.name

    others = [folder_name("--data", str(tmp_path / f"data-{number}")) for number in range(3)]
    own = folder_name()
    assert own == "test-last-pgd-20-20-images"
    assert others[0] == "test-last-pgd-20-on-npz"
    assert len({own, *others}) == 4
    before = tree(run)
    # A repeated evaluation uses the same folder, also for a copy of the data elsewhere.
    (tmp_path / "data-2").rename(tmp_path / "moved")
    assert folder_name("--data", str(tmp_path / "moved")) == others[2]
    assert tree(run) == before


def test_another_file_of_the_same_name_has_its_own_folder(run: Path, tmp_path: Path) -> None:
    names = []
    for epoch, folder in ((1, "a"), (2, "b")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "model.safetensors"
        shutil.copy(RunDirectory(run).checkpoints.folder(epoch) / "model.safetensors", file)
        for _ in range(2):
            (place,) = evaluate_file(file, out=str(tmp_path / "out"), overrides=NAMED, **QUICK)
            names.append(place.name)
    assert names[0] == names[1] != names[2] == names[3]
    assert names[2].startswith(f"{names[0]}-")


def test_another_seed_has_a_folder_of_its_own(run: Path) -> None:
    (folder,) = evaluate_run(run, checkpoints=["last"], seed=3, **QUICK)
    assert folder.name == "test-last-pgd-20-20-images-seed-3"


def test_the_training_images_can_be_evaluated(run: Path) -> None:
    (folder,) = evaluate_run(run, checkpoints=["last"], split="train", **QUICK)
    assert folder.name.startswith("train-last")
    assert Records.load(folder).conditions["split"] == "train"


def test_the_validation_images_are_those_that_selected_best(run: Path) -> None:
    (folder,) = evaluate_run(run, checkpoints=["best"], split="validation", **QUICK | {"num_images": None})
    assert folder.name == "validation-best-pgd-20"
    records = Records.load(folder)
    assert records.conditions["split"] == "validation"
    assert len(records) == len(RunDirectory(run).read_json("split.json")["validation"])
    line = RunDirectory(run).metrics()[records.conditions["epoch"] - 1]
    assert summary(records)["clean_accuracy"] == pytest.approx(line["validation_clean_accuracy"])


@pytest.mark.parametrize("setting", [("--data.validation", "0.6"), ("--data.split_seed", "1")])
def test_images_that_a_run_was_trained_on_are_not_its_validation_images(run: Path, setting: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"these are not the validation images of .*run, which may have been trained"):
        evaluate_run(run, checkpoints="best", split="validation", overrides=setting, **QUICK)
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize("setting", [("--data.train_size", "30"), ("--data.label_noise", "0.5")])
def test_the_pool_is_that_of_the_run(run: Path, setting: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="these are not the images of the pool of"):
        evaluate_run(run, checkpoints="best", split="pool", overrides=setting, **QUICK)
    (records,) = evaluate_run(run, checkpoints="best", split="pool", **QUICK).values()
    assert records.conditions["of_images"] == RunDirectory(run).config()["data"]["train_size"]


def test_a_file_has_no_validation_images(run: Path, tmp_path: Path) -> None:
    file = next((run / "checkpoints").glob("epoch-*/model.safetensors"))
    with pytest.raises(ConfigError, match="only a run has a validation part"):
        evaluate_file(file, out=tmp_path / "out", overrides=NAMED, split="validation", **QUICK)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_changes_no_other_file(run: Path) -> None:
    before = tree(run)
    evaluate_run(run, checkpoints=["best"], **QUICK)
    after = tree(run)
    assert {name: digest for name, digest in after.items() if not name.startswith("evaluations")} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoints": ["best", "epoch-9"]}, "no checkpoint 'epoch-9'"),
        ({"overrides": ["--model.width", "4"]}, "--model has no effect on an evaluation"),
        ({"overrides": ["--optim.epochs", "4"]}, "--optim has no effect"),
        ({"overrides": ["--method", "trades"]}, "--method has no effect"),
        ({"overrides": ["--threat.nrom", "l2"]}, "did you mean norm"),
        ({"suite": "nosuch"}, "suite 'nosuch' is unknown"),
        ({"num_images": 0}, "0 images requested"),
        ({"num_images": 10**6}, "1000000 images requested"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_invalid_arguments_write_nothing(run: Path, settings: dict, message: str) -> None:
    before = tree(run)
    with pytest.raises(RobustillError, match=message):
        evaluate_run(run, **{**QUICK, **settings})
    assert tree(run) == before


def test_a_file_gives_the_results_of_its_run(run: Path, tmp_path: Path) -> None:
    (records,) = evaluate_run(run, checkpoints=["last"], **QUICK).values()
    file = run / "checkpoints" / "epoch-0002" / "model.safetensors"
    evaluated = evaluate_file(file, out=tmp_path / "out", overrides=NAMED, **QUICK)
    (folder,), (again,) = evaluated.keys(), evaluated.values()
    assert folder == tmp_path / "out" / "test-model-pgd-20-20-images-linf-0.1"
    assert summary(again) == summary(records)
    assert again.conditions["checkpoint_sha256"] == records.conditions["checkpoint_sha256"]
    assert summary(Records.load(folder)) == summary(again)


@pytest.mark.parametrize("missing", ["model", "data", "threat"])
def test_a_file_requires_model_data_and_threat(run: Path, tmp_path: Path, missing: str) -> None:
    pairs = list(zip(NAMED[::2], NAMED[1::2], strict=True))
    overrides = [word for pair in pairs if not pair[0].startswith(f"--{missing}") for word in pair]
    file = run / "checkpoints" / "epoch-0002" / "model.safetensors"
    with pytest.raises(ConfigError, match=f"give --{missing} too"):
        evaluate_file(file, out=tmp_path / "out", overrides=overrides, **QUICK)
    assert not (tmp_path / "out").exists()


def test_training_settings_are_refused_for_a_file(run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "epoch-0002" / "model.safetensors"
    with pytest.raises(ConfigError, match="--optim has no effect"):
        evaluate_file(file, out=tmp_path / "out", overrides=[*NAMED, "--optim.epochs", "3"], **QUICK)


def test_a_run_that_was_renamed_or_moved_is_read(
    run: Path, attacks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_run(run, checkpoints="last", **QUICK)
    before = tree(run)
    moved = run.with_name("elsewhere")
    run.rename(moved)
    evaluate_run(moved, checkpoints="last", **QUICK)
    monkeypatch.chdir(moved)
    for path in (".", "../elsewhere", "../elsewhere/."):
        (records,) = evaluate_run(path, checkpoints="last", **QUICK).values()
        assert records.conditions["run"] == "run"
    assert len(attacks) == 1
    assert tree(moved) == before


def test_a_run_that_is_evaluated_from_inside_has_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    (records,) = evaluate_run(".", checkpoints="last", **QUICK).values()
    assert records.conditions["run"] == "run"


def test_records_on_a_read_only_disk_are_read(run: Path, attacks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Two names of the same weights, as best and last often are.
    both = ["last", f"epoch-{RunDirectory(run).checkpoints.resolve('last')[0]}"]
    folder, copy = evaluate_run(run, checkpoints=both, **QUICK)
    before = tree(run)

    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    for name in ("mkdir", "unlink", "rmdir", "write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, refuses)
    assert list(evaluate_run(run, checkpoints="last", **QUICK)) == [folder]
    assert list(evaluate_run(run, checkpoints=both, **QUICK)) == [folder, copy]
    assert len(attacks) == 1
    # What is not there cannot be made.
    with pytest.raises(RobustillError, match=r"cannot be written \(Read-only file system\)"):
        evaluate_run(run, checkpoints="best", **QUICK)
    with pytest.raises(RobustillError, match=r"cannot be written to .*nothing was attacked"):
        evaluate_run(run, checkpoints="last", **QUICK | {"eps_curve": True})
    assert len(attacks) == 1
    assert tree(run) == before


def test_a_run_whose_code_has_changed_is_refused(
    tmp_path: Path, attacks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(small_config(model={"name": f"{__name__}:signed", "width": None}), tmp_path / "run", progress=False).run
    evaluate_run(run, checkpoints="last", trust_code=True, **QUICK)
    before = tree(run)
    monkeypatch.setattr(f"{__name__}.SIGN", 0.5)
    with pytest.raises(RobustillError, match=r"same weights in another network \(its logits .* move that folder away"):
        evaluate_run(run, checkpoints="last", trust_code=True, **QUICK)
    assert len(attacks) == 1
    assert tree(run) == before
