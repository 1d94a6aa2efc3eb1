"""Report the results of one or several runs on one self-contained HTML page."""

from __future__ import annotations

from robustill.report.page import report

__all__ = ["report"]
