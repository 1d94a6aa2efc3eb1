"""The students of a study are exported, measured and attacked as files, once, and the results show it."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.small_runs import tree
from helpers.tiny_studies import ONE, SUITE, recipe
from robustill.attacks.suites import SUITES
from robustill.cli.study_tables import print_plan, print_results
from robustill.core.errors import ConfigError
from robustill.models.loading import Shape
from robustill.models.onnx_file import load_onnx
from robustill.report.deployment import read_shipped
from robustill.studies import Design, Row, Study, StudyRuns, make_study
from robustill.studies import study as study_module
from robustill.studies.cost import run_costs
from robustill.studies.job import Job, run_job
from robustill.studies.scheduler import is_finished, locked, run_study
from robustill.studies.shipped import tabulate_shipped
from robustill.studies.table import tabulate

RUN = "seed-0/at"
LEARNING = (
    "--optim.epochs",
    "8",
    "--model.width",
    "4",
    "--optim.batch_size",
    "8",
    "--threat",
    "linf:0.05",
    "--optim.ema",
    "0.5",
)
IMAGES = Shape(num_classes=4, in_channels=1, image_size=(8, 8))
# Square and APGD with a hundredth of their budget, as these tests are of what becomes of the numbers.
SHORT = replace(SUITES["deployed"], budgets={"queries": 20, "restarts": 1, "steps": 2})


def lone(runs: StudyRuns) -> Design:
    """The baseline, as it is shipped."""
    return Design(rows=(Row(label="at", run=runs.baseline(), series="at", value=2),), axis="width", ship=True)


def shipping(folder: Path) -> Study:
    name, file = f"{__name__}:lone", recipe(folder / "data")
    return make_study(name, folder=folder / "runs", seeds=1, recipe=file, suite=SUITE, num_images=8, overrides=LEARNING)


def job_of(study: Study) -> Job:
    config = study.runs[RUN].model_dump(mode="json")
    log = str(study.folder / "logs" / f"{RUN}.log")
    evaluation = study.evaluation(RUN)
    return Job(run=str(study.folder / RUN), config=config, evaluation=evaluation, log=log, folder=str(Path.cwd()))


@pytest.fixture(autouse=True)
def _short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "deployed", SHORT)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study whose only run was trained, evaluated and shipped, with averaged weights."""
    folder = tmp_path_factory.mktemp("shipped")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "deployed", SHORT)
        study = shipping(Path())
        with locked(study.folder):
            assert run_job(job_of(study)) is None
    return folder


@pytest.fixture
def shipped(made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study in the folder of `made_once`, which is not changed but for its results."""
    monkeypatch.chdir(made_once)
    return shipping(Path())


@pytest.mark.slow
def test_both_files_are_those_of_the_averaged_student_and_were_attacked_as_they_are(shipped: Study) -> None:
    folder = shipped.folder / RUN / "shipped"
    assert sorted(each.name for each in folder.glob("*.onnx")) == ["at-float32.onnx", "at-int8.onnx"]
    for row in tabulate_shipped(shipped):
        (found,) = row.seeds.values()
        assert found.name == f"at-{row.file}.onnx"
        assert found.num_bytes == (folder / found.name).stat().st_size
        assert load_onnx(folder / found.name, IMAGES).module.model.facts["source"] == f"run:runs/{RUN}@best-ema"
        assert found.conditions["num_images"] == 8
        assert found.conditions["threat"]["text"] == "linf:0.05"
        assert set(found.alone) == {"transfer", "white-box", "bpda", "square"}
        assert found.robust_accuracy <= min(found.alone.values())
        assert list(found.conditions["surrogates"]) == ["run:at@best-ema"]
    assert len(read_shipped([folder])) == 2


def test_a_second_call_exports_and_attacks_nothing(shipped: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(shipped.folder / RUN)
    assert is_finished(shipped, RUN)
    monkeypatch.setattr("robustill.evaluation.deployed.autoattack", None)
    monkeypatch.setattr("robustill.evaluation.export.export_network", None)
    result = run_study(shipped, ONE, progress=False)
    assert result.outcomes[RUN].error is None
    # Nor does a job that was killed before it recorded its end.
    record = json.loads((shipped.folder / RUN / "study.json").read_text())
    (shipped.folder / RUN / "study.json").unlink()
    assert run_job(job_of(shipped)) is None
    after = tree(shipped.folder / RUN)
    assert {name: after[name] for name in after if name != "study.json"} == {
        name: before[name] for name in before if name != "study.json"
    }
    again = json.loads((shipped.folder / RUN / "study.json").read_text())
    assert (again["shipped"], again["evaluations"]) == (record["shipped"], record["evaluations"])


def test_a_run_that_was_not_shipped_is_unfinished_and_in_the_table_of_runs(
    made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    study = shipping(Path())
    (record,) = (study.folder / RUN / "shipped" / "evaluations").glob("*int8*/summary.json")
    record.unlink()
    assert not is_finished(study, RUN)
    assert tabulate_shipped(study) == ()
    assert {each.checkpoint for each in tabulate(study).results} == {"best", "last", "best-ema", "last-ema"}


def test_without_the_extra_the_table_says_what_is_missing(
    made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(Path("runs", RUN, "shipped"))

    def missing(*_: str) -> None:
        raise ConfigError("an ONNX file needs onnx: pip install 'robustill[export]'")

    monkeypatch.setattr(study_module, "require", missing)
    study = shipping(Path())
    line = "not measured and attacked as they are shipped: an ONNX file needs onnx: pip install 'robustill[export]'"
    assert run_costs(study)[RUN].evaluation > 0
    result = run_study(study, ONE, progress=False)
    assert result.outcomes[RUN].error is None
    assert result.shipped == ()
    print_results(study, result)
    print_plan(study, ONE)
    assert capsys.readouterr().out.count(line) == 2
    page = Path("runs", "lone-akd.md").read_text()
    assert f"The runs were {line}" in page
    assert "| at | best | 1 |" in page
    assert "## As shipped" not in page


def test_the_plan_counts_the_attacks_on_both_files(shipped: Study, capsys: pytest.CaptureFixture[str]) -> None:
    without = replace(shipped, design=replace(shipped.design, ship=False))
    extra = run_costs(shipped)[RUN].evaluation - run_costs(without)[RUN].evaluation
    # Half of eight images in two files: ten searches of PGD-20 on another network, APGD on nine targets at most and on
    # cross entropy, two steps with two gradients each, and 20 queries.
    assert extra >= 4 * 2 * (10 * 41 + 2 * (1 + 3) * 2 * 2 + 20)
    assert extra <= 4 * 2 * (10 * 41 + 2 * (1 + 3) * 10 + 25)
    print_plan(shipped, ONE)
    assert "each also exported in float32 and in int8, and attacked as it is shipped" in capsys.readouterr().out
