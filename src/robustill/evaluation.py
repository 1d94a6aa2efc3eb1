"""A suite of attacks over a data set: one row an image, from which every number and figure is computed."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill import runtime
from robustill.attacks import pgd
from robustill.checks import check_network
from robustill.data import Dataset, stratified_subset
from robustill.errors import ConfigError, DataError, ModelError, did_you_mean
from robustill.losses import ce, margin
from robustill.modes import evaluating, frozen
from robustill.progress import Progress
from robustill.randomness import generator
from robustill.records import ROBUST, WRONG_ON_CLEAN, Records
from robustill.threat import Threat

# Of the radius of the threat: where the curve of robust accuracy against eps is measured.
EPS_GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_CURVE_STEPS = 20
_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack of a suite: PGD with restarts on a loss of the logits.

    Args:
        name: as it stands in records and reports.
        loss: logits [B,K] and labels [B] to [B]; larger is worse for the defender.
        steps: of PGD, with a step size of a quarter of eps.
        restarts: independent uniform starts; any of them that succeeds counts.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    restarts: int


SUITES: dict[str, tuple[Stage, ...]] = {
    "pgd": (
        Stage(name="pgd-ce", loss=ce, steps=20, restarts=5),
        Stage(name="pgd-margin", loss=margin, steps=20, restarts=5),
    ),
    "pgd-20": (Stage(name="pgd-ce", loss=ce, steps=20, restarts=1),),
}


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    threat: Threat,
    suite: str = "pgd",
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    eps_curve: bool = True,
    device: torch.device | str = "cpu",
    conditions: dict[str, Any] | None = None,
    progress: str | None = None,
) -> Records:
    """Attack every image with every attack of a suite, in float32.

    The first attack runs on all images to its end, so that calibration is measured at the highest loss found; the
    others on those that are still robust. A success counts only where the image is inside the threat. What an image
    draws depends on (seed, attack, radius, its id) alone, not on the batch or on the other images.

    Args:
        model: images [B,C,H,W] in [0,1] to logits [B,K]; its mode and flags are restored.
        dataset: whose images are attacked.
        threat: the images allowed.
        suite: a key of SUITES.
        num_images: a class-balanced part of the data set; None is all of it.
        seed: of the random starts and of the part.
        batch_size: images at a time, at least 1.
        eps_curve: also measure robust accuracy at EPS_GRID times the radius, with one PGD run each.
        device: where to compute.
        conditions: what else belongs beside the numbers, e.g. the checkpoint's sha256.
        progress: label of a progress bar; None is silent.

    Returns:
        Records, one row an image.

    Raises:
        ConfigError: an unknown suite, or a batch size below 1.
        DataError: more images wanted than there are.
        ModelError: the model does not fit the images, has no gradient, or gives NaN on an adversarial image.
    """
    if suite not in SUITES:
        raise ConfigError(f"suite {suite!r} is unknown: {did_you_mean(suite, SUITES)}")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: expected at least 1")
    ids = _ids(dataset, num_images, seed)
    # The same images for every model on this data set, whatever breaks them.
    shown = ids[stratified_subset(dataset.labels[ids], min(_EXAMPLES, len(ids)), seed=0)]
    device = torch.device(device)
    model = runtime.place(model, device)
    check_network(model, dataset.read(ids[:2]).to(device).float() / 255, dataset.num_classes, "the model")
    grid = [threat.eps * factor for factor in EPS_GRID] if eps_curve else []
    grid = [eps for eps in grid if threat.norm != "linf" or eps <= 1]
    evaluation = _Evaluation(model, threat, SUITES[suite], grid, seed)
    rows: list[dict[str, Tensor]] = []
    pictures: list[tuple[Tensor, Tensor]] = []
    robust = 0
    with (
        evaluating(model),
        frozen(model),
        Progress(progress or "", total=len(ids), unit="images", shown=progress is not None) as bar,
    ):
        for part in torch.split(ids, batch_size):
            x = dataset.read(part).to(device).float() / 255
            y = dataset.labels[part].to(device)
            row, x_adv = evaluation.batch(x.contiguous(memory_format=torch.channels_last), y, part)
            rows.append(row)
            kept = torch.isin(part, shown)
            pictures.append((x[kept].cpu(), x_adv[kept].cpu()))
            robust += int(row["robust"].sum())
            bar.advance(len(part), f"robust so far {robust / (bar.done + len(part)):.3f}")
    columns = {key: torch.cat([row[key] for row in rows]).cpu().numpy() for key in rows[0]}
    clean, adversarial = (torch.cat(images).numpy() for images in zip(*pictures, strict=True))
    return Records(
        index=ids.numpy(),
        label=dataset.labels[ids].numpy(),
        eps_grid=np.asarray(grid, dtype=np.float32),
        stages=tuple(stage.name for stage in SUITES[suite]),
        classes=dataset.classes,
        conditions=_conditions(dataset, ids, threat, suite, seed, model, conditions),
        example_index=shown.numpy(),
        example_clean=clean,
        example_adversarial=adversarial,
        **columns,
    )


class _Evaluation:
    def __init__(
        self, model: nn.Module, threat: Threat, stages: Sequence[Stage], eps_grid: Sequence[float], seed: int
    ) -> None:
        self.model, self.threat, self.stages, self.seed = model, threat, stages, seed
        self.eps_grid = eps_grid

    @torch.no_grad()
    def batch(self, x: Tensor, y: Tensor, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The rows of some images, and the strongest image found for each."""
        clean = self.model(x).float()
        correct = clean.argmax(dim=1) == y
        broken_by = torch.where(correct, ROBUST, WRONG_ON_CLEAN).to(torch.int8)
        x_adv, adversarial, highest = x.clone(), clean.clone(), torch.full_like(clean[:, 0], -torch.inf)
        runs = [(number, restart) for number, stage in enumerate(self.stages) for restart in range(stage.restarts)]
        for number, restart in runs:
            active = torch.arange(len(x), device=x.device) if number == 0 else (broken_by == ROBUST).nonzero().flatten()
            if len(active) == 0:
                break
            found, logits, allowed = self._attack(
                self.stages[number], restart, x[active], y[active], ids[active.cpu()], self.threat
            )
            broke = allowed & (logits.argmax(dim=1) != y[active]) & (broken_by[active] == ROBUST)
            broken_by[active[broke]] = number
            # An image that broke gives way only to another that is wrong too, so that its row stays an adversarial one.
            loss = ce(logits, y[active])
            still = (broken_by[active] < 0) | (logits.argmax(dim=1) != y[active])
            stronger = broke | (allowed & still & (loss > highest[active]))
            take = active[stronger]
            x_adv[take], adversarial[take], highest[take] = found[stronger], logits[stronger], loss[stronger]
        robust = broken_by == ROBUST
        curve = [self._robust_at(eps, x, y, ids, correct, robust) for eps in self.eps_grid]
        for position in range(1, len(curve)):
            curve[position] &= curve[position - 1]
        row = {
            "clean_probabilities": clean.softmax(dim=1),
            "adversarial_probabilities": adversarial.softmax(dim=1),
            "robust": robust,
            "broken_by": broken_by,
            "margin": -margin(adversarial, y),
            "distance": self.threat.distance(x_adv, x),
            "robust_at_eps": torch.stack(curve, dim=1) if curve else robust.new_zeros((len(x), 0)),
        }
        return row, x_adv

    def _attack(
        self, stage: Stage, restart: int, x: Tensor, y: Tensor, ids: Tensor, threat: Threat
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run: the images found, their logits, and whether each is inside the threat."""
        draws = [generator(self.seed, stage.name, restart, str(threat), int(i), device=x.device) for i in ids]
        found = pgd(
            lambda z: stage.loss(self.model(z), y),
            x,
            threat,
            steps=stage.steps,
            step_size=threat.eps / 4,
            generator=draws,
        )
        logits = self.model(found).float()
        if not torch.isfinite(logits).all():
            # As a success it would be nobody's, as a failure it would make a broken network look robust.
            raise ModelError(f"the model gives NaN or infinite logits on images of the attack {stage.name}")
        return found, logits, threat.contains(found, x)

    def _robust_at(self, eps: float, x: Tensor, y: Tensor, ids: Tensor, correct: Tensor, robust: Tensor) -> Tensor:
        """Which images one PGD run of this radius leaves right; beyond the threat's radius only robust ones can be."""
        if eps == self.threat.eps:
            return robust.clone()
        left = (robust if eps > self.threat.eps else correct).clone()
        active = left.nonzero().flatten()
        if len(active):
            stage = Stage(name="curve", loss=ce, steps=_CURVE_STEPS, restarts=1)
            threat = Threat(norm=self.threat.norm, eps=eps)
            _, logits, allowed = self._attack(stage, 0, x[active], y[active], ids[active.cpu()], threat)
            left[active] = ~allowed | (logits.argmax(dim=1) == y[active])
        # What withstands the whole suite at a larger radius withstands this one.
        return left | robust if eps < self.threat.eps else left


def _ids(dataset: Dataset, num_images: int | None, seed: int) -> Tensor:
    if num_images is None:
        return torch.arange(len(dataset))
    if num_images > len(dataset) or num_images < 1:
        raise DataError(f"{num_images} images wanted, but {dataset.name} ({dataset.split}) has {len(dataset)}")
    return stratified_subset(dataset.labels, num_images, seed=seed)


def _conditions(
    dataset: Dataset,
    ids: Tensor,
    threat: Threat,
    suite: str,
    seed: int,
    model: nn.Module,
    more: dict[str, Any] | None,
) -> dict[str, Any]:
    stages = [
        {
            "name": stage.name,
            "loss": stage.loss.__name__,
            "steps": stage.steps,
            "restarts": stage.restarts,
            "step_size": threat.eps / 4,
        }
        for stage in SUITES[suite]
    ]
    return {
        "data": dataset.name,
        "split": dataset.split,
        "data_fingerprint": dataset.fingerprint,
        "num_images": len(ids),
        "of_images": len(dataset),
        "threat": {"norm": threat.norm, "eps": threat.eps, "text": str(threat)},
        "suite": {"name": suite, "stages": stages},
        "seed": seed,
        "precision": "fp32",
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": runtime.environment()["versions"],
        "date": datetime.date.today().isoformat(),
        **(more or {}),
    }
