"""One self-contained HTML page from one or many run directories."""

from __future__ import annotations

from robustill.report.page import report

__all__ = ["report"]
