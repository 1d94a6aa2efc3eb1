"""AutoAttack: several attacks one after the other, each on the images that withstood the ones before."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from robustill.acceleration.folding import folded_copy, try_bf16_copy
from robustill.acceleration.windowed import windowed_network
from robustill.attacks.apgd import APGD
from robustill.attacks.apgd_l1 import SparseAPGD
from robustill.attacks.canvas import Canvas, PlainCanvas, WindowedCanvas
from robustill.attacks.fab import FAB
from robustill.attacks.pool import Attack, SearchResult, run_pool
from robustill.attacks.search import Predict, Search
from robustill.attacks.square import SharedDraws, Square
from robustill.attacks.stages import AutoAttackStage, Version, resolve_stages
from robustill.attacks.state import AutoAttackState
from robustill.core.chance import GUESSING, is_near_chance
from robustill.core.checksums import sha256
from robustill.core.contexts import evaluating, frozen, full_float32
from robustill.core.contract import check_network
from robustill.core.errors import DataError, ModelError, RunError
from robustill.core.fingerprint import FAILED, RANDOM, Fingerprint, compute_fingerprint
from robustill.core.memory_format import accepting_channels_last
from robustill.core.progress import Progress
from robustill.core.randomness import generator
from robustill.core.validation import (
    check_callable,
    check_choice,
    check_images,
    check_integer,
    check_label_range,
    check_labels,
    check_seed,
    check_type,
    describe,
)
from robustill.data.images import DARKEST_WHITE
from robustill.losses import margin
from robustill.threat import Threat

Precision = Literal["exact", "fast"]
Report = Callable[[int, int, str], None]
"""Called with the passes done, the passes expected in all, and the name of the attack that runs."""

WRONG_ON_CLEAN = -2
ROBUST = -1
# In fast mode an image that withstood APGD by less than this share of its largest clean logit is attacked again in
# float32, because bfloat16 gradients may have missed a success.
_UNDECIDED_SHARE = 1e-2
# A clean margin below this share of the largest logit may have another sign on another device.
_CLEAN_ROUNDING = 1e-3
# Images on which the model is checked first.
_NUM_PROBE_IMAGES = 16
# Number of images from which on an accuracy at chance is said to be.
_NUM_GUESSED = 32
# Seconds between two calls of the progress callback.
_PROGRESS_INTERVAL = 0.5


@dataclass(frozen=True)
class AutoAttackResult:
    """The result of AutoAttack, image by image.

    Args:
        robust: whether the clean image is classified correctly and no attack succeeded, bool [N].
        broken_by: index into `stages`; −1 where robust, −2 where the clean image is misclassified; int8 [N].
        stages: names of the attacks that ran.
        x_adv: confirmed successes; elsewhere the clean images, [N,C,H,W].
        margin: max_{k≠y} z_k − z_y of x_adv where not robust (positive), else the largest that an attack found, [N].
        seconds: spent in each stage.
        model_seconds: the part of them spent in passes through the model.
        passes: of one image, forward or backward, in each stage.
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
        """Return one line with the numbers of robust images and of those that each attack broke first."""
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
    progress: Report | bool | None = None,
    check: bool = True,
    **budgets: Any,
) -> AutoAttackResult:
    """Attack images with AutoAttack, the ensemble of attacks by which robust accuracy is commonly reported.

    Each success is confirmed in float32 by `predict` itself, inside the threat, before it counts. The random numbers of
    an image are a function of (seed, attack, its index, restart), so its result depends on no other image.

    Args:
        predict: images [B,C,H,W] in [0,1] to logits [B,K]. A Module is put into eval mode for the time of the call.
        x: clean images in [0,1], float32 [N,C,H,W].
        y: labels, int64 [N].
        threat: the images allowed, or text such as "linf:8/255".
        version: "standard" (APGD-CE, APGD-T, FAB-T, Square), "plus", "rand" for models that draw random numbers, or a
            list of attacks: apgd-ce, apgd-dlr, apgd-t, apgd-ce-t, fab, fab-t, square.
        seed: of all random numbers.
        batch_size: number of searches in a batch, at least one image's.
        precision: "fast" computes gradients in bfloat16; decisions, all of Square, and APGD on images that it nearly
            broke stay in float32.
        index: an id of each image for its random numbers, int64 [N]; None for its index in x.
        state: a state that `save` was called with, to resume from; it is written to.
        save: called with the state after each batch of decided images.
        progress: True shows a progress bar on stderr if the call takes more than two seconds, False none, and None one
            where stderr is a terminal. A function is called every half second at most instead, with the passes done,
            the passes expected in all, and the name of the attack.
        check: first check that images are not black, and the model on a few of them; a caller that has done so may
            leave that out.
        budgets: steps of a gradient attack (100), queries of Square (5000), restarts of untargeted attacks (1 in
            "standard" and "rand", else 5), targets of targeted attacks (9), and repeats, the gradients averaged in a
            step of APGD (20 in "rand", else 1). Against l1 "standard" has 5 restarts and 5 targets of APGD.

    Raises:
        ConfigError: the version, the attack, the precision, a budget or the threat is invalid.
        DataError: the images or the labels are invalid.
        ModelError: the model breaks the contract, or gives NaN or infinite logits on an image of an attack.
        RunError: the state is that of a run with other settings, images or labels, or of another network.

    Reference: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks".
    """
    _check_arguments(predict, x, y, seed, batch_size, precision)
    _check_resumption(len(x), index, state, save, progress)
    threat = Threat.parse(threat)
    implausible = check and _warn_of_pixels(x)
    if check:
        needs_gradient = version not in (["square"], ("square",))
        for line in check_network(predict, x[:_NUM_PROBE_IMAGES], None, "the model", differentiable=needs_gradient):
            warnings.warn(line, stacklevel=2)
    with ExitStack() as stack:
        if isinstance(predict, nn.Module):
            stack.enter_context(evaluating(predict))
            stack.enter_context(frozen(predict))
        x = x.detach()
        predict = stack.enter_context(accepting_channels_last(predict, x))
        clean_logits = _compute_clean_logits(predict, x, y, batch_size)
        stages = resolve_stages(version, threat.norm, clean_logits.shape[1], **budgets)
        report = stack.enter_context(_reporting(progress, state))
        run = _Run(predict, x, y, threat, stages, seed, batch_size, precision, clean_logits, index, save, report)
        run.resume(state)
        if check and not implausible:
            _warn_of_guessing(clean_logits, y)
        for number in range(len(stages)):
            run.run_stage(number)
        return run.result()


