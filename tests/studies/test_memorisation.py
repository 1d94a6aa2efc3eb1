"""The memorisation that a study reports equals what is computed from its networks directly."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.small_runs import tree
from helpers.tiny_studies import TWO, recipe
from robustill.cli.study_tables import print_results
from robustill.config.schema import make_config
from robustill.config.split import load_split, make_split
from robustill.models.loading import load_network
from robustill.runs.directory import RunDirectory
from robustill.runs.records import Records
from robustill.studies import Study, make_study
from robustill.studies.memorisation import MemorisationResult, measure_memorisation
from robustill.studies.scheduler import run_study

FOLDS, PARTITIONS = 2, 2
Run = tuple[Study, MemorisationResult]


def make_tiny_study(folder: Path) -> Study:
    file = recipe(
        folder / "data", data={"name": "npz", "root": str(folder / "data"), "validation": 30, "label_noise": 0.25}
    )
    settings = ("--study.folds", str(FOLDS), "--study.partitions", str(PARTITIONS), "--data.train_size", "null")
    return make_study("memorisation", folder=folder / "runs", seeds=1, recipe=file, overrides=settings, suite="pgd-20")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    study = make_tiny_study(tmp_path_factory.mktemp("memorisation"))
    result = run_study(study, TWO, progress=False)
    assert not [each for each in result.outcomes.values() if each.error]
    assert result.memorisation is not None
    return study, result.memorisation


def columns(study: Study) -> dict[str, np.ndarray]:
    with (study.folder / f"{study.name}-influence-seed-0.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def test_scores_equal_those_computed_from_the_networks(done: Run) -> None:
    study, _ = done
    found = columns(study)
    for subsets in study.design.subsets:
        right, trained = [], []
        for name in subsets.runs:
            run = study.folder / "seed-0" / name
            config = make_config(RunDirectory.existing(run).config())
            data = load_split(config, "train")
            split = make_split(config, data.labels, data.num_classes)
            assert split.pool.tolist() == found["id"].tolist()
            network = load_network(f"run:{run}@last").module
            predicted = network(data.read(split.pool).float() / 255).argmax(dim=1)
            right.append((predicted == split.labels[split.pool]).tolist())
            trained.append(torch.isin(split.pool, split.train).tolist())
        for i in range(len(found["id"])):
            having = [right[k][i] for k in range(len(right)) if trained[k][i]]
            lacking = [right[k][i] for k in range(len(right)) if not trained[k][i]]
            assert len(lacking) == PARTITIONS
            expected = sum(having) / len(having) - sum(lacking) / len(lacking)
            assert found[f"{subsets.row}_last_clean"][i] == pytest.approx(expected)


def test_scores_under_attack_are_from_the_robust_images(done: Run) -> None:
    study, result = done
    of_last = result.trainings["at", 0, "last"]
    for k, name in enumerate(study.design.subsets[0].runs):
        records = Records.load(study.folder / "seed-0" / name / "evaluations" / "pool-last-pgd-20")
        assert records.conditions["split"] == "pool"
        assert not records.has_pictures
        assert np.array_equal(of_last.correct["adversarial"][k], records.robust)
    assert (of_last.correct["adversarial"] <= of_last.correct["clean"]).all()
    assert of_last.partition.tolist() == [0, 0, 1, 1]


def test_wrong_labels_are_a_group_of_their_own(done: Run) -> None:
    study, result = done
    found = columns(study)
    assert found["flipped"].sum() == 8
    means = {(each.row, each.checkpoint, each.kind, each.group): each for each in result.means}
    for group, images in (("all", found["id"] >= 0), ("wrong labels", found["flipped"] == 1)):
        mean = means["akd", "last", "clean", group]
        assert mean.images == images.sum()
        # Every image was left out equally often, so the mean of partitions is the mean of images.
        assert mean.mean_std[0] == pytest.approx(found["akd_last_clean"][images].mean())
        assert mean.difference is not None
        assert mean.difference.mean == pytest.approx((found["akd_last_clean"] - found["at_last_clean"])[images].mean())
        assert mean.difference.num_seeds == PARTITIONS
    assert means["at", "last", "clean", "all"].difference is None


def test_proxies_are_correlated_over_all_images(done: Run) -> None:
    _, result = done
    names = {each.metric for each in result.proxies if each.row == "at"}
    assert names == {"memorisation", "adversarial_mean_probability", "area_under_margin", "forgetting"}
    assert {each.correlation.num_samples for each in result.proxies} == {32}


def test_memorisation_is_on_the_page_and_the_terminal(done: Run, capsys: pytest.CaptureFixture[str]) -> None:
    study, _ = done
    page = (study.folder / f"{study.name}.md").read_text()
    rows = [line for line in page.partition("## Memorisation")[2].splitlines() if line.startswith("| akd | last")]
    assert len(rows) == 6
    for checkpoint in ("best", "last"):
        name = f"{study.name}-influence-{checkpoint}.svg"
        assert f"({name})" in page
        assert b"wrong labels" in (study.folder / name).read_bytes()
    print_results(study, run_study(study, TWO, progress=False))
    assert "memorisation" in capsys.readouterr().out


def test_a_second_call_trains_nothing(done: Run) -> None:
    study, _ = done
    before = tree(study.folder / "seed-0")
    run_study(study, TWO, progress=False)
    assert tree(study.folder / "seed-0") == before


def test_a_missing_run_removes_its_partition(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = done
    lost = study.folder / "seed-0" / study.design.subsets[0].runs[0]
    note = lost / "study.json"
    content = note.read_bytes()
    note.unlink()
    try:
        found = measure_memorisation(study)
    finally:
        note.write_bytes(content)
    assert found is not None
    mean = next(each for each in found.means if each.row == "at" and each.group == "all")
    assert mean.by_partition.keys() == {(0, 1)}
    other = next(each for each in found.means if each.row == "akd" and each.group == "all")
    assert other.difference is not None
    assert other.difference.num_seeds == 1


def test_without_finished_runs_there_is_no_memorisation(tmp_path: Path) -> None:
    assert measure_memorisation(make_tiny_study(tmp_path)) is None
