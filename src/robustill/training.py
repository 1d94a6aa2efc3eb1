"""The training loop: one run, from its configuration to its directory; the same call on the same directory goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from robustill import runtime, unfinished
from robustill.averaging import EMA, SWA, estimate_statistics
from robustill.config import Config, dump
from robustill.data.cutmix import cutmix
from robustill.describe import describe
from robustill.errors import RunError
from robustill.growth import grown
from robustill.heldout import held_out_accuracy
from robustill.interrupts import Interrupted, Stop
from robustill.methods import Batch
from robustill.optim import build_optimizer, rate_factor
from robustill.prepare import Pieces, prepare
from robustill.progress import Progress
from robustill.randomness import derive_seed, generator
from robustill.recorder import Recorder
from robustill.run_directory import Checkpoint, RunDirectory
from robustill.step import Step
from robustill.threat import Threat


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


def train(config: Config, run: Path | str, *, progress: bool = True) -> TrainResult:
    """Train one student, or go on with it where an earlier call stopped.

    Args:
        config: the whole configuration.
        run: the run directory; made if it is missing.
        progress: show a bar with images/s and the time left.

    Returns:
        The run, complete.

    Raises:
        RobustillError: a setting, a file or a teacher that cannot be; nothing is written then.
        Interrupted: by SIGINT or SIGTERM, at the end of a step; what was done of its epoch is kept.
    """
    device = runtime.pick_device(config.compute.device)
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    directory = RunDirectory(run)
    pieces = prepare(config, device)
    with directory.locked(), torch.random.fork_rng():
        directory.start(dump(config))
        describe(directory, config, pieces, shown=progress)
        with Stop() as stop:
            loop = _Loop(config, directory, pieces, device, stop)
            loop.resume()
            loop.run(progress)
    return TrainResult(run=directory.path, best=directory.pointed("best") or 0, metrics=directory.metrics())


class _Loop:
    """All state that the loop needs to go on, in one place."""

    def __init__(
        self, config: Config, directory: RunDirectory, pieces: Pieces, device: torch.device, stop: Stop
    ) -> None:
        self.config, self.directory, self.pieces, self.device, self.stop = config, directory, pieces, device, stop
        self.student, optim, attack = pieces.student, config.optim, config.attack
        self.step = Step(
            self.student,
            pieces.method,
            pieces.teacher,
            config.threat.build(),
            steps=attack.steps,
            step_size=attack.step_size,
            start=attack.start,
            batchnorm=attack.batchnorm,
            precision=config.compute.precision,
            awp=optim.awp,
            light=config.compute.light_attack,
            cuda_graphs=config.compute.cuda_graphs,
        )
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
            self.recorder = Recorder(directory.path, config.dynamics.clean_every, pieces.split, optim.epochs, device)
            self.step.watch = self.recorder.look
        self.epochs_done = 0
        # Of the epoch that is being trained: steps behind it, seconds spent, and sums of loss, right ones and images.
        self.steps_done, self.seconds = 0, 0.0
        self.sums = torch.zeros(3, device=device, dtype=torch.float64)

    def resume(self) -> None:
        """Take up the newest whole checkpoint, and what was done of the epoch after it, if they are there."""
        found = self.directory.latest()
        if found is not None:
            with self._fitting(self.directory.folder(found.epoch)):
                self._load(found)
        self.directory.rewind(found)
        if self.recorder is not None:
            self.recorder.start(self.epochs_done)
        self.directory.choose(keep_every=self.config.keep_every)
        kept = unfinished.load(self.directory.path, self.epochs_done + 1)
        if kept is None:
            unfinished.forget(self.directory.path)
        else:
            with self._fitting(self.directory.path / "checkpoints" / unfinished.FOLDER):
                self._take_up(kept)

    @contextmanager
    def _fitting(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RunError(f"{folder} does not fit its run: {str(error).splitlines()[0]}") from None

    def _load(self, found: Checkpoint) -> None:
        self.student.load_state_dict(found.model)
        self.pieces.method.load_state_dict(found.state["method"])
        self.optimizer.load_state_dict(found.state["optimizer"])
        if self.ema is not None:
            self.ema.model.load_state_dict(found.ema or {})
            self.ema.steps = found.state["ema_steps"]
        if self.swa is not None and found.swa is not None:
            self.swa.model.load_state_dict(found.swa)
            self.swa.count = found.state["swa_count"]
        self.epochs_done = found.epoch

    def _take_up(self, kept: dict[str, Any]) -> None:
        self.student.load_state_dict(kept["model"])
        self.pieces.method.load_state_dict(kept["method"])
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.ema is not None:
            self.ema.model.load_state_dict(kept["ema"])
            self.ema.steps = kept["ema_steps"]
        if self.recorder is not None:
            self.recorder.take_up(kept["recorder"])
        self.steps_done, self.seconds = int(kept["steps"]), float(kept["seconds"])
        self.sums.copy_(kept["sums"])

    def _stop(self, number: int) -> NoReturn:
        """Keep what the epoch has come to, after a whole step, and end."""
        # SWA takes an epoch in when it is over: what it has, is in the last checkpoint.
        state: dict[str, Any] = {
            "model": self.student.state_dict(),
            "method": self.pieces.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps_done,
            "seconds": self.seconds,
            "sums": self.sums,
        }
        if self.ema is not None:
            state |= {"ema": self.ema.model.state_dict(), "ema_steps": self.ema.steps}
        if self.recorder is not None:
            state["recorder"] = self.recorder.state()
        where = f"step {self.steps_done} of {len(self.pieces.loader)} in epoch {self.epochs_done + 1}"
        with self._written(where):
            unfinished.save(self.directory.path, self.epochs_done + 1, state)
        raise Interrupted(number, f"{self.directory.path} is kept up to {where}: the same command goes on there")

    def run(self, progress: bool) -> None:
        """Train the epochs that are left."""
        optim, images = self.config.optim, len(self.pieces.loader.ids)
        label = f"{self.directory.path.name} ({self.config.method.name})"
        done = self.epochs_done * images + int(self.sums[2])
        with Progress(label, total=optim.epochs * images, done=done, unit="images", shown=progress) as bar:
            while self.epochs_done < optim.epochs and not self._out_of_patience():
                line = self._train_epoch(bar)
                line |= {"seconds": round(self.seconds, 3), "images_per_second": round(images / self.seconds, 1)}
                try:
                    self._average()
                    if line["epoch"] % self.config.validation.every == 0 or line["epoch"] == optim.epochs:
                        line |= self._validate()
                        bar.advance(0, f"held out: clean {line['validation_clean_accuracy']:.3f}, "
                                       f"robust {line['validation_robust_accuracy']:.3f}")  # fmt: skip
                except Interrupted as interrupted:
                    self._stop(interrupted.number)
                self.epochs_done += 1
                self._save(line)
                self.steps_done, self.seconds = 0, 0.0
                self.sums.zero_()
                if self.stop.asked is not None:
                    raise Interrupted(self.stop.asked, f"{self.directory.path} is kept up to epoch {self.epochs_done}: "
                                                       "the same command goes on there")  # fmt: skip
            if self.epochs_done < optim.epochs:
                best = self.directory.pointed("best")
                bar.stop(f"stopped early after epoch {self.epochs_done}, best held-out epoch {best}")

    def _train_epoch(self, bar: Progress) -> dict[str, Any]:
        config, epoch, loader = self.config, self.epochs_done, self.pieces.loader
        self.student.train()
        for module in self.pieces.frozen:
            module.eval()
        adversary = self._set_adversary(epoch)
        began = time.perf_counter() - self.seconds
        for step, batch in enumerate(self._batches(epoch, self.steps_done), self.steps_done):
            self._set_rate(epoch * len(loader) + step)
            # For networks with dropout: the mask, too, is a function of (seed, epoch, step).
            torch.manual_seed(derive_seed(config.seed, "network", epoch, step))
            self.optimizer.zero_grad(set_to_none=True)
            draws = generator(config.seed, "attack", epoch, step, device=self.device)
            for part, outcome in self.step.parts(batch, draws, config.optim.accumulate):
                torch.autograd.backward(outcome.loss.mean() * (len(part.y) / len(batch.y)))
                with torch.no_grad():
                    # On the device: .item() here would be a synchronisation a step.
                    right = (outcome.logits.argmax(dim=1) == part.y).sum()
                    sums = torch.stack([outcome.loss.sum(), right, right.new_tensor(len(part.y))])
                    self.sums += sums.to(self.sums.dtype)
            if self.recorder is not None:
                self.recorder.look_at_clean(self.step, batch)
            if config.optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.step.parameters(), config.optim.clip_norm)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.student)
            bar.advance(len(batch.y))
            self.steps_done, self.seconds = step + 1, time.perf_counter() - began
            if self.stop.asked is not None and self.steps_done < len(loader):
                self._stop(self.stop.asked)
        loss, right_count, count = self.sums.tolist()
        # The last step's gradient may have been infinite where its loss was not.
        whole = all(bool(parameter.isfinite().all()) for parameter in self.student.parameters())
        if not (math.isfinite(loss) and whole):
            kept = f"epoch {epoch} is kept" if epoch else "nothing was kept"
            what = "weights that are not finite" if math.isfinite(loss) else f"a loss of {loss}"
            raise RunError(
                f"epoch {epoch + 1} gave {what}; {kept}: try a smaller optim.learning_rate, or optim.clip_norm"
            )
        return {
            "epoch": epoch + 1,
            "learning_rate": self._set_rate(epoch * len(loader) + len(loader) - 1),
            "train_loss": loss / count,
            "train_adversarial_accuracy": right_count / count,
            **adversary,
        }

    def _batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """What the student sees in an epoch, a step each, from the first that is wanted."""
        config, num_classes = self.config, self.pieces.shape.num_classes
        with closing(self.pieces.loader.epoch(epoch, first)) as batches:
            for step, (x, y, index) in enumerate(batches, first):
                mixed = None
                if config.data.cutmix > 0:
                    draws = generator(config.seed, "cutmix", epoch, step)
                    x, mixed = cutmix(x, y, num_classes, draws, share=config.data.cutmix)
                yield Batch(
                    x=x.contiguous(memory_format=torch.channels_last),
                    y=y if mixed is None else mixed.argmax(dim=1),
                    index=index,
                    epoch=epoch,
                    epochs=config.optim.epochs,
                    mixed=mixed,
                    smoothing=config.optim.label_smoothing,
                )

    def _set_adversary(self, epoch: int) -> dict[str, float]:
        """The attack of an epoch; what grows belongs into the epoch's line."""
        threat, attack, epochs = self.config.threat, self.config.attack, self.config.optim.epochs
        now: dict[str, float] = {}
        if attack.first_eps is not None:
            now["eps"] = grown(attack.first_eps, threat.eps, epoch, epochs, attack.grow)
            self.step.threat = Threat(norm=threat.norm, eps=now["eps"])
        if attack.first_steps is not None:
            now["attack_steps"] = self.step.steps = round(
                grown(attack.first_steps, attack.steps, epoch, epochs, attack.grow)
            )
        return now

    def _set_rate(self, step: int) -> float:
        optim = self.config.optim
        progress = step / (optim.epochs * len(self.pieces.loader))
        factor = rate_factor(
            progress, optim.schedule, warmup=optim.warmup, milestones=optim.milestones, decay=optim.decay
        )
        for group in self.optimizer.param_groups:
            group["lr"] = optim.learning_rate * factor
        return optim.learning_rate * factor

    def _average(self) -> None:
        """Take an epoch into the mean of the weights, once its time has come, and estimate its statistics."""
        begin, optim = self.config.optim.swa, self.config.optim
        if self.swa is None or begin is None or self.epochs_done + 1 <= begin * optim.epochs:
            return
        self.swa.update(self.student)
        estimate_statistics(self.swa.model, (batch.x for batch in self._batches(self.epochs_done)))

    def _validate(self) -> dict[str, float]:
        networks = {"": self.student}
        if self.ema is not None:
            networks["ema_"] = self.ema.model
        if self.swa is not None and self.swa.count > 0:
            networks["swa_"] = self.swa.model
        line: dict[str, float] = {}
        for prefix, network in networks.items():
            clean, robust = self._held_out(network)
            line |= {f"{prefix}validation_clean_accuracy": clean, f"{prefix}validation_robust_accuracy": robust}
        return line

    def _held_out(self, model: nn.Module) -> tuple[float, float]:
        """Clean and robust accuracy on the held-out part, in [0,1]."""
        settings, config = self.config.validation, self.config
        threat = config.threat.build()
        return held_out_accuracy(
            model,
            *self.pieces.validation,
            threat,
            steps=settings.steps,
            step_size=threat.eps / 4 if settings.step_size is None else settings.step_size,
            seed=config.seed,
            precision=config.compute.precision,
        )

    def _save(self, line: dict[str, Any]) -> None:
        """The checkpoint first, with every line so far inside: a kill between the two loses neither."""
        state: dict[str, Any] = {"method": self.pieces.method.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            state["ema_steps"] = self.ema.steps
        averaged = self.swa if self.swa is not None and self.swa.count > 0 else None
        if averaged is not None:
            state["swa_count"] = averaged.count
        checkpoint = Checkpoint(
            epoch=self.epochs_done,
            model=self.student.state_dict(),
            ema=None if self.ema is None else self.ema.model.state_dict(),
            swa=None if averaged is None else averaged.model.state_dict(),
            state=state,
            metrics=[*self.directory.metrics(), line],
        )
        with self._written(f"epoch {self.epochs_done}"):
            # Before the checkpoint: an epoch that is kept has its records, and later ones are forgotten on resuming.
            if self.recorder is not None:
                self.recorder.write(self.epochs_done)
            self.directory.save(checkpoint)
            self.directory.append_metrics(line)
            self.directory.choose(keep_every=self.config.keep_every)

    @contextmanager
    def _written(self, what: str) -> Iterator[None]:
        try:
            with self.stop.saving():
                yield
        except OSError as error:
            raise RunError(
                f"{what} cannot be written to {self.directory.path} ({error.strerror}): "
                "mend that, and the same command goes on from the last checkpoint"
            ) from None

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.patience
        looks = [line for line in self.directory.metrics() if "validation_robust_accuracy" in line]
        if patience is None or not looks:
            return False
        best = max(range(len(looks)), key=lambda i: looks[i]["validation_robust_accuracy"])
        return len(looks) - 1 - best >= patience
