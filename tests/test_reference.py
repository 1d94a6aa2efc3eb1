"""The written docs say what the code says."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from robustill.config.recipes import resolve
from robustill.config.schema import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = set(Config.model_fields)


@pytest.fixture(scope="module")
def make_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_docstrings_say(make_reference: ModuleType) -> None:
    written = make_reference.OUT.read_text(encoding="utf-8")
    assert written == make_reference.reference(), "python docs/make_reference.py"


def test_calls_keep_the_quotes_of_defaults_and_lose_those_of_annotations(make_reference: ModuleType) -> None:
    def short(x: Config, *, mean: str = "logits") -> Path: ...

    assert make_reference.call("short", short) == "short(x: Config, *, mean: str = 'logits') -> Path"
    name = "long" * 20
    assert make_reference.call(name, short) == f"{name}(\n    x: Config,\n    *,\n    mean: str = 'logits',\n) -> Path"


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", content):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                    for line in content.splitlines() if line.startswith("#")}  # fmt: skip
        for anchor in re.findall(r"\]\(#([^)]+)\)", content):
            assert anchor in headings, f"{page.name}: #{anchor}"


def test_settings_that_the_pages_name_exist() -> None:
    for page in PAGES:
        # Options of one's own model or method aside.
        for group, name in set(re.findall(r"--(\w+)\.(\w+)", page.read_text(encoding="utf-8"))):
            if group in GROUPS - {"model", "method"}:
                assert name in Config.model_fields[group].annotation.model_fields, f"{page.name}: --{group}.{name}"


def test_recipes_in_the_guide_take_the_settings_beside_them() -> None:
    lines = re.findall(r"^robustill train (\w+) --run \S+(.*)$", (ROOT / "docs" / "guide.md").read_text(), re.MULTILINE)
    assert len(lines) >= 3
    for name, rest in lines:
        resolve(name, shlex.split(rest))
