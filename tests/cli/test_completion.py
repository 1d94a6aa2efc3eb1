"""Completion in a shell: the scripts name the commands, and bash offers recipes, methods and suites."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.command_line import Call
from robustill.attacks.suites import SUITES
from robustill.cli.app import app
from robustill.config.recipes import RECIPES
from robustill.methods import METHODS
from robustill.studies import STUDIES
from robustill.studies.tracks import TRACKS

COMMANDS = """train evaluate study board plan report difficulty transfer export list show doctor quickstart
    teachers""".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command `robustill` and its completion for bash."""
    folder = tmp_path_factory.mktemp("shell")
    command = folder / "robustill"
    program = shlex.join([sys.executable, "-c", "from robustill.cli.app import main; main()"])
    command.write_text(f'#!/bin/bash\nexec {program} "$@"\n')
    command.chmod(0o755)
    (folder / "completion.bash").write_text(app.generate_completion(shell="bash"))
    (folder / "mine.yaml").write_text("seed: 1\n")
    return folder


def offered(folder: Path, *words: str) -> list[str]:
    """Return what bash offers for the last word of a command line."""
    typed = ["robustill", *words]
    script = (
        f"source completion.bash; COMP_WORDS=({shlex.join(typed)}); COMP_CWORD={len(words)}; "
        '_robustill; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    # The folder of the package itself, whose environment of this test is not in the path of another process.
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_every_command(
    shell: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = call("--install-completion", "--shell", shell, "--output", str(tmp_path / "script"))
    assert (code, err) == (0, "")
    script = (tmp_path / "script").read_text()
    assert script == app.generate_completion(shell=shell)  # type: ignore[arg-type]
    assert all(command in script for command in COMMANDS)
    assert "--num-images" in script
    # Only the file that was asked for.
    assert [path.name for path in tmp_path.iterdir()] == ["script"]


def test_bash_loads_the_completion_when_it_starts(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        code, out, _ = call("--install-completion", "--shell", "bash")
        assert code == 0
    path = tmp_path / ".local/share/bash-completion/completions/robustill"
    assert out == f"wrote {path}; open a new shell to use it\n"
    assert (tmp_path / ".bashrc").read_text().count(str(path)) == 2
    shown = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; complete -p robustill"],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "-F _robustill robustill" in shown.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], set(COMMANDS)),
        (["train", "digits_"], {name for name in RECIPES if name.startswith("digits_")}),
        (["show", "m"], {"mine.yaml"}),
        (["train", "digits_at", "--method", "a"], {name for name in METHODS if name.startswith("a")}),
        (["train", "digits_at", "--optim.epochs", ""], set()),
        (["study", ""], set(STUDIES)),
        # A word that is also a command, such as the run of `board run`, would be taken for one.
        (["evaluate", "runs/a", "--suite", ""], set(SUITES)),
        (["board", "run", "a"], {name for name in METHODS if name.startswith("a")}),
        (["board", "run", "akd", "--track", ""], set(TRACKS)),
        (["list", "me"], {"methods"}),
    ],
)
def test_bash_offers_names(folder: Path, words: list[str], expected: set[str]) -> None:
    assert expected <= set(offered(folder, *words))
    if len(words) > 1:
        assert set(offered(folder, *words)) == expected


def test_no_shell_at_all_is_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # Where no program tells the name of the parent process.
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("SHELL", "BASH_VERSION", "ZSH_VERSION", "FISH_VERSION"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = call("--install-completion")
    assert (code, out) == (2, "")
    assert err == "robustill: the shell is not known: give --shell bash, zsh or fish\n"
    assert not list(tmp_path.iterdir())
