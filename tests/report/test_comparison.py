from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_runs import make_records, make_run
from helpers.records_by_hand import save_records
from robustill.analysis.calibration import apply_temperature, ece, fit_temperature
from robustill.analysis.runs import Evaluation, read_run, read_runs
from robustill.analysis.statistics import paired_difference
from robustill.report.comparison import compare, evaluation_warnings, headline, reasons, temperature_sentences
from robustill.runs.records import Records

CLASSES = tuple("0123456789")


def test_student_and_baseline_are_compared_on_the_same_images(two_runs):
    runs = read_runs(two_runs)
    (comparison,) = compare(runs)
    a, b = runs[0].main.records, runs[1].main.records
    assert (comparison.student.name, comparison.baseline.name) == ("akd", "pgd-at")
    assert comparison.robust == paired_difference(a.robust, b.robust)
    assert comparison.outcomes["only_student"] == int((a.robust & ~b.robust).sum())
    assert sum(comparison.outcomes.values()) == 500
    assert comparison.differences == []
    assert headline(runs, [comparison]) == comparison.headline
    assert comparison.headline.startswith("akd is more robust than pgd-at: 44.2")
    assert "on one training seed" in " ".join(reasons(runs, [comparison]))


def test_the_order_of_rows_does_not_matter(two_runs):
    (expected,) = compare(read_runs(two_runs))
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
    (comparison,) = compare(read_runs(two_runs))
    assert (comparison.robust, comparison.outcomes) == (expected.robust, expected.outcomes)


def test_an_insignificant_difference_is_not_called_a_gain(tmp_path):
    runs = read_runs(
        [
            make_run(tmp_path / "akd", method={"name": "akd"}, teachers=("file.safetensors",), strength=0.02),
            make_run(tmp_path / "at", method={"name": "at"}),
        ]
    )
    (comparison,) = compare(runs)
    assert comparison.robust.difference != 0
    assert not comparison.robust.significant
    assert headline(runs, [comparison]).startswith("akd and at do not differ significantly in robust accuracy")
    assert "more robust" not in " ".join([headline(runs, [comparison]), *reasons(runs, [comparison])])


def test_a_significant_loss_is_reported(tmp_path):
    runs = read_runs(
        [
            make_run(tmp_path / "akd", method={"name": "akd"}, teachers=("file.safetensors",), strength=-1.5),
            make_run(tmp_path / "at", method={"name": "at"}),
        ]
    )
    assert headline(runs, compare(runs)).startswith("akd is less robust than at")


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
    runs = read_runs([two_runs[0], baseline])
    assert compare(runs) == []
    assert headline(runs, []) == "No verdict: no two of these runs can be compared."
    assert reasons(runs, [])[0].startswith("A comparison needs two runs with the same network, data and threat")


def test_runs_with_the_same_seed_are_paired(tmp_path):
    paths = []
    for seed in (1, 2, 3):
        paths.append(make_run(tmp_path / f"at-{seed}", method={"name": "at"}, seed=seed))
        paths.append(make_run(tmp_path / f"akd-{seed}", method={"name": "akd"}, teachers=("t",), strength=1, seed=seed))
    runs = read_runs(paths)
    comparisons = compare(runs)
    assert [(each.student.name, each.baseline.name) for each in comparisons] == [
        (f"akd-{seed}", f"at-{seed}") for seed in (1, 2, 3)
    ]
    mean = np.mean([each.robust.difference for each in comparisons])
    sentence = headline(runs, comparisons)
    assert sentence.startswith("In 3 comparisons the distilled student is more robust in ")
    assert f"Mean difference +{100 * mean:.1f} ± " in sentence
    assert "on 3 training seeds" in reasons(runs, comparisons)[-1]


def names(comparisons):
    return [(each.student.name, each.baseline.name) for each in comparisons]


def student(folder: Path, **changes) -> Path:
    return make_run(folder, **{"method": {"name": folder.name.partition("-")[0]}, "teachers": ("t",), **changes})


def test_among_students_alone_the_first_is_the_baseline(tmp_path):
    paths = [student(tmp_path / name, strength=strength) for name, strength in (("akd", 0), ("rslad", 2), ("ard", 0))]
    runs = read_runs(paths)
    comparisons = compare(runs)
    assert names(comparisons) == [("rslad", "akd"), ("ard", "akd")]
    assert comparisons[0].robust == paired_difference(runs[1].main.records.robust, runs[0].main.records.robust)
    assert headline(runs, comparisons).startswith("In 2 comparisons with akd the other run is more robust in 1 ")
    assert "The other runs are compared with akd, which comes first" in " ".join(reasons(runs, comparisons))
    two = read_runs(paths[1::-1])
    (pair,) = compare(two)
    assert headline(two, [pair]).startswith("akd is less robust than rslad")
    assert "compared with rslad, which comes first" in " ".join(reasons(two, [pair]))


def test_baselines_are_compared_only_if_there_is_no_student(tmp_path):
    at, trades = (make_run(tmp_path / name, method={"name": name}) for name in ("at", "trades"))
    assert names(compare(read_runs([trades, at]))) == [("at", "trades")]
    akd = student(tmp_path / "akd")
    runs = read_runs([trades, akd, at])
    comparisons = compare(runs)
    assert names(comparisons) == [("akd", "trades"), ("akd", "at")]
    assert "comes first" not in " ".join(reasons(runs, comparisons))


