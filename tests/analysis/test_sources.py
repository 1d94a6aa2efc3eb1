import shutil

import pytest
import torch

from helpers.made_up_runs import make_run
from helpers.made_up_studies import make_network, make_study
from helpers.read_arms import read_arms, read_runs
from helpers.tiny_studies import tiny
from robustill.analysis.sources import find_sources, find_studies
from robustill.core.errors import RunError
from robustill.core.fingerprint import compute_fingerprint
from robustill.studies.table import Table
from robustill.studies.writing import csv_rows, run_rows, write_results


def test_a_run_is_read_once_under_its_usual_name(tmp_path):
    paths = [make_run(tmp_path / side / "akd", method={"name": "at"}, evaluations=()) for side in ("a", "b")]
    runs = read_runs([*paths, paths[0], tmp_path / "a" / ".." / "b" / "akd"])
    assert [run.path.resolve() for run in runs] == [path.resolve() for path in paths]


def test_a_folder_stands_for_the_runs_and_evaluations_in_it(tmp_path):
    run = make_run(tmp_path / "all/runs/at", method={"name": "at"}, evaluations=("test-best-pgd",))
    seeds = [make_run(tmp_path / f"all/runs/seed-{seed}", method={"name": "at"}, evaluations=()) for seed in (10, 2)]
    evaluation = make_network(tmp_path / "all/evaluations/test-resnet-pgd")
    (tmp_path / "all/.hidden").mkdir()
    shutil.copytree(run, tmp_path / "all/.hidden/at")
    (tmp_path / "all/link").symlink_to(run)
    found = [source.folders for source in find_sources([tmp_path / "all"])]
    # In their natural order; what is inside a run belongs to it, and links are not followed.
    assert found == [(evaluation,), (run,), (seeds[1],), (seeds[0],)]


def test_all_evaluations_of_one_network_are_one_source(tmp_path):
    suite = {"name": "standard", "stages": [{"name": "apgd-ce", "steps": 100, "restarts": 1}]}
    paths = [
        make_network(tmp_path / "pgd"),
        make_network(tmp_path / "standard", suite=suite, strength=0.0),
        make_network(tmp_path / "other", sha="cd"),
    ]
    first, second = read_runs(paths)
    # The attack that both have come first, although the other one is stronger.
    assert [each.name for each in first.evaluations] == ["pgd", "standard"]
    assert first.evaluations[1].results["robust_accuracy"] < first.main.results["robust_accuracy"]
    assert second.main.name == "other"
    assert [run.name for run in (first, second)] == ["resnet (pgd)", "resnet (other)"]
    assert (first.is_network, first.average, first.at_last, first.eps, first.metrics) == (True, None, None, None, [])
    assert first.evaluations[0].eps == 0.2


def test_evaluations_of_one_network_on_other_images_are_one_source(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((5, 48), generator=generator)
    numbers = []
    for name, factor, num_images in (("a", 1.0, 4), ("b", 1.0 + 1e-6, 9), ("c", 1.0, 0), ("d", 0.9, 4)):
        images = torch.rand((num_images, 3, 4, 4), generator=generator) if num_images else None
        fingerprint = compute_fingerprint(
            lambda x, factor=factor: (factor * x.flatten(1)) @ weights.T, (3, 4, 4), images=images
        ).to_json()
        numbers.append(fingerprint["logits"])
        make_network(tmp_path / name, fingerprint=fingerprint)
    assert len(set(numbers)) == 4
    # Of an earlier version, without a fingerprint, and the last one of the same weights in other code.
    make_network(tmp_path / "0")
    found = [[folder.name for folder in source.folders] for source in find_sources([tmp_path])]
    assert found == [["0", "a", "b", "c"], ["d"]]


def test_a_study_names_its_rows_and_what_they_are_compared_with(tmp_path):
    folder = make_study(tmp_path / "alpha")
    (study,) = find_studies([folder])
    assert (study.name, study.description) == ("alpha-akd", "The weight of the teacher.")
    assert study.command == "robustill study alpha --seeds 2"
    arms = read_arms([folder])
    assert [(arm.name, len(arm.runs), arm.is_teacher) for arm in arms] == [
        ("AKD, alpha 0.5", 2, False),
        ("PGD-AT", 2, False),
        ("PGD-AT teacher", 2, True),
    ]
    assert [arm.runs[0].row and arm.runs[0].row.against for arm in arms] == ["at", None, None]


def test_another_table_in_the_folder_is_no_study(tmp_path):
    folder = make_study(tmp_path / "alpha")
    (folder / "mine-runs.csv").write_text("a,b\n1,2\n")
    (folder / "empty-runs.csv").write_text("")
    (folder / "short-runs.csv").write_text("row,run\nat\n")
    assert [study.name for study in find_studies([folder])] == ["alpha-akd"]


@pytest.mark.parametrize("content", [b"row,run\n\xff\xfe,x\n", b'row,run\n"' + b"a" * 200_000 + b'",x\n'])
def test_a_damaged_table_is_an_error_of_one_line(tmp_path, content):
    folder = make_study(tmp_path / "alpha")
    (folder / "alpha-akd-runs.csv").write_bytes(content)
    with pytest.raises(RunError, match=r"alpha-akd-runs\.csv .*run the study again") as caught:
        find_studies([folder])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "it does not exist"),
        (lambda path: path.mkdir(), "no evaluation"),
        (lambda path: path.write_text("text"), "no run directory"),
    ],
)
def test_a_path_without_runs_is_an_error_of_one_line(tmp_path, make, expected):
    make(tmp_path / "here")
    with pytest.raises(RunError, match=expected) as caught:
        find_sources([tmp_path / "here"])
    assert "\n" not in str(caught.value)


def test_a_run_without_its_configuration_is_not_taken_for_evaluations(two_runs):
    (two_runs[0] / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"no config\.yaml"):
        find_sources([two_runs[0]])


def test_nothing_to_report_is_refused():
    with pytest.raises(RunError, match="no run directory given"):
        find_sources([])


def test_the_tables_of_studies_have_the_columns_and_the_command_that_are_read(tmp_path):
    """What `robustill study` writes is what a page reads, also from a study of which nothing is finished."""
    study, table = tiny(tmp_path), Table(results=(), conditions={})
    assert {"row", "run"} <= set(next(iter(run_rows(study, table))))
    assert {"row", "against"} <= set(next(iter(csv_rows(table))))
    files = write_results(study, table, {})
    assert study.folder / "pair-akd-runs.csv" in files
    (study.folder / "pair-akd-runs.csv").write_text("row,run\nalpha 1,seed-0/akd-alpha-1\n")
    (found,) = find_studies([study.folder])
    assert (found.name, found.description, found.command) == (study.name, study.description, study.command)
