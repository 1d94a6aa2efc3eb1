"""A residual network with BatchNorm for images of 8x8 pixels, in one channel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustill.attacks import pgd
from robustill.core.contexts import evaluating, frozen
from robustill.data.digits import FILE
from robustill.losses import ce
from robustill.threat import Threat


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


def small_network(num_classes: int = 10, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), Block(8), nn.Flatten(), nn.Linear(256, num_classes)
        )


class TrainedNetwork(NamedTuple):
    """A network in eval mode, and test images it was not trained on."""

    model: nn.Module
    x: Tensor
    y: Tensor


def trained_network() -> TrainedNetwork:
    """A small network with BatchNorm, trained adversarially on the digits in about two seconds."""
    with np.load(FILE) as digits:
        x = torch.from_numpy(digits["images"]).float()[:, None] / 16
        y = torch.from_numpy(digits["labels"]).long()
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
    return TrainedNetwork(model.eval(), x[1500:1532], y[1500:1532])
