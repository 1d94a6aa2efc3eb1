from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers.made_up_runs import add_fixed_attack, make_records, make_run
from helpers.read_arms import read_arms
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import read_run
from robustill.report.comparison import compare
from robustill.report.ranking import rank
from robustill.report.verdict import (
    describe_tests,
    evaluation_warnings,
    headline,
    masking_lines,
    price,
    reasons,
    teacher_seconds,
)

CLASSES = tuple("0123456789")


def verdict(paths):
    """Return the headline, the sentence on the price, the tests, and the remaining reasons."""
    arms = read_arms(paths)
    comparisons = compare(arms)
    return (
        headline(arms, comparisons).replace("\N{NO-BREAK SPACE}", " "),
        price(comparisons),
        " ".join(describe_tests(comparisons)).replace("\N{NO-BREAK SPACE}", " "),
        " ".join(reasons(arms, comparisons)),
    )


def student(folder: Path, **changes) -> Path:
    return make_run(folder, **{"method": {"name": folder.name.partition("-")[0]}, "teachers": ("t",), **changes})


def percent(run, name="robust_accuracy", *, last=False):
    evaluation = run.at_last if last else run.main
    return f"{100 * evaluation.results[name]:.1f} %"


def test_the_headline_names_the_gain_at_the_best_and_at_the_last_epoch(two_runs):
    akd, at = (arm.runs[0] for arm in read_arms(two_runs))
    sentence, paid, tests, _ = verdict(two_runs)
    assert sentence == (
        f"AKD is more robust than PGD-AT at the best epoch ({percent(akd)} against {percent(at)} "
        "of 500 test images, one seed), "
        f"and more robust at the last ({percent(akd, last=True)} against {percent(at, last=True)})."
    )
    ece = [f"{run.main.results['ece_adversarial']:.3f}" for run in (akd, at)]
    assert paid.startswith(f"It also gains: ECE under attack {ece[0]} against {ece[1]}. It costs: ")
    # 92 seconds of training each, and three teachers of 92 seconds.
    assert paid.endswith("1.0 times the training time (4.0 times with its teachers).")
    assert tests.count("McNemar p") == 3
    assert "Clean accuracy at the best epoch" in tests


def test_calibration_is_compared_at_the_fixed_attack_where_both_have_it(two_runs):
    akd, at = two_runs
    add_fixed_attack(akd)
    assert "ECE under attack" in verdict(two_runs)[1]
    add_fixed_attack(at)
    numbers = [f"{arm.runs[0].main.results['ece_pgd']:.3f}" for arm in read_arms(two_runs)]
    paid = verdict(two_runs)[1]
    assert f"ECE under PGD-10 {numbers[0]} against {numbers[1]}" in paid
    assert "ECE under attack" not in paid


def test_an_insignificant_difference_is_not_called_a_gain(tmp_path):
    paths = [student(tmp_path / "akd", strength=0.02), make_run(tmp_path / "at", method={"name": "at"})]
    sentence, _, tests, why = verdict(paths)
    assert sentence.startswith("AKD and PGD-AT do not differ significantly in robust accuracy at the best epoch")
    assert "more robust" not in sentence.partition("at the last")[0] + tests + why
    assert "not significant" in tests


def test_a_significant_loss_is_reported(tmp_path):
    paths = [student(tmp_path / "akd", strength=-1.5), make_run(tmp_path / "at", method={"name": "at"})]
    sentence, paid, *_ = verdict(paths)
    assert sentence.startswith("AKD is less robust than PGD-AT")
    assert "points of clean accuracy" in paid.partition("It costs:")[2]


def test_without_the_last_epoch_the_headline_is_silent_on_it(tmp_path):
    best = ("test-best-pgd",)
    paths = [student(tmp_path / "akd", strength=1), make_run(tmp_path / "at", method={"name": "at"}, evaluations=best)]
    assert "epoch" not in verdict(paths)[0]


