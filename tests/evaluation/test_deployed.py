"""The attack on a file: its own answers decide, and a quantisation that masks its gradient is caught."""

from __future__ import annotations

import html
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from helpers.evaluation_cases import THREAT, K, made_up, trained
from helpers.onnx_files import clean_images, coarse_network, onnx_file
from robustill.analysis.summary import summary
from robustill.attacks import pgd
from robustill.attacks.suites import SUITES
from robustill.cli.tables import results_table
from robustill.core.errors import ConfigError, RunError
from robustill.core.formatting import as_shipped
from robustill.evaluation import deployed
from robustill.evaluation.deployed import StraightThrough
from robustill.evaluation.evaluate import evaluate
from robustill.evaluation.parts import Parts
from robustill.evaluation.targets import evaluate_file
from robustill.losses import ce
from robustill.models.loading import Shape
from robustill.models.onnx_file import OnnxNetwork, load_onnx
from robustill.report import report
from robustill.runs.records import WRONG_ON_CLEAN

SHAPE = Shape(num_classes=K, in_channels=1, image_size=(6, 6))
IMAGES = made_up(45)
DATA = ["--data", "data", "--threat", "linf:0.1"]
QUIET: dict[str, Any] = {"suite": "deployed", "progress": False}
COARSE = 1.0


def loaded(path: Path, scale: float | None = COARSE) -> OnnxNetwork:
    return load_onnx(onnx_file(path / "net.onnx", trained().eval(), scale=scale), SHAPE).module


def test_the_answers_are_the_files_and_the_gradient_is_the_other_networks(tmp_path: Path) -> None:
    file, source, x = loaded(tmp_path), trained().eval(), clean_images(5)
    both = StraightThrough(file, source)
    leaf = x.clone().requires_grad_(True)
    logits = both(leaf)
    assert torch.equal(logits, file(x))
    assert not torch.equal(logits, source(x))
    weights = torch.arange(K) + 1.0
    (found,) = torch.autograd.grad((logits * weights).sum(), leaf)
    (expected,) = torch.autograd.grad((source(leaf) * weights).sum(), leaf)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert torch.equal(both(leaf), file(x))


def test_a_quantisation_that_masks_its_gradient_is_caught(tmp_path: Path) -> None:
    file, source, data = loaded(tmp_path), trained().eval(), IMAGES
    rounded = coarse_network(trained().eval(), COARSE)
    x, y = data.read(torch.arange(len(data))).float() / 255, data.labels
    torch.testing.assert_close(file(x), rounded(x).detach(), atol=1e-4, rtol=1e-4)
    x_adv = pgd(
        lambda z: ce(rounded(z), y), x, THREAT, steps=50, step_size=THREAT.eps / 4,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    # The rounding has no gradient: PGD through it stays where it starts.
    by_pgd = float((file(x_adv).argmax(dim=1) == y).float().mean())
    records = evaluate(file, data, threat=THREAT, suite="deployed", surrogate={"float32": source})
    results, facts = summary(records), records.conditions["attacked_as_shipped"]
    assert results["clean_accuracy"] > 0.8
    assert by_pgd > results["robust_accuracy"] + 0.3
    assert records.stages == ("transfer", "white-box", "bpda", "square")
    alone = facts["robust_accuracy_alone"]
    assert alone.keys() == set(records.stages)
    assert all(by_pgd > value + 0.1 for value in alone.values())
    assert results["robust_accuracy"] <= min(alone.values())


@pytest.mark.slow
def test_each_success_is_one_of_the_file_itself(tmp_path: Path) -> None:
    file, data = loaded(tmp_path), IMAGES
    records = evaluate(file, data, threat=THREAT, suite="deployed", surrogate=trained().eval())
    x_adv, x = torch.from_numpy(records.example_adversarial), torch.from_numpy(records.example_clean)
    assert len(x) == len(records)
    wrong = file(x_adv).argmax(dim=1).numpy() != records.label
    assert np.array_equal(wrong[records.clean_correct], ~records.robust[records.clean_correct])
    assert (x_adv - x).abs().max() <= THREAT.eps + 1e-6
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    assert np.array_equal(file(x).argmax(dim=1).numpy() != records.label, records.broken_by == WRONG_ON_CLEAN)
    shares = np.exp(file(x_adv).double().numpy())
    np.testing.assert_allclose(records.adversarial_probabilities, shares / shares.sum(axis=1, keepdims=True), atol=1e-4)
    # The attack for calibration needs the gradient of the network itself.
    assert records.pgd_probabilities is None
    assert records.conditions["calibration_attack"] == "none in the suite deployed, whose files may have no gradient"


@pytest.mark.slow
def test_where_square_finds_what_the_gradient_does_not_the_number_is_called_an_upper_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed, "build_twin", lambda network, image_shape: None)
    file, data = loaded(tmp_path), IMAGES
    misleading = trained().eval()
    with torch.no_grad():
        # Another network: its gradient and its images say little about the file.
        for parameter in misleading.parameters():
            parameter.neg_()
    records = evaluate(file, data, threat=THREAT, suite="deployed", surrogate={"another": misleading}, pictures=False)
    alone = records.conditions["attacked_as_shipped"]["robust_accuracy_alone"]
    assert alone["square"] < alone["bpda"]
    (line,) = [each for each in records.conditions["warnings"] if each.startswith("square breaks")]
    assert "that no straight-through gradient does" in line
    assert "an upper bound" in line


