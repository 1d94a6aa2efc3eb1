"""The training loop: one run, from its configuration to its directory; the same call on the same directory goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustill import runtime
from robustill.averaging import EMA, SWA, estimate_statistics
from robustill.config import Config, dump
from robustill.data.cutmix import cutmix
from robustill.data.extra import MixedLoader
from robustill.data.loader import Loader
from robustill.describe import describe
from robustill.distributed import Processes, own_device, processes
from robustill.errors import RunError
from robustill.growth import grown
from robustill.heldout import held_out_accuracy
from robustill.methods import Batch
from robustill.optim import build_optimizer, rate_factor
from robustill.prepare import Pieces, prepare
from robustill.progress import Progress
from robustill.randomness import derive_seed, generator
from robustill.recorder import Recorder
from robustill.run_directory import Checkpoint, RunDirectory
from robustill.shared_statistics import SharedStatistics
from robustill.sharing import add_up_gradients, check_shares
from robustill.step import Share, Step
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

    Inside `distributed.joined`, the processes share every batch, and compute what one alone would, up to rounding; a
    run may go on with another number of them.

    Args:
        config: the whole configuration.
        run: the run directory; made if it is missing.
        progress: show a bar with images/s and the time left.

    Returns:
        The run, complete.

    Raises:
        RobustillError: a setting, a file or a teacher that cannot be; nothing is written then.
    """
    group = processes()
    device = own_device(runtime.pick_device(config.compute.device))
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    directory = RunDirectory(run)
    pieces = prepare(config, device)
    with directory.locked() if group.first else nullcontext(), torch.random.fork_rng():
        loop = _Loop(config, directory, pieces, device, group)
        if group.first:
            directory.start(dump(config))
            describe(directory, config, pieces, shown=progress)
        loop.resume()
        loop.run(progress and group.first)
        group.wait()
    return TrainResult(run=directory.path, best=directory.pointed("best") or 0, metrics=directory.metrics())


