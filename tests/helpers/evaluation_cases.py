"""A small data set of noisy patterns, one for each class, and a network trained on it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from robustill.data import ImageDataset
from robustill.threat import Threat

THREAT = Threat(norm="linf", eps=0.1)
N, K = 90, 3


def made_up(number: int = N, classes: int = K, seed: int = 0, noise: float = 60.0) -> ImageDataset:
    """Return a data set of noisy images, each of the pattern of its class."""
    drawn = torch.Generator().manual_seed(seed)
    patterns = torch.randint(40, 216, (classes, 1, 6, 6), generator=torch.Generator().manual_seed(7))
    labels = torch.arange(number) % classes
    images = patterns[labels] + noise * torch.randn((number, 1, 6, 6), generator=drawn)
    return ImageDataset(
        name="made-up",
        split="test",
        images=images.clamp(0, 255).to(torch.uint8),
        labels=labels,
        classes=tuple(f"class {k}" for k in range(classes)),
    )


def untrained() -> nn.Sequential:
    """Return an untrained network of a convolution, BatchNorm and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, K)
    )


def trained() -> nn.Sequential:
    """Return the network after 40 steps on other images, in train mode."""
    network, data = untrained(), made_up(seed=1)
    x, optimizer = data.read(torch.arange(N)).float() / 255, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(x), data.labels).backward()
        optimizer.step()
    return network


class View(nn.Module):
    """A feature map as a row of numbers, by a call that fails on channels-last tensors."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """[B,C,H,W] -> [B,C·H·W]."""
        return h.view(h.size(0), -1)


def viewing(network: nn.Sequential) -> nn.Sequential:
    """The same network and weights, with `View` in place of nn.Flatten."""
    return nn.Sequential(*(View() if isinstance(layer, nn.Flatten) else layer for layer in network))


def placement(network: nn.Module) -> list[tuple[int, int, tuple[int, ...]]]:
    """Which tensors a network has, and where and how they lie."""
    return [(id(each), each.data_ptr(), each.stride()) for each in (*network.parameters(), *network.buffers())]
