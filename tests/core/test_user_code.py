"""Code of an import path runs only where the user named the path."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import robustill
from robustill.core import user_code
from robustill.core.errors import RobustillError
from robustill.core.user_code import (
    SPECIFICATION_KINDS,
    UntrustedCodeError,
    check_named,
    current_trust,
    import_user_module,
    is_import_path,
    only_named,
    paths_in,
    search_in,
)
from robustill.methods import build_method
from robustill.models import build
from robustill.models.loading import _LOADERS
from robustill.studies import make_study


def test_python_code_may_name_every_path() -> None:
    check_named("os:system")
    assert import_user_module("string:digits").digits == "0123456789"
    assert current_trust() is False


@pytest.mark.parametrize("trust", ["my:net,my:other", ["my:net"], ("my:net",), True])
def test_what_is_named_or_trusted_is_allowed_inside_the_block_alone(trust) -> None:
    with only_named(trust=trust):
        check_named("my:net")
    with only_named():
        with only_named(trust=trust):
            check_named("my:net")
        with pytest.raises(UntrustedCodeError):
            check_named("my:net")


def test_an_inner_block_keeps_what_an_outer_one_names() -> None:
    with only_named("my:net"), only_named(origin="RUN/model.json"):
        check_named("my:net")
        assert current_trust() == ("my:net",)
        with pytest.raises(UntrustedCodeError, match=r"^RUN/model.json names the code os:system"):
            check_named("os:system")
    with only_named(trust=True), only_named():
        check_named("os:system")
        assert current_trust() is True


def test_the_refusal_is_one_line_that_says_what_to_add() -> None:
    with only_named(), pytest.raises(RobustillError) as caught:
        check_named("a b;\n\x1b[2J:x")
    line = str(caught.value)
    assert line.isprintable()
    assert "--trust-code 'a b;" in line


def test_nothing_is_imported_before_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with only_named("other:net"), pytest.raises(UntrustedCodeError):
        import_user_module("hostile_module:net")
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize(
    "text", ["os", "os:", ":x", ".os:x", "a..b:x", "a:b:c", "a b:c", "../a:c", "a:b.c", "1a:b", None]
)
def test_what_is_no_import_path(text) -> None:
    assert not is_import_path(text)
    if text is not None:
        with pytest.raises(ImportError, match="no import path"):
            import_user_module(text)


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["--model", "my_mod:net"], ["my_mod:net"]),
        (["--model=my.mod:net"], ["my.mod:net"]),
        (["--teachers", "[{spec: my_mod:a, role: natural}, 'b:c']"], ["my_mod:a", "b:c"]),
        (["--teachers", "run:teacher", "hf:folder", "timm:resnet18", "--threat", "linf:8/255"], []),
        (["--data.root", "C:/data", "runs/a:b/c"], []),
        (["mödül:netz"], ["mödül:netz"]),
    ],
)
def test_paths_are_found_among_words(words, paths) -> None:
    assert paths_in(words) == paths


def test_the_kinds_of_specifications_are_no_modules() -> None:
    assert set(SPECIFICATION_KINDS) == set(_LOADERS)


def test_a_folder_is_searched_once_code_of_the_user_is_imported(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_code, "_search_folders", [])
    (tmp_path / "lies_here.py").write_text("x = 1")
    search_in(tmp_path)
    search_in(tmp_path)
    assert str(tmp_path) not in sys.path
    assert import_user_module("lies_here:x").x == 1
    assert sys.path[-1] == str(tmp_path)


FAILURES = {
    "def f(:": r"SyntaxError: invalid syntax \(line 1 of .*failing\.py\)",
    "\nraise KeyError('a\\nb')": r"KeyError: 'a\\nb' \(line 2 of .*failing\.py\)",
    "import no_such_module": r"ModuleNotFoundError: No module named 'no_such_module' \(line 1 of .*failing\.py\)",
    "import sys; sys.exit(2)": "it ends the program: put what it runs below if __name__ == '__main__'",
}


@pytest.mark.parametrize("content", FAILURES)
def test_a_module_that_fails_is_one_line_that_names_the_place(content: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "failing.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    with pytest.raises(ImportError, match=FAILURES[content]) as caught:
        import_user_module("failing:x")
    assert "\n" not in str(caught.value)


def test_a_module_that_is_missing_is_not_a_failure_of_code() -> None:
    for path, missing in (("no_such_module:x", "no_such_module"), ("robustill.no_such:x", "robustill.no_such")):
        with pytest.raises(ImportError, match=rf"^No module named '{missing}'; install it, or start in its folder$"):
            import_user_module(path)
    with pytest.raises(ImportError, match=r"^it names a file: write its module, mynet:load, and start in nets or add"):
        import_user_module("nets/mynet.py:load")


USER_CODE = """
from robustill.methods import AT
def fails(*arguments):
    return {}["a"]
class Fails(AT):
    def __init__(self):
        fails()
"""


@pytest.mark.parametrize(
    "entrance",
    [
        lambda: build("raises_here:fails", num_classes=2),
        lambda: build_method("raises_here:Fails"),
        lambda: make_study("raises_here:fails", folder=Path("runs")),
    ],
    ids=["model", "method", "study"],
)
def test_code_that_fails_when_it_is_called_is_one_line(entrance, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "raises_here", raising=False)
    (tmp_path / "raises_here.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RobustillError, match=r"KeyError: 'a' \(line 4 of .*raises_here\.py\)$"):
        entrance()


def test_only_this_module_imports_by_a_name_that_is_not_written_in_the_source() -> None:
    package = Path(robustill.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            by_name = name in ("import_module", "__import__", "eval", "exec", "resolve_name") and node.args
            if by_name and not isinstance(node.args[0], ast.Constant):
                found.add(str(file.relative_to(package)))
    # The package's own names, and packages of the extras `vision` and `cluster` by their own names.
    assert found == {"__init__.py", "core/user_code.py", "models/vision.py", "studies/clusters.py"}
