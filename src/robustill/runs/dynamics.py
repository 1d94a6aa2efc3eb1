"""What a run has recorded of every training image in every epoch, as it lies on disk.

    RUN/dynamics/samples.npz       ids, the labels that were trained on, which of them were flipped
    RUN/dynamics/epoch-0001.npz    for each look: loss and margin (float16), correct (packed bits), in the order of ids

A look is who was asked about which image: the student on the adversarial or on the clean image, the teacher on either.
A probability is kept as its loss −log p, which float16 resolves to 0.05 % near 0 and near 1 alike. Two looks at 50,000
images over 100 epochs take 41 MB, all four 83 MB.
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
from robustill.runs.directory import RunDirectory

Array = NDArray[Any]
LOOKS = ("adversarial", "clean", "teacher_adversarial", "teacher_clean")
_PARTS = {"loss": np.float16, "margin": np.float16, "correct": np.uint8}


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One look over the epochs in which it was taken; nan and False where a sample was not seen.

    Args:
        epochs: int [E], ascending, counted from 1.
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
        """Of the label, float32 [E,N]."""
        probability: Array = np.exp(-self.loss)
        return probability

    @property
    def seen(self) -> Array:
        """Where there is a record, bool [E,N]."""
        return ~np.isnan(self.loss)

    def part(self, samples: Array) -> Series:
        """Some samples alone, by bool [N] or their positions."""
        columns = {name: getattr(self, name)[:, samples] for name in _PARTS}
        return Series(epochs=self.epochs, **columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dynamics:
    """Every look at every training image.

    Images are as the step saw them, augmented, and networks as its loss saw them: the student in train mode, at the
    weights before the step (with AWP, at the perturbed ones where the method's own passes are read). A look that the
    method never takes is None.

    Args:
        ids: int64 [N], of the samples in the data set, ascending.
        labels: int64 [N], that were trained on, noise included.
        flipped: bool [N], whether the label is noise.
        num_epochs: that were trained; looks at clean images may be of fewer.
        adversarial: the student on its adversarial images.
        clean: the student on clean images.
        teacher_adversarial: the teacher (of two roles the robust one) on the student's adversarial images.
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
        """The student on what it was trained on: adversarial images, clean ones where there was no adversary.

        Raises:
            RunError: neither was recorded.
        """
        found = self.adversarial if self.adversarial is not None else self.clean
        if found is None:
            raise RunError("the dynamics hold no look of the student: train again with dynamics.record")
        return found


def folder_of(run: Path) -> Path:
    """Where a run keeps its dynamics."""
    return run / "dynamics"


def write_samples(run: Path, ids: Array, labels: Array, flipped: Array) -> None:
    """RUN/dynamics/samples.npz: the same bytes for the same samples."""
    arrays = {"ids": ids.astype(np.int64), "labels": labels.astype(np.int64), "flipped": flipped.astype(np.bool_)}
    write_bytes(folder_of(run) / "samples.npz", _packed(arrays))


def write_epoch(run: Path, epoch: int, arrays: Mapping[str, Array]) -> None:
    """RUN/dynamics/epoch-NNNN.npz, whole or not at all.

    Args:
        run: the run directory.
        epoch: counted from 1.
        arrays: loss and margin, float16 [N], and correct, bool [N], each named LOOK_loss and so on.
    """
    packed = {key: np.packbits(value) if value.dtype == np.bool_ else value for key, value in arrays.items()}
    write_bytes(_file(run, epoch), _packed(packed))


def forget_after(run: Path, epoch: int) -> None:
    """Remove the records of later epochs: they will be trained again."""
    for each in _epochs(run):
        if each > epoch:
            _file(run, each).unlink()


def check_epochs(run: Path, epochs: int) -> None:
    """That the records of the epochs up to this one are whole.

    Raises:
        RunError: a file is missing or damaged.
    """
    for epoch in range(1, epochs + 1):
        _unpacked(_file(run, epoch))


def has_dynamics(run: Path) -> bool:
    """Whether any epoch was recorded."""
    return bool(_epochs(run))


def read_dynamics(run: Path | str) -> Dynamics:
    """The records of all epochs that the run has finished.

    Raises:
        RunError: there are none, or a file is missing or damaged.
    """
    path = Path(run)
    done = len(RunDirectory.existing(path).metrics())
    if not done or not has_dynamics(path):
        raise RunError(f"{path} has no dynamics: they are recorded while it trains, unless dynamics.record is false")
    samples = _unpacked(folder_of(path) / "samples.npz")
    try:
        ids, labels, flipped = samples["ids"], samples["labels"], samples["flipped"]
    except KeyError as error:
        raise RunError(f"{folder_of(path) / 'samples.npz'} lacks {error}: run the same training command") from None
    kinds = {"ids": "int64", "labels": "int64", "flipped": "bool"}
    wrong = [name for name, kind in kinds.items() if samples[name].dtype != kind or samples[name].shape != (ids.size,)]
    if wrong:
        raise RunError(f"{folder_of(path) / 'samples.npz'} is damaged: {', '.join(wrong)} is not one value a sample")
    pages = [_unpacked(_file(path, epoch)) for epoch in range(1, done + 1)]
    looks = {look: _series(path, pages, look, len(ids)) for look in LOOKS}
    return Dynamics(ids=ids, labels=labels, flipped=flipped, num_epochs=done, **looks)


def _series(run: Path, pages: list[dict[str, Array]], look: str, n: int) -> Series | None:
    epochs = [epoch for epoch, page in enumerate(pages, start=1) if f"{look}_loss" in page]
    if not epochs:
        return None
    columns: dict[str, list[Array]] = {part: [] for part in _PARTS}
    for epoch in epochs:
        for part, kind in _PARTS.items():
            value = pages[epoch - 1].get(f"{look}_{part}")
            size = (n + 7) // 8 if part == "correct" else n
            if value is None or value.dtype != kind or value.shape != (size,):
                raise RunError(f"{_file(run, epoch)} is damaged: {look}_{part} is not one value a sample")
            columns[part].append(np.unpackbits(value, count=n).astype(bool) if part == "correct" else value)
    return Series(
        epochs=np.array(epochs),
        loss=np.stack(columns["loss"]).astype(np.float32),
        margin=np.stack(columns["margin"]).astype(np.float32),
        correct=np.stack(columns["correct"]),
    )


def _file(run: Path, epoch: int) -> Path:
    return folder_of(run) / f"epoch-{epoch:04d}.npz"


def _epochs(run: Path) -> list[int]:
    found = (re.fullmatch(r"epoch-([0-9]{4,9})\.npz", each.name) for each in folder_of(run).glob("epoch-*.npz"))
    return sorted(int(each[1]) for each in found if each)


def _packed(arrays: Mapping[str, Array]) -> bytes:
    # Not compressed: the values are noise to a compressor; the archive brings a checksum for each array.
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, "format": np.array(FORMAT)})  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpacked(file: Path) -> dict[str, Array]:
    try:
        check_header(file)
        page = read_arrays(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{file} is missing: restore it, or train again in another --run") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged ({error}): restore it, or train again in another --run") from None
    # Files of before there were formats have none.
    version = page.pop("format", np.array(FORMAT)).tolist()
    if version != FORMAT:
        raise RunError(f"{file}: {unknown_format_message(version)}")
    return page
