"""Validation accuracies are those of a closed form and change nothing."""

import pytest
import torch
from torch import nn

from robustill.threat import Threat
from robustill.training.validation import validation_accuracy


class TwoClasses(nn.Module):
    """Logits (w·x + b, 0): robust in l∞ where the signed margin exceeds eps·‖w‖₁."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(9, 1)
        self.batchnorm = nn.BatchNorm2d(1)
        self.kinds = []
        with torch.no_grad():
            self.head.weight.copy_(torch.linspace(-1, 1, 9))
            self.head.bias.zero_()

    def forward(self, x):
        score = self.head(self.batchnorm(x).flatten(1))
        self.kinds.append(score.dtype)
        return torch.cat([score, torch.zeros_like(score)], dim=1)


@pytest.fixture
def validation_set():
    # Far from 0 and 255, so that the bounds of [0,1] play no part; more than one portion of 500.
    images = torch.randint(60, 196, (700, 1, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.randint(2, (700,), generator=torch.Generator().manual_seed(1))
    return images, labels


SETTINGS = {"steps": 10, "step_size": 0.02, "seed": 0}


@pytest.mark.parametrize("eps", [0.02, 0.05])
def test_both_accuracies_are_those_of_the_closed_form(validation_set, eps):
    images, labels = validation_set
    model = TwoClasses().train()
    weight = model.head.weight.double().flatten() / (1 + model.batchnorm.eps) ** 0.5
    signed = (images.double() / 255).flatten(1) @ weight * (1 - 2 * labels)
    clean, robust = validation_accuracy(model, images, labels, Threat(norm="linf", eps=eps), **SETTINGS)
    assert clean == pytest.approx((signed > 0).double().mean().item(), abs=1e-9)
    assert robust == pytest.approx((signed > eps * weight.abs().sum()).double().mean().item(), abs=1e-9)
    assert 0.1 < robust < clean < 0.9


def test_the_model_is_not_changed_and_every_call_is_the_same(validation_set):
    model = TwoClasses().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    first = validation_accuracy(model, *validation_set, Threat(norm="l2", eps=0.1), **SETTINGS)
    torch.manual_seed(1)
    assert validation_accuracy(model, *validation_set, Threat(norm="l2", eps=0.1), **SETTINGS) == first
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bf16_is_used_in_the_attack_but_not_in_predictions(validation_set):
    model = TwoClasses()
    images, labels = validation_set[0][:300], validation_set[1][:300]
    validation_accuracy(model, images, labels, Threat(norm="linf", eps=0.02), **SETTINGS, precision="bf16")
    assert model.kinds == [torch.bfloat16] * SETTINGS["steps"] + [torch.float32] * 2


def test_predictions_are_made_in_full_float32(validation_set, monkeypatch):
    network, decided = TwoClasses(), []
    before = torch.backends.cudnn.conv.fp32_precision

    def watched(x):
        if not torch.is_grad_enabled():
            decided.append(torch.backends.cudnn.conv.fp32_precision)
        return TwoClasses.forward(network, x)

    monkeypatch.setattr(network, "forward", watched)
    validation_accuracy(network, *validation_set, Threat(norm="linf", eps=0.02), **SETTINGS)
    # Clean and attacked, in two portions.
    assert decided == ["ieee"] * 4
    assert torch.backends.cudnn.conv.fp32_precision == before != "ieee"
