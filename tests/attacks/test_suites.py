"""Suites with AutoAttack: its numbers are those of the attack itself, whatever the parts and the batch size."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pytest
import torch

from helpers.evaluation_cases import THREAT, made_up, trained
from helpers.records_by_hand import save_records
from robustill.analysis.summary import summary
from robustill.attacks.autoattack import autoattack
from robustill.attacks.suites import SUITES, Suite, find_suite
from robustill.cli.tables import conditions_line
from robustill.core.errors import ConfigError
from robustill.runs.records import ROBUST
from robustill.threat import Threat

look_too = importlib.import_module("robustill.evaluation.evaluate").evaluate
evaluate = functools.partial(look_too, masking=False)
BUDGETS = {"steps": 8, "queries": 40}


@pytest.fixture(scope="module")
def dataset() -> Any:
    return made_up()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return trained().eval()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(autoattack="standard", budgets=BUDGETS, stages=SUITES["standard"].stages)
    monkeypatch.setitem(SUITES, "short", suite)


@pytest.mark.parametrize("threat", [THREAT, Threat(norm="l2", eps=0.5)])
def test_robust_accuracy_after_autoattack_is_autoattacks(model, dataset, threat):
    records = evaluate(model, dataset, threat=threat, suite="short", seed=3, eps_curve=False)
    x, y = dataset.read(torch.arange(len(dataset))).float() / 255, dataset.labels
    found = autoattack(model, x, y, threat, seed=3, **BUDGETS)
    own = np.where(records.broken_by == len(found.stages), ROBUST, records.broken_by)
    assert np.array_equal(own, found.broken_by)
    after = summary(records)["accuracy_after"]
    assert after["square"] == pytest.approx(float(found.robust.float().mean()))
    assert list(after) == [*found.stages, "pgd-ce"]
    assert after["pgd-ce"] == summary(records)["robust_accuracy"] <= after["square"]
    assert 0.1 < after["square"] < 0.9


def test_a_row_holds_the_image_of_the_high_loss_attack(model, dataset):
    records = evaluate(model, dataset, threat=THREAT, suite="short", eps_curve=False)
    pgd = evaluate(model, dataset, threat=THREAT, suite="pgd-20", eps_curve=False)
    broken = records.broken_by >= 0
    # Never a lower loss than AutoAttack's own image has, and far beyond the boundary where PGD gets there.
    of_label = np.take_along_axis(records.adversarial_probabilities, records.label[:, None], axis=1)[:, 0]
    of_pgd = np.take_along_axis(pgd.adversarial_probabilities, records.label[:, None], axis=1)[:, 0]
    assert (of_label[broken] <= of_pgd[broken] + 1e-6)[~pgd.robust[broken]].all()
    predictions = records.adversarial_probabilities.argmax(axis=1)
    assert not np.any(predictions[broken] == records.label[broken])
    assert summary(records)["nll_adversarial"] == pytest.approx(summary(pgd)["nll_adversarial"], rel=0.05)


@pytest.mark.parametrize("batch_size", [pytest.param(5, marks=pytest.mark.slow), 33])
def test_results_do_not_depend_on_batches_and_parts(model, dataset, batch_size, monkeypatch):
    whole = evaluate(model, dataset, threat=THREAT, suite="short")
    monkeypatch.setattr("robustill.evaluation.evaluate._part_size", lambda number, group: 37)
    parts = evaluate(model, dataset, threat=THREAT, suite="short", batch_size=batch_size)
    for name in ("index", "robust", "broken_by", "robust_at_eps"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    np.testing.assert_allclose(whole.margin, parts.margin, atol=1e-3)


def test_fast_precision_is_recorded_and_agrees(model, dataset):
    exact, fast = (
        evaluate(model, dataset, threat=THREAT, suite="short", precision=each, eps_curve=False)
        for each in ("exact", "fast")
    )
    assert exact.conditions["precision"] == "fp32"
    assert fast.conditions["precision"] == "bf16 gradients, fp32 decisions"
    assert abs(int(exact.robust.sum()) - int(fast.robust.sum())) <= 2


def test_the_stages_with_their_budgets_are_in_the_conditions(model, dataset):
    records = evaluate(model, dataset, threat=THREAT, suite="short", num_images=12, eps_curve=False)
    stages = records.conditions["suite"]["stages"]
    # Three classes leave two targets.
    assert [(e["name"], e["restarts"], e["steps"]) for e in stages] == [
        ("apgd-ce", 1, 8),
        ("apgd-t", 2, 8),
        ("fab-t", 2, 8),
        ("square", 1, 40),
        ("pgd-ce", 1, 20),
    ]
    assert "suite short (apgd-ce 1×8 steps, apgd-t 2×8 steps" in conditions_line(records)


def test_numbers_of_the_quick_suite_are_labelled(model, dataset):
    records = evaluate(model, made_up(300), threat=THREAT, suite="quick", eps_curve=False)
    assert len(records) == 256
    assert records.conditions["quick"] is True
    assert any("quick look" in line for line in records.conditions["warnings"])
    assert "quick" in conditions_line(records)
    low, high = summary(records)["robust_accuracy_interval"]
    assert low < summary(records)["robust_accuracy"] < high
    assert len(evaluate(model, dataset, threat=THREAT, suite="quick", num_images=9, eps_curve=False)) == 9


def test_a_list_of_attacks_is_a_suite(model, dataset):
    suite = find_suite("apgd-ce, square")
    assert suite.autoattack == ("apgd-ce", "square")
    assert [each["name"] for each in suite.describe(THREAT, 10)] == ["apgd-ce", "square", "pgd-ce"]
    with pytest.raises(ConfigError, match=r"suite 'apgd,square' is unknown.*apgd-ce"):
        find_suite("apgd,square")


def test_passes_of_an_image_that_withstands_a_suite():
    # The reference's 9,762 units (of which FAB's own count is 2,700 here), PGD's 41, and no curve.
    assert SUITES["standard"].passes_per_image(THREAT, 10) == 202 + 1818 + 2700 + 5001 + 41


class Hidden(torch.nn.Module):
    """The same network behind a rounding of its input."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 8).round() / 8)


@pytest.mark.slow
def test_masked_gradients_are_recorded_and_shown(model, dataset, tmp_path, capsys):
    settings = {"threat": THREAT, "suite": "short", "num_images": 40, "eps_curve": False}
    honest = look_too(model, dataset, **settings)
    assert honest.conditions["masking"]["verdict"] == "no sign of it"
    assert honest.conditions["warnings"] == []
    records = look_too(Hidden(model).eval(), dataset, surrogate=model, progress="hidden", **settings)
    masking = records.conditions["masking"]
    assert masking["verdict"] == "the gradient is masked"
    assert masking["broken_by"]["transfer"] > masking["broken_by"]["white_box"]
    (line,) = [each for each in records.conditions["warnings"] if each.startswith("Gradient masking on")]
    assert "the gradient is zero on 100% of the images" in line
    assert line in capsys.readouterr().err
    save_records(records, tmp_path)
    # Cheap enough to be asked for beside PGD, and not taken where nobody asks.
    assert "masking" in look_too(model, dataset, threat=THREAT, suite="pgd-20", masking=True).conditions
    assert "masking" not in look_too(model, dataset, threat=THREAT, suite="pgd-20").conditions
