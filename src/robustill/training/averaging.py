"""Averages of the student's weights over training: EMA and SWA."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustill.core.contexts import copy_network, evaluating, freeze_for_good
from robustill.models.fake_quantisation import RANGE
from robustill.training.optimizer import is_within


class EMA:
    """The exponential moving average of weights and BatchNorm statistics: a ← d·a + (1−d)·w after each step.

    The decay grows with the steps, d_i = min(decay, (1+i)/(10+i)) with i from 0, so that the first weights do not
    dominate the average of a short run. The ranges of a rounded network's inputs are averaged from their first
    measurement on.

    Args:
        model: the network to average; it is not changed.
        decay: d in [0,1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.model = freeze_for_good(copy_network(model))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights after one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for (name, average), current in zip(self.model.named_buffers(), model.buffers(), strict=True):
            if name.endswith(RANGE):
                # It is nan before the first batch, and would stay nan.
                average.copy_(torch.where(average.isnan(), current, average))
        # Unlike a state_dict, these list a shared weight once: it must be updated once a step.
        averages = [*self.model.parameters(), *self.model.buffers()]
        currents = [*model.parameters(), *model.buffers()]
        floating = [i for i, average in enumerate(averages) if average.is_floating_point()]
        torch._foreach_lerp_([averages[i] for i in floating], [currents[i] for i in floating], 1 - decay)
        for average, current in zip(averages, currents, strict=True):
            if not average.is_floating_point():
                average.copy_(current)


class SWA:
    """Stochastic weight averaging: the mean of the weights at the ends of epochs, a ← a + (w − a)/n.

    BatchNorm's running statistics are not those of the mean weights: estimate them with `estimate_statistics` after an
    update, before the network is used.

    Args:
        model: the network to average; it is not changed.

    Reference: Izmailov et al. 2018, Averaging weights leads to wider optima and better generalization.
    """

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self.model = freeze_for_good(copy_network(model))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the mean with the weights after one more epoch; buffers are copied from that epoch."""
        self.count += 1
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 / self.count)
        for average, current in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(current)


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor], *, frozen: Sequence[str] = ()) -> None:
    """Set BatchNorm's running statistics to the mean of those of the batches, each weighted by its number of images.

    For a network without BatchNorm no batch is computed.

    Args:
        model: the network. All of it but BatchNorm computes in eval mode; its modes are restored.
        batches: images [B,C,H,W] in [0,1].
        frozen: names of modules, as `freeze` takes them, whose statistics are not changed.
    """
    layers = [
        each
        for name, each in model.named_modules()
        if isinstance(each, _BatchNorm) and each.running_mean is not None and not is_within(name, frozen)
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    num_images = 0
    with evaluating(model):
        try:
            for x in batches:
                num_images += len(x)
                for layer in layers:
                    layer.train()
                    layer.momentum = len(x) / num_images
                model(x)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
