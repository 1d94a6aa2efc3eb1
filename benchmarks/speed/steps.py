"""What several of the scripts beside it measure: a training step again and again, and the step of a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.config.schema import Config
from robustill.core.randomness import generator
from robustill.methods import Batch
from robustill.training.step import Step


def repeated(step: Step, batch: Batch, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Attack, loss, backward pass and update on always the same batch, with the same random start."""

    def run() -> None:
        outcome = step(batch, generator(0, "attack"))
        optimizer.zero_grad(set_to_none=True)
        outcome.loss.mean().backward()
        optimizer.step()

    return run


def plain_attack(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """PGD as research scripts write it, in the model's present mode; `loss` takes logits and returns one number."""
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        grad = torch.autograd.grad(loss(model(x_adv)), [x_adv])[0]
        x_adv = x_adv.detach() + step_size * torch.sign(grad)
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - eps), x + eps), 0.0, 1.0)
    return x_adv.detach()


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, config: Config) -> None:
    """A step of adversarial training as research scripts write it, with the attack of a configuration."""
    attack, eps = config.attack, config.threat.eps
    radius, bound = (eps, eps) if attack.noise is None else (attack.noise * eps, 1.0)
    model.train(attack.batchnorm == "train")
    start = (x + radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    x_adv = plain_attack(
        model, x, start, lambda z: F.cross_entropy(z, y), eps=bound, step_size=attack.step_size, steps=attack.steps
    )
    model.train()
    optimizer.zero_grad()
    F.cross_entropy(model(x_adv), y).backward()
    optimizer.step()
