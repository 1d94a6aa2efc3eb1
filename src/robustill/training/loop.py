"""The training loop: train one student from a configuration into a run directory, or resume the run there."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from robustill.config import recipes
from robustill.config.files import dump_config, named_code
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
from robustill.core.user_code import TrustCode, only_named
from robustill.core.validation import check_callable, check_flag, check_path
from robustill.methods import Batch
from robustill.runs.checkpoints import Checkpoint
from robustill.runs.directory import RunDirectory
from robustill.runs.tracking import TrackedRun, check_trackers, tracked
from robustill.threat import Threat
from robustill.training import diagnostics
from robustill.training.adversary import eps_in_epoch, steps_in_epoch
from robustill.training.averaging import SWA, estimate_statistics
from robustill.training.batches import Batches
from robustill.training.guard import Guard
from robustill.training.optimizer import build_optimizer
from robustill.training.provenance import (
    changed_network,
    record_environment,
    start_run,
    training_fingerprints,
    used_packages,
    write_provenance,
)
from robustill.training.recorder import Recorder
from robustill.training.setup import TrainingSetup, build_step, set_up_training
from robustill.training.step import BatchShare
from robustill.training.validation import validation_metrics


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a training run.

    Args:
        run: the run directory.
        best: the epoch with the best robust accuracy on the validation images, counted from 1.
        metrics: one line an epoch.
        warnings: why the student may not be worth evaluating, one line each.
    """

    run: Path
    best: int
    metrics: list[dict[str, Any]]
    warnings: tuple[str, ...] = ()


def train(
    config: Config | str,
    run: Path | str,
    *,
    progress: bool = True,
    trust_code: TrustCode = False,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    track: Sequence[str] = (),
) -> TrainResult:
    """Train one student, or resume its training where an earlier call stopped.

    Inside `distributed.torchrun_group`, the processes share every batch and compute what one process would, up to
    rounding; a run may be resumed with another number of processes.

    Args:
        config: the whole configuration, or the name of a recipe, or a .yaml file.
        run: the run directory; it is made if it does not exist.
        progress: show a progress bar with images/s and the time left.
        trust_code: import paths that files may name, such as the network of a teacher's run: ["my_mod:net"]; True is
            all of them. Those that a Config names itself are imported.
        on_epoch: called in the main process after each epoch that was saved, with its line of `metrics.jsonl`. A
            resumed run calls it for the epochs that are still to come; what it raises ends the training.
        track: trackers that follow the run: "tensorboard", "wandb", "mlflow", "trackio". A resumed run continues in
            them, whether or not they are named again.

    Returns:
        The complete run.

    Raises:
        RobustillError: a setting, a file or a teacher is not valid; nothing is written then.
        Interrupted: on SIGINT or SIGTERM, at the end of a step, up to which everything is saved. A step that takes
            more than five seconds is interrupted, and its epoch starts again; with several processes every one is, at
            once.
    """
    config = config if isinstance(config, Config) else recipes.resolve(config, trust_code=trust_code)
    run = check_path("run", run)
    check_flag("progress", progress)
    if on_epoch is not None:
        check_callable("on_epoch", on_epoch, "a function of the metrics of an epoch")
    check_trackers(track)
    with only_named(*named_code(config), trust=trust_code):
        return _train(config, run, progress, on_epoch, tuple(track))


