"""AutoAttack: several attacks in turn, each on the images that withstood the ones before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from robustill.acceleration.folding import folded_copy, tried_bf16_copy
from robustill.acceleration.windowed import WindowedNetwork
from robustill.attacks.apgd import APGD
from robustill.attacks.apgd_l1 import SparseAPGD
from robustill.attacks.canvas import Canvas, PlainCanvas, WindowedCanvas
from robustill.attacks.fab import FAB
from robustill.attacks.pool import Attack, Found, run_pool
from robustill.attacks.search import Predict, Search
from robustill.attacks.square import Plan, Square
from robustill.attacks.stages import AutoAttackStage, Version, stages_of
from robustill.attacks.state import AutoAttackState
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.errors import ConfigError, DataError, ModelError, RunError
from robustill.core.memory_format import accepting_channels_last
from robustill.core.randomness import generator
from robustill.losses import margin
from robustill.threat import Threat

Precision = Literal["exact", "fast"]
WRONG_ON_CLEAN = -2
ROBUST = -1
# In fast mode an image that withstood by less than this share of its largest clean logit is attacked again in float32:
# what bfloat16 loses on the way.
_AGAIN = 1e-2
# Seconds between two calls of the progress callback.
_REPORT_EVERY = 0.5


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found, image by image.

    Args:
        robust: correct on the clean image, and no success was confirmed, bool [N].
        broken_by: index into `stages`; −1 where robust, −2 where wrong on the clean image; int8 [N].
        stages: the attacks that ran.
        x_adv: confirmed successes; elsewhere the clean images, [N,C,H,W].
        margin: max_{k≠y} z_k − z_y of x_adv where not robust (positive), else the largest that an attack saw, [N].
        seconds: of each stage.
        model_seconds: of them in passes through the model.
        passes: images that went through the model in each stage, forward or backward.
        light: whether the search ran on a folded copy of the model.
    """

    robust: Tensor
    broken_by: Tensor
    stages: tuple[str, ...]
    x_adv: Tensor
    margin: Tensor
    seconds: tuple[float, ...]
    model_seconds: tuple[float, ...]
    passes: tuple[int, ...]
    light: bool

    def __str__(self) -> str:
        """One line: how many are robust, and how many each attack broke first."""
        broken = ", ".join(
            f"{stage} {int((self.broken_by == number).sum())}" for number, stage in enumerate(self.stages)
        )
        wrong = int((self.broken_by == -2).sum())
        return f"{int(self.robust.sum())} of {len(self.robust)} robust; wrong on clean {wrong}; broken by {broken}"


@full_float32()
def autoattack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: Threat | str,
    *,
    version: Version | Sequence[str] = "standard",
    seed: int = 0,
    batch_size: int = 64,
    precision: Precision = "exact",
    index: Tensor | None = None,
    state: AutoAttackState | None = None,
    save: Callable[[AutoAttackState], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **budgets: Any,
) -> AutoAttackResult:
    """Robust accuracy by the ensemble of attacks that the field reports.

    Each success is confirmed in float32 by `predict` itself, inside the threat, before it counts. What an image draws
    is a function of (seed, attack, its index, restart), so its result depends on no other image.

    Args:
        predict: images [B,C,H,W] in [0,1] to logits [B,K]. A Module is put into eval mode, and given back as it was.
        x: clean images in [0,1], float32 [N,C,H,W].
        y: labels, int64 [N].
        threat: the images allowed, or text such as "linf:8/255".
        version: "standard" (APGD-CE, APGD-T, FAB-T, Square), "plus", "rand" for models that draw random numbers, or a
            list of attacks: apgd-ce, apgd-dlr, apgd-t, apgd-ce-t, fab, fab-t, square.
        seed: of all draws.
        batch_size: searches side by side; the largest batch but for K, where that is larger.
        precision: "fast" computes gradients in bfloat16; decisions, all of Square, and APGD on images that it nearly
            broke stay in float32.
        index: an id for each image, to draw by, int64 [N]; None: its place in x.
        state: as `save` was given it, to go on from there; it is written to.
        save: called with the state after each batch of images is decided.
        progress: called now and then with the passes done, the passes expected in all, and the attack.
        budgets: see `stages_of`: steps, queries, restarts, targets, repeats.

    Raises:
        ConfigError: an unknown version, attack, precision or budget, or no threat.
        DataError: images and labels that do not fit.
        ModelError: an output that is not [N,K].
        RunError: a state of other conditions.

    Reference: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks".
    """
    _check_arguments(x, y, batch_size, precision)
    threat = Threat.parse(threat)
    with ExitStack() as stack:
        if isinstance(predict, nn.Module):
            stack.enter_context(evaluating(predict))
            stack.enter_context(frozen(predict))
        x = x.detach()
        predict = stack.enter_context(accepting_channels_last(predict, x))
        clean = _clean_logits(predict, x, y, batch_size)
        stages = stages_of(version, threat.norm, clean.shape[1], **budgets)
        run = _Run(predict, x, y, threat, stages, seed, batch_size, precision, clean, index, save, progress)
        run.resume(state)
        for number in range(len(stages)):
            run.stage(number)
        return run.result()


