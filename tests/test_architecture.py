"""The layers of CONTRIBUTING.md hold: every import points down, and the root of the package stays small."""

from __future__ import annotations

from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

import robustill

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_are_kept() -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, "run `make lint` to see which import points up"


def test_at_most_nineteen_entries_lie_below_the_root() -> None:
    package = Path(robustill.__file__).parent
    entries = {each.name for each in package.iterdir() if each.is_dir() or each.suffix == ".py"}
    assert len(entries - {"__pycache__", "__init__.py", "__main__.py"}) <= 19
