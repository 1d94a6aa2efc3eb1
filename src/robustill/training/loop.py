"""The training loop: one run, from its configuration to its directory; the same call on the same directory goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from robustill.config import recipes
from robustill.config.files import dump_config
from robustill.config.schema import Config
from robustill.core.device import (
    configure_process,
    explaining_out_of_memory,
    largest_fitting_batch,
    out_of_memory_advice,
)
from robustill.core.distributed import (
    ProcessGroup,
    SyncBatchNormMode,
    all_reduce_gradients,
    local_device,
    process_group,
)
from robustill.core.errors import RunError, first_line
from robustill.core.progress import Progress
from robustill.core.randomness import derive_seed, generator
from robustill.core.signals import Interrupted, Stop
from robustill.runs.checkpoints import Checkpoint
from robustill.runs.directory import RunDirectory
from robustill.threat import Threat
from robustill.training import diagnostics
from robustill.training.averaging import EMA, SWA, estimate_statistics
from robustill.training.batches import Batches
from robustill.training.optimizer import build_optimizer, grown, rate_factor
from robustill.training.provenance import begin, describe
from robustill.training.recorder import Recorder
from robustill.training.setup import TrainingSetup, build_step, check_shares, prepare
from robustill.training.validation import validation_metrics


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training left behind.

    Args:
        run: the run directory.
        best: the epoch with the best robust accuracy on the held-out part, counted from 1.
        metrics: one line an epoch.
    """

    run: Path
    best: int
    metrics: list[dict[str, Any]]


def train(config: Config | str, run: Path | str, *, progress: bool = True) -> TrainResult:
    """Train one student, or go on with it where an earlier call stopped.

    Inside `distributed.torchrun_group`, the processes share every batch, and compute what one alone would, up to
    rounding; a run may go on with another number of them.

    Args:
        config: the whole configuration; or what `recipe` makes one of, the name of a recipe or a .yaml file.
        run: the run directory; made if it is missing.
        progress: show a bar with images/s and the time left.

    Returns:
        The run, complete.

    Raises:
        RobustillError: a setting, a file or a teacher that cannot be; nothing is written then.
        Interrupted: by SIGINT or SIGTERM: at the end of a step, of which all is kept; of several processes at once.
    """
    config = config if isinstance(config, Config) else recipes.resolve(config)
    group, device = process_group(), local_device(configure_process(config.compute))
    directory, pieces = RunDirectory(run), prepare(config, device)
    drawing = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with directory.locked() if group.is_main else nullcontext(), drawing:
        loop = _Loop(config, directory, pieces, device, group)
        if group.is_main:
            begin(directory, dump_config(config))
            describe(directory, config, pieces, shown=progress)
        # Processes that share their batches cannot tell each other after which step to end.
        with Stop(at_once=group.world_size > 1) as loop.stop:
            loop.resume()
            with explaining_out_of_memory(loop.what_fits):
                loop.run(progress and group.is_main)
        group.barrier()
    return TrainResult(run=directory.path, best=directory.checkpoints.pointed("best") or 0, metrics=directory.metrics())


