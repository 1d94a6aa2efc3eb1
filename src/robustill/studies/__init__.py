"""Studies: grids of configurations and seeds that share their teachers, and result in one table."""

from __future__ import annotations

from robustill.studies.builtin import STUDIES
from robustill.studies.design import Design, Row, StudyRuns
from robustill.studies.study import Study, default_folder, make_study

__all__ = ["STUDIES", "Design", "Row", "Study", "StudyRuns", "default_folder", "make_study"]