def test_seeds_are_pooled_for_one_method_and_one_baseline_alone(tmp_path):
    paths = []
    for seed in (1, 2, 3):
        paths.append(make_run(tmp_path / f"at-{seed}", method={"name": "at"}, seed=seed))
        paths.append(make_run(tmp_path / f"trades-{seed}", method={"name": "trades"}, seed=seed, strength=0.2))
        paths.append(student(tmp_path / f"akd-{seed}", strength=3, seed=seed))
    comparisons = compare(read_arms(paths))
    sentence, _, tests, why = verdict(paths)
    # The most robust baseline stands in the headline, both in the tests.
    assert sentence.startswith("AKD is more robust than TRADES at the best epoch (")
    assert "of 500 test images, 3 seeds)" in sentence
    for each in comparisons:
        gap = each.robust
        assert f"AKD against {each.baseline.name}, robust accuracy at the best epoch: difference" in tests
        assert f"+{100 * gap.difference:.1f} points ± {100 * gap.std:.1f} over 3 seeds" in tests
    assert "Mean difference" not in sentence + tests + why
    assert "account for the 3 training seeds and for the choice of the test images" in why
    assert "Each comparison is tested alone. Of the 2 differences at the best epoch" in why


def test_the_headline_of_several_students_counts_after_holms_correction(tmp_path):
    strengths = {"akd": 1.0, "rslad": 0.0, "ard": -1.5}
    paths = [student(tmp_path / name, strength=each) for name, each in strengths.items()]
    paths.append(make_run(tmp_path / "at", method={"name": "at"}))
    sentence, paid, *_ = verdict(paths)
    assert sentence.startswith("AKD is the most robust of 4 compared at the best epoch: ")
    assert (
        "Compared with PGD-AT, 1 of 3 is significantly more robust and 1 less at the best epoch. "
        "At the last epoch, 1 of 3 is significantly more robust and 1 less."
    ) in sentence
    assert paid == ""


def test_the_headline_ranks_what_the_table_ranks(tmp_path):
    """Networks under a weaker attack have higher accuracies, which are not set beside the others."""
    weaker = {"suite": {"name": "pgd-1"}, "config": {"model": {"name": "lenet"}}}
    paths = [
        student(tmp_path / "akd", strength=1),
        student(tmp_path / "rslad", strength=0),
        make_run(tmp_path / "at", method={"name": "at"}),
        student(tmp_path / "ard", strength=9, **weaker),
        make_run(tmp_path / "trades", method={"name": "trades"}, strength=8, **weaker),
    ]
    arms = read_arms(paths)
    rows, sentence = rank(arms, compare(arms)), verdict(paths)[0]
    assert [(row.rank, row.arm.name) for row in rows[:1] + rows[3:]] == [(1, "AKD"), (None, "ARD"), (None, "TRADES")]
    assert sentence.startswith(
        f"AKD is the most robust of 3 compared at the best epoch: {percent(rows[0].arm.runs[0])} of 500 test images. "
        "Compared with the most robust baseline of each, "
    )


def test_the_headline_of_one_student_is_corrected_for_all_its_baselines(tmp_path):
    paths = [make_run(tmp_path / name, method={"name": name}) for name in ("at", "trades")]
    comparisons = compare(read_arms([student(tmp_path / "akd", strength=1), *paths]))
    for p_value, word in ((0.03, "do not differ significantly"), (0.02, "more robust")):
        for each in comparisons:
            each.__dict__["robust"] = replace(each.robust, p_value=p_value, significant=True)
        assert word in headline([], comparisons).partition(" at the best epoch")[0]
        kept = len(comparisons) if word == "more robust" else 0
        assert f"2 significant, {kept} of them after Holm's correction" in reasons([], comparisons)[0]


def test_two_seeds_decide_nothing(tmp_path):
    paths = []
    for seed in (1, 2):
        paths.append(make_run(tmp_path / f"at-{seed}", method={"name": "at"}, seed=seed))
        paths.append(student(tmp_path / f"akd-{seed}", strength=3, seed=seed))
    sentence, _, tests, _ = verdict(paths)
    assert "do not differ significantly" in sentence
    assert "over 2 seeds, which decide nothing: train a third" in tests


def test_an_order_that_decides_is_said(tmp_path):
    paths = [student(tmp_path / name, strength=strength) for name, strength in (("rslad", 2), ("akd", 0))]
    sentence, _, _, why = verdict(paths)
    assert sentence.startswith("AKD is less robust than RSLAD")
    assert "compared with RSLAD, which comes first" in why


