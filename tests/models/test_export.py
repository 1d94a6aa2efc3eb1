"""Export: the written network equals the run's, and a refused or killed export leaves nothing incomplete."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.small_runs import signal_at, small_config, tree
from robustill.core.errors import ConfigError, ModelError
from robustill.evaluation.targets import evaluate_file, evaluate_run
from robustill.models import MODELS, build, export, robustbench
from robustill.models.export import Calibration, export_network
from robustill.models.loading import LoadedNetwork, Shape, load_network
from robustill.models.robustbench import ZOO
from robustill.training.loop import train

X = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
# Enough for a network that is better than guessing after each epoch, since one that guesses is said.
LEARNED: dict[str, Any] = {"model": {"width": 4}, "data": {"train_size": 400}, "method": {"name": "clean"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(**LEARNED), run, progress=False)
    evaluate_run(run, checkpoints=["last"], suite="pgd-20", num_images=20, progress=False)
    return run


def test_a_folder_holds_the_weights_bit_for_bit(run: Path, tmp_path: Path) -> None:
    given = load_network(f"run:{run}@last")
    written = export_network(f"run:{run}@last", tmp_path / "net")
    assert {file.name for file in (tmp_path / "net").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    tensors = load_file(tmp_path / "net" / "model.safetensors")
    assert tensors.keys() == given.module.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in given.module.state_dict().items())
    assert torch.equal(written.module(X), given.module(X))
    assert torch.equal(load_network(f"hf:{tmp_path / 'net'}").module(X), given.module(X))


def test_a_program_gives_the_same_logits(run: Path, tmp_path: Path) -> None:
    given = load_network(f"run:{run}@last").module
    export_network(f"run:{run}@last", tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    for batch in (1, 2, 7):
        torch.testing.assert_close(program(X[:batch]), given(X[:batch]))


def test_the_card_lists_evaluations_of_these_weights_only(run: Path, tmp_path: Path) -> None:
    export_network(f"run:{run}@last", tmp_path / "last")
    with pytest.warns(UserWarning, match=r"@epoch-1 has not been evaluated, but last of this run"):
        export_network(f"run:{run}@epoch-1", tmp_path / "first")
    (folder,) = (run / "evaluations").iterdir()
    results = json.loads((folder / "summary.json").read_text())["results"]
    row = f"| 20 of 500 | linf:0.1 | pgd-20 | {results['clean_accuracy']:.3f} | {results['robust_accuracy']:.3f} ["
    card = (tmp_path / "last" / "README.md").read_text()
    assert row in card
    assert "epoch 2." in card
    assert "Not evaluated yet." in (tmp_path / "first" / "README.md").read_text()
    (folder / "summary.json").rename(tmp_path / "away.json")
    try:
        (folder / "summary.json").write_text("{}")
        export_network(f"run:{run}@last", tmp_path / "damaged")
    finally:
        (tmp_path / "away.json").replace(folder / "summary.json")
    assert "Not evaluated yet." in (tmp_path / "damaged" / "README.md").read_text()


def test_an_existing_file_or_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.pt2").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.pt2"):
        with pytest.raises(ConfigError, match="exists: give another name"):
            export_network(f"run:{run}", out)
    assert (tmp_path / "thesis.pt2").read_text() == "years of work"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_folder_with_the_suffix_of_a_file_is_refused(run: Path, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigError, match=rf"net\{suffix} would be a folder: give a name without \{suffix}"):
        export_network(f"run:{run}", tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())


def test_an_exported_folder_is_exported_again_with_its_card(run: Path, tmp_path: Path) -> None:
    export_network(f"run:{run}@last", tmp_path / "net")
    export_network(f"hf:{tmp_path / 'net'}", tmp_path / "again")
    export_network(f"hf:{tmp_path / 'net'}", tmp_path / "net.pt2")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "net" / name).read_bytes()
    row = next(line for line in (tmp_path / "net" / "README.md").read_text().splitlines() if "pgd-20 |" in line)
    assert row in (tmp_path / "again" / "README.md").read_text()
    program = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(program(X), load_network(f"run:{run}@last").module(X))


def test_a_file_of_weights_is_exported_with_its_architecture(run: Path, tmp_path: Path) -> None:
    given = load_network(f"run:{run}@last")
    file = tmp_path / "weights.safetensors"
    save_file(given.module.state_dict(), file)
    options: dict[str, Any] = {"width": 4}
    export_network(str(file), tmp_path / "net", shape=given.shape, name="resnet8", options=options)
    assert torch.equal(load_network(f"hf:{tmp_path / 'net'}").module(X), given.module(X))
    assert "Not evaluated yet." in (tmp_path / "net" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has not been evaluated")
def test_evaluations_of_a_file_are_found_where_evaluate_writes_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_network(f"run:{run}@epoch-1", Path("net.pt2"))
    shape = load_network(f"run:{run}").shape
    words = ("--data", "digits", "--threat", "linf:0.1")
    evaluate_file("net.pt2", overrides=words, suite="pgd-20", num_images=20, out=Path("evaluations"), progress=False)
    export_network("net.pt2", Path("net.onnx"), shape=shape)
    assert b"| 20 of 500 | linf:0.1 | pgd-20 |" in Path("net.onnx").read_bytes()


@pytest.mark.parametrize(("autoattack", "threat"), [(50.0, {"norm": "l2", "eps": 0.5}), (0.0, None)])
def test_a_network_of_robustbench_is_exported_with_its_threat(
    autoattack: float, threat: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(
        ZOO[0], name="Small", model="resnet8", options={"width": 2}, data="cifar10", norm="L2", autoattack=autoattack
    )
    monkeypatch.setattr(robustbench, "ZOO", (entry,))
    module = build("resnet8", num_classes=10, in_channels=3, image_size=32, seed=0, width=2)
    # A folder of a sweep, with what separates the parts of a specification in its name.
    file = tmp_path / "lr=0.1" / "12:30" / "small.safetensors"
    file.parent.mkdir(parents=True)
    save_file(module.state_dict(), file)
    export_network(f"robustbench:Small={file}", tmp_path / "net")
    content = json.loads((tmp_path / "net" / "config.json").read_text())
    assert (content["name"], content["options"], content["threat"]) == ("resnet8", {"width": 2}, threat)
    card = (tmp_path / "net" / "README.md").read_text()
    # Not where it lies on this disk.
    assert "From robustbench:Small=small.safetensors:" in card
    assert str(tmp_path) not in card


class Branching(nn.Module):
    """A network that torch.export cannot trace: its branch depends on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits * 2 if logits.sum() > 0 else logits