def test_each_task_and_each_seed_has_its_own_baseline(tmp_path):
    wide = {"model": {"name": "resnet8", "width": 32}}
    paths = [
        make_run(tmp_path / "teacher", method={"name": "at"}, eps=0.1),
        student(tmp_path / "akd-0"),
        student(tmp_path / "rslad-0", strength=1),
        student(tmp_path / "akd-1", seed=1),
        student(tmp_path / "rslad-1", seed=1),
        make_run(tmp_path / "clean", method={"name": "clean"}, config=wide),
        make_run(tmp_path / "not-evaluated", method={"name": "mtard"}, config=wide, evaluations=()),
        student(tmp_path / "ard-wide", config=wide),
        student(tmp_path / "iad-wide", config=wide),
    ]
    comparisons = compare(read_runs(paths))
    assert names(comparisons) == [("rslad-0", "akd-0"), ("rslad-1", "akd-1"), ("iad-wide", "ard-wide")]
    # Runs of one method alone are compared by seed.
    assert names(compare(read_runs([paths[3], paths[1]]))) == [("akd-0", "akd-1")]


def test_a_different_training_budget_is_reported(tmp_path):
    longer = {"optim": {"name": "sgd", "epochs": 80, "batch_size": 64, "learning_rate": 0.2}}
    runs = read_runs(
        [
            make_run(tmp_path / "akd", method={"name": "akd"}, teachers=("t",), config=longer),
            make_run(tmp_path / "at", method={"name": "at"}),
        ]
    )
    (comparison,) = compare(runs)
    assert comparison.differences == ["optim.epochs (80 against 40)"]
    assert any("differ in more than the method: optim.epochs (80 against 40)" in line for line in comparison.details)


def test_the_headline_of_a_single_run_states_its_numbers(two_runs, tmp_path):
    run = read_run(two_runs[0], "akd")
    assert headline([run], []).startswith("akd correctly classifies 99.0")
    bare = read_run(make_run(tmp_path / "bare", method={"name": "at"}, evaluations=()), "bare")
    assert headline([bare], []) == "No verdict: no run has been evaluated yet."


def run_of(folder: Path, **changes):
    records = make_records(strength=0, seed=0, classes=CLASSES, **changes.pop("conditions", {}))
    values = {name: getattr(records, name) for name in records.__dataclass_fields__}
    run = read_run(make_run(folder / "run", method={"name": "at"}, evaluations=()), "run")
    return run, Evaluation(name="test-best-pgd", records=type(records)(**{**values, **changes}))


def test_pgd_alone_and_a_subset_give_warnings(tmp_path):
    lines = list(
        evaluation_warnings(*run_of(tmp_path, conditions={"of_images": 10_000, "warnings": ["the gradient is zero"]}))
    )
    assert lines[0] == "the gradient is zero"
    assert lines[1] == "A subset: 500 of 10000 test images."
    assert "upper bound" in lines[2]
    assert len(lines) == 3


def test_a_strong_suite_with_a_falling_curve_gives_no_warning(tmp_path):
    assert list(evaluation_warnings(*run_of(tmp_path, stages=("apgd-ce", "apgd-t")))) == []


def test_a_curve_that_rises_or_stays_high_gives_warnings(tmp_path):
    rising = np.zeros((500, 3), bool)
    rising[:300, 0] = rising[:100, 1] = rising[:200, 2] = True
    grid = np.array([0.1, 0.2, 0.6], np.float32)
    lines = list(
        evaluation_warnings(*run_of(tmp_path, stages=("apgd-ce", "square"), eps_grid=grid, robust_at_eps=rising))
    )
    assert "rises at eps 0.6" in lines[0]
    assert "still 40.0" in lines[1]


def test_the_temperature_is_fitted_on_validation_images_alone(tmp_path):
    names = ("test-best-pgd", "validation-best-pgd", "validation-last-pgd")
    (run,) = read_runs([make_run(tmp_path / "run", method={"name": "at"}, evaluations=names)])
    assert run.main.name == "test-best-pgd"
    clean, adversarial = temperature_sentences([run])
    assert clean.startswith("run on clean images: ")
    validation = next(each.records for each in run.evaluations if each.name == "validation-best-pgd")
    t = fit_temperature(validation.adversarial_probabilities, validation.label)
    after = ece(apply_temperature(run.main.records.adversarial_probabilities, t), run.main.records.label)
    word = "overconfident" if t > 1 else "underconfident"
    assert adversarial == (
        f"run on adversarial images: a temperature of {t:.2f}, fitted on 500 validation images where the "
        f"network is {word}, changes the ECE from {run.main.results['ece_adversarial']:.3f} to {after:.3f}."
    )


@pytest.mark.parametrize(
    "names", [("test-best-pgd",), ("test-best-pgd", "validation-last-pgd"), ("validation-best-pgd",)]
)
def test_no_temperature_without_validation_of_the_same_weights(tmp_path, names):
    runs = read_runs([make_run(tmp_path / "run", method={"name": "at"}, evaluations=names)])
    assert list(temperature_sentences(runs)) == []
