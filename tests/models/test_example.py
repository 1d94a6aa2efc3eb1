"""The networks of the example are as accurate as their model cards state."""

from __future__ import annotations

import re

import torch

import robustill as rb
from robustill.models.example import FOLDER


def test_the_example_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 5e6


def test_the_student_is_as_accurate_as_its_card_states() -> None:
    example = rb.load_example()
    (row,) = re.findall(r"\| digits test \| 500 of 500 \| linf:0\.15 \| standard \| ([\d.]+) \| ([\d.]+) ", card())
    clean = (example.student(example.x).argmax(dim=1) == example.y).float().mean()
    assert f"{clean:.3f}" == row[0]
    x_adv = rb.pgd(
        lambda x: rb.losses.ce(example.student(x), example.y), example.x, example.threat, steps=10, step_size=0.04
    )
    assert example.threat.contains(x_adv, example.x).all()
    robust = (example.student(x_adv).argmax(dim=1) == example.y).float().mean()
    # PGD leaves at least as many images robust as AutoAttack, and few more where gradients are not masked.
    assert float(row[1]) <= robust < float(row[1]) + 0.06


def card() -> str:
    return (FOLDER / "student" / "README.md").read_text(encoding="utf-8")


def test_the_teacher_is_accurate_on_the_test_images() -> None:
    example = rb.load_example()
    assert (example.teacher(example.x).argmax(dim=1) == example.y).float().mean() > 0.97
    assert not any(parameter.requires_grad for parameter in example.teacher.parameters())
    assert torch.equal((example.x * 255).round().byte(), rb.load_data("digits", split="test").images)