class _Run:
    state: AutoAttackState

    def __init__(
        self,
        predict: Predict,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        stages: tuple[AutoAttackStage, ...],
        seed: int,
        batch_size: int,
        precision: Precision,
        clean: Tensor,
        index: Tensor | None,
        save: Callable[[AutoAttackState], None] | None,
        report: Callable[[int, int, str], None] | None,
    ) -> None:
        self.predict, self.x, self.y, self.threat, self.stages = predict, x, y, threat, stages
        self.seed, self.batch_size = seed, batch_size
        self.clean = clean
        self.ids = (torch.arange(len(x)) if index is None else index).tolist()
        self.save, self.report = save, report
        self.reported = 0.0
        self.light, self.rough = self._copies(precision)

    def _copies(self, precision: Precision) -> tuple[Predict | None, Predict | None]:
        # A copy of a model that draws random numbers may draw them once and for all.
        random = any(stage.repeats > 1 for stage in self.stages)
        light = None
        if isinstance(self.predict, nn.Module) and not random:
            light = folded_copy(self.predict, self.x)
        if precision == "exact":
            return light, None
        rough = None if light is None else tried_bf16_copy(light, self.x)
        return light, rough or (lambda x: _autocast(self.predict, x))

    def resume(self, state: AutoAttackState | None) -> None:
        """Go on from a state, or decide the clean images."""
        conditions = f"{self.stages} {self.threat} seed={self.seed} images={len(self.x)}"
        if state is not None:
            if state.conditions != conditions:
                raise RunError(
                    f"the saved state belongs to {state.conditions}, not to {conditions}: "
                    "repeat the settings it was made with, or begin a new run"
                )
            self.state = state
            return
        self.state = AutoAttackState.begin(conditions, self.x, len(self.stages))
        margins = margin(self.clean, self.y).cpu()
        wrong = (self.clean.argmax(dim=1) != self.y).cpu()
        self.state.broken_by[wrong] = WRONG_ON_CLEAN
        self.state.margin = torch.where(wrong, margins, margins.clamp(max=0))

    def stage(self, number: int) -> None:
        """Run one attack on the images that are left for it."""
        stage, state = self.stages[number], self.state
        pending = ((state.stages_done <= number) & (state.broken_by == ROBUST)).nonzero().squeeze(1)
        if not len(pending):
            return
        if stage.name == "square":
            self._square(stage, number, pending)
            return
        if self.rough is not None and stage.loss:
            pending = self._pool(stage, number, pending, self.rough, again=_AGAIN)
            if not len(pending):
                return
            # With the same draws, so that these images fare as they do in exact mode.
            self._pool(stage, number, pending, None)
            return
        self._pool(stage, number, pending, self.rough)

    def _pool(
        self, stage: AutoAttackStage, number: int, pending: Tensor, rough: Predict | None, again: float | None = None
    ) -> Tensor:
        """Search with gradients around the images pending; those whose margins are too near to tell, by their index.

        Args:
            stage: the attack.
            number: of the stage.
            pending: the images' places in x.
            rough: gives the gradients; None: the light copy does.
            again: images that withstood by less than this share of their largest clean logit stay undecided.
        """
        search = Search(self.predict, self.threat, light=self.light, rough=rough, repeats=stage.repeats)
        books = _Books(self, number, search, pending, again)
        search.on_pass = books.report
        where = pending.to(self.x.device)
        run_pool(
            self._attack(stage, search, pending),
            search,
            self.x[where].contiguous(memory_format=torch.channels_last),
            self.y[where],
            num_variants=stage.variants,
            batch_size=self.batch_size,
            on_done=books.enter,
        )
        books.close()
        return torch.cat(books.undecided).sort().values

    def _attack(self, stage: AutoAttackStage, search: Search, pending: Tensor) -> Attack[Any]:
        def draws(image: Tensor, variant: Tensor) -> list[torch.Generator]:
            pairs = zip(image.tolist(), variant.tolist(), strict=True)
            return [self._generator(stage.name, self.ids[int(pending[i])], v) for i, v in pairs]

        order = self.clean[pending.to(self.clean.device)].argsort(dim=1, descending=True, stable=True)

        def aim(image: Tensor, variant: Tensor) -> Tensor:
            # The class of the next largest logit, and so on downwards; the largest is the label.
            return order[image, variant + 1]

        targets = aim if stage.targeted else None
        if not stage.loss:
            return FAB(search, steps=stage.steps, draws=draws, targets=targets)
        if self.threat.norm == "l1":
            return SparseAPGD(
                search, stage.loss, steps=stage.steps, draws=draws, targets=targets, shrinking=stage.shrinking
            )
        return APGD(search, stage.loss, steps=stage.steps, draws=draws, targets=targets)

    def _square(self, stage: AutoAttackStage, number: int, pending: Tensor) -> None:
        search = Search(self.predict, self.threat, light=self.light)
        books = _Books(self, number, search, pending)
        search.on_pass = books.report
        where = pending.to(self.x.device)
        x, y = self.x[where].contiguous(memory_format=torch.channels_last), self.y[where]
        plan = Plan.draw(stage.steps, x.shape[1], generator(self.seed, stage.name, "plan"))

        def signs(image: Tensor, count: int) -> Tensor:
            own = [self._generator(stage.name, self.ids[int(pending[i])], 0) for i in image.tolist()]
            return torch.stack([torch.rand(count, generator=g, device=g.device).sub_(0.5).sign_() for g in own])

        attack = Square(search, queries=stage.steps, plan=plan, signs=signs, canvas=self._canvas(search, x))
        for chunk in torch.split(torch.arange(len(x), device=x.device), self.batch_size):
            found = attack.run(x[chunk], y[chunk], chunk)
            books.enter(torch.arange(len(chunk), device=x.device), found, offset=int(chunk[0]))
        books.close()

    def _canvas(self, search: Search, x: Tensor) -> Callable[[Tensor], Canvas]:
        # The bumps of l2 and l1 rescale the whole image; only the patches of l∞ leave the rest as it is.
        if isinstance(self.light, fx.GraphModule) and self.threat.norm == "linf":
            network = WindowedNetwork(self.light, x[:1])
            return lambda images: WindowedCanvas(search, network, images)
        return lambda images: PlainCanvas(search, images)

    def _generator(self, *purpose: str | int) -> torch.Generator:
        return generator(self.seed, *purpose, device=self.x.device)

    def result(self) -> AutoAttackResult:
        """The state as a result."""
        state, device = self.state, self.x.device
        return AutoAttackResult(
            robust=(state.broken_by == ROBUST).to(device),
            broken_by=state.broken_by.to(device, torch.int8),
            stages=tuple(stage.name for stage in self.stages),
            x_adv=state.x_adv.to(device),
            margin=state.margin.to(device),
            seconds=tuple(state.seconds.tolist()),
            model_seconds=tuple(state.model_seconds.tolist()),
            passes=tuple(state.passes.tolist()),
            light=self.light is not None,
        )


