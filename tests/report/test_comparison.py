import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_runs import make_run
from helpers.read_arms import read_arms
from helpers.records_by_hand import save_records
from robustill.analysis.runs import StudyRow
from robustill.analysis.statistics import paired_difference, paired_over_seeds_and_images
from robustill.report.comparison import after_holm, compare, with_strongest_baselines
from robustill.runs.records import Records


def names(comparisons):
    return [(each.student.name, each.baseline.name) for each in comparisons]


def student(folder: Path, **changes) -> Path:
    return make_run(folder, **{"method": {"name": folder.name.partition("-")[0]}, "teachers": ("t",), **changes})


def test_student_and_baseline_are_compared_on_the_same_images(two_runs):
    arms = read_arms(two_runs)
    (comparison,) = compare(arms)
    a, b = (arm.runs[0].main.records for arm in arms)
    assert names([comparison]) == [("AKD", "PGD-AT")]
    (pair,) = comparison.pairs
    assert pair.robust.difference == paired_difference(a.robust, b.robust)
    assert pair.clean.difference == paired_difference(a.clean_correct, b.clean_correct)
    last_a, last_b = (arm.runs[0].at_last.records for arm in arms)
    assert pair.last is not None
    assert pair.last.difference == paired_difference(last_a.robust, last_b.robust)
    assert pair.outcomes["only_student"] == int((a.robust & ~b.robust).sum())
    assert sum(pair.outcomes.values()) == 500
    assert comparison.differences == []
    gap = comparison.robust
    assert (gap.student, gap.baseline) == (a.robust.mean(), b.robust.mean())
    alone = paired_difference(a.robust, b.robust)
    assert (gap.difference, gap.low, gap.high) == (alone.difference, alone.low, alone.high)
    assert (gap.num_seeds, gap.significant) == (1, alone.significant)
    assert comparison.means("ece_clean") == tuple(arm.runs[0].main.results["ece_clean"] for arm in arms)


def test_the_order_of_rows_does_not_matter(two_runs):
    (expected,) = compare(read_arms(two_runs))
    folder = two_runs[1] / "evaluations" / "test-best-pgd"
    records = Records.load(folder)
    order = np.random.default_rng(0).permutation(len(records))
    rows = {
        name: getattr(records, name)[order]
        for name in (
            "index", "label", "clean_probabilities", "adversarial_probabilities", "robust", "broken_by", "margin",
            "distance", "robust_at_eps",
        )
    }  # fmt: skip
    save_records(
        Records(
            **rows,
            eps_grid=records.eps_grid,
            stages=records.stages,
            classes=records.classes,
            conditions=records.conditions,
        ),
        folder,
    )
    (comparison,) = compare(read_arms(two_runs))
    found, wanted = comparison.pairs[0], expected.pairs[0]
    assert (found.robust.difference, found.outcomes) == (wanted.robust.difference, wanted.outcomes)


@pytest.mark.parametrize(
    "other",
    [
        {"method": {"name": "clean"}},
        {"eps": 0.15},
        {"channels": 3},
        {"config": {"model": {"name": "lenet"}}},
        {"data_fingerprint": "0" * 64},
        {"suite": {"name": "autoattack"}},
        {"evaluations": ()},
        {"evaluations": ("train-best-pgd",)},
    ],
)
def test_runs_that_cannot_be_compared_get_no_verdict(two_runs, tmp_path, other):
    baseline = make_run(tmp_path / "other", **{"method": {"name": "at"}, **other})
    assert compare(read_arms([two_runs[0], baseline])) == []


def test_a_single_seed_of_both_is_paired_whatever_it_is_and_a_run_never_with_two(tmp_path):
    """Arms of several seeds are paired by seed alone; no comparison pools several methods or baselines."""
    paths = [student(tmp_path / f"akd-{seed}", seed=seed, strength=1) for seed in (1, 2, 3)]
    paths += [make_run(tmp_path / f"at-{seed}", method={"name": "at"}, seed=seed) for seed in (1, 2, 3, 4)]
    paths += [make_run(tmp_path / f"trades-{seed}", method={"name": "trades"}, seed=seed) for seed in (1, 2)]
    arms = read_arms(paths)
    assert [(arm.name, len(arm.runs)) for arm in arms] == [("AKD", 3), ("PGD-AT", 4), ("TRADES", 2)]
    first, second = compare(arms)
    assert names([first, second]) == [("AKD", "PGD-AT"), ("AKD", "TRADES")]
    assert [each.student.name for each in first.pairs] == ["AKD, seed 1", "AKD, seed 2", "AKD, seed 3"]
    assert [each.baseline.name for each in second.pairs] == ["TRADES, seed 1", "TRADES, seed 2"]
    of_students, of_baselines = (
        np.stack([getattr(pair, name).main.records.robust for pair in first.pairs]) for name in ("student", "baseline")
    )
    expected = paired_over_seeds_and_images(of_students, of_baselines)
    gap = first.robust
    assert gap.difference == pytest.approx(of_students.mean() - of_baselines.mean())
    assert (gap.p_value, gap.low, gap.high) == (expected.p_value, expected.low, expected.high)
    single = read_arms([student(tmp_path / "akd-9", seed=9), paths[3]])
    assert [len(each.pairs) for each in compare(single)] == [1]
    assert compare(single)[0].differences == []


