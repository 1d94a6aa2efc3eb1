"""`robustill list`: every name, on one screen, without torch; what each is in one line; everything with --long."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.command_line import Call
from robustill.attacks.suites import SUITES
from robustill.cli import catalogue
from robustill.cli.listing import FILE, list_names, read_names
from robustill.config.recipes import RECIPES
from robustill.core.errors import RobustillError
from robustill.data import DATASETS
from robustill.methods import METHODS, method_options
from robustill.methods.base import SELF
from robustill.models import MODELS
from robustill.models.robustbench import ZOO
from robustill.studies import STUDIES

KINDS = {
    "methods": METHODS,
    "models": MODELS,
    "data": DATASETS,
    "recipes": RECIPES,
    "studies": STUDIES,
    "suites": SUITES,
    "robustbench": [f"robustbench:{each.data}/{each.norm}/{each.name}" for each in ZOO],
}


def printed(
    capsys: pytest.CaptureFixture[str], kind: str | None, pattern: str | None = None, long: bool = False
) -> str:
    list_names(kind, pattern, long=long)
    return capsys.readouterr().out


def test_the_file_of_names_is_what_the_tables_say() -> None:
    assert FILE.read_text(encoding="utf-8") == catalogue.names_text(), "python docs/make_reference.py"
    assert {kind: [row[0] for row in rows] for kind, rows in read_names().items()} == {
        kind: list(known) for kind, known in KINDS.items()
    }
    assert all(len(row) >= 2 and "\n" not in row[1] for rows in read_names().values() for row in rows)


def test_all_kinds_fit_a_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = printed(capsys, None).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    words = " ".join(lines).split()
    for kind, known in KINDS.items():
        assert kind in words
        if kind != "robustbench":
            assert set(known) <= set(words)
    assert f"{len(ZOO)} networks" in " ".join(lines)
    assert not any(word.startswith("robustbench:") for word in words)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", ["50", "100"])
def test_no_name_is_broken(
    kind: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    margin = "  " if kind == "methods" else ""
    starts = [line.removeprefix(margin) for line in printed(capsys, kind).splitlines() if line.startswith(margin)]
    first_words = [line.split()[0] for line in starts if line and not line.startswith(" ")]
    if kind == "methods":
        assert sorted(first_words) == sorted(METHODS)
    else:
        assert first_words == list(KINDS[kind])


def test_all_methods_are_grouped_by_their_teachers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    groups = {}
    for block in printed(capsys, "methods").split("\n\n"):
        heading, *members = block.splitlines()
        groups[heading] = [member.split()[0] for member in members]
    needed = {
        "without a teacher": (),
        "with a robust teacher": ("robust",),
        "with a robust and a natural teacher": ("robust", "natural"),
        "with a natural teacher": ("natural",),
    }
    assert list(groups) == list(needed)
    for members, roles in zip(groups.values(), needed.values(), strict=True):
        # The average of the student's own weights is nobody else's network.
        expected = [name for name in METHODS if tuple(role for role in METHODS[name].roles if role != SELF) == roles]
        assert members == expected
    # A search has no headings.
    assert printed(capsys, "methods", "iad").splitlines()[0].startswith("iad ")


def test_the_facts_name_the_other_networks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    facts = {name: printed(capsys, "methods", name, long=True) for name in ("at", "rslad", "adr", "peerad")}
    assert "without a teacher" in facts["at"]
    assert "attack steps: student 11 forward 11 backward · Madry" in facts["at"]
    assert "with a robust teacher" in facts["rslad"]
    assert "student 12 forward 12 backward, teacher 1 forward 0 backward ·" in facts["rslad"]
    assert "without a teacher" in facts["adr"]
    assert "learns from the average of its own weights, optim.ema ·" in facts["adr"]
    assert "student 11 forward 11 backward, average 1 forward 0 backward ·" in facts["adr"]
    assert "student 12 forward 12 backward, network beside it 2 forward 1 backward ·" in facts["peerad"]


def test_what_is_piped_has_one_line_a_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("shutil.os.get_terminal_size", lambda _: 1 / 0)
    monkeypatch.setattr("sys.__stdout__", None)
    for kind, known in KINDS.items():
        assert [line.split()[0] for line in printed(capsys, kind).splitlines()] == list(known)


def test_a_line_about_each_method_and_everything_with_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    short = printed(capsys, "methods")
    # With a heading above each of four groups and an empty line between them.
    assert len(short.splitlines()) == len(METHODS) + 7
    assert "CE(S(x'), y)" not in short
    long = printed(capsys, "methods", long=True)
    assert "CE(S(x'), y)" in long
    for name in METHODS:
        assert all(f"{option}=" in long for option in method_options(name))
    models = printed(capsys, "models", long=True)
    assert all(f"{option}=" in models for name in MODELS for option in MODELS[name].options)


@pytest.mark.parametrize(
    ("kind", "pattern", "expected"),
    [
        ("methods", "iad", ["iad", "iad2", "adaiad"]),
        ("methods", "IAD*", ["iad", "iad2"]),
        ("suites", "pgd-??", ["pgd-20"]),
        ("robustbench", "l2/rice", [name for name in KINDS["robustbench"] if "L2/Rice" in name]),
    ],
)
def test_a_pattern_selects_names(
    kind: str, pattern: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected
    found = [line.split()[0] for line in printed(capsys, kind, pattern).splitlines() if not line.startswith(" ")]
    assert found == expected


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RobustillError, match=r"no name of methods matches 'akdd': did you mean akd or kd\?"):
        list_names("methods", "akdd")
    with pytest.raises(RobustillError, match="no name of robustbench matches 'zzz': give a part of a name"):
        list_names("robustbench", "zzz")


def test_the_command_takes_kind_pattern_and_long(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = call("list", "methods", "akd", "--long")
    assert code == 0
    assert out.splitlines()[0].split()[0] == "akd"
    assert "alpha=" in out
    assert call("list", "nothing")[0] == 2


def test_listing_imports_no_torch() -> None:
    script = (
        "import sys\n"
        "from robustill.cli import app\n"
        "for words in (['list'], ['list', 'methods', '--long'], ['list', 'robustbench', 'wrn']):\n"
        "    app.app(words, exit_on_error=False, print_error=False, result_action='return_value')\n"
        "print('imported', {'torch', 'pydantic', 'rich.table', 'numpy'} & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.endswith("imported set()\n")
