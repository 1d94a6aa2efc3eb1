"""Parts of a study, one after the other or side by side, come to what the whole study comes to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers.fake_ray import FakeRay
from helpers.small_runs import lines, weights
from helpers.tiny_studies import SUITE, recipe, tiny
from robustill.core.errors import ConfigError, RunError
from robustill.core.files import exclusive_lock
from robustill.runs.directory import RunDirectory
from robustill.studies import Design, Row, StudyRuns, make_study
from robustill.studies.clusters import RayEngine
from robustill.studies.engines import Workers
from robustill.studies.job import Job
from robustill.studies.parts import Part
from robustill.studies.scheduler import run_study

# Its jobs run in this process.
ONE = Workers(count=1, threads=1, gpu=False, engine="ray")


@pytest.fixture(autouse=True)
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", FakeRay({"CPU": 1.0}))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_each_run_belongs_to_one_part(tmp_path: Path, count: int) -> None:
    study = tiny(tmp_path, seeds=3)
    parts = [Part(index, count).runs(study) for index in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(study.runs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # Six runs need no other one: three baselines and three teachers.
    first = {name for part in parts for name in part[:1]}
    assert sum(not study.needs[name] for name in first) == min(count, 6)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected i/n with 1 ≤ i ≤ n, such as 2/8"):
        Part.parse(text)


@pytest.mark.slow
def test_parts_in_turn_finish_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = RayEngine.start

    def counted(self: RayEngine, name: str, job: Job) -> None:
        started.append(name)
        start(self, name, job)

    whole, study = tiny(tmp_path / "whole"), tiny(tmp_path / "parts")
    run_study(whole, ONE, progress=False)
    monkeypatch.setattr(RayEngine, "start", counted)
    one, two = Part(1, 2), Part(2, 2)
    assert one.runs(study) == ["seed-0/teacher-0", "seed-0/akd-alpha-0.5"]
    assert two.runs(study) == ["seed-0/at", "seed-0/akd-alpha-1"]
    # The teacher belongs to the other part.
    first = run_study(study, ONE, part=two, progress=False)
    assert first.lacking == {"seed-0/akd-alpha-1": ("seed-0/teacher-0",)}
    assert first.outcomes.keys() == {"seed-0/at"}
    assert not first.files
    second = run_study(study, ONE, part=one, progress=False)
    assert not second.lacking
    assert not second.files
    last = run_study(study, ONE, part=two, progress=False)
    assert {file.name for file in last.files} >= {"pair-akd.md", "pair-akd.csv"}
    assert sorted(started) == sorted(study.runs)
    for name in study.runs:
        assert weights(study.folder / name) == weights(whole.folder / name)
        assert lines(study.folder / name) == lines(whole.folder / name)
    page, other = ((each.folder / "pair-akd.csv").read_text() for each in (study, whole))
    assert page == other


@pytest.mark.slow
def test_a_part_waits_for_what_others_finish_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny(tmp_path)
    start = RayEngine.start

    def after_the_teacher(self: RayEngine, name: str, job: Job) -> None:
        start(self, name, job)
        if name == "seed-0/at":
            run_study(study, ONE, part=Part(1, 2), progress=False)

    monkeypatch.setattr(RayEngine, "start", after_the_teacher)
    # The first part begins and ends within the second, which then has all that it needs.
    result = run_study(study, ONE, part=Part(2, 2), progress=False)
    assert not result.lacking
    assert result.outcomes.keys() == {"seed-0/at", "seed-0/akd-alpha-1"}
    assert result.files


def chain(runs: StudyRuns) -> Design:
    """A student of a student of a teacher."""
    base = Row(label="at", run=runs.baseline())
    first = runs.student("first", [f"{runs.teacher()}@best"], options={"alpha": 0.5})
    second = runs.student("second", [f"{first}@best"])
    third = runs.student("third", [f"{second}@best"])
    return Design(rows=(base, Row(label="third", run=third)))


def test_what_needs_a_run_that_is_left_out_is_left_out_too(tmp_path: Path) -> None:
    file = recipe(tmp_path / "data")
    study = make_study(f"{__name__}:chain", folder=tmp_path / "runs", seeds=1, recipe=file, suite=SUITE)
    order = Part(1, 1).runs(study)
    assert order == [f"seed-0/{name}" for name in ("at", "teacher-0", "akd-first", "akd-second", "akd-third")]
    result = run_study(study, ONE, part=Part(1, 2), progress=False)
    assert result.outcomes.keys() == {"seed-0/at"}
    assert result.lacking == {
        "seed-0/akd-first": ("seed-0/teacher-0",),
        "seed-0/akd-third": ("seed-0/akd-second",),
    }


def test_the_same_part_twice_at_a_time_is_refused(tmp_path: Path) -> None:
    study = tiny(tmp_path)
    study.folder.mkdir()
    (study.folder / "study.lock").touch()
    with (
        exclusive_lock(study.folder / "part-1-of-2.lock", "taken"),
        pytest.raises(RunError, match=r"part 1/2 of .* is being run by another process"),
    ):
        run_study(study, ONE, part=Part(1, 2), progress=False)


def test_a_run_that_is_being_trained_is_not_trained_by_another_part(tmp_path: Path) -> None:
    study = tiny(tmp_path)
    with RunDirectory(study.folder / "seed-0" / "at").locked():
        study.folder.joinpath("study.lock").touch()
        result = run_study(study, ONE, part=Part(2, 4), progress=False)
    assert "is in use by another process" in str(result.outcomes["seed-0/at"].error)
