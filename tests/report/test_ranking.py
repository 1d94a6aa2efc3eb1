import csv

import numpy as np
import pytest
from scipy import stats

from helpers.made_up_runs import add_fixed_attack, make_run
from helpers.made_up_studies import make_network, make_study
from helpers.read_arms import read_arms
from robustill.report.comparison import compare
from robustill.report.figure_files import write_figures
from robustill.report.ranking import common_evaluation, rank, ranking_files
from robustill.report.verdict import headline
from robustill.report.views import missing_lines, ranking_views


def ranked(paths):
    arms = read_arms(paths)
    return rank(arms, compare(arms))


def test_the_most_robust_comes_first_and_teachers_are_rows(tmp_path):
    rows = ranked([make_study(tmp_path / "alpha")])
    assert [(row.rank, row.arm.name) for row in rows] == [
        (1, "AKD, alpha 0.5"),
        (2, "PGD-AT"),
        (None, "PGD-AT teacher"),
    ]
    assert rows[0].comparison.baseline is rows[1].arm
    assert rows[2].numbers == {}
    assert (rows[0].teacher_seconds, rows[1].teacher_seconds) == (pytest.approx(92), None)


def test_seeds_are_aggregated_with_their_interval(tmp_path):
    row = ranked([make_study(tmp_path / "alpha")])[0]
    for name, evaluations in {
        "robust_accuracy": [run.main for run in row.arm.runs],
        "last_robust_accuracy": [run.at_last for run in row.arm.runs],
    }.items():
        values = [each.results["robust_accuracy"] for each in evaluations]
        spread = row.numbers[name]
        low, high = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
        assert (spread.mean, spread.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
        assert (spread.low, spread.high) == (pytest.approx(max(low, 0)), pytest.approx(min(high, 1)))


def test_one_seed_has_the_interval_of_its_images(two_runs):
    row = ranked(two_runs)[0]
    results = row.arm.runs[0].main.results
    spread = row.numbers["clean_accuracy"]
    assert [spread.low, spread.high] == results["clean_accuracy_interval"]
    assert np.isnan([spread.std, row.numbers["ece_clean"].low]).all()


def test_only_evaluations_of_one_kind_are_ranked(tmp_path):
    """A network on the same images under the same attack is ranked with the runs, under another attack it is not."""
    other = {"name": "standard", "stages": [{"name": "apgd-ce", "steps": 100, "restarts": 1}]}
    paths = [
        make_run(tmp_path / "at", method={"name": "at"}),
        make_network(tmp_path / "same", strength=2, sha="01"),
        make_network(tmp_path / "weaker", sha="02", strength=9, suite=other),
    ]
    arms = read_arms(paths)
    rows = rank(arms, compare(arms))
    assert [row.rank for row in rows] == [1, 2, None]
    assert [row.arm.runs[0].path.name for row in rows] == ["same", "at", "weaker"]
    assert common_evaluation(arms).attack == "pgd"


def test_seeds_that_were_evaluated_otherwise_count_nowhere(tmp_path):
    other = {"suite": {"name": "standard", "stages": [{"name": "apgd-ce", "steps": 100, "restarts": 1}]}}
    paths = []
    for seed in range(3):
        suite = other if seed == 0 else {}
        paths.append(make_run(tmp_path / f"at-{seed}", method={"name": "at"}, seed=seed, **suite))
        paths.append(
            make_run(tmp_path / f"akd-{seed}", method={"name": "akd"}, teachers=("t",), seed=seed, strength=1, **suite)
        )
    arms = read_arms(paths)
    rows = rank(arms, compare(arms))
    alike = [[tmp_path / f"{name}-{seed}" for seed in (1, 2)] for name in ("akd", "at")]
    assert [[run.path for run in row.runs] for row in rows] == alike
    files = {name: content.decode() for name, content in ranking_files(rows, "").items()}
    table = list(csv.DictReader(files["ranking.csv"].splitlines()))
    assert [(row["seeds"], row["folders"].split()) for row in table] == [("2", [*map(str, each)]) for each in alike]
    assert r"AKD & 2 & " in files["ranking.tex"]
    assert [view["about"] for view in ranking_views(rows, [])] == ["2 of 3 seeds"] * 2
    # The difference is of the same seeds as the numbers, and so is what the page says of a single arm.
    robust = [row.numbers["robust_accuracy"].mean for row in rows]
    assert rows[0].gap.num_seeds == 2
    assert rows[0].gap.difference == pytest.approx(robust[0] - robust[1])
    assert "the mean of 2 seeds" in headline([rows[0].arm], [])
    notes = [line for line in missing_lines(rows, common_evaluation(arms)) if "like the others" in line]
    assert notes == [
        f"{name}, seed 0 was not evaluated like the others, and does not count for {name}: "
        f"run robustill evaluate {tmp_path}/{folder}-0 --suite pgd --seed 0"
        for name, folder in (("AKD", "akd"), ("PGD-AT", "at"))
    ]


def test_the_table_for_papers_holds_the_numbers_of_the_page(tmp_path):
    rows = ranked([make_study(tmp_path / "alpha")])
    files = ranking_files(rows, "500 images 100 %")
    table = list(csv.DictReader(files["ranking.csv"].decode().splitlines()))
    assert [row["arm"] for row in table] == ["AKD, alpha 0.5", "PGD-AT", "PGD-AT teacher"]
    first, gap = table[0], rows[0].gap
    assert float(first["robust_accuracy_mean"]) == rows[0].numbers["robust_accuracy"].mean
    assert float(first["robust_accuracy_difference"]) == gap.difference
    # Two seeds decide nothing.
    assert first["robust_accuracy_difference_p_value"] == ""
    assert (first["against"], table[2]["robust_accuracy_mean"], table[2]["rank"]) == ("PGD-AT", "", "")
    lines = files["ranking.tex"].decode().splitlines()
    assert lines[0] == "% 500 images 100 %"
    assert lines[1].startswith(r"\begin{tabular}{lrrrrrrr}")
    spread = rows[0].numbers["robust_accuracy"]
    assert rf"{100 * spread.mean:.1f} $\pm$ {100 * spread.std:.1f}" in lines[5]
    assert all(line.count("&") == 7 for line in lines[3:-2] if line.endswith(r"\\"))
    assert lines[-1] == r"\end{tabular}"


def test_conditions_from_a_strange_file_run_no_latex(two_runs):
    conditions = "500 images, 2026\n\\input{/etc/passwd}\r\\immediate\\write18{id}"
    lines = ranking_files(ranked(two_runs), conditions)["ranking.tex"].decode().splitlines()
    assert lines[0].startswith("% 500 images, 2026")
    assert lines[1].startswith(r"\begin{tabular}")
    assert not any("input{" in line or "write18" in line for line in lines[1:])


def test_every_row_shows_calibration_at_the_fixed_attack_or_none_does(two_runs):
    for is_new, path in enumerate(two_runs):
        rows, comparisons = ranked(two_runs), compare(read_arms(two_runs))
        assert all("ECE attacked" in ranking_files(rows, "")["ranking.tex"].decode() for _ in rows), is_new
        for view, row in zip(ranking_views(rows, comparisons), rows, strict=True):
            assert view["cells"][-1]["heading"] == "ECE, attacked"
            assert view["cells"][-1]["text"] == f"{row.numbers['ece_adversarial'].mean:.3f}"
        add_fixed_attack(path)
    rows, comparisons = ranked(two_runs), compare(read_arms(two_runs))
    expected = [f"{row.arm.runs[0].main.results['ece_pgd']:.3f}" for row in rows]
    cells = [view["cells"][-1] for view in ranking_views(rows, comparisons)]
    assert [(each["heading"], each["text"]) for each in cells] == [("ECE, PGD-10", number) for number in expected]
    files = ranking_files(rows, "")
    assert "ECE PGD-10" in files["ranking.tex"].decode()
    assert f"& {expected[0]} &" in files["ranking.tex"].decode()
    # The file of all digits has both.
    first = next(csv.DictReader(files["ranking.csv"].decode().splitlines()))
    for name in ("ece_adversarial", "ece_pgd"):
        assert float(first[f"{name}_mean"]) == rows[0].numbers[name].mean


def test_the_table_stands_beside_the_figures_and_is_replaced_with_them(two_runs, tmp_path):
    folder, tables = tmp_path / "figures", ranking_files(ranked(two_runs), "")
    for _ in range(2):
        write_figures([], folder, tables)
        assert {file.name: file.read_bytes() for file in folder.glob("ranking.*")} == tables
    write_figures([], folder)
    assert [file.name for file in folder.iterdir()] == ["figures.csv"]
