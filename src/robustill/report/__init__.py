"""One self-contained HTML page from one or many run directories."""

from robustill.report.page import report

__all__ = ["report"]
