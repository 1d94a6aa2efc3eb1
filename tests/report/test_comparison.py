from pathlib import Path

import numpy as np
import pytest

from helpers.made_up_runs import make_records, make_run
from helpers.records_by_hand import save_records
from robustill.analysis.calibration import apply_temperature, ece, fit_temperature
from robustill.analysis.runs import Evaluation, read_run, read_runs
from robustill.analysis.statistics import paired_difference
from robustill.report.comparison import compare, doubts, headline, reasons, temperatures
from robustill.runs.records import Records

CLASSES = tuple("0123456789")


def test_the_student_is_compared_with_the_baseline_on_the_same_images(two_runs):
    runs = read_runs(two_runs)
    (found,) = compare(runs)
    a, b = runs[0].main.records, runs[1].main.records
    assert (found.student.name, found.baseline.name) == ("akd", "pgd-at")
    assert found.robust == paired_difference(a.robust, b.robust)
    assert found.outcomes["only_student"] == int((a.robust & ~b.robust).sum())
    assert sum(found.outcomes.values()) == 500
    assert found.differences == []
    assert headline(runs, [found]) == found.headline
    assert found.headline.startswith("akd is more robust than pgd-at: 44.2")
    assert "one training seed stands" in " ".join(reasons(runs, [found])).lower()


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
    (found,) = compare(read_runs(two_runs))
    assert (found.robust, found.outcomes) == (expected.robust, expected.outcomes)


def test_a_difference_inside_the_noise_is_not_called_a_gain(tmp_path):
    runs = read_runs(
        [
            make_run(tmp_path / "akd", method={"name": "akd"}, teachers=("file.safetensors",), strength=0.02),
            make_run(tmp_path / "at", method={"name": "at"}),
        ]
    )
    (found,) = compare(runs)
    assert found.robust.difference != 0
    assert not found.robust.significant
    assert headline(runs, [found]).startswith("akd and at cannot be told apart in robust accuracy")
    assert "more robust" not in " ".join([headline(runs, [found]), *reasons(runs, [found])])


def test_a_loss_is_called_a_loss(tmp_path):
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
def test_what_cannot_be_compared_gets_no_verdict(two_runs, tmp_path, other):
    baseline = make_run(tmp_path / "other", **{"method": {"name": "at"}, **other})
    runs = read_runs([two_runs[0], baseline])
    assert compare(runs) == []
    assert headline(runs, []) == "No verdict: nothing here can be compared."
    assert reasons(runs, [])[0].startswith("A comparison takes two runs of the same network, data and threat")


def test_runs_of_one_seed_are_paired(tmp_path):
    paths = []
    for seed in (1, 2, 3):
        paths.append(make_run(tmp_path / f"at-{seed}", method={"name": "at"}, seed=seed))
        paths.append(make_run(tmp_path / f"akd-{seed}", method={"name": "akd"}, teachers=("t",), strength=1, seed=seed))
    runs = read_runs(paths)
    found = compare(runs)
    assert [(each.student.name, each.baseline.name) for each in found] == [
        (f"akd-{seed}", f"at-{seed}") for seed in (1, 2, 3)
    ]
    mean = np.mean([each.robust.difference for each in found])
    sentence = headline(runs, found)
    assert sentence.startswith("In 3 comparisons the distilled student is more robust in ")
    assert f"Mean difference +{100 * mean:.1f} ± " in sentence
    assert "3 training seeds stand" in reasons(runs, found)[-1]


def names(found):
    return [(each.student.name, each.baseline.name) for each in found]


def student(folder: Path, **changes) -> Path:
    return make_run(folder, **{"method": {"name": folder.name.partition("-")[0]}, "teachers": ("t",), **changes})


def test_of_students_alone_the_first_named_is_the_baseline(tmp_path):
    paths = [student(tmp_path / name, strength=strength) for name, strength in (("akd", 0), ("rslad", 2), ("ard", 0))]
    runs = read_runs(paths)
    found = compare(runs)
    assert names(found) == [("rslad", "akd"), ("ard", "akd")]
    assert found[0].robust == paired_difference(runs[1].main.records.robust, runs[0].main.records.robust)
    assert headline(runs, found).startswith("In 2 comparisons with akd the other run is more robust in 1 ")
    assert "the others are compared with akd, named first" in " ".join(reasons(runs, found))
    two = read_runs(paths[1::-1])
    (pair,) = compare(two)
    assert headline(two, [pair]).startswith("akd is less robust than rslad")
    assert "compared with rslad, named first" in " ".join(reasons(two, [pair]))


def test_runs_without_teachers_are_compared_among_themselves_only_where_no_student_is(tmp_path):
    at, trades = (make_run(tmp_path / name, method={"name": name}) for name in ("at", "trades"))
    assert names(compare(read_runs([trades, at]))) == [("at", "trades")]
    akd = student(tmp_path / "akd")
    runs = read_runs([trades, akd, at])
    found = compare(runs)
    assert names(found) == [("akd", "trades"), ("akd", "at")]
    assert "named first" not in " ".join(reasons(runs, found))


