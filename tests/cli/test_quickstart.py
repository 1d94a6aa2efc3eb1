"""The quickstart: teachers and students in processes of their own, one table and one page, the reason of a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.small_runs import tree
from helpers.tiny_studies import recipe
from robustill.cli import quickstart as module
from robustill.cli.quickstart import configurations, quickstart
from robustill.config.schema import Config, make_config
from robustill.core.errors import RunError
from robustill.studies.engines import Workers
from robustill.studies.grid import Grid
from robustill.studies.scheduler import RunOutcome
from robustill.training.loop import train


def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **of_students: Any) -> None:
    """Let the quickstart train one teacher and its students for two epochs on tiny images, with these settings."""
    base = yaml.safe_load(Path(recipe(tmp_path / "data")).read_text())

    def small_runs(seed: int, folder: Path) -> dict[str, Config]:
        runs = {}
        for name, config in configurations(seed, folder).items():
            values = config.model_dump(mode="json")
            kept = {key: values[key] for key in ("seed", "method", "teachers")}
            optim = {**base["optim"], "ema": values["optim"]["ema"]}
            extra = {} if name.startswith("teacher") else of_students
            runs[name] = make_config({**base, **kept, "optim": optim, **extra})
        return runs

    monkeypatch.setattr(module, "configurations", small_runs)
    monkeypatch.setattr(module, "NUM_TEACHERS", 1)


def train_here(grid: Grid, workers: Workers) -> dict[str, RunOutcome]:
    """Train the runs in this process, one after the other."""
    for name, config in grid.runs.items():
        train(config, grid.folder / name, progress=False)
    return {name: RunOutcome() for name in grid.runs}


def check_output(page: Path, printed: str) -> None:
    rows = [line.split("  ")[0] for line in printed.splitlines() if " best" in line]
    assert rows == ["PGD-AT", "PGD-AT + EMA", "AKD"], "averaged weights are evaluated where they were trained"
    assert page.is_file()
    assert f"open {page}" in printed


def test_the_quickstart_prints_a_table_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(tmp_path, monkeypatch)
    shown: list[Path] = []

    def write_page(runs: list[Path], out: Path) -> Path:
        shown.extend(runs)
        out.touch()
        return out

    monkeypatch.setattr(module, "run_grid", train_here)
    monkeypatch.setattr(module, "report", write_page)
    page = quickstart(tmp_path / "runs")
    check_output(page, capsys.readouterr().out)
    assert [run.name for run in shown] == ["at", "at-ema", "akd"]


@pytest.mark.slow
def test_the_quickstart_trains_in_processes_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(tmp_path, monkeypatch)
    page = quickstart(tmp_path / "runs")
    printed = capsys.readouterr()
    check_output(page, printed.out)
    assert all(f"{name}: done" in printed.err for name in ("teacher-0", "at", "at-ema", "akd"))
    trained = {name: digest for name, digest in tree(tmp_path / "runs").items() if name.endswith(".safetensors")}
    quickstart(tmp_path / "runs")
    assert trained
    assert trained.items() <= tree(tmp_path / "runs").items()
    assert "done" not in capsys.readouterr().err


def test_a_failed_training_is_one_line_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path, monkeypatch, initial=f"run:{tmp_path / 'nowhere'}@best")
    with pytest.raises(RunError, match=r"^at: .*nowhere.*$"):
        quickstart(tmp_path / "runs")


def test_a_folder_with_other_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path, monkeypatch)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(RunError, match=r"holds no study \(it holds a\.txt\)"):
        quickstart(tmp_path / "letters")
