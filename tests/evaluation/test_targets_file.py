"""Networks without a run: import paths, exported programs, folders of data; several threats; RobustBench's entry."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.evaluation_cases import made_up, trained
from robustill.analysis.summary import summary
from robustill.cli import app as cli
from robustill.core.errors import ConfigError, ModelError, RobustillError
from robustill.data import load
from robustill.evaluation.leaderboard import check_place, robustbench_entry
from robustill.evaluation.targets import evaluate_file
from robustill.runs.records import Records

QUICK: dict[str, Any] = {"suite": "pgd-20", "eps_curve": False, "progress": False}

MODULE = """
from helpers.evaluation_cases import trained, untrained
def empty(num_classes, in_channels, image_size):
    return untrained()
def ready(num_classes, in_channels, image_size):
    return trained()
def crooked(num_classes, in_channels, image_size):
    class Two(type(trained())):
        def forward(self, x):
            return super().forward(x), x
    return Two(*trained())
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data as .npz, the weights of a network, and a module that builds it."""
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        data = made_up()
        np.savez(tmp_path / "data" / f"{split}.npz", images=data.images.numpy(), labels=data.labels.numpy())
    save_file(trained().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "somebodys_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "somebodys_networks", raising=False)
    return tmp_path


DATA = ["--data", "data", "--threat", "linf:0.1"]


def test_import_path_file_and_program_give_the_same_results(room: Path) -> None:
    program = torch.export.export(
        trained().eval(), (torch.zeros(2, 1, 6, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, room / "p.pt2")
    built = evaluate_file(None, out=room, overrides=["--model", "somebodys_networks:ready", *DATA], **QUICK)
    named = evaluate_file("somebodys_networks:ready", out=room, overrides=DATA, **QUICK)
    filled = evaluate_file("w.safetensors", out=room, overrides=["--model", "somebodys_networks:empty", *DATA], **QUICK)
    exported = evaluate_file("p.pt2", out=room, overrides=DATA, **QUICK)
    results = [
        summary(records)
        for records_by_folder in (built, named, filled, exported)
        for records in records_by_folder.values()
    ]
    assert 0 < results[0]["robust_accuracy"] < results[0]["clean_accuracy"] < 1
    for each in results[1:]:
        assert each["robust_accuracy"] == results[0]["robust_accuracy"]
        assert each["nll_adversarial"] == pytest.approx(results[0]["nll_adversarial"], rel=1e-3)
    assert list(built) == [room / "test-somebodys_networks-ready-pgd-20-linf-0.1"]
    (records,) = exported.values()
    assert records.conditions["architecture"] == "exported program"


@pytest.mark.parametrize(
    ("weights", "overrides", "error", "message"),
    [
        (None, ["--model", "resnet8", *DATA], ConfigError, "nothing to evaluate"),
        ("w.safetensors", DATA, ConfigError, "give --model too"),
        ("somebodys_networks:ready", DATA[2:], ConfigError, "give --data too"),
        ("somebodys_networks:ready", DATA[:2], ConfigError, "give --threat too"),
        ("somebodys_networks:ready", ["--model", "resnet8", *DATA], ModelError, "leave the model resnet8 out"),
        ("somebodys_networks:crooked", DATA, ModelError, "crooked: the model returns a tuple"),
        ("somebodys_networks:ready", [*DATA[:3], "l2:7"], ConfigError, "further apart than 6 in l2"),
    ],
)
def test_invalid_arguments_raise_one_line_and_write_nothing(room, weights, overrides, error, message) -> None:
    before = sorted(room.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        evaluate_file(weights, out=room / "out", overrides=overrides, **QUICK)
    assert "\n" not in str(caught.value)
    assert [path for path in sorted(room.rglob("*")) if "__pycache__" not in str(path)] == before


def test_several_threats_give_one_table_and_one_folder_each(room, monkeypatch, capsys) -> None:
    words = ["evaluate", "--weights", "w.safetensors", "--model", "somebodys_networks:empty", "--data", "data"]
    words += ["--threats", "linf:0.1,l2:0.5,l1:2", "--suite", "pgd-20", "--no-eps-curve"]
    monkeypatch.setattr(sys, "argv", ["robustill", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    out = capsys.readouterr().out
    folders = sorted((room / "evaluations").iterdir())
    assert [folder.name for folder in folders] == [f"test-w-pgd-20-{each}" for each in ("l1-2", "l2-0.5", "linf-0.1")]
    rows = [line for line in out.splitlines() if "w.safetensors" in line]
    for folder in folders:
        records = Records.load(folder)
        shown = f"{summary(records)['robust_accuracy']:.3f}"
        assert any(records.conditions["threat"]["text"] in row and shown in row for row in rows)


def test_robustbench_entry_names_the_missing_fields(room, monkeypatch) -> None:
    (records,) = evaluate_file("somebodys_networks:ready", out=room, overrides=DATA, **QUICK).values()
    facts, missing = robustbench_entry(records)
    # The keys of the entries of RobustBench's model_info folder.
    assert " ".join(facts) == (
        "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported "
        "autoattack_acc"
    )
    assert facts["clean_acc"] == f"{100 * summary(records)['clean_accuracy']:.2f}"
    assert facts["eps"] == "0.1"
    assert facts["autoattack_acc"] is None
    assert "autoattack_acc (it takes --suite standard" in missing[-1]
    assert {"link", "authors", "venue"} <= set(missing)
    (records,) = evaluate_file(
        "somebodys_networks:ready",
        out=room,
        overrides=DATA,
        **{**QUICK, "suite": "standard", "num_images": 6, "masking": False},
    ).values()
    assert robustbench_entry(records)[0]["autoattack_acc"] is None
    whole = dict(records.conditions, of_images=6)
    object.__setattr__(records, "conditions", whole)
    assert (
        robustbench_entry(records)[0]["autoattack_acc"] == f"{100 * summary(records)['accuracy_after']['square']:.2f}"
    )


def test_the_command_writes_the_robustbench_entry(room, monkeypatch, capsys) -> None:
    words = ["evaluate", "somebodys_networks:ready", *DATA, "--suite", "pgd-20", "--no-eps-curve"]
    monkeypatch.setattr(sys, "argv", ["robustill", *words, "--robustbench-json", "entry.json"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert json.loads((room / "entry.json").read_text())["architecture"] == "somebodys_networks:ready"
    assert "to be filled in by hand: link" in capsys.readouterr().out


def test_a_robustbench_entry_replaces_only_a_blank_one(room: Path) -> None:
    check_place(room / "new.json")
    blanks = dict.fromkeys(("link", "name", "authors", "venue", "reported"))
    (room / "blank.json").write_text(json.dumps(blanks))
    check_place(room / "blank.json")
    for content in (json.dumps({**blanks, "name": "filled in"}), "{", "[]", "{}", "years of work"):
        (room / "other.json").write_text(content)
        with pytest.raises(RobustillError, match="exists and is no entry of --robustbench-json with its blanks left"):
            check_place(room / "other.json")


def test_data_that_is_not_a_path_is_a_data_set_name(room: Path) -> None:
    with pytest.raises(RobustillError, match="data set 'dta' is unknown"):
        evaluate_file(
            "somebodys_networks:ready", out=room, overrides=["--data", "dta", "--threat", "linf:0.1"], **QUICK
        )
    assert len(load("npz", root="data", split="test")) == 90
