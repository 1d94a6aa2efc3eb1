"""The commands train, show, list and doctor, and what every command does with errors, warnings and signals."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from helpers.command_line import Call
from helpers.small_runs import lines, tree, weights
from robustill.attacks.suites import SUITES
from robustill.config.recipes import RECIPES
from robustill.config.schema import Config
from robustill.data import DATASETS
from robustill.methods import METHODS
from robustill.models import MODELS
from robustill.studies import STUDIES


def test_doctor_tells_a_complete_run_from_a_damaged_one(
    workspace: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    code, out, err = call("doctor", "run")
    assert (code, err) == (0, "")
    assert re.search(r"^ok +metrics.jsonl +complete, 2 epochs *$", out, re.M)
    code, alone, err = call("doctor", "--device", "cpu")
    assert (code, err) == (0, "")
    for what in ("versions", "libraries", "device", "repeats", "float32", "bf16"):
        assert re.search(rf"^(ok|note) +{what} ", alone, re.M), what
    assert "metrics.jsonl" not in alone
    code, out, _ = call("doctor", "half", "--device", "cpu")
    assert code == 1
    assert re.search(r"^WRONG +checkpoints/epoch-0002 ", out, re.M)


def test_the_shown_configuration_repeats_a_run(
    workspace: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, shown, _ = call("show", str(workspace / "a.yaml"), "--seed", "4")
    (tmp_path / "b.yaml").write_text(shown)
    assert call("train", "b.yaml", "--run", "one")[0] == 0
    code, out, _ = call("train", str(workspace / "a.yaml"), "--run", "two", "--seed", "4")
    assert code == 0
    assert out.splitlines()[0].endswith("; next: robustill evaluate two")
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert call("show", "b.yaml")[1] == shown


def test_training_again_changes_nothing(workspace: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    before = tree(workspace / "run")
    code, out, _ = call("train", "a.yaml", "--run", "run")
    assert code == 0
    assert out.startswith("run: best of 2 epochs is ")
    assert tree(workspace / "run") == before


@pytest.mark.filterwarnings("default:.*no better than guessing")
def test_a_run_of_any_name_is_trained_and_read(
    workspace: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'user@lab/a: it\'s "b" & #1@2'
    shutil.copytree(workspace / "four", f"{name} data")
    npz_data = ("--data", f"{name} data", "--data.validation", "30", "--data.train_size", "null")
    begin = ("train", str(workspace / "a.yaml"), *npz_data, "--compute.teacher_cache", f"{name} cache")
    short = ("--optim.epochs", "1")
    code, out, _ = call(*begin, *short, "--run", name)
    assert code == 0
    command = shlex.split(out.splitlines()[0].partition("; next: robustill ")[2])
    assert command == ["evaluate", name]
    teacher = f"run:{name}@best"
    student = ("--method", "rslad", "--teachers", teacher, "--initial", teacher, *short, "--run", f"{name}-student")
    for words in (
        (*begin, *student),
        (*begin, *student),
        (*command, "--suite", "pgd-20", "--num-images", "8", "--checkpoint", "best", "--no-eps-curve"),
        ("teachers", "check", f"run:{name}", "--num-images", "8"),
    ):
        code, _, err = call(*words)
        assert code == 0, err
    code, _, err = call("export", name, "out")
    assert code == 0
    assert err.startswith(f"robustill: warning: run:{name} is no better than guessing among 4 classes: right on ")
    assert err.endswith("; export a checkpoint that was trained longer\n")
    assert err.count("\n") == 1


def test_list_prints_every_name(call: Call) -> None:
    code, out, _ = call("list")
    assert code == 0
    words = out.split()
    for name in (*METHODS, *MODELS, *DATASETS, *RECIPES, *STUDIES, *SUITES):
        assert name in words
    code, only, _ = call("list", "recipes")
    assert code == 0
    assert "akd" not in only.split()


def test_a_full_disk_is_reported_in_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "page.html")

    monkeypatch.setattr("robustill.cli.listing.list_names", full)
    assert call("list") == (2, "", "robustill: page.html: No space left on device\n")


def test_a_warning_is_printed_in_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(*_: object, **__: object) -> None:
        warnings.warn("two\nlines", stacklevel=1)

    monkeypatch.setattr("robustill.cli.listing.list_names", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = call("list")
    assert shown == (0, "", "robustill: warning: two lines\n")


@pytest.mark.parametrize(("kind", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_how_to_resume(
    call: Call, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals, expected: int
) -> None:
    monkeypatch.setattr("robustill.cli.listing.list_names", lambda *_, **__: signal.raise_signal(kind))
    before = signal.getsignal(kind)
    line = f"robustill: stopped by {kind.name}; nothing finished is lost; the same command goes on\n"
    assert call("list") == (expected, "", line)
    assert signal.getsignal(kind) == before


# --- in a process of its own


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from robustill.cli.app import main; main()", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_a_mistake_in_a_process_of_its_own(workspace: Path) -> None:
    done = process("train", "a.yaml", "--run", "new", "--threat.eps", "8", cwd=workspace)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("robustill: threat: eps 8 is larger than 1, but images are in [0,1]: did you mean 8/255?\n")


def test_schema_prints_the_schema_of_a_configuration(call: Call) -> None:
    code, out, _ = call("schema")
    schema = json.loads(out)
    assert code == 0
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"].keys() == Config.model_fields.keys()


def test_help_imports_no_torch(tmp_path: Path) -> None:
    script = """
import sys
from robustill.cli import app as cli
commands = ["", "train", "evaluate", "teachers check", "study", "plan", "report", "difficulty", "transfer", "export"]
for command in [*commands, "deploy-report", "list", "show", "doctor", "quickstart"]:
    sys.argv = ["robustill", *command.split(), "--help"]
    try:
        cli.main()
    except SystemExit as exit_:
        assert not exit_.code, command
    print("finished", command)
assert not {"torch", "pydantic", "sklearn", "matplotlib", "markdown_it"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("\nfinished ") + done.stdout.startswith("finished ") == 15
    for expected in ("--run", "--checkpoint", "--num-images", "--out", "--seed", "--engine"):
        assert expected in done.stdout
    assert not list(tmp_path.iterdir())