def test_each_task_has_its_own_first_and_each_seed_its_own_baseline(tmp_path):
    wide = {"model": {"name": "resnet8", "width": 32}}
    paths = [
        make_run(tmp_path / "teacher", method={"name": "at"}, eps=0.1),
        student(tmp_path / "akd-0"),
        student(tmp_path / "rslad-0", strength=1),
        student(tmp_path / "akd-1", seed=1),
        student(tmp_path / "rslad-1", seed=1),
        make_run(tmp_path / "clean", method={"name": "clean"}, config=wide),
        make_run(tmp_path / "unseen", method={"name": "mtard"}, config=wide, evaluations=()),
        student(tmp_path / "ard-wide", config=wide),
        student(tmp_path / "iad-wide", config=wide),
    ]
    found = compare(read_runs(paths))
    assert names(found) == [("rslad-0", "akd-0"), ("rslad-1", "akd-1"), ("iad-wide", "ard-wide")]
    # Of one method alone, its seeds.
    assert names(compare(read_runs([paths[3], paths[1]]))) == [("akd-0", "akd-1")]


def test_another_budget_is_named(tmp_path):
    longer = {"optim": {"name": "sgd", "epochs": 80, "batch_size": 64, "learning_rate": 0.2}}
    runs = read_runs(
        [
            make_run(tmp_path / "akd", method={"name": "akd"}, teachers=("t",), config=longer),
            make_run(tmp_path / "at", method={"name": "at"}),
        ]
    )
    (found,) = compare(runs)
    assert found.differences == ["optim.epochs (80 against 40)"]
    assert any("differ in more than the method: optim.epochs (80 against 40)" in line for line in found.details)


def test_one_run_gets_its_numbers_and_nothing_evaluated_gets_none(two_runs, tmp_path):
    run = read_run(two_runs[0], "akd")
    assert headline([run], []).startswith("akd classifies 99.0")
    bare = read_run(make_run(tmp_path / "bare", method={"name": "at"}, evaluations=()), "bare")
    assert headline([bare], []) == "No verdict: nothing has been evaluated yet."


def run_of(folder: Path, **changes):
    records = make_records(strength=0, seed=0, classes=CLASSES, **changes.pop("conditions", {}))
    values = {name: getattr(records, name) for name in records.__dataclass_fields__}
    run = read_run(make_run(folder / "run", method={"name": "at"}, evaluations=()), "run")
    return run, Evaluation(name="test-best-pgd", records=type(records)(**{**values, **changes}))


def test_pgd_alone_and_a_subset_are_doubted(tmp_path):
    found = list(doubts(*run_of(tmp_path, conditions={"of_images": 10_000, "warnings": ["the gradient is zero"]})))
    assert found[0] == "the gradient is zero"
    assert found[1] == "A subset: 500 of 10000 test images."
    assert "upper bound" in found[2]
    assert len(found) == 3


def test_a_strong_suite_with_a_falling_curve_is_not_doubted(tmp_path):
    assert list(doubts(*run_of(tmp_path, stages=("apgd-ce", "apgd-t")))) == []


def test_a_curve_that_rises_or_does_not_fall_is_doubted(tmp_path):
    rising = np.zeros((500, 3), bool)
    rising[:300, 0] = rising[:100, 1] = rising[:200, 2] = True
    grid = np.array([0.1, 0.2, 0.6], np.float32)
    found = list(doubts(*run_of(tmp_path, stages=("apgd-ce", "square"), eps_grid=grid, robust_at_eps=rising)))
    assert "rises at eps 0.6" in found[0]
    assert "still 40.0" in found[1]


def test_the_temperature_is_fitted_on_held_out_images_alone(tmp_path):
    names = ("test-best-pgd", "validation-best-pgd", "validation-last-pgd")
    (run,) = read_runs([make_run(tmp_path / "run", method={"name": "at"}, evaluations=names)])
    assert run.main.name == "test-best-pgd"
    clean, adversarial = temperatures([run])
    assert clean.startswith("run on clean images: ")
    held_out = next(each.records for each in run.evaluations if each.name == "validation-best-pgd")
    t = fit_temperature(held_out.adversarial_probabilities, held_out.label)
    after = ece(apply_temperature(run.main.records.adversarial_probabilities, t), run.main.records.label)
    word = "too sure" if t > 1 else "too modest"
    assert adversarial == (
        f"run on adversarial images: a temperature of {t:.2f}, fitted on 500 validation images where it is {word}, "
        f"takes the ECE from {run.main.results['ece_adversarial']:.3f} to {after:.3f}."
    )


@pytest.mark.parametrize(
    "names", [("test-best-pgd",), ("test-best-pgd", "validation-last-pgd"), ("validation-best-pgd",)]
)
def test_without_held_out_images_of_the_same_weights_there_is_no_temperature(tmp_path, names):
    runs = read_runs([make_run(tmp_path / "run", method={"name": "at"}, evaluations=names)])
    assert list(temperatures(runs)) == []