class _Books:
    """Enters what one stage finds into the run's state, and tells how far it is."""

    def __init__(self, run: _Run, number: int, search: Search, pending: Tensor, again: float | None = None) -> None:
        self.run, self.number, self.search, self.pending = run, number, search, pending
        self.again = again
        self.undecided = [pending[:0]]
        self.unsaved = 0
        self.settled = 0
        self.entered = (time.perf_counter(), 0.0, 0)

    def enter(self, images: Tensor, found: Found, offset: int = 0) -> None:
        """Images that are decided, by their place in `found`; `offset` is that of `found` in the stage's images."""
        state, rows = self.run.state, self.pending[images.cpu() + offset]
        if self.again is not None:
            images, rows = self._without_undecided(images, rows, found)
        broken = found.broken[images].cpu()
        state.broken_by[rows[broken]] = self.number
        state.x_adv[rows[broken]] = found.x_adv[images].cpu()[broken]
        margins = found.margin[images].float().cpu()
        state.margin[rows] = torch.where(broken, margins, torch.maximum(margins, state.margin[rows]))
        state.stages_done[rows] = self.number + 1
        self.settled += int((~broken).sum())
        self.unsaved += len(rows)
        if self.unsaved >= self.run.batch_size:
            self.close()

    def _without_undecided(self, images: Tensor, rows: Tensor, found: Found) -> tuple[Tensor, Tensor]:
        assert self.again is not None
        scale = self.run.clean.cpu()[rows].abs().amax(dim=1)
        near = ~found.broken[images].cpu() & (found.margin[images].cpu() >= -self.again * scale)
        self.undecided.append(rows[near])
        return images[(~near).to(images.device)], rows[~near]

    def close(self) -> None:
        """Add up the costs, and hand the state out to be saved."""
        now = (time.perf_counter(), self.search.seconds, self.search.passes)
        state, number = self.run.state, self.number
        state.seconds[number] += now[0] - self.entered[0]
        state.model_seconds[number] += now[1] - self.entered[1]
        state.passes[number] += now[2] - self.entered[2]
        self.entered = now
        if self.unsaved and self.run.save is not None:
            self.run.save(state)
        self.unsaved = 0

    def report(self) -> None:
        """Tell the passes done and expected, now and then."""
        run = self.run
        if run.report is None or time.perf_counter() - run.reported < _REPORT_EVERY:
            return
        run.reported = time.perf_counter()
        standing = run.state.stages_done[run.state.broken_by == ROBUST]
        rest = sum(int((standing <= n).sum()) * stage.units for n, stage in enumerate(run.stages))
        # What the undecided images of this stage have cost so far is not to come any more.
        units = run.stages[self.number].units
        undecided = int((standing <= self.number).sum()) * units
        begun = min(max(self.search.passes - self.settled * units, 0), undecided)
        done = int(run.state.passes.sum()) + self.search.passes - self.entered[2]
        run.report(done, done + rest - begun, run.stages[self.number].name)


def _check_arguments(x: Tensor, y: Tensor, batch_size: int, precision: str) -> None:
    if precision not in ("exact", "fast"):
        raise ConfigError(f"precision {precision!r} is unknown: expected exact or fast")
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: expected at least 1")
    if x.ndim != 4 or x.dtype != torch.float32 or not len(x):
        raise DataError(f"images are {x.dtype} {list(x.shape)}: expected float32 [N,C,H,W] in [0,1]")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise DataError(f"labels are {y.dtype} {list(y.shape)}: expected int64 [{len(x)}], one for each image")
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise DataError("images hold values outside [0,1] or NaN: divide bytes by 255, and normalise inside the model")


def _clean_logits(predict: Predict, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        outputs = [predict(chunk) for chunk in torch.split(x, batch_size)]
    if not all(isinstance(each, Tensor) and each.ndim == 2 and each.shape[1] > 1 for each in outputs):
        raise ModelError("the model's output is no tensor [N,K] with K of at least 2: expected the logits alone")
    logits = torch.cat(outputs).float()
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise DataError(
            f"labels range from {int(y.min())} to {int(y.max())}: the model's classes are 0 to {logits.shape[1] - 1}"
        )
    return logits


def _autocast(predict: Predict, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return predict(x)
