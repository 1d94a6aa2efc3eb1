"""Short trainings in each precision and AutoAttack for gpu.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustill.attacks.autoattack import autoattack
from robustill.attacks.state import AutoAttackState
from robustill.core.contexts import evaluating
from robustill.core.memory_format import place
from robustill.core.randomness import generator
from robustill.data import Augmentation, ImageDataset, Loader, load
from robustill.methods import AT, Batch
from robustill.models import build
from robustill.threat import Threat
from robustill.training.optimizer import build_optimizer, rate_factor
from robustill.training.step import Step
from robustill.training.validation import validation_accuracy

CLASSES = tuple("0123456789")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
THREAT = Threat(norm="linf", eps=8 / 255)

Pair = tuple[ImageDataset, ImageDataset]


def images_of(folder: Path | None, *, small: bool) -> tuple[Pair, str]:
    """CIFAR-10's training and test images, or drawn ones; and which they are."""
    if folder is not None:
        train, test = load("cifar10", root=folder), load("cifar10", root=folder, split="test")
        assert isinstance(train, ImageDataset)
        assert isinstance(test, ImageDataset)
        if small:
            train, test = _first(train, 64), _first(test, 40)
        return (train, test), "CIFAR-10"
    sizes = {"train": 64 if small else 50_000, "test": 40 if small else 2_000}
    return (_drawn("train", sizes["train"]), _drawn("test", sizes["test"])), "synthetic: ten patterns with noise"


def _first(dataset: ImageDataset, count: int) -> ImageDataset:
    return replace(dataset, images=dataset.images[:count], labels=dataset.labels[:count])


def _drawn(split: str, count: int) -> ImageDataset:
    coarse = torch.rand(10, 3, 4, 4, generator=generator(0, "patterns"))
    patterns = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    labels = torch.arange(count) % 10
    draws = generator(0, "noise", split)
    parts = []
    for y in labels.split(5000):
        # Each of a contrast of its own, so that the radius is too much for some images and not for all.
        contrast = 0.5 * torch.rand(len(y), 1, 1, 1, generator=draws)
        noise = torch.rand(len(y), 3, 32, 32, generator=draws)
        parts.append((255 * (contrast * patterns[y] + (1 - contrast) * noise)).to(torch.uint8))
    return ImageDataset(name="drawn", split=split, images=torch.cat(parts), labels=labels, classes=CLASSES)


class OutOfTimeError(Exception):
    """The minutes of the benchmark are over."""


@contextmanager
def convolutions(precision: str) -> Iterator[None]:
    """Float32 convolutions and products on a GPU: "ieee" or "tf32"."""
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = precision
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def trainings(
    dataset: Pair, settings: dict[str, Any], device: torch.device, left: Callable[[], float]
) -> dict[str, Callable[[dict[str, nn.Module], str], dict[str, Any]]]:
    """By precision; twice in bf16, with another seed, to show what chance alone does."""
    kinds = {"bf16": ("bf16", "ieee", 0), "tf32": ("fp32", "tf32", 0), "bf16, another seed": ("bf16", "ieee", 1),
             "fp32": ("fp32", "ieee", 0)}  # fmt: skip
    if device.type != "cuda":
        del kinds["tf32"]

    def of(precision: str, multiply: str, seed: int) -> Callable[[dict[str, nn.Module], str], dict[str, Any]]:
        def run(trained: dict[str, nn.Module], name: str) -> dict[str, Any]:
            with convolutions(multiply):
                trained[name], figures = train(dataset, settings, device, precision, seed, left)
            return figures

        return run

    return {name: of(*kind) for name, kind in kinds.items()}


