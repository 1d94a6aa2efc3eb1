"""Every script of benchmarks/ finds what it imports and says what it asks; its log leads somewhere."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = [file for file in sorted(BENCHMARKS.rglob("*.py")) if "__main__" in file.read_text("utf-8")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_begins_with_its_question_its_command_and_its_time(script: Path) -> None:
    lines = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or "").splitlines()
    assert "?" in lines[0], f"{script}: the first line asks what the script answers"
    name = script.relative_to(ROOT).as_posix()
    command = next((number for number, line in enumerate(lines) if line.strip().startswith(f"python {name}")), None)
    assert command is not None, f"{script}: a line with python {name}"
    assert re.search(r"(second|minute|hour)s?\b", " ".join(lines)), f"{script}: about how long it takes"


@pytest.mark.parametrize("script", sorted(BENCHMARKS.rglob("*.py")), ids=lambda script: script.stem)
def test_a_script_finds_the_names_that_it_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script))


def test_the_log_and_the_pages_of_results_lead_somewhere() -> None:
    pages = [BENCHMARKS / "LOG.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    ]
    assert len(links) > 40
    for page, link in links:
        assert (page.parent / link).is_file(), f"{page.name} links to {link}"


def test_the_files_that_the_log_and_the_pages_name_exist() -> None:
    pages = [BENCHMARKS / "LOG.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
    for page in pages:
        for name in re.findall(r"\bpython (benchmarks/[\w/]+\.py)", page.read_text("utf-8")):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"