def branching(**_: object) -> nn.Module:
    return Branching()


def plain(**_: object) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_users_network_is_exported_as_a_program(tmp_path: Path) -> None:
    for name in ("plain", "branching"):
        own = {"name": f"{__name__}:{name}", "width": None}
        config = small_config(**{**LEARNED, "model": own}, optim={"epochs": 2})
        train(config, tmp_path / name, progress=False)
    with pytest.raises(ModelError, match=r"is not one of our networks, and a folder holds no code: write a \.pt2 file"):
        export_network(f"run:{tmp_path / 'plain'}", tmp_path / "net", trust_code=True)
    export_network(f"run:{tmp_path / 'plain'}", tmp_path / "net.pt2", trust_code=True)
    with pytest.raises(ModelError, match=r"cannot be traced by torch\.export: .+") as caught:
        export_network(f"run:{tmp_path / 'branching'}", tmp_path / "branching.pt2", trust_code=True)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "branching", "net.pt2"}


@pytest.mark.parametrize("name", ["net", "net.pt2", "net.onnx"])
def test_an_export_with_other_logits_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(export, "_network_warnings", lambda network: [])
    monkeypatch.setattr(export, "_example_images", lambda network: torch.full((2, 1, 8, 8), torch.nan))
    with pytest.raises(ModelError, match="gives other logits after export: they differ by nan"):
        export_network(f"run:{run}", tmp_path / name)
    assert not list(tmp_path.iterdir())


# A time that is measured is another one each time.
DEPLOYMENT = {
    "bytes": 9,
    "milliseconds": {"1": {"median": 0.1, "quartiles": [0.09, 0.11], "passes": 3}},
    "threads": 1,
    "runtime": "by hand",
}


def export_until(run: Path, out: Path, moment: int) -> None:
    """Export in a process that is killed at a given moment."""
    signal_at(moment, signal.SIGKILL)
    export_network(f"run:{run}", out)


@pytest.mark.parametrize(
    "name", ["net", *(pytest.param(name, marks=pytest.mark.slow) for name in ("net.pt2", "net.onnx"))]
)
def test_a_killed_export_is_complete_or_absent(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # The network is exported once for all of the processes: they are killed while they write.
    program = export._export_program(load_network(f"run:{run}"))
    monkeypatch.setattr(export, "_export_program", lambda network: program)
    monkeypatch.setattr(export, "onnx_model", functools.cache(export.onnx_model))
    monkeypatch.setattr(export, "measure_model", lambda model, shape: DEPLOYMENT)
    given = export_network(f"run:{run}", tmp_path / "whole" / name)
    expected = {path: digest for path, digest in tree(tmp_path / "whole").items() if not name.endswith("pt2")}
    kills = 0
    for moment in itertools.count(1):
        room = tmp_path / str(moment)
        process = multiprocessing.get_context("fork").Process(target=export_until, args=(run, room / name, moment))
        process.start()
        process.join(600)
        kills += process.exitcode == -signal.SIGKILL
        if (room / name).exists():
            assert expected.items() <= tree(room).items(), moment
            if not name.endswith("onnx"):
                spec = str(room / name) if name.endswith("pt2") else f"hf:{room / name}"
                assert torch.equal(load_network(spec, shape=given.shape).module(X), given.module(X))
        else:
            export_network(f"run:{run}", room / name)
            assert [path.name for path in room.iterdir()] == [name], moment
        if process.exitcode == 0:
            break
    assert kills >= 2


def test_an_export_removes_what_a_killed_one_left_and_nothing_else(run: Path, tmp_path: Path) -> None:
    ended = multiprocessing.get_context("fork").Process(target=str)
    ended.start()
    ended.join()
    for name in ("net", "net.pt2", "other.pt2"):
        (tmp_path / f".{name}.{ended.pid}.tmp").mkdir()
    (tmp_path / f".net.{ended.pid}.tmp" / "model.safetensors").write_text("half")
    (tmp_path / f".net.pt2.{ended.pid}.tmp" / "net.pt2").write_text("half")
    (tmp_path / f".net.onnx.{ended.pid}.tmp").write_text("half")
    kept = [f".thesis.{ended.pid}.tmp", f".net.pt2.{os.getpid()}.tmp", ".net.pt2.tmp"]
    (tmp_path / kept[0]).mkdir()
    (tmp_path / kept[0] / "chapter.tex").write_text("years of work")
    for name in kept[1:]:
        (tmp_path / name).write_text("kept")
    export_network(f"run:{run}@last", tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "net"])


