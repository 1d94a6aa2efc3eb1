"""A small network with BatchNorm that was trained adversarially on scikit-learn's digits, in about two seconds."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from small_network import small_network
from torch import Tensor, nn

from robustill.attacks import pgd
from robustill.losses import ce
from robustill.modes import evaluating, frozen
from robustill.threat import Threat


class Judged(NamedTuple):
    """A network in eval mode, and test images it was not trained on."""

    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="session")
def judged() -> Judged:
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    model = small_network()
    train_x, train_y = x[:1500], y[:1500]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    threat = Threat(norm="linf", eps=0.15)
    order = torch.Generator().manual_seed(0)
    for _ in range(150):
        batch = torch.randint(1500, (100,), generator=order)
        images, labels = train_x[batch], train_y[batch]
        with evaluating(model), frozen(model):
            images = pgd(
                lambda z, labels=labels: ce(model(z), labels), images, threat, steps=3, step_size=0.07, generator=order
            )
        loss = ce(model(images), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return Judged(model.eval(), x[1500:1532], y[1500:1532])
