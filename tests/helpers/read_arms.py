"""Runs and arms as a report reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustill.analysis.arms import Arm, make_arms
from robustill.analysis.runs import FinishedRun, with_common_evaluations
from robustill.analysis.sources import find_sources


def read_arms(paths: Sequence[Path]) -> list[Arm]:
    """Return the arms of what the paths hold."""
    return make_arms(with_common_evaluations([source.read() for source in find_sources(paths)]))


def read_runs(paths: Sequence[Path]) -> list[FinishedRun]:
    """Return the runs of these arms, each under its name on the page."""
    return [run for arm in read_arms(paths) for run in arm.runs]