class _Run:
    """One call of `autoattack`: its arguments, the copies of the model and the state."""

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
        clean_logits: Tensor,
        index: Tensor | None,
        save: Callable[[AutoAttackState], None] | None,
        progress: Report | None,
    ) -> None:
        self.predict, self.x, self.y, self.threat, self.stages = predict, x, y, threat, stages
        self.seed, self.batch_size, self.precision = seed, batch_size, precision
        self.clean_logits = clean_logits
        self.ids = (torch.arange(len(x)) if index is None else index).tolist()
        self.save, self.progress = save, progress
        self.last_progress = 0.0
        self.folded, self.bf16 = self._copy_model()

    def _compute_fingerprint(self) -> Fingerprint:
        return compute_fingerprint(self.predict, self.x.shape[1:], device=self.x.device, images=self.x)

    def _copy_model(self) -> tuple[Predict | None, Predict | None]:
        """Return the folded copy and the bfloat16 one, each None if there is none or it is not needed."""
        # A traced copy of a model that draws random numbers may contain one draw as a constant.
        random = any(stage.repeats > 1 for stage in self.stages)
        folded = None
        if isinstance(self.predict, nn.Module) and not random:
            folded = folded_copy(self.predict, self.x)
        if self.precision == "exact":
            return folded, None
        copied = None if folded is None else try_bf16_copy(folded, self.x)
        return folded, copied or (lambda x: _predict_under_autocast(self.predict, x))

    def resume(self, state: AutoAttackState | None) -> None:
        """Resume from a state, or create one in which the misclassified clean images are decided."""
        # States are saved with the class name of earlier versions, so that they can be resumed by both.
        stages = repr(self.stages).replace("AutoAttackStage(", "Stage(")
        conditions = f"{stages} {self.threat} seed={self.seed} images={len(self.x)}"
        # The defaults are left out, as in states of earlier versions.
        if self.precision != "exact":
            conditions += f" precision={self.precision}"
        if self.ids != list(range(len(self.x))):
            conditions += f" index={sha256(json.dumps(self.ids).encode())[:12]}"
        if state is not None:
            if state.conditions != conditions:
                raise RunError(
                    f"the saved state belongs to {state.conditions}, not to {conditions}: "
                    "repeat the settings it was made with, or begin a new run"
                )
            self._check_images(state)
            self._check_network(state)
            self.state = state
            return
        self.state = AutoAttackState.initial(conditions, self.x, len(self.stages))
        if self.save is not None:
            self.state.fingerprint = self._compute_fingerprint().to_json()
        margins = margin(self.clean_logits, self.y).cpu()
        wrong = (self.clean_logits.argmax(dim=1) != self.y).cpu()
        self.state.broken_by[wrong] = WRONG_ON_CLEAN
        self.state.margin = torch.where(wrong, margins, margins.clamp(max=0))

    def _check_images(self, state: AutoAttackState) -> None:
        """Refuse a state whose images are not those of this run, or outside the threat around them."""
        x_adv, is_broken = state.x_adv.to(self.x), (state.broken_by >= 0).to(self.x.device)
        if x_adv.shape != self.x.shape:
            raise RunError(
                f"the saved state holds images of shape {list(x_adv.shape)}, not {list(self.x.shape)}: "
                "repeat the images it was made with, or begin a new run"
            )
        is_same = (x_adv == self.x).flatten(1).all(dim=1)
        num_other = int((~torch.where(is_broken, self.threat.contains(x_adv, self.x), is_same)).sum())
        if num_other:
            raise RunError(
                f"the saved state belongs to other images ({num_other} of {len(self.x)} are not those of this run, or "
                f"outside {self.threat} around them): repeat the images it was made with, or begin a new run"
            )

    def _check_network(self, state: AutoAttackState) -> None:
        """Refuse a state of another network or of other labels; say where only the weights could be compared."""
        fingerprint = self._compute_fingerprint()
        difference = fingerprint.difference(state.fingerprint)
        if difference is None and fingerprint.note != RANDOM:
            num_other = self._count_contradictions(state)
            if num_other:
                difference = f"the predictions on {num_other} of its clean images differ"
        if difference is not None:
            raise RunError(
                f"the saved state belongs to another network or to other labels ({difference}): "
                "repeat those it was made with, or begin a new run"
            )
        if fingerprint.note and fingerprint.note != FAILED:
            warnings.warn(
                f"a state is resumed whose network {fingerprint.note}: only its weights were compared, not its code",
                stacklevel=5,
            )

    def _count_contradictions(self, state: AutoAttackState) -> int:
        """Return the number of clean images that are clearly misclassified by the state or by the network, not both."""
        margins = margin(self.clean_logits, self.y).cpu()
        rounding = _CLEAN_ROUNDING * self.clean_logits.abs().amax(dim=1).cpu()
        was_wrong = state.broken_by == WRONG_ON_CLEAN
        return int(torch.where(was_wrong, margins < -rounding, margins > rounding).sum())

    def run_stage(self, number: int) -> None:
        """Run one attack on the images that have withstood the ones before."""
        stage, state = self.stages[number], self.state
        pending = ((state.stages_done <= number) & (state.broken_by == ROBUST)).nonzero().squeeze(1)
        if not len(pending):
            return
        if stage.name == "square":
            self._run_square(stage, number, pending)
            return
        if self.bf16 is not None and stage.loss:
            pending = self._run_gradient_attack(stage, number, pending, self.bf16, undecided_share=_UNDECIDED_SHARE)
            if not len(pending):
                return
            # With the same random numbers, so that the result for these images is that of exact mode.
            self._run_gradient_attack(stage, number, pending, None)
            return
        self._run_gradient_attack(stage, number, pending, self.bf16)

    def _run_gradient_attack(
        self,
        stage: AutoAttackStage,
        number: int,
        pending: Tensor,
        bf16: Predict | None,
        undecided_share: float | None = None,
    ) -> Tensor:
        """Run APGD or FAB on the pending images, and return the indices of those that remain undecided.

        Args:
            stage: the attack.
            number: index of the stage.
            pending: indices of the images.
            bf16: the model for gradients; None uses the folded copy.
            undecided_share: images that withstood by less than this share of their largest clean logit are undecided.
        """
        search = Search(self.predict, self.threat, folded=self.folded, bf16=bf16, repeats=stage.repeats)
        recorder = _StageRecorder(self, number, search, pending, undecided_share)
        search.on_pass = recorder.report_progress
        index = pending.to(self.x.device)
        run_pool(
            self._gradient_attack(stage, search, pending),
            search,
            self.x[index].contiguous(memory_format=torch.channels_last),
            self.y[index],
            num_variants=stage.variants,
            batch_size=self.batch_size,
            on_decided=recorder.record,
        )
        recorder.flush()
        return torch.cat(recorder.undecided).sort().values

    def _gradient_attack(self, stage: AutoAttackStage, search: Search, pending: Tensor) -> Attack[Any]:
        def generators(image: Tensor, variant: Tensor) -> list[torch.Generator]:
            pairs = zip(image.tolist(), variant.tolist(), strict=True)
            return [self._generator(stage.name, self.ids[int(pending[i])], v) for i, v in pairs]

        order = self.clean_logits[pending.to(self.clean_logits.device)].argsort(dim=1, descending=True, stable=True)

        def target_class(image: Tensor, variant: Tensor) -> Tensor:
            # The classes in descending order of their clean logits, after the first, which is the label.
            return order[image, variant + 1]

        targets = target_class if stage.targeted else None
        if not stage.loss:
            return FAB(search, steps=stage.steps, generators=generators, targets=targets)
        if self.threat.norm == "l1":
            return SparseAPGD(
                search,
                stage.loss,
                steps=stage.steps,
                generators=generators,
                targets=targets,
                shrinking=stage.shrinking,
            )
        return APGD(search, stage.loss, steps=stage.steps, generators=generators, targets=targets)

    def _run_square(self, stage: AutoAttackStage, number: int, pending: Tensor) -> None:
        search = Search(self.predict, self.threat, folded=self.folded)
        recorder = _StageRecorder(self, number, search, pending)
        search.on_pass = recorder.report_progress
        index = pending.to(self.x.device)
        x, y = self.x[index].contiguous(memory_format=torch.channels_last), self.y[index]
        draws = SharedDraws.draw(stage.steps, x.shape[1], generator(self.seed, stage.name, "plan"))

        def signs(image: Tensor, count: int) -> Tensor:
            own = [self._generator(stage.name, self.ids[int(pending[i])], 0) for i in image.tolist()]
            return torch.stack([torch.rand(count, generator=g, device=g.device).sub_(0.5).sign_() for g in own])

        attack = Square(search, queries=stage.steps, draws=draws, signs=signs, canvas=self._canvas(search, x))
        for chunk in torch.split(torch.arange(len(x), device=x.device), self.batch_size):
            result = attack.run(x[chunk], y[chunk], chunk)
            recorder.record(torch.arange(len(chunk), device=x.device), result, offset=int(chunk[0]))
        recorder.flush()

    def _canvas(self, search: Search, x: Tensor) -> Callable[[Tensor], Canvas]:
        """Return the function from images to their canvas."""
        # The bumps of l2 and l1 rescale the whole image; only the patches of l∞ leave the rest of it unchanged.
        if isinstance(self.folded, fx.GraphModule) and self.threat.norm == "linf":
            network = windowed_network(self.folded, x[:1])
            if network is not None:
                return lambda images: WindowedCanvas(search, network, images)
        return lambda images: PlainCanvas(search, images)

    def _generator(self, *purpose: str | int) -> torch.Generator:
        return generator(self.seed, *purpose, device=self.x.device)

    def result(self) -> AutoAttackResult:
        """Return the state as a result."""
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
            light=self.folded is not None,
        )


