"""Write docs/reference.md from the docstrings, tables and settings of the source: python docs/make_reference.py

It also writes names.json, from which `robustill list` reads the names of the tables without importing torch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import robustill as rb
from robustill.cli import listing
from robustill.cli.catalogue import LISTS, names_text
from robustill.config.files import explain_config
from robustill.config.schema import Config
from robustill.methods import METHODS

OUT = Path(__file__).with_name("reference.md")
HEAD = """# Reference

This page is written from the docstrings by `python docs/make_reference.py`. `robustill COMMAND --help` describes the
command line, and [the guide](guide.md) shows how to use it.

Letters in shapes and formulas: B batch, C H W image, K classes, N data set, E epochs; S student, T teacher, x clean
image, x' adversarial image, y label. Pixels are in [0,1], losses in nats, times in seconds.

[Python](#python) · [Losses](#losses) · [Methods](#methods) · [Names](#names) · [Settings](#settings)
"""
# Annotations are strings in every module.
ANNOTATION = re.compile(r"(?<=: |> )'([^']*)'")


def text(value: object) -> str:
    """Return the docstring of an object as a code block, so that equations keep their columns."""
    return f"```text\n{inspect.getdoc(value) or ''}\n```\n"


def call(name: str, value: Any) -> str:
    """Return the signature of an object, on several lines if it is long."""
    if inspect.isclass(value) and issubclass(value, (Config, Exception)):
        return name
    signature = inspect.signature(value)
    shown = ANNOTATION.sub(r"\1", str(signature)).removesuffix(" -> None")
    if len(name + shown) <= 100:
        return name + shown
    parameters = list(signature.parameters.values())
    several = [ANNOTATION.sub(r"\1", str(each)) for each in parameters]
    keywords = [number for number, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY]
    if keywords:
        several.insert(keywords[0], "*")
    inner = ",\n    ".join(several)
    return f"{name}(\n    {inner},\n){shown[shown.rindex(')') + 1 :]}"


def entry(name: str, value: Any) -> str:
    """Return the entry of one name: its heading, signature and docstring."""
    return f"### {name}\n\n```python\n{call(name, value)}\n```\n\n{text(value)}"


def table(kind: str) -> str:
    """Return the names of one kind as `robustill list` prints them."""
    lines = [f"### {kind.capitalize()}\n", "| | |", "|---|---|"]
    for name, *about in LISTS[kind]():
        lines.append(f"| `{name}` | {'<br>'.join(line for line in about if line).replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def own_functions(module: Any) -> Iterable[tuple[str, Any]]:
    """Return the public functions of a module, in the order of its file."""
    return (
        (name, each)
        for name, each in vars(module).items()
        if inspect.isfunction(each) and each.__module__ == module.__name__ and not name.startswith("_")
    )


def reference() -> str:
    """Return the whole page."""
    names = [name for name in rb.__all__ if name != "losses"]
    parts = [
        HEAD,
        "## Python\n",
        "The names of the package, after `import robustill as rb`.\n",
        *(entry(f"rb.{name}", getattr(rb, name)) for name in names),
        "## Losses\n",
        "The functions of `rb.losses`. Each returns one value per sample.\n",
        *(entry(f"rb.losses.{name}", each) for name, each in own_functions(rb.losses)),
        "## Methods\n",
        "On the command line, `--method NAME` chooses a method and `--method.OPTION` sets its options. In Python, use\n"
        "`rb.build_method(NAME, OPTION=...)`.\n",
        *(entry(name, each) for name, each in METHODS.items()),
        "## Names\n",
        "The names that `robustill list` prints.\n",
        *(table(kind) for kind in LISTS if kind != "methods"),
        "## Settings\n",
        "The settings of a configuration file and their defaults. On the command line, `--GROUP.NAME` sets it.\n",
        f"```yaml\n{explain_config(Config())}```\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    OUT.write_text(reference(), encoding="utf-8")
    listing.FILE.write_text(names_text(), encoding="utf-8")