def train(
    dataset: Pair, settings: dict[str, Any], device: torch.device, precision: str, seed: int, left: Callable[[], float]
) -> tuple[nn.Module, dict[str, Any]]:
    """PGD adversarial training over a few epochs; then PGD-20 in float32 on test images."""
    images, test = dataset
    model = build(
        settings["model"], num_classes=10, in_channels=3, image_size=32, seed=seed, mean=MEAN, std=STD,
        **settings["options"],
    )  # fmt: skip
    student = place(model, device).train()
    step = Step(
        student, AT(), None, THREAT, steps=settings["steps"], step_size=2 / 255, precision=precision, light=True
    )
    optimizer = build_optimizer(
        [student], "sgd", learning_rate=0.2, weight_decay=5e-4, decay_all=False, momentum=0.9, nesterov=True
    )
    # Batches of one size alone, for which alone a step is compiled.
    whole = len(images) // settings["batch"] * settings["batch"]
    loader = Loader(
        images, torch.arange(whole), batch_size=settings["batch"], seed=seed, device=device,
        augmentation=Augmentation(["crop", "flip"]),
    )  # fmt: skip
    total, began, loss = settings["epochs"] * len(loader), time.perf_counter(), torch.zeros(())
    for epoch in range(settings["epochs"]):
        for number, (x, y, index) in enumerate(loader.epoch(epoch)):
            if left() < 0:
                raise OutOfTimeError(f"{epoch * len(loader) + number} of {total} steps done")
            progress = (epoch * len(loader) + number) / total
            rate = 0.2 * rate_factor(progress, "onecycle", warmup=0.3, milestones=[], decay=0.1)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = Batch(x=x.contiguous(memory_format=torch.channels_last), y=y, index=index)
            loss = step(batch, generator(seed, "attack", epoch, number, device=device)).loss.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    last = float(loss.detach())  # waits for the device
    spent = time.perf_counter() - began
    few = test.images[: settings["test"]].to(device), test.labels[: settings["test"]].to(device)
    with convolutions("ieee"):
        clean, robust = validation_accuracy(student, *few, THREAT, steps=20, step_size=2 / 255, seed=0)
    return student.eval(), {
        "epochs": settings["epochs"],
        "train_images": len(images),
        "images_per_second": round(total * settings["batch"] / spent, 1),
        "last_loss": round(last, 4),
        "test_images": len(few[1]),
        "clean_accuracy": round(clean, 4),
        "pgd20_accuracy": round(robust, 4),
    }


def autoattacks(
    model: nn.Module, dataset: Pair, settings: dict[str, Any], device: torch.device, left: Callable[[], float]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Ours in both precisions, then the authors' code, on the first test images."""
    test, budgets = dataset[1], dict(settings)
    count, size = budgets.pop("images"), budgets.pop("batch")
    x, y = (test.images[:count].float() / 255).to(device), test.labels[:count].to(device)
    flags: dict[str, Tensor] = {}

    def watch(done: int, expected: int, stage: str) -> None:
        if left() < 0:
            raise OutOfTimeError(f"in {stage}, {done} of {expected} passes done")

    def ours(precision: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            began = time.perf_counter()
            kept: list[AutoAttackState] = []
            try:
                with convolutions("ieee"):
                    found = autoattack(
                        model, x, y, THREAT, batch_size=size, precision=precision, progress=watch, save=kept.append,
                        **budgets,
                    )  # fmt: skip
            except OutOfTimeError as error:
                if not kept:
                    raise
                robust = int((kept[-1].broken_by == -1).sum())
                return {"cut_off": str(error), "robust_at_most": robust, "stage_seconds": kept[-1].seconds.tolist()}
            flags[precision] = found.robust.cpu()
            return {
                "seconds": round(time.perf_counter() - began, 2),
                "stages": dict(zip(found.stages, (round(each, 2) for each in found.seconds), strict=True)),
                "images": count,
                "robust": int(found.robust.sum()),
                "light": found.light,
            }

        return run

    def authors() -> dict[str, Any]:
        import pyautoattack

        suite = pyautoattack.AutoAttack(model, norm="Linf", eps=THREAT.eps, version="standard", seed=0, device=device)
        suite.verbose = False
        if "queries" in budgets:
            suite.square.n_queries, suite.apgd.n_iter, suite.apgd_targeted.n_iter, suite.fab.n_iter = 10, 3, 3, 3
            suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = 2
        began = time.perf_counter()
        with convolutions("ieee"), evaluating(model):
            _, predicted = suite.run_standard_evaluation(x, y, batch_size=size)
        robust = (predicted == y).cpu()
        return {
            "seconds": round(time.perf_counter() - began, 2),
            "robust": int(robust.sum()),
            "images_that_differ": {name: int((each != robust).sum()) for name, each in flags.items()},
        }

    return {"exact": ours("exact"), "fast": ours("fast"), "authors": authors}