class _StageRecorder:
    """Writes the results of one stage into the run's state, saves it and reports progress."""

    def __init__(
        self, run: _Run, number: int, search: Search, pending: Tensor, undecided_share: float | None = None
    ) -> None:
        self.run, self.number, self.search, self.pending = run, number, search, pending
        self.undecided_share = undecided_share
        self.undecided = [pending[:0]]
        self.unsaved = 0
        self.withstood = 0
        # Time, and the seconds and passes of the search, when they were last added to the state.
        self.flushed = (time.perf_counter(), 0.0, 0)

    def record(self, images: Tensor, result: SearchResult, offset: int = 0) -> None:
        """Write the results of decided images into the state.

        Args:
            images: their indices in `result`.
            result: of all images of the stage, or a part of them.
            offset: index in the stage of the first image of `result`.
        """
        self.search.check_finite()
        state, rows = self.run.state, self.pending[images.cpu() + offset]
        if self.undecided_share is not None:
            images, rows = self._drop_undecided(images, rows, result, self.undecided_share)
        broken = result.broken[images].cpu()
        state.broken_by[rows[broken]] = self.number
        state.x_adv[rows[broken]] = result.x_adv[images].cpu()[broken]
        margins = result.margin[images].float().cpu()
        state.margin[rows] = torch.where(broken, margins, torch.maximum(margins, state.margin[rows]))
        state.stages_done[rows] = self.number + 1
        self.withstood += int((~broken).sum())
        self.unsaved += len(rows)
        if self.unsaved >= self.run.batch_size:
            self.flush()

    def _drop_undecided(
        self, images: Tensor, rows: Tensor, result: SearchResult, share: float
    ) -> tuple[Tensor, Tensor]:
        scale = self.run.clean_logits.cpu()[rows].abs().amax(dim=1)
        undecided = ~result.broken[images].cpu() & (result.margin[images].cpu() >= -share * scale)
        self.undecided.append(rows[undecided])
        return images[(~undecided).to(images.device)], rows[~undecided]

    def flush(self) -> None:
        """Add the time and the passes since the last call to the state, and save it."""
        now = (time.perf_counter(), self.search.seconds, self.search.passes)
        state, number = self.run.state, self.number
        state.seconds[number] += now[0] - self.flushed[0]
        state.model_seconds[number] += now[1] - self.flushed[1]
        state.passes[number] += now[2] - self.flushed[2]
        self.flushed = now
        if self.unsaved and self.run.save is not None:
            self.run.save(state)
        self.unsaved = 0

    def report_progress(self) -> None:
        """Call the progress callback with the passes done and expected, unless it was called a moment ago."""
        run = self.run
        if run.progress is None or time.perf_counter() - run.last_progress < _PROGRESS_INTERVAL:
            return
        run.last_progress = time.perf_counter()
        stages_done = run.state.stages_done[run.state.broken_by == ROBUST]
        remaining = sum(int((stages_done <= n).sum()) * stage.passes_per_image for n, stage in enumerate(run.stages))
        # The passes that undecided images of this stage have taken so far are among those done.
        passes_per_image = run.stages[self.number].passes_per_image
        undecided = int((stages_done <= self.number).sum()) * passes_per_image
        in_progress = min(max(self.search.passes - self.withstood * passes_per_image, 0), undecided)
        done = int(run.state.passes.sum()) + self.search.passes - self.flushed[2]
        run.progress(done, done + remaining - in_progress, run.stages[self.number].name)