class _Loop:
    """All state that the loop needs to go on, in one place."""

    def __init__(
        self, config: Config, directory: RunDirectory, pieces: TrainingSetup, device: torch.device, group: ProcessGroup
    ) -> None:
        self.config, self.directory, self.pieces, self.device, self.group = config, directory, pieces, device, group
        check_shares(config, pieces, group)
        self.student, optim = pieces.student, config.optim
        self.step = build_step(config, pieces)
        self.optimizer = build_optimizer(
            [self.student, pieces.method],
            optim.name,
            learning_rate=optim.learning_rate,
            weight_decay=optim.weight_decay,
            decay_all=optim.decay_all,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
        )
        self.ema = EMA(self.student, optim.ema) if optim.ema is not None else None
        self.swa = SWA(self.student) if optim.swa is not None else None
        self.recorder: Recorder | None = None
        if config.dynamics.record:
            self.recorder = Recorder(
                directory.path, config.dynamics.clean_every, pieces.split, optim.epochs, device, group
            )
            self.step.on_step = self.recorder.record
        self.batches = Batches(config, pieces, group)
        self.stop = Stop()
        self.epochs_done = self.rollbacks = 0
        # Of the epoch that is being trained: steps behind it, seconds spent, and sums of loss, right ones and images.
        self.sums = torch.zeros(3, device=device, dtype=torch.float64)
        self._begin_epoch()

    def resume(self) -> None:
        """Take up the newest whole checkpoint, and what was done of the epoch after it, if they are there."""
        self._go_on_from(self.group.broadcast(self.directory.checkpoints.latest() if self.group.is_main else None))
        kept = self.directory.checkpoints.load_unfinished(self.epochs_done + 1) if self.group.world_size == 1 else None
        if kept is not None:
            with _fitting(self.directory.checkpoints.unfinished_folder):
                self._take_up(kept)
        elif self.group.is_main:
            self.directory.checkpoints.forget_unfinished()

    def _go_on_from(self, found: Checkpoint | None) -> None:
        if found is not None:
            with _fitting(self.directory.checkpoints.folder(found.epoch)):
                self._load(found.model, found.state, found.ema)
                if self.swa is not None:
                    self.swa.model.load_state_dict(found.swa or self.swa.model.state_dict())
                    self.swa.count = found.state.get("swa_count", 0)
                self.epochs_done = found.epoch
        if self.recorder is not None:
            self.recorder.start(self.epochs_done)
        if self.group.is_main:
            self.directory.rewind(found)
            self.directory.checkpoints.choose(self.directory.metrics(), keep_every=self.config.keep_every)

    def _load(self, model: Mapping[str, Any], state: Mapping[str, Any], ema: Mapping[str, Any] | None) -> None:
        self.student.load_state_dict(model)
        self.pieces.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rollbacks = int(state.get("rollbacks", 0))
        if self.ema is not None:
            self.ema.model.load_state_dict(ema or {})
            self.ema.steps = state["ema_steps"]

    def _state(self) -> dict[str, Any]:
        states = {"method": self.pieces.method.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**states, "rollbacks": self.rollbacks, "ema_steps": 0 if self.ema is None else self.ema.steps}

    def _take_up(self, kept: dict[str, Any]) -> None:
        self._load(kept["model"], kept, kept["ema"])
        if self.recorder is not None:
            self.recorder.load_state(kept["recorder"])
        self.steps_done, self.seconds = int(kept["steps"]), float(kept["seconds"])
        self.sums.copy_(kept["sums"])

    def _end(self, number: int) -> NoReturn:
        """Keep what the epoch has come to, after a whole step, and end."""
        # What SWA has, is in the last checkpoint: it takes an epoch in when it is over.
        state = {
            **self._state(),
            "model": self.student.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "recorder": None if self.recorder is None else self.recorder.state(),
            "steps": self.steps_done,
            "seconds": self.seconds,
            "sums": self.sums,
        }
        where = f"step {self.steps_done} of {len(self.batches)} in epoch {(epoch := self.epochs_done + 1)}"
        with self._written(where):
            self.directory.checkpoints.save_unfinished(epoch, state)
        raise Interrupted(number, self._goes_on(where))

    def _goes_on(self, where: str) -> str:
        return f"{self.directory.path} is kept up to {where}: the same command goes on there"

    def run(self, progress: bool) -> None:
        """Train the epochs that are left."""
        optim, images = self.config.optim, len(self.pieces.loader.ids)
        label = f"{self.directory.path.name} ({self.config.method.name})"
        done = self.epochs_done * images + int(self.sums[2])
        with Progress(label, total=optim.epochs * images, done=done, unit="images", shown=progress) as bar:
            while self.epochs_done < optim.epochs and not self._out_of_patience():
                with SyncBatchNormMode() if self.group.world_size > 1 else nullcontext():
                    line = self._train_epoch(bar)
                if line is not None:
                    line |= {"seconds": round(self.seconds, 3), "images_per_second": round(images / self.seconds, 1)}
                    self._end_epoch(line, bar)
            if self.epochs_done < optim.epochs:
                best = self.directory.checkpoints.pointed("best")
                bar.stop(f"stopped early after epoch {self.epochs_done}, best held-out epoch {best}")

    def _end_epoch(self, line: dict[str, Any], bar: Progress) -> None:
        """Average, look at the held-out images, and keep all of it."""
        looks = line["epoch"] % self.config.validation.every == 0 or line["epoch"] == self.config.optim.epochs
        try:
            self._average()
            if looks:
                line |= self._validate()
                clean, robust = line["validation_clean_accuracy"], line["validation_robust_accuracy"]
                bar.advance(0, f"held out: clean {clean:.3f}, robust {robust:.3f}")
        except Interrupted as interrupted:
            if self.group.world_size > 1:
                raise
            self._end(interrupted.number)
        known = self.group.is_main and (self.directory.metrics(), self.directory.checkpoints.pointed("best"))
        before, best = self.group.broadcast(known)
        images = len(self.pieces.validation[1])
        fell = diagnostics.catastrophic_overfitting(before, line, images)
        if fell is not None and self._roll_back(best, f"epoch {line['epoch']}: {fell}"):
            return
        classes = self.pieces.shape.num_classes
        for said in diagnostics.warnings_of(before, line, images, classes) if self.group.is_main else ():
            warnings.warn(said, stacklevel=2)
        self.epochs_done += 1
        self._save(line, before)
        self._begin_epoch()
        if self.stop.signal is not None:
            raise Interrupted(self.stop.signal, self._goes_on(f"epoch {self.epochs_done}"))

    def what_fits(self) -> str:
        """What to do where the memory did not hold a part of a batch."""
        batch, _ = next(iter(self.batches.shares(self.epochs_done)))
        part = batch.split(self.config.optim.accumulate)[0]

        def attempt(images: int) -> None:
            torch.autograd.backward(self.step(part.part(slice(images))).loss.mean())

        self.optimizer.zero_grad(set_to_none=True)
        fit = largest_fitting_batch(attempt, len(part.y))
        way = f"in another --run give --optim.accumulate {-(-len(batch.y) // (fit or 1))}, or --optim.batch_size {fit}"
        return f"{len(part.y)} images at a time are too many for {self.device}: {out_of_memory_advice(fit, way)}"

    def _begin_epoch(self) -> None:
        self.steps_done, self.seconds = 0, 0.0
        self.sums.zero_()

    def _roll_back(self, epoch: int | None, why: str) -> bool:
        """Go back to a good epoch with half the learning rate, if there is one and that is still allowed.

        Nothing of the epoch that went wrong has been written, and what comes after the good one is removed before the
        training goes on: killed in between, the run comes here again.
        """
        if epoch is None or self.rollbacks >= self.config.optim.rollbacks:
            return False
        used, found = self.rollbacks + 1, self.directory.checkpoints.read(epoch) if self.group.is_main else None
        if self.group.is_main:
            warnings.warn(f"{why}; back to the end of epoch {epoch} with half the learning rate", stacklevel=3)
            self.directory.checkpoints.forget_after(epoch)
        self._go_on_from(self.group.broadcast(found))
        self.rollbacks = used
        self._begin_epoch()
        return True

    def _train_epoch(self, bar: Progress) -> dict[str, Any] | None:
        """Its line; None where it went wrong and the run went back."""
        config, epoch, number = self.config, self.epochs_done, len(self.batches)
        self.student.train()
        for module in self.pieces.frozen:
            module.eval()
        adversary = self._set_adversary(epoch)
        others = [self.group.rank] if self.group.rank else []
        began = time.perf_counter() - self.seconds
        for step, (batch, share) in enumerate(self.batches.shares(epoch, self.steps_done), self.steps_done):
            self._set_rate(epoch * number + step)
            # For networks with dropout: the mask, too, is a function of (seed, epoch, step).
            torch.manual_seed(derive_seed(config.seed, "network", epoch, step, *others))
            self.optimizer.zero_grad(set_to_none=True)
            draws = generator(config.seed, "attack", epoch, step, device=self.device)
            images = len(batch.y) if share is None else share.total
            for part, outcome in self.step.parts(batch, draws, config.optim.accumulate, share):
                torch.autograd.backward(outcome.loss.mean() * (len(part.y) / images))
                with torch.no_grad():
                    # On the device: .item() here would be a synchronisation a step.
                    right = (outcome.logits.argmax(dim=1) == part.y).sum()
                    sums = torch.stack([outcome.loss.sum(), right, torch.full_like(right, len(part.y))])
                    self.sums += sums.to(self.sums.dtype)
            if self.recorder is not None:
                self.recorder.record_clean(self.step, batch)
            all_reduce_gradients(self.step, self.group)
            if config.optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.step.parameters(), config.optim.clip_norm)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.student)
            bar.advance(images)
            self.steps_done, self.seconds = step + 1, time.perf_counter() - began
            if self.stop.signal is not None and self.steps_done < number:
                self._end(self.stop.signal)
        loss, right_count, count = self.group.all_reduce(self.sums).tolist()
        wrong = diagnostics.not_finite(loss, all(bool(each.isfinite().all()) for each in self.student.parameters()))
        if wrong is not None and self._roll_back(epoch or None, f"epoch {epoch + 1} gave {wrong}"):
            return None
        if wrong is not None:
            kept = f"epoch {epoch} is kept" if epoch else "nothing was kept"
            raise RunError(f"epoch {epoch + 1} gave {wrong}; {kept}: {diagnostics.MEND}")
        return {
            "epoch": epoch + 1,
            "learning_rate": self._set_rate(epoch * number + number - 1),
            "train_loss": loss / count,
            "train_adversarial_accuracy": right_count / count,
            **adversary,
        }

    def _set_adversary(self, epoch: int) -> dict[str, float]:
        """The attack of an epoch; what grows belongs into the epoch's line."""
        threat, attack, epochs = self.config.threat, self.config.attack, self.config.optim.epochs
        now: dict[str, float] = {}
        if attack.first_eps is not None:
            now["eps"] = grown(attack.first_eps, threat.eps, epoch, epochs, attack.grow)
            self.step.threat = Threat(norm=threat.norm, eps=now["eps"])
        if attack.first_steps is not None:
            steps = grown(attack.first_steps, attack.steps, epoch, epochs, attack.grow)
            now["attack_steps"] = self.step.steps = round(steps)
        return now

    def _set_rate(self, step: int) -> float:
        optim = self.config.optim
        done = step / (optim.epochs * len(self.batches))
        factor = rate_factor(done, optim.schedule, warmup=optim.warmup, milestones=optim.milestones, decay=optim.decay)
        rate = optim.learning_rate * factor * 0.5**self.rollbacks
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _average(self) -> None:
        """Take an epoch into the mean of the weights, once its time has come, and estimate its statistics."""
        begin, optim = self.config.optim.swa, self.config.optim
        if self.swa is None or begin is None or self.epochs_done + 1 <= round(begin * optim.epochs, 9):
            return
        self.swa.update(self.student)
        # Every process looks at whole batches, so that all get the same statistics.
        seen = (batch.x for batch in self.batches.whole(self.epochs_done))
        estimate_statistics(self.swa.model, seen, frozen=optim.freeze)

    def _validate(self) -> dict[str, float]:
        networks = {"": self.student}
        if self.ema is not None:
            networks["ema_"] = self.ema.model
        if self.swa is not None and self.swa.count > 0:
            networks["swa_"] = self.swa.model
        return validation_metrics(networks, self.pieces.validation, self.config, self.group)

    def _save(self, line: dict[str, Any], before: list[dict[str, Any]]) -> None:
        """The checkpoint first, with every line so far inside: a kill between the two loses neither."""
        if not self.group.is_main:
            if self.recorder is not None:
                self.recorder.write(self.epochs_done)
            return
        averaged = self.swa if self.swa is not None and self.swa.count > 0 else None
        checkpoint = Checkpoint(
            epoch=self.epochs_done,
            model=self.student.state_dict(),
            ema=None if self.ema is None else self.ema.model.state_dict(),
            swa=None if averaged is None else averaged.model.state_dict(),
            state=self._state() | ({} if averaged is None else {"swa_count": averaged.count}),
            metrics=[*before, line],
        )
        with self._written(f"epoch {self.epochs_done}"):
            # Before the checkpoint: an epoch that is kept has its records, and later ones are forgotten on resuming.
            if self.recorder is not None:
                self.recorder.write(self.epochs_done)
            self.directory.checkpoints.save(checkpoint)
            self.directory.append_metrics(line)
            self.directory.checkpoints.choose(self.directory.metrics(), keep_every=self.config.keep_every)

    @contextmanager
    def _written(self, what: str) -> Iterator[None]:
        try:
            # What writes makes folders as it needs them: those of a run that is gone would be no run.
            (self.directory.path / "config.yaml").stat()
            with self.stop.saving():
                yield
        except OSError as error:
            mend = "mend that, and the same command goes on from the last checkpoint"
            raise RunError(f"{what} cannot be written to {self.directory.path} ({error.strerror}): {mend}") from None

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.patience
        if patience is None:
            return False
        looked = self.group.is_main and diagnostics.out_of_patience(self.directory.metrics(), patience)
        return bool(self.group.broadcast(looked))


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(f"{folder} does not fit its run: {first_line(error)}") from None
