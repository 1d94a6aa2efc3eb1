"""Methods that train a network of their own beside the student."""

from __future__ import annotations

from typing import Any

from helpers.tiny_networks import tiny_batch, tiny_network
from robustill.core.randomness import generator
from robustill.methods import Method, build_method
from robustill.threat import Threat
from robustill.training.optimizer import build_optimizer
from robustill.training.step import Step


def with_companion(name: str, *, batchnorm: bool = False, **options: Any) -> Method:
    """Build a method whose own network is a tiny one."""
    method = build_method(name, **options)
    method.set_up(lambda name=None, **_: tiny_network(7, batchnorm=batchnorm))
    return method


def train_both(name: str, learning_rate: float, terms: tuple[str, ...]) -> tuple[Method, list[list[float]]]:
    """Train a student and the method's own network for fifteen steps; return the terms of each step, and the method."""
    method, student = with_companion(name, batchnorm=True), tiny_network(1)
    step = Step(student, method, None, Threat(norm="linf", eps=0.1), steps=2, step_size=0.05)
    optimizer = build_optimizer(
        [student, method], "sgd", learning_rate=learning_rate, weight_decay=0.0, decay_all=True, momentum=0.9,
        nesterov=False,
    )  # fmt: skip
    found = []
    for number in range(15):
        outcome = step(tiny_batch(), generator(0, number))
        optimizer.zero_grad()
        outcome.loss.mean().backward()
        optimizer.step()
        found.append([outcome.terms[term].mean().item() for term in terms])
    return method, found