CALIBRATION = Calibration(temperature=2.5, images="9 images", ece=(0.25, 0.125), evaluations={})


@pytest.mark.parametrize("name", MODELS)
def test_a_temperature_is_folded_into_the_last_layer_of_every_network(name: str) -> None:
    size, options = (28, {}) if name in ("trades_smallcnn", "madry_cnn_tiny") else (32, {})
    channels = 1 if size == 28 else 3
    if name.startswith("wideresnet"):
        options = {"depth": 10, "width": 1}
    shape = Shape(num_classes=10, in_channels=channels, image_size=(size, size))
    module = build(name, num_classes=10, in_channels=channels, image_size=size, seed=0, **options).eval()
    network = LoadedNetwork(module=module, spec="run:a", sha256="", shape=shape, architecture=name)
    scaled = export._calibrated(network, 2.5, must_fold=True).module
    x = torch.rand(5, channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(scaled(x) * 2.5, module(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(scaled(x).argmax(dim=1), module(x).argmax(dim=1))
    assert scaled.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("name", ["net", "net.pt2"])
def test_a_calibrated_export_divides_the_logits(run: Path, tmp_path: Path, name: str) -> None:
    given = load_network(f"run:{run}@last").module
    (evaluation,) = (run / "evaluations").iterdir()
    after = {"ece_clean": 0.5, "ece_adversarial": 0.375, "ece_pgd": 0.0625}
    calibration = replace(CALIBRATION, evaluations={evaluation.name: after})
    written = export_network(f"run:{run}@last", tmp_path / name, calibration=calibration)
    torch.testing.assert_close(written.module(X) * 2.5, given(X), rtol=1e-4, atol=1e-5)
    assert torch.equal(written.module(X).argmax(dim=1), given(X).argmax(dim=1))
    if name == "net":
        assert json.loads((tmp_path / name / "config.json").read_text())["temperature"] == 2.5
        card = (tmp_path / name / "README.md").read_text()
        assert "divided by the temperature 2.5, fitted on 9 images, whose ECE was 0.250 and is 0.125." in card
        results = json.loads((evaluation / "summary.json").read_text())["results"]
        assert "| ECE clean | ECE PGD-10 |" in card
        both = [f"{results[key]:.3f}, calibrated {after[key]:.3f}" for key in ("ece_clean", "ece_pgd")]
        assert f"| {both[0]} | {both[1]} |" in card


def doubling(**_: object) -> nn.Module:
    """A network whose logits are not the output of a linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus())


@pytest.mark.filterwarnings("ignore:.*no better than guessing")
def test_a_network_without_a_last_linear_layer_is_calibrated_as_a_program(tmp_path: Path) -> None:
    network = {"name": f"{__name__}:doubling", "width": None}
    train(small_config(**{**LEARNED, "model": network}), tmp_path / "run", progress=False)
    given = load_network(f"run:{tmp_path / 'run'}", trust_code=True)
    export_network(f"run:{tmp_path / 'run'}", tmp_path / "net.pt2", calibration=CALIBRATION, trust_code=True)
    program = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(program(X) * 2.5, given.module(X))
    with pytest.raises(
        ModelError, match=r"does not end in a linear layer .* write a \.pt2 or \.onnx file, or leave --cal"
    ):
        export_network(f"run:{tmp_path / 'run'}", tmp_path / "net", calibration=CALIBRATION, trust_code=True)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_is_told_what_takes_long(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    export_network(f"run:{run}@last", tmp_path / "net.pt2", progress=True)
    shown = f"export: tracing run:{run}@last ...\n" if is_terminal else ""
    assert capsys.readouterr() == ("", shown)
