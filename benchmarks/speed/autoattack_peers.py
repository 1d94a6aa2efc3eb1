"""Others' AutoAttack, for benchmarks/speed/autoattack.py: torchattacks and ART, which are no dependencies.

They are looked for in the running environment, and in a folder of packages given with --peers, behind it:

    python -m venv PEERS && PEERS/bin/pip install -c constraints.txt torchattacks adversarial-robustness-toolbox
    python benchmarks/speed/autoattack.py ... --peers PEERS/lib/python3.11/site-packages \\
        --runs exact authors torchattacks art
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.threat import Threat

PEERS = {"torchattacks": "torchattacks", "torchattacks-defaults": "torchattacks", "art": "art"}
"""Runs, and the package each needs."""

_STEPS = 100
_STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")


def available(run: str, packages: Path | None) -> bool:
    """Whether a run's package can be imported."""
    if packages is not None and str(packages) not in sys.path:
        # Behind everything else, so that shared packages are those of the running environment.
        sys.path.append(str(packages))
    return importlib.util.find_spec(PEERS[run]) is not None


def run_torchattacks(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, queries: int, *, defaults: bool
) -> tuple[Tensor, dict[str, float]]:
    """Robust flags and seconds a stage; with `defaults` APGD and FAB make 10 steps, and Square shrinks more slowly."""
    import torchattacks

    num_classes = model(x[:1]).shape[1]
    suite = torchattacks.AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[threat.norm], eps=threat.eps, n_classes=num_classes, seed=0
    )
    seconds: dict[str, float] = {}
    for name, attack in zip(_STAGES, suite._autoattack.attacks, strict=True):
        if name == "square":
            attack.n_queries = queries
        if not defaults:
            attack.steps = _STEPS
            attack.rescale_schedule = False
        attack.forward = timed(attack.forward, name, seconds)
    return _robust(model, suite(x, y), x, y, threat), seconds


def run_art(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, queries: int, batch: int
) -> tuple[Tensor, dict[str, float]]:
    """Robust flags and seconds a stage: one restart of APGD on cross-entropy and on DLR, DeepFool, and Square.

    It has neither APGD-T nor FAB; its own default are five restarts of APGD and of Square.
    """
    from art.attacks.evasion import AutoAttack, AutoProjectedGradientDescent, DeepFool, SquareAttack
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    num_classes = model(x[:1]).shape[1]
    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=num_classes,
        clip_values=(0, 1),
        device_type="cpu",
    )
    ball = {"norm": {"linf": np.inf, "l2": 2}[threat.norm], "eps": threat.eps}
    ascent = {**ball, "eps_step": 2 * threat.eps, "max_iter": _STEPS, "nb_random_init": 1, "batch_size": batch}
    quiet = {"verbose": False}
    attacks = {
        "apgd-ce": AutoProjectedGradientDescent(classifier, **ascent, loss_type="cross_entropy", **quiet),
        "apgd-dlr": AutoProjectedGradientDescent(classifier, **ascent, loss_type="difference_logits_ratio", **quiet),
        "deepfool": DeepFool(classifier, max_iter=_STEPS, epsilon=1e-3, nb_grads=num_classes, **quiet),
        "square": SquareAttack(classifier, **ball, max_iter=queries, batch_size=batch, **quiet),
    }
    seconds: dict[str, float] = {}
    for name, attack in attacks.items():
        attack.generate = timed(attack.generate, name, seconds)
    np.random.seed(0)
    torch.manual_seed(0)
    suite = AutoAttack(classifier, **ball, eps_step=2 * threat.eps, attacks=list(attacks.values()), batch_size=batch)
    x_adv = torch.from_numpy(suite.generate(x.numpy(), y.numpy()))
    model.eval()
    return _robust(model, x_adv, x, y, threat), seconds


def timed(function: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """The function, its seconds added to those of a stage."""

    def run(*inputs: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*inputs, **options)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started

    return run


def _robust(model: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Right on the clean image, and on what the attack made of it unless that lies outside the threat."""
    with torch.no_grad():
        clean, found = model(x).argmax(dim=1) == y, model(x_adv).argmax(dim=1) != y
    return clean & ~(found & threat.contains(x_adv, x, tolerance=1e-4))