def _check_arguments(predict: Predict, x: Tensor, y: Tensor, seed: int, batch_size: int, precision: str) -> None:
    check_callable("predict", predict, "a network, images [B,C,H,W] to logits [B,K]")
    check_choice("precision", precision, get_args(Precision))
    check_integer("batch_size", batch_size, at_least=1)
    check_seed(seed)
    check_images(x, values=True)
    if x.dtype != torch.float32:
        raise DataError(f"x is {describe(x)}, expected float32 [N,C,H,W] in [0,1]: convert it with .float()")
    check_labels(y, len(x))
    if y.device != x.device:
        raise DataError(f"y is on {y.device}, expected the device of x, {x.device}")


def _warn_of_pixels(x: Tensor) -> bool:
    """Warn of images that nobody can mean, such as black ones; return whether they are such. This waits for a GPU."""
    lowest, highest = torch.stack(x.detach().aminmax()).tolist()
    line = None
    if lowest == highest:
        line = f"every value of x is {lowest:g}: look at how the images were read"
    elif highest <= DARKEST_WHITE / 255:
        line = f"no value of x is above {highest:.3g}, so the images are nearly black: were they divided by 255 twice?"
    if line is not None:
        warnings.warn(line, stacklevel=4)
    return line is not None


def _warn_of_guessing(clean_logits: Tensor, y: Tensor) -> None:
    """Warn where the clean accuracy is that of guessing; of fewer images no number can tell."""
    (N, K), num_correct = clean_logits.shape, int((clean_logits.argmax(dim=1) == y).sum())
    if N >= _NUM_GUESSED and is_near_chance(num_correct, N, K):
        warnings.warn(
            f"the model is {GUESSING} among {K} classes: right on {num_correct} of {N} clean images; look for "
            "untrained weights, another order of the classes, or another normalisation",
            stacklevel=4,
        )