class _Loop:
    """All state that the loop needs to go on, in one place."""

    def __init__(
        self, config: Config, directory: RunDirectory, pieces: Pieces, device: torch.device, group: Processes
    ) -> None:
        self.config, self.directory, self.pieces, self.device, self.group = config, directory, pieces, device, group
        check_shares(config, pieces, group)
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
            self.recorder = Recorder(
                directory.path, config.dynamics.clean_every, pieces.split, optim.epochs, device, group
            )
            self.step.watch = self.recorder.look
        self.epochs_done = 0

    def resume(self) -> None:
        """Take up the newest whole checkpoint, if there is one."""
        found: Checkpoint | None = self.group.said_by_first(self.directory.latest() if self.group.first else None)
        if found is not None:
            try:
                self._load(found)
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                reason = str(error).splitlines()[0]
                raise RunError(f"{self.directory.folder(found.epoch)} does not fit its run: {reason}") from None
        if self.recorder is not None:
            self.recorder.start(self.epochs_done)
        if self.group.first:
            self.directory.rewind(found)
            self.directory.choose(keep_every=self.config.keep_every)

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

    def run(self, progress: bool) -> None:
        """Train the epochs that are left."""
        optim, images = self.config.optim, len(self.pieces.loader.ids)
        label = f"{self.directory.path.name} ({self.config.method.name})"
        done = self.epochs_done * images
        with Progress(label, total=optim.epochs * images, done=done, unit="images", shown=progress) as bar:
            while self.epochs_done < optim.epochs and not self._out_of_patience():
                began = time.perf_counter()
                with SharedStatistics() if self.group.number > 1 else nullcontext():
                    line = self._train_epoch(bar)
                seconds = time.perf_counter() - began
                line |= {"seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1)}
                self.epochs_done += 1
                self._average()
                if self.epochs_done % self.config.validation.every == 0 or self.epochs_done == optim.epochs:
                    line |= self._validate()
                    bar.advance(0, f"held out: clean {line['validation_clean_accuracy']:.3f}, "
                                   f"robust {line['validation_robust_accuracy']:.3f}")  # fmt: skip
                self._save(line)
            if self.epochs_done < optim.epochs:
                best = self.directory.pointed("best")
                bar.stop(f"stopped early after epoch {self.epochs_done}, best held-out epoch {best}")

    def _train_epoch(self, bar: Progress) -> dict[str, Any]:
        config, epoch, loader = self.config, self.epochs_done, self.pieces.loader
        self.student.train()
        for module in self.pieces.frozen:
            module.eval()
        adversary = self._set_adversary(epoch)
        others = [self.group.rank] if self.group.rank else []
        sums = torch.zeros(3, device=self.device, dtype=torch.float64)
        for step, (batch, share) in enumerate(self._shares(epoch)):
            rate = self._set_rate(epoch * len(loader) + step)
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
                    sums += torch.stack([outcome.loss.sum(), right, right.new_tensor(len(part.y))]).to(sums.dtype)
            if self.recorder is not None:
                self.recorder.look_at_clean(self.step, batch)
            add_up_gradients(self.step, self.group)
            if config.optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.step.parameters(), config.optim.clip_norm)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.student)
            bar.advance(images)
        loss, right_count, count = self.group.summed(sums).tolist()
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
            "learning_rate": rate,
            "train_loss": loss / count,
            "train_adversarial_accuracy": right_count / count,
            **adversary,
        }

    def _shares(self, epoch: int) -> Iterator[tuple[Batch, Share | None]]:
        """What this process sees in an epoch, a step each; alone, it sees all, which is no share."""
        group, loader = self.group, self.pieces.loader
        if group.number == 1:
            yield from ((batch, None) for batch in self._batches(loader, epoch))
            return
        whole = isinstance(loader, MixedLoader) or self.config.data.cutmix > 0
        if isinstance(loader, Loader) and not whole:
            loader = loader.share(group.rank, group.number)
        with closing(self._batches(loader, epoch)) as batches:
            for step, batch in enumerate(batches):
                share = Share(loader.images_at(step), group.part(loader.images_at(step)))
                # What is mixed among a whole batch, labels or images of two kinds, is mixed before the parts are taken.
                yield batch.part(share.own) if whole else batch, share

    def _batches(self, loader: Loader | MixedLoader, epoch: int) -> Generator[Batch, None, None]:
        """The batches of a loader, their labels mixed where that is wanted."""
        config, num_classes = self.config, self.pieces.shape.num_classes
        with closing(loader.epoch(epoch)) as batches:
            for step, (x, y, index) in enumerate(batches):
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
        if self.swa is None or begin is None or self.epochs_done <= begin * optim.epochs:
            return
        self.swa.update(self.student)
        # Every process looks at whole batches, so that all get the same statistics.
        batches = self._batches(self.pieces.loader, self.epochs_done - 1)
        estimate_statistics(self.swa.model, (batch.x for batch in batches))

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
            group=self.group,
        )

    def _save(self, line: dict[str, Any]) -> None:
        """The checkpoint first, with every line so far inside: a kill between the two loses neither."""
        if not self.group.first:
            if self.recorder is not None:
                self.recorder.write(self.epochs_done)
            return
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
        try:
            # Before the checkpoint: an epoch that is kept has its records, and later ones are forgotten on resuming.
            if self.recorder is not None:
                self.recorder.write(self.epochs_done)
            self.directory.save(checkpoint)
            self.directory.append_metrics(line)
            self.directory.choose(keep_every=self.config.keep_every)
        except OSError as error:
            raise RunError(
                f"epoch {self.epochs_done} cannot be written to {self.directory.path} ({error.strerror}): "
                "mend that, and the same command goes on from the last checkpoint"
            ) from None

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.patience
        if patience is None:
            return False
        return bool(self.group.said_by_first(self._looked_in_vain(patience) if self.group.first else None))

    def _looked_in_vain(self, patience: int) -> bool:
        looks = [line for line in self.directory.metrics() if "validation_robust_accuracy" in line]
        if not looks:
            return False
        best = max(range(len(looks)), key=lambda i: looks[i]["validation_robust_accuracy"])
        return len(looks) - 1 - best >= patience
