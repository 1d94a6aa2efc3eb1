"""Rows of the board: made from runs of the track's conditions alone, the same bytes from the same runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_board import compute, tiny_track
from robustill.analysis.summary import summary
from robustill.config.schema import make_config
from robustill.core.errors import RunError
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.studies.board import entries_in, make_row, read_rows, row_name, write_row
from robustill.studies.cost import training_compute
from robustill.studies.study import Study
from robustill.studies.tracks import TRACKS, Track, track_study

pytestmark = pytest.mark.filterwarnings("ignore:.*no better than guessing", "ignore:.*guess")


def akd_study(runs: Path) -> Study:
    overrides = ["--method.alpha", "0.5", "--data.root", str(runs.parent / "images")]
    return track_study("digits", "akd", folder=runs, overrides=overrides)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Track]:
    """The runs of PGD-AT and of AKD on a tiny track, whose images lie elsewhere than its recipe says."""
    folder = tmp_path_factory.mktemp("board")
    track = tiny_track(folder / "data")
    (folder / "images").mkdir()
    for split in ("train", "test"):
        (folder / "data" / f"{split}.npz").rename(folder / "images" / f"{split}.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRACKS, "digits", track)
        patch.setattr("robustill.evaluation.evaluate.EPS_GRID", (1.0,))
        patch.setattr("robustill.evaluation.evaluate._NUM_MASKING_IMAGES", 4)
        compute(akd_study(folder / "runs"))
    return folder / "runs", track


@pytest.fixture
def runs(made: tuple[Path, Track], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, track = made
    monkeypatch.setitem(TRACKS, "digits", track)
    return folder


NAME = "akd-alpha-0.5"


def test_a_row_says_what_its_evaluations_say(runs: Path) -> None:
    row, name = make_row(runs, NAME, [0, 1], "digits")
    assert (name, row.name, row.options) == (f"digits-{NAME}", "AKD + EMA, alpha 0.5", {"alpha": 0.5})
    assert row.command == "robustill board run akd --method.alpha 0.5 --track digits --seeds 2"
    assert sorted(row.results) == ["best-ema", "last-ema"]
    for seed in (0, 1):
        records = Records.load(runs / f"seed-{seed}" / NAME / "evaluations" / "test-last-ema-pgd-20")
        numbers = summary(records)
        assert row.values("last-ema", "robust_accuracy")[seed] == numbers["robust_accuracy"]
        assert row.values("last-ema", "ece_pgd")[seed] == numbers["ece_pgd"]
        for column, flags in (("clean_accuracy", records.clean_correct), ("robust_accuracy", records.robust)):
            assert row.flags("last-ema", column)[seed].tolist() == flags.tolist()
        assert row.fingerprints["weights"]["last-ema"][seed] == records.conditions["checkpoint_sha256"]
        (teacher,) = row.fingerprints["teachers"][seed]
        assert teacher["run"] == "teacher-0@best"
    lines = [RunDirectory(runs / "seed-1" / each).metrics() for each in (NAME, "teacher-0")]
    seconds = [sum(line["seconds"] for line in of_run) for of_run in lines]
    assert row.compute["training_seconds"][1] == pytest.approx(seconds[0], abs=0.06)  # type: ignore[index]
    assert row.compute["teachers_seconds"][1] == pytest.approx(seconds[1], abs=0.06)  # type: ignore[index]


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(runs: Path, tmp_path: Path) -> None:
    file = write_row(tmp_path / "board", *make_row(runs, NAME, [0, 1], "digits"))
    text = file.read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    shutil.copytree(runs, tmp_path / "moved")
    write_row(tmp_path / "board", *make_row(tmp_path / "moved", NAME, [0, 1], "digits"))
    assert file.read_text() == text
    (row,) = read_rows(tmp_path / "board", "digits")
    assert row == make_row(runs, NAME, [0, 1], "digits")[0]


def test_two_methods_with_classes_of_one_name_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    names = set()
    for module in ("first_lab", "second_lab"):
        (tmp_path / f"{module}.py").write_text("from robustill.methods.at import AT\n\n\nclass Mine(AT):\n    pass\n")
        names.add(row_name(make_config({"method": {"name": f"{module}:Mine"}})))
    assert names == {"Mine + EMA (first_lab)", "Mine + EMA (second_lab)"}


def test_a_folder_stands_for_its_evaluated_runs(runs: Path) -> None:
    assert entries_in([runs]) == {(runs, NAME): [0, 1], (runs, "at"): [0, 1]}
    assert entries_in([runs / "seed-1" / "at"]) == {(runs, "at"): [1]}
    with pytest.raises(RunError, match="holds no run that was evaluated: give run directories"):
        entries_in([runs / "logs"])


def test_the_compute_is_counted_by_hand(runs: Path) -> None:
    study = akd_study(runs)
    gflops = {name: each.own for name, each in training_compute(study).items()}
    # One attack step: 2 forward, 1 backward to the images, 1 to the weights, which is two. Twice a look at 30 images
    # and one step of PGD on them, by the weights and by their average, in each of two epochs.
    at = 2 * (32 * (2 + 1 + 2) + 2 * 30 * 4)
    assert gflops[f"seed-0/{NAME}"] / gflops["seed-0/at"] == pytest.approx((at + 2 * 32) / at)
    assert gflops["seed-0/teacher-0"] == gflops["seed-0/at"]


def test_other_conditions_are_refused_by_their_name(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track = TRACKS["digits"]

    def refused(match: str, seeds: tuple[int, ...] = (0, 1), **changes: object) -> None:
        monkeypatch.setitem(TRACKS, "digits", replace(track, **changes))  # type: ignore[arg-type]
        with pytest.raises(RunError, match=match):
            make_row(runs, NAME, seeds, "digits")

    refused(r"has optim.ema 0.9, and the track digits has 0.5: a row has the", settings=("--optim.ema", "0.5"))
    refused(r"seed-0/akd-alpha-0.5 was not evaluated as on the track digits: robustill board run akd", suite="pgd")
    refused(r"was not evaluated as on the track digits", num_images=10)
    refused(r"has the seeds 0: the track digits has at least 0 to 1, without gaps", seeds=(0,))
    refused(r"has the seeds 0, 2: the track digits has at least 0 to 1", seeds=(0, 2))


def test_a_teacher_of_other_conditions_is_refused(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "seed-1" / "teacher-0")
    shutil.copytree(runs / "seed-1" / "at", tmp_path / "runs" / "seed-1" / "teacher-0")
    with pytest.raises(RunError, match=r"seed-1/teacher-0 has seed 1, and the track digits has 1100"):
        make_row(tmp_path / "runs", NAME, [0, 1], "digits")


def test_rows_on_other_images_damaged_rows_and_old_ones_are_refused(runs: Path, tmp_path: Path) -> None:
    row, name = make_row(runs, "at", [0, 1], "digits")
    file = write_row(tmp_path, row, name)
    other = replace(row, conditions={**row.conditions, "data_fingerprint": "0" * 64})
    with pytest.raises(RunError, match=r"images of fingerprint 0{12}, and PGD-AT \+ EMA on"):
        write_row(tmp_path, other, "digits-other")
    text = file.read_text()
    file.write_text(text.replace(row.track_fingerprint, "0" * 16))
    with pytest.raises(RunError, match="belongs to another definition of the track digits: robustill board run at"):
        read_rows(tmp_path, "digits")
    file.write_text(text.replace('"seeds"', '"seed"'))
    with pytest.raises(RunError, match=r"digits-at.json is no row of the board .*: add the runs again"):
        read_rows(tmp_path, "digits")
    # Adding it again replaces it.
    assert write_row(tmp_path, row, name) == file
    assert read_rows(tmp_path, "digits") == [row]
    assert np.isfinite(row.results["best-ema"]["clean_accuracy"]).all()
