"""The training dynamics of a run on disk: loss, margin and correctness of every training image in every epoch.

    RUN/dynamics/samples.npz       ids, the labels that were trained on, which of them were flipped
    RUN/dynamics/epoch-0001.npz    for each series: loss and margin (float16), correct (bits), in the order of the ids

A series is of one network on one kind of image: the student or the teacher, on adversarial or on clean images.
A probability is stored as its loss −log p, which float16 resolves to 0.05 % both near 0 and near 1. Two series of
50,000 images over 100 epochs take 41 MB, all four 83 MB.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.core.archives import check_header, read_arrays
from robustill.core.checksums import FORMAT, unknown_format_message
from robustill.core.errors import RunError
from robustill.core.files import write_bytes
from robustill.core.links import read_regular_file
from robustill.runs.directory import RunDirectory

Array = NDArray[Any]
SERIES = ("adversarial", "clean", "teacher_adversarial", "teacher_clean")
_DTYPES = {"loss": np.float16, "margin": np.float16, "correct": np.uint8}


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """A network's loss, margin and correctness on each sample, over epochs; nan and False where there is no record.

    Args:
        epochs: int [E], the epochs with a record, ascending, counted from 1.
        loss: float32 [E,N], −log of the label's probability, in nats.
        margin: float32 [E,N], the label's logit minus the best other.
        correct: bool [E,N].
    """

    epochs: Array
    loss: Array
    margin: Array
    correct: Array

    @property
    def probability(self) -> Array:
        """The probability of the label, float32 [E,N]."""
        probability: Array = np.exp(-self.loss)
        return probability

    @property
    def recorded(self) -> Array:
        """Where there is a record, bool [E,N]."""
        return ~np.isnan(self.loss)

    def part(self, samples: Array) -> Series:
        """Return the series of some samples.

        Args:
            samples: bool [N], or int positions.
        """
        columns = {name: getattr(self, name)[:, samples] for name in _DTYPES}
        return Series(epochs=self.epochs, **columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dynamics:
    """The training dynamics of a run: the series of student and teacher on all training images.

    The images are those of the training step, augmented. The logits are those of its loss: of the student in train
    mode, at the weights before the step (with AWP, at the perturbed weights where the method's own forward passes are
    recorded). A series that the method never computes is None.

    Args:
        ids: int64 [N], the ids of the samples in the data set, ascending.
        labels: int64 [N], the labels that were trained on, noise included.
        flipped: bool [N], whether the label is noise.
        num_epochs: the number of epochs trained; a series on clean images may have fewer.
        adversarial: the student on its adversarial images.
        clean: the student on clean images.
        teacher_adversarial: the teacher (with two roles, the robust one) on the student's adversarial images.
        teacher_clean: the teacher on clean images.
    """

    ids: Array
    labels: Array
    flipped: Array
    num_epochs: int
    adversarial: Series | None = None
    clean: Series | None = None
    teacher_adversarial: Series | None = None
    teacher_clean: Series | None = None

    @property
    def student(self) -> Series:
        """The series of the student on the images it was trained on: adversarial ones, or clean ones without attack.

        Raises:
            RunError: neither was recorded.
        """
        series = self.adversarial if self.adversarial is not None else self.clean
        if series is None:
            raise RunError("the dynamics hold no series of the student: train again with dynamics.record")
        return series


def write_samples(run: Path, ids: Array, labels: Array, flipped: Array) -> None:
    """Write RUN/dynamics/samples.npz; equal samples give equal bytes.

    Args:
        run: the run directory.
        ids: int64 [N], the ids of the samples in the data set, ascending.
        labels: int64 [N], the labels that are trained on.
        flipped: bool [N], whether the label is noise.
    """
    arrays = {"ids": ids.astype(np.int64), "labels": labels.astype(np.int64), "flipped": flipped.astype(np.bool_)}
    write_bytes(run / "dynamics" / "samples.npz", _pack(arrays))


def write_epoch(run: Path, epoch: int, arrays: Mapping[str, Array]) -> None:
    """Write RUN/dynamics/epoch-NNNN.npz atomically.

    Args:
        run: the run directory.
        epoch: the epoch, counted from 1.
        arrays: loss and margin, float16 [N], and correct, bool [N], of each series, named SERIES_loss and so on.
    """
    packed = {key: np.packbits(value) if value.dtype == np.bool_ else value for key, value in arrays.items()}
    write_bytes(_file(run, epoch), _pack(packed))


def forget_after(run: Path, epoch: int) -> None:
    """Remove the records of later epochs, which will be trained again."""
    for each in _epochs(run):
        if each > epoch:
            _file(run, each).unlink()


def check_epochs(run: Path, epochs: int) -> None:
    """Check that the records of all epochs up to this one are complete.

    Raises:
        RunError: a file is missing or damaged.
    """
    for epoch in range(1, epochs + 1):
        _read(_file(run, epoch))


def has_dynamics(run: Path) -> bool:
    """Return whether any epoch was recorded."""
    return bool(_epochs(run))


def read_dynamics(run: Path | str) -> Dynamics:
    """Read the training dynamics of all epochs that the run has finished.

    Raises:
        RunError: there are no dynamics, or a file is missing or damaged.
    """
    path = Path(run)
    done = len(RunDirectory.existing(path).metrics())
    if not done or not has_dynamics(path):
        raise RunError(f"{path} has no dynamics: they are recorded while it trains, unless dynamics.record is false")
    ids, labels, flipped = _read_samples(path / "dynamics" / "samples.npz")
    epochs = [_read(_file(path, epoch)) for epoch in range(1, done + 1)]
    series = {name: _series(path, epochs, name, len(ids)) for name in SERIES}
    return Dynamics(ids=ids, labels=labels, flipped=flipped, num_epochs=done, **series)


def _read_samples(file: Path) -> tuple[Array, Array, Array]:
    """Return ids, labels and flipped, each [N]."""
    samples = _read(file)
    dtypes = {"ids": "int64", "labels": "int64", "flipped": "bool"}
    for name in dtypes:
        if name not in samples:
            raise RunError(f"{file} lacks {name!r}: run the same training command")
    shape = (samples["ids"].size,)
    wrong = [name for name, dtype in dtypes.items() if samples[name].dtype != dtype or samples[name].shape != shape]
    if wrong:
        raise RunError(f"{file} is damaged: {', '.join(wrong)} is not one value a sample")
    return samples["ids"], samples["labels"], samples["flipped"]


def _series(run: Path, arrays: list[dict[str, Array]], name: str, num_samples: int) -> Series | None:
    epochs = [epoch for epoch, of_epoch in enumerate(arrays, start=1) if f"{name}_loss" in of_epoch]
    if not epochs:
        return None
    columns: dict[str, list[Array]] = {part: [] for part in _DTYPES}
    for epoch in epochs:
        for part, dtype in _DTYPES.items():
            value = arrays[epoch - 1].get(f"{name}_{part}")
            size = (num_samples + 7) // 8 if part == "correct" else num_samples
            if value is None or value.dtype != dtype or value.shape != (size,):
                raise RunError(f"{_file(run, epoch)} is damaged: {name}_{part} is not one value a sample")
            if part == "correct":
                value = np.unpackbits(value, count=num_samples).astype(bool)
            columns[part].append(value)
    return Series(
        epochs=np.array(epochs),
        loss=np.stack(columns["loss"]).astype(np.float32),
        margin=np.stack(columns["margin"]).astype(np.float32),
        correct=np.stack(columns["correct"]),
    )


def _file(run: Path, epoch: int) -> Path:
    return run / "dynamics" / f"epoch-{epoch:04d}.npz"


def _epochs(run: Path) -> list[int]:
    files = (run / "dynamics").glob("epoch-*.npz")
    matches = [re.fullmatch(r"epoch-([0-9]{4,9})\.npz", file.name) for file in files]
    return sorted(int(match[1]) for match in matches if match)


def _pack(arrays: Mapping[str, Array]) -> bytes:
    # Not compressed: the values hardly compress. A zip archive holds a checksum of each array.
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, "format": np.array(FORMAT)})  # type: ignore[arg-type]
    return buffer.getvalue()


def _read(file: Path) -> dict[str, Array]:
    try:
        check_header(file)
        arrays = read_arrays(read_regular_file(file))
    except FileNotFoundError:
        raise RunError(f"{file} is missing: restore it, or train again in another --run") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged ({error}): restore it, or train again in another --run") from None
    # Files of earlier versions have no format number.
    version = arrays.pop("format", np.array(FORMAT)).tolist()
    if version != FORMAT:
        raise RunError(f"{file}: {unknown_format_message(version)}")
    return arrays
