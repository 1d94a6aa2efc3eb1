"""Networks without a run: import paths, exported programs, folders of data; several threats; RobustBench's entry."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.evaluation_cases import made_up, trained
from helpers.records_by_hand import save_records
from helpers.small_runs import tree
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


# --- the same weights in another network


GRADIENT_MODULE = """
import torch
from helpers.evaluation_cases import trained
class Rounded(torch.nn.Sequential):
    def forward(self, x):
        rounded = (x * 20).round() / 20
        return super().forward(MENDED)
def build(num_classes, in_channels, image_size):
    return Rounded(*trained())
"""


def write_network(room: Path, monkeypatch: pytest.MonkeyPatch, rounding: str) -> None:
    (room / "rounding.py").write_text(GRADIENT_MODULE.replace("MENDED", rounding))
    monkeypatch.delitem(sys.modules, "rounding", raising=False)
    importlib.invalidate_caches()
    shutil.rmtree(room / "__pycache__", ignore_errors=True)


def test_a_mended_gradient_is_attacked_in_a_folder_of_its_own(room, monkeypatch, capsys) -> None:
    def attack() -> tuple[Path, Records]:
        (result,) = evaluate_file(
            "rounding:build", out=room / "out", overrides=DATA, **QUICK | {"progress": True}
        ).items()
        return result

    write_network(room, monkeypatch, "rounded")
    folder, records = attack()
    before = tree(room / "out")
    write_network(room, monkeypatch, "x + (rounded - x).detach()")
    mended_folder, mended = attack()
    assert mended.conditions["checkpoint_sha256"] == records.conditions["checkpoint_sha256"]
    assert mended_folder.name == f"{folder.name}-network-2"
    assert summary(mended)["robust_accuracy"] < summary(records)["robust_accuracy"]
    assert before.items() <= tree(room / "out").items()
    assert "holds an evaluation of the same weights in another network; this one is kept in" in capsys.readouterr().err
    # Both are read from their own folders.
    before = tree(room / "out")
    assert attack()[0] == mended_folder
    write_network(room, monkeypatch, "rounded")
    assert attack()[0] == folder
    assert tree(room / "out") == before


def normalised(*values: str) -> list[str]:
    given = ["--model", "resnet8", "--model.width", "2", *DATA]
    return given + [f"--model.{name}={value}" for name, value in zip(("mean", "std"), values, strict=False)]


@pytest.fixture
def resnet_weights(room: Path) -> str:
    from robustill.models.registry import build

    network = build("resnet8", num_classes=3, in_channels=1, image_size=(6, 6), width=2, seed=0)
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("normalize")}
    save_file(weights, room / "r.safetensors")
    return "r.safetensors"


def test_another_normalisation_has_a_folder_of_its_own(room: Path, resnet_weights: str) -> None:
    folders = {}
    for values in (
        ("[0.4]", "[0.3]"),
        ("[0.5]", "[0.3]"),
        ("[0.5]", "[0.25]"),
        ("[0.4]", "[0.3]"),
        ("[0.5]", "[0.25]"),
    ):
        ((folder, records),) = evaluate_file(
            resnet_weights, out=room / "out", overrides=normalised(*values), **QUICK
        ).items()
        mean, std = (json.loads(value) for value in values)
        assert records.conditions["normalisation"] == {"mean": mean, "std": std}
        page = json.loads((folder / "summary.json").read_text())
        assert page["conditions"]["normalisation"] == {"mean": mean, "std": std}
        assert folders.setdefault(values, folder) == folder
    assert [folder.name.partition("linf-0.1")[2] for folder in folders.values()] == ["", "-network-2", "-network-3"]


def test_a_normalisation_that_the_file_has_itself_is_recorded_and_named(room: Path) -> None:
    from robustill.models.registry import build

    network = build("resnet8", num_classes=3, in_channels=1, image_size=(6, 6), width=2, mean=(0.4,), std=(0.3,))
    save_file(network.state_dict(), room / "r.safetensors")
    with pytest.warns(UserWarning, match=r"--model.mean \[0.5\] has no effect: r.safetensors has its own \[0.4\]"):
        (records,) = evaluate_file(
            "r.safetensors", out=room / "out", overrides=normalised("[0.5]", "[0.3]"), **QUICK
        ).values()
    assert records.conditions["normalisation"] == {"mean": [0.4], "std": [0.3]}


def test_records_of_earlier_versions_are_compared_by_their_probabilities(room: Path, resnet_weights: str) -> None:
    ((folder, records),) = evaluate_file(
        resnet_weights, out=room / "out", overrides=normalised("[0.4]", "[0.3]"), **QUICK
    ).items()
    old = {key: value for key, value in records.conditions.items() if key not in ("fingerprint", "normalisation")}
    save_records(replace(records, conditions=old), folder)
    before = tree(room / "out")
    (same,) = evaluate_file(resnet_weights, out=room / "out", overrides=normalised("[0.4]", "[0.3]"), **QUICK)
    assert same == folder
    assert tree(room / "out") == before
    (other,) = evaluate_file(resnet_weights, out=room / "out", overrides=normalised("[0.9]", "[0.1]"), **QUICK)
    assert other.name == f"{folder.name}-network-2"
    assert before.items() <= tree(room / "out").items()


OPTIONS_MODULE = """
import torch
from robustill.models.layers import Normalize
class Linear(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.normalize, self.linear, self.factor = Normalize.identity(1), torch.nn.Linear(36, 3), factor
        torch.nn.init.uniform_(self.linear.weight, -1, 1, generator=torch.Generator().manual_seed(0))
    def forward(self, x):
        return self.factor * self.linear(self.normalize(x).flatten(1))
def build(num_classes, factor=1.0):
    return Linear(factor)
def plain(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
"""


def test_the_options_of_an_import_path_are_applied_or_refused(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (room / "options.py").write_text(OPTIONS_MODULE)
    monkeypatch.delitem(sys.modules, "options", raising=False)

    def evaluated(*words: str) -> Records:
        overrides = ["--model", "options:build", *words, *DATA]
        (records,) = evaluate_file(None, out=room / "out", overrides=overrides, **QUICK).values()
        return records

    plain, moved, scaled = evaluated(), evaluated("--model.mean", "[0.4]"), evaluated("--model.factor", "3")
    assert moved.conditions["normalisation"] == {"mean": [0.4], "std": [1.0]}
    assert moved.conditions["checkpoint_sha256"] != plain.conditions["checkpoint_sha256"]
    assert np.abs(moved.clean_probabilities - plain.clean_probabilities).max() > 0.01
    (named,) = evaluate_file(
        "options:build", out=room / "named", overrides=["--model.factor", "3", *DATA], **QUICK
    ).values()
    assert np.array_equal(named.clean_probabilities, scaled.clean_probabilities)
    assert scaled.conditions["architecture"] == "options:build factor=3"
    assert np.abs(scaled.clean_probabilities - plain.clean_probabilities).max() > 0.01
    for words, message in (
        (["--model", "options:plain", "--model.mean", "[0.4]"], "options:plain has no attribute `normalize`"),
        (["--model", "options:build", "--model.fctor", "3"], "cannot be built with .*fctor"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            evaluate_file(None, out=room / "other", overrides=[*words, *DATA], **QUICK)
        assert "\n" not in str(caught.value)
    assert not (room / "other").exists()


def test_a_normalisation_without_a_model_does_not_choose_one(room: Path) -> None:
    with pytest.raises(ConfigError, match=r"w.safetensors contains only weights: give --model too"):
        evaluate_file("w.safetensors", out=room / "out", overrides=["--model.mean", "[0.4]", *DATA], **QUICK)
    with pytest.raises(
        ConfigError, match=r"--model.mean has no effect: robustbench:X is a network with options of its"
    ):
        evaluate_file("robustbench:X", out=room / "out", overrides=["--model.mean", "[0.4]", *DATA], **QUICK)
