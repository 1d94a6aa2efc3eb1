"""The images of an evaluation in parts: what is attacked together, saved, and resumed after a kill."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustill.core.distributed import ProcessGroup
from robustill.core.progress import Progress, announce
from robustill.data import Dataset
from robustill.evaluation.calibration_attack import ATTACK, CalibrationAttack
from robustill.evaluation.state import Arrays, EvaluationState
from robustill.evaluation.worst_case import WorstCase

# On which a pass is timed.
_TIMED_IMAGES = 64


def images_and_labels(dataset: Dataset, ids: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the images [B,C,H,W] in [0,1] and their labels [B] on the device."""
    return dataset.read(ids).to(device).float() / 255, dataset.labels[ids].to(device)


class Parts:
    """The images in parts: each process attacks its own parts, and reads those that are already on disk.

    Each part is attacked with the suite, then with the attack for calibration unless that is None.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Tensor,
        picture_ids: Tensor,
        worst_case: WorstCase,
        calibration_attack: CalibrationAttack | None,
        state: EvaluationState,
        group: ProcessGroup,
        passes_per_image: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.picture_ids, self.device = dataset, picture_ids, device
        self.worst_case, self.state, self.group = worst_case, state, group
        self.calibration_attack = calibration_attack
        self.passes_per_image = passes_per_image
        self.parts = torch.split(ids, state.part_size)
        self.own_parts = range(group.rank, len(self.parts), group.world_size)
        self.num_finished = self.num_robust = 0
        self.bar: Progress | None = None
        self.finished: dict[int, Arrays] = {}
        for number in self.own_parts:
            part = state.load_part(number)
            if part is not None:
                self.finished[number] = part
                self._count(number, part)

    def announce(self, label: str | None, passes_before: int) -> None:
        """Print how long the attacks will take if half of the images are robust, unless the label is None.

        Args:
            label: the name of the evaluation.
            passes_before: passes of what comes before the attacks, if no part of these is finished.
        """
        left = [self.parts[number] for number in self.own_parts if number not in self.finished]
        if label is None or not left:
            return
        ids = torch.cat(left)[: min(_TIMED_IMAGES, self.worst_case.batch_size)]
        images, y = images_and_labels(self.dataset, ids, self.device)
        x = images.contiguous(memory_format=torch.channels_last)
        per_image = self.worst_case.expected_passes(self.dataset.num_classes) + self._calibration_passes
        passes = sum(map(len, left)) * per_image
        if not self.finished:
            passes += passes_before
        seconds = passes * self.worst_case.seconds_per_pass(x, y)
        announce(label, seconds, "if half of the images are robust")

    def attack(self, label: str | None) -> Arrays:
        """Attack what is left of this process's parts; return the columns of all images, from all processes."""
        finished = self.finished
        done = sum(int(part["passes"]) for part in finished.values())
        self.worst_case.passes = done
        with Progress(label or "", total=0, unit="passes", done=done, shown=label is not None) as bar:
            self.bar = bar
            self._report(done, done, "")
            for number in self.own_parts:
                if number not in finished:
                    finished[number] = self._attack_part(number)
                elif self.calibration_attack is not None and "pgd_probabilities" not in finished[number]:
                    # A part of an earlier version, which ran the suite alone.
                    finished[number] = self._complete_part(number, finished[number])
        gathered = self.group.gather(finished)
        ordered = [gathered[number] for number in range(len(self.parts))]
        columns = [key for key in ordered[0] if key != "passes"]
        return {key: np.concatenate([part[key] for part in ordered]) for key in columns}

    def _attack_part(self, number: int) -> Arrays:
        """Attack the images of one part, save its rows and return them."""
        ids, passes_before = self.parts[number], self.worst_case.passes
        x, labels = self._images_of(number)
        passes_left = len(ids) * self._calibration_passes
        rows, x_adv = self.worst_case.attack(
            x,
            labels,
            ids,
            state=self.state.load_attack_state(number),
            save=lambda attack_state: self.state.save_attack_state(number, attack_state),
            report=lambda done, expected, attack: self._report(done, expected + passes_left, attack, len(ids)),
        )
        has_picture = torch.isin(ids, self.picture_ids).to(self.device)
        arrays = {key: value.cpu().numpy() for key, value in rows.items()}
        arrays["example_clean"] = x[has_picture].contiguous().cpu().numpy()
        arrays["example_adversarial"] = x_adv[has_picture].contiguous().cpu().numpy()
        if self.calibration_attack is not None:
            arrays |= self._attack_for_calibration(number, x, labels, num_running=len(ids))
        arrays["passes"] = np.array(self.worst_case.passes - passes_before)
        self.state.save_part(number, arrays)
        self._count(number, arrays)
        self._report(self.worst_case.passes, self.worst_case.passes, "")
        return arrays

    def _complete_part(self, number: int, part: Arrays) -> Arrays:
        """Attack the images of a finished part for calibration; save the part with that column and return it."""
        passes_before = self.worst_case.passes
        column = self._attack_for_calibration(number, *self._images_of(number))
        complete = {**part, **column, "passes": part["passes"] + self.worst_case.passes - passes_before}
        self.state.save_part(number, complete)
        return complete

    def _images_of(self, number: int) -> tuple[Tensor, Tensor]:
        images, labels = images_and_labels(self.dataset, self.parts[number], self.device)
        return images.contiguous(memory_format=torch.channels_last), labels

    @property
    def _calibration_passes(self) -> int:
        """The passes of an image in the attack for calibration."""
        return 0 if self.calibration_attack is None else self.calibration_attack.passes_per_image

    def _attack_for_calibration(self, number: int, x: Tensor, labels: Tensor, num_running: int = 0) -> Arrays:
        """Attack the images of one part for calibration; return the column, by its name."""
        assert self.calibration_attack is not None
        expected = self.worst_case.passes + len(x) * self._calibration_passes

        def report(num_attacked: int) -> None:
            self.worst_case.passes += num_attacked * self._calibration_passes
            self._report(self.worst_case.passes, expected, ATTACK.name, num_running)

        found = self.calibration_attack.attack(x, labels, self.parts[number], report)
        return {"pgd_probabilities": found.cpu().numpy()}

    def _count(self, number: int, part: Arrays) -> None:
        self.num_finished += len(self.parts[number])
        self.num_robust += int(part["robust"].sum())

    def _report(self, done: int, expected: int, attack: str, num_running: int = 0) -> None:
        """Update the progress bar.

        Args:
            done: passes so far.
            expected: passes so far once the images that are being attacked are decided.
            attack: name of the attack that runs, or "".
            num_running: images that are being attacked.
        """
        assert self.bar is not None
        num_images = sum(len(self.parts[number]) for number in self.own_parts)
        num_started = self.num_finished + num_running
        # An image that withstands every attack costs the most; the remaining images are taken to cost as much as those
        # so far.
        passes_per_image = expected / num_started if num_started else self.passes_per_image
        self.bar.total = round(expected + (num_images - num_started) * passes_per_image)
        notes = [attack] if attack else []
        if self.num_finished:
            share = self.num_robust / self.num_finished
            notes.append(f"robust so far {share:.3f} of {self.num_finished}")
        self.bar.advance(done - self.bar.done, " · ".join(notes))
