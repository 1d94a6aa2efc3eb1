"""Studies: a grid of configurations and seeds, whose teachers are shared and whose result is one table."""

from __future__ import annotations

from robustill.studies.builtin import STUDIES
from robustill.studies.design import Design, Row, StudyRuns
from robustill.studies.study import Study, default_folder, make_study

__all__ = ["STUDIES", "Design", "Row", "Study", "StudyRuns", "default_folder", "make_study"]