def _check_resumption(count: int, index: Any, state: Any, save: Any, progress: Any) -> None:
    if index is not None:
        check_labels(index, count, "index")
    if state is not None:
        check_type("state", state, AutoAttackState, "a state that `save` was called with")
    if save is not None:
        check_callable("save", save, "a function or None")
    if progress is not None and not isinstance(progress, bool):
        check_callable("progress", progress, "True, False, None or a function")


@contextmanager
def _reporting(progress: Report | bool | None, state: AutoAttackState | None) -> Iterator[Report | None]:
    """Yield the function that is told of the progress; None where nobody wants to know."""
    if callable(progress):
        yield progress
        return
    if not (sys.stderr.isatty() if progress is None else progress):
        yield None
        return
    done = 0 if state is None else int(state.passes.sum())
    with Progress("autoattack", total=0, unit="passes", done=done, delay=2) as bar:

        def report(done: int, expected: int, attack: str) -> None:
            bar.total = expected
            bar.advance(done - bar.done, attack)

        yield report
        bar.stop("")


def _compute_clean_logits(predict: Predict, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        outputs = [predict(chunk) for chunk in torch.split(x, batch_size)]
    if not all(isinstance(each, Tensor) and each.ndim == 2 and each.shape[1] > 1 for each in outputs):
        raise ModelError("the model's output is no tensor [N,K] with K of at least 2: expected the logits alone")
    logits = torch.cat(outputs).float()
    check_label_range(y, logits.shape[1])
    return logits


def _predict_under_autocast(predict: Predict, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return predict(x)