def test_runs_that_cannot_be_compared_get_no_verdict(tmp_path):
    paths = [student(tmp_path / "akd"), make_run(tmp_path / "at", method={"name": "at"}, eps=0.1)]
    sentence, _, _, why = verdict(paths)
    assert sentence == "No verdict: no two of these can be compared."
    assert why.startswith("A comparison needs two runs with the same network, data and threat")


def test_the_headline_of_a_single_arm_states_its_numbers(two_runs, tmp_path):
    assert verdict(two_runs[:1])[0].startswith("AKD correctly classifies 99.0 %")
    bare = make_run(tmp_path / "bare", method={"name": "at"}, evaluations=())
    assert verdict([bare])[0] == "No verdict: no run has been evaluated yet."
    seeds = [make_run(tmp_path / str(seed), method={"name": "at"}, seed=seed) for seed in (1, 2)]
    runs = [arm_run for arm in read_arms(seeds) for arm_run in arm.runs]
    mean = np.mean([run.main.results["robust_accuracy"] for run in runs])
    assert f"PGD-AT correctly classifies {100 * mean:.1f} % of 500 test images under attack" in verdict(seeds)[0]
    assert "the mean of 2 seeds" in verdict(seeds)[0]


def test_several_epochs_of_one_teacher_are_one_training(tmp_path):
    make_run(tmp_path / "teacher", method={"name": "at"}, evaluations=())
    epochs = tuple(f"run:{tmp_path / 'teacher'}@epoch-{epoch}" for epoch in (10, 20))
    run = read_run(student(tmp_path / "akd", teachers=epochs), "akd")
    assert teacher_seconds(run) == run.seconds
    unknown = read_run(student(tmp_path / "ard", teachers=(*epochs, "timm:net")), "ard")
    assert teacher_seconds(unknown) is None


def warnings_of(*, conditions=None, **changes):
    records = replace(make_records(strength=0, seed=0, classes=CLASSES, **(conditions or {})), **changes)
    return list(evaluation_warnings(Evaluation(name="test-best-pgd", records=records)))


def test_pgd_alone_and_a_subset_give_warnings():
    lines = warnings_of(conditions={"of_images": 10_000, "warnings": ["the gradient is zero"]})
    assert lines[0] == "the gradient is zero"
    assert lines[1] == "A subset: 500 of 10000 test images."
    assert "upper bound" in lines[2]
    assert len(lines) == 3


def test_a_strong_suite_with_a_falling_curve_gives_no_warning():
    assert warnings_of(stages=("apgd-ce", "apgd-t")) == []


def test_a_curve_that_rises_gives_a_warning_and_one_that_stays_above_chance_does_not():
    """A robust network may be right far beyond the radius of its training, which may be of another norm."""
    curve = np.zeros((500, 3), bool)
    curve[:300, 0] = curve[:100, 1] = curve[:200, 2] = True
    grid = np.array([0.1, 0.2, 1.0], np.float32)
    (line,) = warnings_of(stages=("apgd-ce", "square"), eps_grid=grid, robust_at_eps=curve)
    assert "rises at eps 1," in line
    curve[:200, 1] = True
    l2 = {"threat": {"norm": "l2", "eps": 0.5, "text": "l2:0.5"}}
    assert warnings_of(stages=("apgd-ce", "square"), eps_grid=grid, robust_at_eps=curve, conditions=l2) == []


def test_the_page_says_what_the_check_of_gradient_masking_found(tmp_path):
    clear = {"verdict": "no sign of it", "images": 62, "reasons": []}
    found = {"verdict": "the gradient is masked", "images": 60, "reasons": ["Square beats it"]}
    first = make_run(tmp_path / "at", method={"name": "at"}, masking=clear)
    other = make_run(tmp_path / "trades", method={"name": "trades"}, masking=found)
    (arm,) = read_arms([first])
    assert list(masking_lines(arm.runs)) == ["Gradient masking was looked for on 62 images: no sign of it."]
    runs = [arm.runs[0] for arm in read_arms([first, other])]
    assert list(masking_lines(runs)) == ["Gradient masking was looked for on 62 images: no sign of it (PGD-AT)."]