def test_averaged_weights_are_compared_with_the_weights_of_another_run(tmp_path):
    ema = {"optim": {"name": "sgd", "epochs": 40, "batch_size": 64, "learning_rate": 0.2, "ema": 0.99}}
    evaluations = ("test-best-ema-pgd", "test-last-ema-pgd", "test-best-pgd")
    averaged = make_run(tmp_path / "at", method={"name": "at"}, config=ema, evaluations=evaluations)
    comparison = compare(read_arms([student(tmp_path / "akd"), averaged]))[0]
    assert names([comparison]) == [("AKD", "PGD-AT + EMA")]
    assert comparison.pairs[0].baseline.main.checkpoint == "best-ema"
    assert comparison.last is not None
    assert comparison.differences == []
    only_last = make_run(tmp_path / "last", method={"name": "at"}, evaluations=("test-last-pgd",))
    assert compare(read_arms([student(tmp_path / "akd"), only_last])) == []


def test_among_students_alone_the_first_is_the_baseline(tmp_path):
    paths = [student(tmp_path / name, strength=strength) for name, strength in (("akd", 0), ("rslad", 2), ("ard", 0))]
    comparisons = compare(read_arms(paths))
    assert names(comparisons) == [("RSLAD", "AKD"), ("ARD", "AKD")]
    assert all(each.by_order for each in comparisons)


def test_baselines_are_compared_only_if_there_is_no_student(tmp_path):
    at, trades = (make_run(tmp_path / name, method={"name": name}) for name in ("at", "trades"))
    assert names(compare(read_arms([trades, at]))) == [("PGD-AT", "TRADES")]
    comparisons = compare(read_arms([trades, student(tmp_path / "akd"), at]))
    assert names(comparisons) == [("AKD", "TRADES"), ("AKD", "PGD-AT")]
    assert not any(each.by_order for each in comparisons)


def test_each_task_has_its_own_baseline(tmp_path):
    wide = {"model": {"name": "resnet8", "width": 32}}
    paths = [
        make_run(tmp_path / "teacher", method={"name": "at"}, eps=0.1),
        student(tmp_path / "akd"),
        student(tmp_path / "rslad", strength=1),
        make_run(tmp_path / "clean", method={"name": "clean"}, config=wide),
        make_run(tmp_path / "not-evaluated", method={"name": "mtard"}, config=wide, evaluations=()),
        student(tmp_path / "ard-wide", config=wide),
        student(tmp_path / "iad-wide", config=wide),
    ]
    assert names(compare(read_arms(paths))) == [("RSLAD", "AKD"), ("IAD-I", "ARD")]


def test_a_study_says_what_each_row_is_compared_with(tmp_path):
    def with_row(arm, label, against):
        row = StudyRow(study="guidelines-akd", label=label, against=against)
        return replace(arm, runs=tuple(replace(run, row=row) for run in arm.runs))

    paths = [make_run(tmp_path / "at", method={"name": "at"}), student(tmp_path / "akd"), student(tmp_path / "rslad")]
    at, akd, rslad = read_arms(paths)
    arms = [with_row(at, "at", None), with_row(akd, "akd", "at"), with_row(rslad, "three", "akd")]
    assert names(compare(arms)) == [("AKD", "PGD-AT"), ("RSLAD", "AKD")]


def test_a_different_training_budget_is_reported(tmp_path):
    longer = {"optim": {"name": "sgd", "epochs": 80, "batch_size": 64, "learning_rate": 0.2}}
    arms = read_arms([student(tmp_path / "akd", config=longer), make_run(tmp_path / "at", method={"name": "at"})])
    assert compare(arms)[0].differences == ["optim.epochs (80 against 40)"]


def test_the_strongest_baseline_of_a_student(tmp_path):
    paths = [
        student(tmp_path / "akd", strength=1),
        make_run(tmp_path / "at", method={"name": "at"}),
        make_run(tmp_path / "trades", method={"name": "trades"}, strength=0.5),
    ]
    comparisons = compare(read_arms(paths))
    (strongest,) = with_strongest_baselines(comparisons)
    assert strongest.baseline.name == "TRADES"


def test_holms_correction_is_over_all_comparisons_that_are_tested(two_runs):
    """Three times the smallest of 0.02, 0.03 and 0.04 is above 0.05; 2·0.01 and 1·0.04 are below it."""
    (comparison,) = compare(read_arms(two_runs))

    def kept(*p_values):
        made_up = [replace(comparison) for _ in p_values]
        for each, p_value in zip(made_up, p_values, strict=True):
            gap = replace(comparison.robust, p_value=p_value, significant=p_value == p_value)
            each.__dict__.update(robust=gap, last=gap)
        found = after_holm(made_up), after_holm(made_up, at_last=True)
        assert found[0] == found[1]
        return [each in found[0] for each in made_up]

    assert kept(0.02, 0.03, 0.04) == [False, False, False]
    assert kept(0.01, 0.04) == [True, True]
    assert kept(0.03) == [True]
    # A difference of two seeds gets no verdict, and does not count.
    assert kept(0.03, math.nan) == [True, False]