def _train(
    config: Config,
    run: Path,
    progress: bool,
    on_epoch: Callable[[Mapping[str, Any]], None] | None,
    track: tuple[str, ...],
) -> TrainResult:
    group, device = process_group(), local_device(configure_process(config.compute))
    directory, setup = RunDirectory(run), set_up_training(config, device)
    # Before the lock, which is the first file of a run: the loop may refuse the optimizer.
    loop = _Loop(config, directory, setup, device, group)
    drawing = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with directory.locked() if group.is_main else nullcontext(), drawing:
        if group.is_main:
            start_run(directory, dump_config(config))
            write_provenance(directory, config, setup, verbose=progress)
        loop.on_epoch = on_epoch
        # Processes that share their batches cannot agree on the step after which to stop.
        with Stop(at_once=group.world_size > 1) as loop.stop:
            loop.resume()
            if group.is_main:
                loop.record_environment()
            tracking = tracked(directory.path, track) if group.is_main else nullcontext()
            with explaining_out_of_memory(loop.suggest_batch_size), tracking as loop.tracked:
                loop.run(progress and group.is_main)
        group.barrier()
    best, metrics = directory.checkpoints.pointed("best") or 0, directory.metrics()
    images, num_classes = len(setup.validation[1]), setup.shape.num_classes
    guessing = diagnostics.guessing_student(metrics, best, images, num_classes)
    return TrainResult(run=directory.path, best=best, metrics=metrics, warnings=() if guessing is None else (guessing,))


