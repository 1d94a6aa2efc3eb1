"""The layers of CONTRIBUTING.md hold: every import points down, and the root of the package stays small."""

from __future__ import annotations

import re
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


def test_contributing_names_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text.split("```")[1]))
    package = Path(robustill.__file__).parent
    modules = {each.stem for each in package.rglob("*.py")} - {"__init__", "__main__"}
    assert modules <= words, sorted(modules - words)
