"""The fixed attack of an evaluation: the formula in a loop, the same in all suites, and no other number changes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.evaluation_cases import THREAT, N, made_up, trained
from robustill.attacks.suites import SUITES, Suite
from robustill.core.errors import ModelError
from robustill.core.randomness import derive_seed
from robustill.evaluation.calibration_attack import CalibrationAttack
from robustill.runs.records import Records
from robustill.threat import Threat

# By its full name: the package may offer a function of the same name.
evaluation = importlib.import_module("robustill.evaluation.evaluate")
evaluate = evaluation.evaluate
QUICK = {"eps_curve": False, "masking": False, "pictures": False}


def start(threat: Threat, number: int) -> Tensor:
    """The noise of the random start in the ball of linf, from the image's number and the threat alone."""
    drawn = torch.Generator().manual_seed(derive_seed(0, "pgd-10", str(threat), number))
    return (2 * torch.rand((1, 6, 6), generator=drawn) - 1) * threat.eps


def by_hand(network: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Ten steps of PGD in linf of a quarter of eps; the probabilities at the last images."""
    z = (x + torch.stack([start(threat, i) for i in range(len(x))])).clamp(0, 1)
    for _ in range(10):
        z = z.detach().requires_grad_(True)
        loss = nn.functional.cross_entropy(network(z), y, reduction="sum")
        z = z + threat.eps / 4 * torch.autograd.grad(loss, z)[0].sign()
        z = torch.minimum(torch.maximum(z, x - threat.eps), x + threat.eps).clamp(0, 1)
    return network(z.detach()).softmax(dim=1).detach()


def test_it_is_ten_steps_on_the_cross_entropy_of_every_image() -> None:
    network, data = trained().eval(), made_up()
    records = evaluate(network, data, threat=THREAT, suite="pgd-20", **QUICK)
    x = data.read(torch.arange(N)).float() / 255
    expected = by_hand(network, x, data.labels, THREAT)
    assert records.pgd_probabilities.dtype == np.float32
    np.testing.assert_allclose(records.pgd_probabilities, expected, atol=1e-5)
    # Images that are misclassified without an attack are attacked, too: their loss rises.
    wrong = ~records.clean_correct
    of_label = [p[wrong, records.label[wrong]] for p in (records.clean_probabilities, records.pgd_probabilities)]
    assert wrong.any()
    assert (of_label[1] < of_label[0]).all()
    assert records.conditions["calibration_attack"] == {
        "name": "pgd-10",
        "loss": "ce",
        "steps": 10,
        "restarts": 1,
        "step_size": 0.025,
        "seed": 0,
    }


@pytest.mark.parametrize(
    "threat",
    [
        THREAT,
        pytest.param(Threat(norm="l2", eps=0.5), marks=pytest.mark.slow),
        pytest.param(Threat(norm="l1", eps=2.0), marks=pytest.mark.slow),
    ],
)
def test_suite_seed_batch_size_and_other_images_change_nothing(threat: Threat, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Suite(autoattack=("apgd-ce", "square"), budgets={"steps": 3, "queries": 5}, stages=SUITES["pgd"].stages)
    monkeypatch.setitem(SUITES, "short", short)
    whole = evaluate(trained(), made_up(), threat=threat, suite="pgd-20", **QUICK)
    others = [
        {"suite": "short", "num_images": 30, "batch_size": 7},
        {"suite": "quick", "num_images": 20},
        {"suite": "pgd", "num_images": 15, "seed": 4},
        {"suite": "pgd-20", "num_images": 6, "batch_size": 1},
    ]
    for settings in others:
        other = evaluate(trained(), made_up(), threat=threat, **{**QUICK, **settings})
        expected = whole.pgd_probabilities[other.index]
        np.testing.assert_allclose(other.pgd_probabilities, expected, atol=1e-3, err_msg=str(settings))


class Noisy(nn.Module):
    """A network that adds noise to the images, from torch's own random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = trained()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        logits: Tensor = self.network(x + 0.05 * torch.randn_like(x))
        return logits


@pytest.mark.parametrize("suite", ["pgd-20", "short"])
@pytest.mark.parametrize("network", [trained, pytest.param(Noisy, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*draws random numbers")
def test_without_it_every_other_number_is_the_same(
    suite: str, network: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUITES, "short", Suite(autoattack=("apgd-ce",), stages=(), budgets={"steps": 3}))

    def records() -> Records:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found: Records = evaluate(network(), made_up(), threat=THREAT, suite=suite, num_images=40, batch_size=25)
            return found

    complete = records()
    monkeypatch.setattr(evaluation, "CalibrationAttack", lambda *_: None)
    bare = records()
    assert complete.pgd_probabilities is not None
    assert bare.pgd_probabilities is None
    arrays = [field.name for field in dataclasses.fields(Records) if isinstance(getattr(bare, field.name), np.ndarray)]
    assert {"robust", "broken_by", "adversarial_probabilities", "robust_at_eps", "example_adversarial"} <= set(arrays)
    digests = [
        {name: hashlib.sha256(getattr(each, name).tobytes()).hexdigest() for name in arrays}
        for each in (complete, bare)
    ]
    assert digests[0] == digests[1]
    conditions = [{**each.conditions, "calibration_attack": None} for each in (complete, bare)]
    assert conditions[0] == conditions[1]


class NanNearTheEdge(nn.Module):
    """Logits of the mean, and NaN where a pixel is 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        mean = x.flatten(1).mean(dim=1)
        return torch.where(x.flatten(1).amax(dim=1) < 1, mean, torch.nan)[:, None] * torch.tensor([1.0, -1.0])


def test_logits_that_are_not_finite_are_an_error() -> None:
    x = torch.full((2, 1, 2, 2), 0.95)
    attack = CalibrationAttack(NanNearTheEdge(), THREAT, 2)
    with pytest.raises(ModelError, match="NaN or infinite logits on images of the attack pgd-10"):
        attack.attack(x, torch.tensor([1, 1]), torch.arange(2), lambda _: None)
