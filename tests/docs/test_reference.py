"""The written docs say what the code says."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import robustill as rb
from helpers.pages import PAGES, ROOT
from robustill.config.schema import Config

GROUPS = set(Config.model_fields)
OPTION = re.compile(r"(?<=[ `])--[a-z][a-z-]+")


@pytest.fixture(scope="module")
def make_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_docstrings_say(make_reference: ModuleType) -> None:
    written = {page.name: page.read_text(encoding="utf-8") for page in make_reference.OUT.iterdir()}
    pages = make_reference.reference()
    # The library of the command line lays this page out, each of its versions in its own way.
    commands, now = written.pop("commands.md"), pages.pop("commands.md")
    assert set(OPTION.findall(commands)) == set(OPTION.findall(now)), "python docs/make_reference.py"
    assert written == pages, "python docs/make_reference.py"


def test_every_class_that_a_function_returns_has_an_entry() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    missing, found = [], [getattr(rb, name) for name in dir(rb) if name != "losses"]
    for value in found:
        if inspect.isfunction(value):
            annotations = [str(inspect.signature(value).return_annotation)]
        else:
            annotations = [str(field.type) for field in getattr(value, "__dataclass_fields__", {}).values()]
        for name in re.findall(r"\b[A-Z]\w+", " ".join(annotations)):
            each = getattr(sys.modules[value.__module__], name, None)
            if inspect.isclass(each) and each.__module__.startswith("robustill.") and each not in found:
                found.append(each)
                if f"\n### {name}\n" not in page:
                    missing.append(name)
    assert missing == []


def test_the_page_of_python_points_at_nothing_that_cannot_be_looked_up() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    named = re.findall(r"\b(?:see|as|as in|as for) `([\w.]+)`", page)
    assert "load_network" in named
    assert [name for name in named if not name.startswith("robustill.") and name not in dir(rb)] == []


def test_calls_keep_the_quotes_of_defaults_and_lose_those_of_annotations(make_reference: ModuleType) -> None:
    def short(x: Config, *, mean: str = "logits") -> Path: ...

    assert make_reference.call("short", short) == "short(x: Config, *, mean: str = 'logits') -> Path"
    name = "long" * 20
    assert make_reference.call(name, short) == f"{name}(\n    x: Config,\n    *,\n    mean: str = 'logits',\n) -> Path"


def test_settings_that_the_pages_name_exist() -> None:
    for page in PAGES:
        # Options of one's own model or method aside.
        for group, name in set(re.findall(r"--(\w+)\.(\w+)", page.read_text(encoding="utf-8"))):
            if group in GROUPS - {"model", "method"}:
                assert name in Config.model_fields[group].annotation.model_fields, f"{page.name}: --{group}.{name}"


@pytest.mark.parametrize(("field", "shown"), [
    ("validation", "| `validation` | 0.1 | size of the validation set"),
    ("teachers", "| `role` | robust | robust or natural |"),
    ("threat", "| `eps` | 8/255 | radius"),
])  # fmt: skip
def test_settings_are_shown_with_default_and_meaning(make_reference: ModuleType, field: str, shown: str) -> None:
    assert shown in make_reference.settings_page(), field