@pytest.mark.parametrize("has_twin", [pytest.param(True, marks=pytest.mark.slow), False])
def test_without_another_network_what_was_not_tried_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_twin: bool
) -> None:
    if not has_twin:
        monkeypatch.setattr(deployed, "build_twin", lambda network, image_shape: None)
    records = evaluate(loaded(tmp_path), IMAGES, threat=THREAT, suite="deployed", pictures=False)
    assert records.stages == (("white-box", "square") if has_twin else ("square",))
    assert (records.robust_at_eps.shape[1] > 0) == has_twin
    assert 0 < records.robust.mean() < records.clean_correct.mean()
    not_tried = records.conditions["attacked_as_shipped"]["not_tried"]
    assert {"transfer from the network in float32", "BPDA with its gradient"} <= set(not_tried)
    assert any("have no twin here" in each for each in not_tried) != has_twin
    is_said = any(line.startswith("Attacked by Square alone") for line in records.conditions["warnings"])
    assert is_said != has_twin
    deployment = records.conditions["deployment"]
    assert deployment["bytes"] == (tmp_path / "net.onnx").stat().st_size
    assert all(0 < each["median"] < math.inf for each in deployment["milliseconds"].values())


def test_suites_and_settings_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    file, data = loaded(tmp_path), IMAGES
    for suite in ("pgd", "standard", "apgd-ce,square"):
        with pytest.raises(ConfigError, match=r"net\.onnx has no gradient, which suite .* take --suite deployed, with"):
            evaluate(file, data, threat=THREAT, suite=suite)
    for settings in ({"precision": "fast"}, {"masking": True}):
        with pytest.raises(ConfigError, match="leave --precision fast and --masking out"):
            evaluate(file, data, threat=THREAT, suite="deployed", **settings)
    with pytest.raises(ConfigError, match=r"is for a file without a gradient, such as .* and this network has"):
        evaluate(trained(), data, threat=THREAT, suite="deployed")
    with pytest.raises(ConfigError, match="suite pgd takes one surrogate as a network"):
        evaluate(trained().eval(), data, threat=THREAT, suite="pgd", surrogate={"a": trained().eval()})


