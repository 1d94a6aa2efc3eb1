"""Names and files of somebody else do not steer the terminal, whatever the encoding."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from helpers.made_up_runs import make_run
from helpers.small_runs import small_values
from robustill.cli import app as cli
from robustill.cli.terminal import escape, escaped_output
from robustill.core.errors import RobustillError, RunError, printable
from robustill.evaluation.targets import evaluate_file, evaluate_run
from robustill.report import report

NAMES = {
    "steering": "run\x1b]0;title\x07\x1b[2J\nrobustill: all is well\u202e",
    "no UTF-8": os.fsdecode(b"run-\xe9"),
}
QUICK = ["--suite", "pgd-20", "--num-images", "10", "--no-eps-curve"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\r\n\x1b[1;31mred\x1b[0m\x1b[K µ ", "a\tb\r\n\x1b[1;31mred\x1b[0m\x1b[K µ "),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("\x1b[2J\x1b[1A\x9b2J", r"\x1b[2J\x1b[1A\x9b2J"),
        ("\udce9 \u202e", r"\udce9 \u202e"),
    ],
)
def test_what_steers_is_spelled_out(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_character_is_an_error(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with escaped_output():
        print("é 52.1\u00a0% ± 1, −3, l∞ │ \udce9", flush=True)
    assert sys.stdout is stream
    shown = {
        "utf-8": "é 52.1\u00a0% ± 1, −3, l∞ │",
        "ascii": r"\xe9 52.1 % +/- 1, -3, linf \u2502",
        "latin-1": "é 52.1\u00a0% ± 1, -3, linf \\u2502",
    }
    assert content.getvalue().decode(encoding) == shown[encoding] + " \\udce9\n"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    Path("a.yaml").write_text(yaml.safe_dump(small_values(optim={"epochs": 1})))
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    def called(*words: str) -> bytes:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict") for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["robustill", *words])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        for stream in streams:
            stream.flush()
        said = b"".join(stream.buffer.getvalue() for stream in streams)
        assert not ended.value.code, said
        return said

    return called


@pytest.mark.filterwarnings("default:.*no better than guessing")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_every_command_takes_every_name(name: str, room: Path, call: Callable[..., bytes]) -> None:
    said = call("train", "a.yaml", "--run", name)
    said += call("evaluate", name, *QUICK)
    said += call("doctor", name)
    said += call("teachers", "check", f"run:{name}", "--num-images", "10")
    exported = call("export", name, f"{name}-out")
    assert exported.count(b"warning: ") == exported.count(b" is no better than guessing among 10 classes") == 1
    said += exported
    os.link(f"{name}/checkpoints/epoch-0001/model.safetensors", f"{name}.safetensors")
    said += call("evaluate", f"{name}.safetensors", "--model", "resnet8", "--model.width", "2", "--data", "digits",
                 "--threat", "linf:0.1", *QUICK)  # fmt: skip
    said.decode()
    assert not set(said) & {*range(10), 11, 12, *range(14, 32), 127}
    assert "\u202e" not in said.decode()
    lines = said.decode().splitlines()
    assert "robustill: all is well" not in [line[: len("robustill: all is well")] for line in lines]
    (folder,) = Path("evaluations").iterdir()
    assert folder.name.isprintable()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_page_shows_every_name(name: str, room: Path) -> None:
    make_run(room / name, method={"name": "at"}, evaluations=())
    page = report([room / name], room / f"{name}.html").read_bytes()
    assert not set(page) & {*range(9), 11, 12, *range(14, 32), 127}
    assert "\u202e" not in page.decode()
    shown = printable(name).encode()
    assert b"Robustness of PGD-AT" in page
    assert shown.partition(b"'")[0] in page


def test_an_evaluation_that_cannot_be_written_ends_before_the_attack(room: Path, monkeypatch, call) -> None:
    call("train", "a.yaml", "--run", "run")
    (room / "file").write_text("")
    os.link("run/checkpoints/epoch-0001/model.safetensors", "w" * 240 + ".safetensors")
    monkeypatch.setattr("robustill.evaluation.targets.evaluate", None)
    words = ["--model", "resnet8", "--model.width", "2", "--data", "digits", "--threat", "linf:0.1"]
    for weights, out in (("w" * 240 + ".safetensors", "out"), ("run/checkpoints/epoch-0001/model.safetensors", "file")):
        with pytest.raises(RunError, match=r"cannot be written \(.*\): give") as caught:
            evaluate_file(weights, out=out, overrides=words, num_images=10)
        assert "\n" not in str(caught.value)
    Path("run/evaluations").write_text("")
    with pytest.raises(RobustillError, match="cannot be written"):
        evaluate_run("run", num_images=10)