class _Loop:
    """The state of a training run: everything that is needed to resume it, in one place."""

    def __init__(
        self, config: Config, directory: RunDirectory, setup: TrainingSetup, device: torch.device, group: ProcessGroup
    ) -> None:
        self.config, self.directory, self.setup, self.device, self.group = config, directory, setup, device, group
        self.on_epoch: Callable[[Mapping[str, Any]], None] | None = None
        self.tracked: TrackedRun | None = None
        self.student, optim = setup.student, config.optim
        self.step = build_step(config, setup)
        self.optimizer = build_optimizer(
            [self.student, setup.method],
            optim.name,
            learning_rate=optim.learning_rate,
            weight_decay=optim.weight_decay,
            decay_all=optim.decay_all,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
        )
        self.ema = setup.ema
        self.swa = SWA(self.student) if optim.swa is not None else None
        self.recorder: Recorder | None = None
        if config.dynamics.record:
            self.recorder = Recorder(
                directory.path, config.dynamics.clean_every, setup.split, optim.epochs, device, group
            )
            self.step.on_step = self.recorder.record
        self.batches = Batches(config, setup, group)
        self.guard = None if config.attack.guard is None else Guard(config.attack.guard)
        self.stop = Stop()
        self.epochs_done = self.rollbacks = 0
        # Of the current epoch: steps done, seconds spent, and sums of loss, correct predictions and images.
        self.sums = torch.zeros(3, device=device, dtype=torch.float64)
        self._reset_epoch()

    # Resuming.

    def resume(self) -> None:
        """Load the newest undamaged checkpoint and the unfinished epoch after it, where they exist."""
        checkpoint = self.group.broadcast(self.directory.checkpoints.latest() if self.group.is_main else None)
        if checkpoint is not None and not self._is_finished(checkpoint.metrics):
            self._check_forward(checkpoint.model, checkpoint.state, self.directory.checkpoints.folder(checkpoint.epoch))
        self._restore(checkpoint)
        state = self.directory.checkpoints.load_unfinished(self.epochs_done + 1) if self.group.world_size == 1 else None
        if state is not None:
            folder = self.directory.checkpoints.unfinished_folder
            self._check_forward(state.get("model", {}), state, folder)
            with _reading_state(folder):
                self._load_unfinished_epoch(state)
        elif self.group.is_main:
            self.directory.checkpoints.forget_unfinished()

    def _check_forward(self, model: Mapping[str, Any], state: Mapping[str, Any], folder: Path) -> None:
        """Load the networks' weights, and refuse to train on if one computes something else than when it was saved.

        Raises:
            RunError: the weights do not fit, or the code or the normalisation of the student or its peer has changed.
        """
        with _reading_state(folder):
            self.student.load_state_dict(model)
            self.setup.method.load_state_dict(state["method"])
            # Earlier versions stored that of the student in eval mode alone.
            stored = state.get("fingerprints", {"student": {"eval": state.get("fingerprint")}})
            changed = changed_network(self.setup, stored) if self.group.is_main else None
        if changed is not None:
            role, difference = changed
            raise RunError(
                f"the {role} of {self.directory.path} computes something else than when {folder.name} was saved "
                f"({difference}): restore its code, or use another --run"
            )

    def record_environment(self) -> None:
        """Write the environment in which the epochs that are left are trained."""
        record_environment(
            self.directory,
            self.epochs_done + 1,
            is_partial=self.steps_done > 0,
            is_finished=self._is_finished(self.directory.metrics()),
            packages=used_packages(self.config, self.setup),
        )

    def _is_finished(self, metrics: list[dict[str, Any]]) -> bool:
        """Return whether these are the metrics of a run that has nothing left to train."""
        patience = self.config.validation.patience
        stopped_early = patience is not None and diagnostics.out_of_patience(metrics, patience)
        return stopped_early or len(metrics) >= self.config.optim.epochs

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Load the state at the end of an epoch, or that before the first one, and remove what came after it."""
        if checkpoint is not None:
            with _reading_state(self.directory.checkpoints.folder(checkpoint.epoch)):
                self._load_state(checkpoint.model, checkpoint.state, checkpoint.ema)
                if self.swa is not None:
                    self.swa.model.load_state_dict(checkpoint.swa or self.swa.model.state_dict())
                    self.swa.count = checkpoint.state.get("swa_count", 0)
                self.epochs_done = checkpoint.epoch
        if self.recorder is not None:
            self.recorder.start(self.epochs_done)
        if self.group.is_main:
            self.directory.rewind(checkpoint)
            self.directory.checkpoints.choose(self.directory.metrics(), keep_every=self.config.keep_every)

    def _load_unfinished_epoch(self, state: dict[str, Any]) -> None:
        self._load_state(state["model"], state, state["ema"])
        if self.recorder is not None:
            self.recorder.load_state_dict(state["recorder"])
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
        self.steps_done, self.seconds = int(state["steps"]), float(state["seconds"])
        self.sums.copy_(state["sums"])

    def _load_state(self, model: Mapping[str, Any], state: Mapping[str, Any], ema: Mapping[str, Any] | None) -> None:
        self.student.load_state_dict(model)
        self.setup.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rollbacks = int(state.get("rollbacks", 0))
        if self.ema is not None:
            self.ema.model.load_state_dict(ema or {})
            self.ema.steps = state["ema_steps"]

    def _state(self) -> dict[str, Any]:
        return {
            "method": self.setup.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rollbacks": self.rollbacks,
            "ema_steps": 0 if self.ema is None else self.ema.steps,
            "fingerprints": training_fingerprints(self.setup),
        }

    def _reset_epoch(self) -> None:
        self.steps_done, self.seconds = 0, 0.0
        self.sums.zero_()
        if self.guard is not None:
            self.guard.start_epoch()

    # Training.

    def run(self, progress: bool) -> None:
        """Train the epochs that are left."""
        optim, images = self.config.optim, len(self.setup.loader.ids)
        label = f"{self.directory.path.resolve().name} ({self.config.method.name})"
        done = self.epochs_done * images + int(self.sums[2])
        with Progress(label, total=optim.epochs * images, done=done, unit="images", shown=progress) as bar:
            while self.epochs_done < optim.epochs and not self._out_of_patience():
                with SyncBatchNormMode() if self.group.world_size > 1 else nullcontext():
                    line = self._train_epoch(bar)
                if line is not None:
                    line["seconds"] = round(self.seconds, 3)
                    line["images_per_second"] = round(images / self.seconds, 1)
                    self._end_epoch(line, bar)
            if self.epochs_done < optim.epochs:
                best = self.directory.checkpoints.pointed("best")
                bar.stop(f"stopped early after epoch {self.epochs_done}; best epoch on validation images: {best}")

    def _train_epoch(self, bar: Progress) -> dict[str, Any] | None:
        """Train the steps that are left of an epoch.

        Returns:
            The epoch's line of metrics; None if the epoch failed and the run was rolled back.
        """
        epoch, num_steps = self.epochs_done, len(self.batches)
        self.student.train()
        for module in self.setup.frozen:
            module.eval()
        adversary = self._set_adversary(epoch)
        began = time.perf_counter() - self.seconds
        for step, (batch, share) in enumerate(self.batches.shares(epoch, self.steps_done), self.steps_done):
            self._set_rate(epoch * num_steps + step)
            images = len(batch.y) if share is None else share.total
            self._train_step(step, batch, share, images)
            bar.advance(images)
            self.steps_done, self.seconds = step + 1, time.perf_counter() - began
            if self.stop.signal is not None and self.steps_done < num_steps:
                self._stop_within_epoch(self.stop.signal)
        loss, num_correct, num_images = self.group.all_reduce(self.sums).tolist()
        weights_finite = all(bool(each.isfinite().all()) for each in self.student.parameters())
        failure = diagnostics.describe_not_finite(loss, weights_finite)
        if failure is not None and self._roll_back(epoch or None, f"epoch {epoch + 1} gave {failure}"):
            return None
        if failure is not None:
            kept = f"epoch {epoch} is kept" if epoch else "nothing was kept"
            raise RunError(f"epoch {epoch + 1} gave {failure}; {kept}: {diagnostics.NOT_FINITE_ADVICE}")
        return {
            "epoch": epoch + 1,
            "learning_rate": self._set_rate(epoch * num_steps + num_steps - 1),
            "train_loss": loss / num_images,
            "train_adversarial_accuracy": num_correct / num_images,
            **adversary,
            **({} if self.guard is None else {"guarded_steps": self.guard.num_answered}),
        }

    def _train_step(self, step: int, batch: Batch, share: BatchShare | None, images: int) -> None:
        """Make one step on a batch.

        Args:
            step: counted from 0 in the epoch.
            batch: the images of this process.
            share: their place in the whole batch; None if they are all of it.
            images: number of images in the whole batch.
        """
        config, epoch = self.config, self.epochs_done
        # For networks with dropout: the mask is a function of (seed, epoch, step, rank), too.
        other_rank = [self.group.rank] if self.group.rank else []
        torch.manual_seed(derive_seed(config.seed, "network", epoch, step, *other_rank))
        self.optimizer.zero_grad(set_to_none=True)
        draws = generator(config.seed, "attack", epoch, step, device=self.device)
        with self._guarded(step, batch):
            for part, outcome in self.step.parts(batch, draws, config.optim.accumulate, share):
                torch.autograd.backward(outcome.loss.mean() * (len(part.y) / images))
                with torch.no_grad():
                    # On the device: .item() would wait for it in every step.
                    num_correct = (outcome.logits.argmax(dim=1) == part.y).sum()
                    num_images = torch.full_like(num_correct, len(part.y))
                    sums = torch.stack([outcome.loss.sum(), num_correct, num_images])
                    self.sums += sums.to(self.sums.dtype)
        if self.recorder is not None:
            self.recorder.record_clean(self.step, batch)
        all_reduce_gradients(self.step, self.group)
        if config.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.step.parameters(), config.optim.clip_norm)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.student)

    def _guarded(self, step: int, batch: Batch) -> AbstractContextManager[None]:
        if self.guard is None:
            return nullcontext()
        draws = generator(self.config.seed, "guard", self.epochs_done, step, device=self.device)
        return self.guard.watching(step, self.step, batch, draws, self.group)

    def _set_adversary(self, epoch: int) -> dict[str, float]:
        """Set the attack of an epoch and return the settings that change over epochs, for its line of metrics."""
        config = self.config
        changing: dict[str, float] = {}
        if config.attack.first_eps is not None:
            changing["eps"] = eps_in_epoch(config, epoch)
            self.step.threat = Threat(norm=config.threat.norm, eps=changing["eps"])
        if config.attack.first_steps is not None:
            changing["attack_steps"] = self.step.steps = steps_in_epoch(config, epoch)
        return changing

    def _set_rate(self, step: int) -> float:
        """Set and return the learning rate of a step, counted from 0 over all epochs."""
        rate = self.config.optim.learning_rate * self.batches.rate_factor(step) * 0.5**self.rollbacks
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def suggest_batch_size(self) -> str:
        """Return a line that says how many images at a time fit into memory, after a part of a batch did not."""
        batch, _ = next(iter(self.batches.shares(self.epochs_done)))
        part = batch.split(self.config.optim.accumulate)[0]

        def attempt(images: int) -> None:
            torch.autograd.backward(self.step(part.part(slice(images))).loss.mean())

        self.optimizer.zero_grad(set_to_none=True)
        fit = largest_fitting_batch(attempt, len(part.y))
        parts = math.ceil(len(batch.y) / (fit or 1))
        way = f"start another --run with --optim.accumulate {parts} or --optim.batch_size {fit}"
        return f"{len(part.y)} images at a time are too many for {self.device}: {out_of_memory_advice(fit, way)}"

    # The end of an epoch.

    def _end_epoch(self, line: dict[str, Any], bar: Progress) -> None:
        """Update the average of the weights, validate, and save the epoch; or roll it back."""
        validates = line["epoch"] % self.config.validation.every == 0 or line["epoch"] == self.config.optim.epochs
        try:
            self._update_swa()
            if validates:
                line |= self._validate()
                clean, robust = line["validation_clean_accuracy"], line["validation_robust_accuracy"]
                bar.advance(0, f"validation: clean {clean:.3f}, robust {robust:.3f}")
        except Interrupted as interrupted:
            if self.group.world_size > 1:
                raise
            self._stop_within_epoch(interrupted.number)
        history = (self.directory.metrics(), self.directory.checkpoints.pointed("best")) if self.group.is_main else None
        lines, best = self.group.broadcast(history)
        images, num_classes = len(self.setup.validation[1]), self.setup.shape.num_classes
        overfitting = diagnostics.catastrophic_overfitting(lines, line, images)
        if overfitting is not None and self._roll_back(best, f"epoch {line['epoch']}: {overfitting}"):
            return
        if self.group.is_main:
            for message in diagnostics.epoch_warnings(lines, line, images, num_classes):
                warnings.warn(message, stacklevel=2)
        self.epochs_done += 1
        self._save([*lines, line])
        self._reset_epoch()
        if self.stop.signal is not None:
            raise Interrupted(self.stop.signal, self._resume_message(f"epoch {self.epochs_done}"))

    def _update_swa(self) -> None:
        """Take the epoch into the mean of the weights, from the configured epoch on, and estimate its statistics."""
        begin, optim = self.config.optim.swa, self.config.optim
        if self.swa is None or begin is None or self.epochs_done + 1 <= round(begin * optim.epochs, 9):
            return
        self.swa.update(self.student)
        # Every process computes on whole batches, so that all get the same statistics.
        images = (batch.x for batch in self.batches.whole(self.epochs_done))
        estimate_statistics(self.swa.model, images, frozen=optim.freeze)

    def _validate(self) -> dict[str, float]:
        """Return the validation accuracies of the student and its averages, by their names in the metrics."""
        networks = {"": self.student}
        if self.ema is not None:
            networks["ema_"] = self.ema.model
        if self.swa is not None and self.swa.count > 0:
            networks["swa_"] = self.swa.model
        return validation_metrics(networks, self.setup.validation, self.config, self.group)

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.patience
        if patience is None:
            return False
        stops = self.group.is_main and diagnostics.out_of_patience(self.directory.metrics(), patience)
        return bool(self.group.broadcast(stops))

    def _roll_back(self, epoch: int | None, reason: str) -> bool:
        """Go back to the end of a good epoch with half the learning rate, if there is one and rollbacks are left.

        The failed epoch has not been written, and the epochs after the good one are removed before training goes on:
        a run that is killed in between comes to the same rollback again.

        Returns:
            Whether the run was rolled back.
        """
        if epoch is None or self.rollbacks >= self.config.optim.rollbacks:
            return False
        rollbacks, checkpoint = self.rollbacks + 1, None
        if self.group.is_main:
            checkpoint = self.directory.checkpoints.read(epoch)
            warnings.warn(f"{reason}; back to the end of epoch {epoch} with half the learning rate", stacklevel=3)
            self.directory.checkpoints.forget_after(epoch)
        self._restore(self.group.broadcast(checkpoint))
        self.rollbacks = rollbacks
        self._reset_epoch()
        return True

    # Saving.

    def _save(self, metrics: list[dict[str, Any]]) -> None:
        """Save the epoch that has ended.

        The checkpoint comes first, with every line of metrics inside: a kill between the two writes loses neither.

        Args:
            metrics: the lines of all epochs, the last one included.
        """
        if not self.group.is_main:
            if self.recorder is not None:
                self.recorder.write(self.epochs_done)
            return
        swa = self.swa if self.swa is not None and self.swa.count > 0 else None
        state = self._state()
        if swa is not None:
            state["swa_count"] = swa.count
        checkpoint = Checkpoint(
            epoch=self.epochs_done,
            model=self.student.state_dict(),
            ema=None if self.ema is None else self.ema.model.state_dict(),
            swa=None if swa is None else swa.model.state_dict(),
            state=state,
            metrics=metrics,
        )
        with self._writing(f"epoch {self.epochs_done}"):
            # Before the checkpoint: every saved epoch has its records; those of later epochs are removed on resuming.
            if self.recorder is not None:
                self.recorder.write(self.epochs_done)
            self.directory.checkpoints.save(checkpoint)
            self.directory.append_metrics(metrics[-1])
            self.directory.checkpoints.choose(self.directory.metrics(), keep_every=self.config.keep_every)
        if self.tracked is not None:
            self.tracked.update(self.epochs_done)
        if self.on_epoch is not None:
            self.on_epoch(metrics[-1])

    def _stop_within_epoch(self, number: int) -> NoReturn:
        """Save the unfinished epoch after a whole step, and raise `Interrupted` with the signal's number."""
        # SWA's state is in the last checkpoint: it changes only at the end of an epoch.
        state = {
            **self._state(),
            "model": self.student.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "recorder": None if self.recorder is None else self.recorder.state_dict(),
            "guard": None if self.guard is None else self.guard.state_dict(),
            "steps": self.steps_done,
            "seconds": self.seconds,
            "sums": self.sums,
        }
        epoch = self.epochs_done + 1
        where = f"step {self.steps_done} of {len(self.batches)} in epoch {epoch}"
        with self._writing(where):
            self.directory.checkpoints.save_unfinished(epoch, state)
        raise Interrupted(number, self._resume_message(where))

    def _resume_message(self, where: str) -> str:
        return f"{self.directory.path} is kept up to {where}: the same command goes on there"

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Raise a RunError that names what could not be written, and delay a stop until it is written."""
        try:
            # Writing makes the folders that it needs, but must not make those of a run that was deleted.
            (self.directory.path / "config.yaml").stat()
            with self.stop.saving():
                yield
        except OSError as error:
            mend = "mend that, and the same command goes on from the last checkpoint"
            raise RunError(f"{what} cannot be written to {self.directory.path} ({error.strerror}): {mend}") from None


@contextmanager
def _reading_state(folder: Path) -> Iterator[None]:
    """Raise a RunError that names the folder whose state cannot be loaded into this run."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(f"{folder} does not fit its run: {first_line(error)}") from None