class Rounding(torch.nn.Module):
    """A network of a user that has answers alone, such as one behind another runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.network = coarse_network(trained().eval(), COARSE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.network(x)


@pytest.mark.slow
def test_any_network_without_a_gradient_is_attacked_alike(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"threat": THREAT, "suite": "deployed", "surrogate": trained().eval(), "pictures": False}
    own = evaluate(Rounding().eval(), IMAGES, **settings)
    assert own.stages == ("transfer", "bpda", "square")
    assert "deployment" not in own.conditions
    file = evaluate(loaded(tmp_path), IMAGES, **settings)
    alone = [each.conditions["attacked_as_shipped"]["robust_accuracy_alone"] for each in (own, file)]
    for name in own.stages:
        # Logits that differ in their last digit may decide single images.
        assert alone[0][name] == pytest.approx(alone[1][name], abs=0.05)


@pytest.mark.filterwarnings("ignore:.*no better than guessing")
def test_a_file_that_is_never_right_is_attacked_nowhere(tmp_path: Path) -> None:
    wrong = replace(IMAGES, labels=(trained().eval()(IMAGES.images.float() / 255).argmax(dim=1) + 1) % K)
    records = evaluate(loaded(tmp_path, None), wrong, threat=THREAT, suite="deployed", surrogate=trained().eval())
    assert not records.clean_correct.any()
    assert not records.robust.any()
    assert set(records.conditions["attacked_as_shipped"]["robust_accuracy_alone"].values()) == {0.0}


@pytest.mark.slow
def test_an_interrupted_attack_ends_with_the_same_records(tmp_path: Path) -> None:
    file, data, source = loaded(tmp_path), made_up(40), trained().eval()
    settings: dict[str, Any] = {"threat": THREAT, "suite": "deployed", "surrogate": source, "eps_curve": False}
    whole = evaluate(file, data, **settings)

    class InterruptedError(Exception):
        pass

    calls, forward = [0], file._logits

    def failing(images: np.ndarray) -> np.ndarray:
        calls[0] += 1
        if calls[0] == 4500:
            raise InterruptedError
        return forward(images)

    file._logits = failing
    with pytest.raises(InterruptedError):
        evaluate(file, data, state=tmp_path / "state", **settings)
    assert list((tmp_path / "state").glob("part-00000.npz"))
    resumed = evaluate(file, data, state=tmp_path / "state", **settings)
    for name in ("broken_by", "adversarial_probabilities", "example_adversarial"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    alone = [each.conditions["attacked_as_shipped"]["robust_accuracy_alone"] for each in (whole, resumed)]
    assert alone[0] == alone[1]


def weakest_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the suite by one of the same families that takes a moment."""
    budgets = {"queries": 1, "restarts": 1, "steps": 1}
    stages = tuple(replace(each, steps=1, restarts=1) for each in SUITES["deployed"].stages)
    monkeypatch.setitem(SUITES, "deployed", replace(SUITES["deployed"], stages=stages, budgets=budgets))


def surrogates(seed: int) -> dict[str, torch.nn.Module]:
    """Return two networks, the second of which has the same name with any seed."""
    first = trained().eval()
    torch.manual_seed(seed)
    return {"first": first, "second": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, K)).eval()}


SETTINGS: dict[str, Any] = {"threat": THREAT, "suite": "deployed", "eps_curve": False, "pictures": False}


@pytest.mark.filterwarnings("ignore:.*no better than guessing")
def test_an_evaluation_is_not_resumed_with_other_surrogates_of_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = Rounding().eval(), made_up(9)
    weakest_suite(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(Parts, "attack", lambda parts, label: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(file, data, state=tmp_path / "state", surrogate=surrogates(seed=1), **SETTINGS)
    with pytest.raises(RunError, match="unfinished evaluation with other surrogates"):
        evaluate(file, data, state=tmp_path / "state", surrogate=surrogates(seed=2), **SETTINGS)
    evaluate(file, data, state=tmp_path / "state", surrogate=surrogates(seed=1), **SETTINGS)


@pytest.mark.filterwarnings("ignore:.*no better than guessing")
def test_finished_records_of_other_surrogates_of_the_same_names_are_not_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, data = Rounding().eval(), made_up(9)
    weakest_suite(monkeypatch)
    settings = {**SETTINGS, "conditions": {"checkpoint_sha256": "0" * 64}}
    first = evaluate(file, data, surrogate=surrogates(seed=1), **settings)
    assert evaluate(file, data, surrogate=surrogates(seed=1), before=first, **settings) is first
    assert evaluate(file, data, surrogate=surrogates(seed=2), before=first, **settings) is not first


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data, an ONNX file, the module of its network, and no gradient."""
    (tmp_path / "data").mkdir()
    data = made_up()
    for split in ("train", "test"):
        np.savez(tmp_path / "data" / f"{split}.npz", images=data.images.numpy(), labels=data.labels.numpy())
    (tmp_path / "float_network.py").write_text(
        "from helpers.evaluation_cases import trained\n"
        "def ready(num_classes, in_channels, image_size):\n    return trained()\n"
    )
    onnx_file(tmp_path / "net.onnx", trained().eval(), scale=COARSE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "float_network", raising=False)
    return tmp_path


@pytest.mark.slow
def test_a_file_is_evaluated_by_its_name_once(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**QUIET, "surrogate": "float_network:ready", "out": room / "out", "overrides": DATA}
    ((folder, records),) = evaluate_file("net.onnx", **settings).items()
    assert folder == room / "out" / "test-net-deployed-linf-0.1"
    page = json.loads((folder / "summary.json").read_text())
    conditions = page["conditions"]
    assert conditions["checkpoint"] == "net.onnx"
    assert list(conditions["surrogates"]) == ["float_network:ready"]
    assert conditions["parameters"] == sum(each.numel() for each in trained().state_dict().values() if each.ndim)
    assert conditions["deployment"]["bytes"] == (room / "net.onnx").stat().st_size
    assert conditions["runtime"] == f"onnxruntime {onnxruntime.__version__}, CPU"
    assert page["results"]["robust_accuracy"] < page["results"]["clean_accuracy"]
    ((_, again),) = evaluate_file("net.onnx", **{**settings, "progress": True}).items()
    assert "evaluated on" in capsys.readouterr().err
    assert again.conditions["deployment"] == conditions["deployment"]
    assert len(again) == len(records)
    assert [each.name for each in (room / "out").iterdir()] == [folder.name]
    results_table({folder: records})
    page = report([folder], room / "page.html").read_text()
    printed = capsys.readouterr().out
    head = html.unescape(page[: page.index("<main>")])
    for part in as_shipped(records.conditions):
        assert part in printed
        assert part in head
    assert "attacked as shipped: net.onnx" in printed
    assert "--suite deployed --seed 0 --threat linf:0.1 --surrogate float_network:ready" in html.unescape(page)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "resnet8"], r"--model\.name has no effect: net\.onnx holds its own network"),
        (["--model.width", "4"], r"--model\.width has no effect: net\.onnx holds its own network"),
        (["--model.std", "[0.5, 0.5]"], r"--model\.std has 2 values, and the images have 1 channels"),
    ],
)
def test_options_that_an_onnx_file_does_not_take_are_refused(room: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_file("net.onnx", out=room / "out", overrides=[*DATA, *words], **QUIET)
    assert not (room / "out").exists()


def test_a_normalisation_outside_is_found_and_said(room: Path) -> None:
    network = trained().eval()
    with torch.no_grad():
        network[0].weight /= 255
    onnx_file(room / "bytes.onnx", network)
    settings = {**QUIET, "eps_curve": False, "num_images": 30, "out": room / "out"}
    (guessing,) = evaluate_file("bytes.onnx", overrides=DATA, **settings).values()
    line = next(line for line in guessing.conditions["warnings"] if "--model.mean" in line)
    assert "--model.mean [0] --model.std [0.0039216]" in line
    words = ["--model.mean", "[0]", "--model.std", "[0.0039216]"]
    (mended,) = evaluate_file("bytes.onnx", overrides=[*DATA, *words], **settings).values()
    assert mended.clean_correct.mean() > guessing.clean_correct.mean() + 0.3
    assert mended.conditions["normalisation"] == {"mean": [0.0], "std": [0.0039216]}
