"""The records of an evaluation, one row per image, from which every number and figure is computed without the model.

On disk they are a folder with records.npz (plain arrays, never pickled) and summary.json (results, conditions,
checksum).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustill.core.archives import check_header, read_arrays
from robustill.core.checksums import parse_checksummed, with_checksum
from robustill.core.errors import DataError, RunError
from robustill.core.files import write_bytes, write_text
from robustill.core.links import read_regular_file

ROBUST = -1
"""The value of `broken_by` where no attack of the suite succeeded."""

WRONG_ON_CLEAN = -2
"""The value of `broken_by` where the prediction on the clean image is wrong already."""

FIXED_ATTACK = "PGD-10"
"""What tables call the attack of `pgd_probabilities`."""

Array = NDArray[Any]
# The dtype and the dimensions of each array; a letter stands for the same length in all of them.
_LAYOUT: dict[str, tuple[str, str]] = {
    "index": ("int64", "N"),
    "label": ("int64", "N"),
    "clean_probabilities": ("float32", "NK"),
    "adversarial_probabilities": ("float32", "NK"),
    "pgd_probabilities": ("float32", "NK"),
    "robust": ("bool", "N"),
    "broken_by": ("int8", "N"),
    "margin": ("float32", "N"),
    "distance": ("float32", "N"),
    "eps_grid": ("float32", "E"),
    "robust_at_eps": ("bool", "NE"),
    "example_index": ("int64", "M"),
    "example_clean": ("float32", "MCHW"),
    "example_adversarial": ("float32", "MCHW"),
}
_EXAMPLES = ("example_index", "example_clean", "example_adversarial")
_OPTIONAL = ("pgd_probabilities", *_EXAMPLES)


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of one evaluation, one row per image.

    Args:
        index: int64 [N], the ids of the images in the data set, all different.
        label: int64 [N].
        clean_probabilities: float32 [N,K].
        adversarial_probabilities: float32 [N,K], for the strongest adversarial image: the one that was misclassified,
            or else the one of the highest loss.
        robust: bool [N], whether the prediction is right on the clean image and under every attack of the suite.
        broken_by: int8 [N], the position in `stages` of the attack that succeeded, or ROBUST, or WRONG_ON_CLEAN.
        margin: float32 [N], the adversarial logit of the label minus the largest other one; negative is misclassified.
        distance: float32 [N], of the adversarial image from the clean one, in the threat's norm.
        eps_grid: float32 [E], radii in ascending order; E may be 0.
        robust_at_eps: bool [N,E].
        stages: the names of the suite's attacks, in the order in which they ran.
        classes: the names of the K classes.
        conditions: JSON values. The report uses data, split, data_fingerprint, checkpoint, epoch, seed, precision,
            threat {norm, eps, text}, suite {name, stages}, num_images, of_images, parameters (of the model), date and
            warnings, and lists all others.
        example_index: int64 [M], the ids in `index` whose images are kept.
        example_clean: float32 [M,C,H,W] in [0,1].
        example_adversarial: float32 [M,C,H,W] in [0,1].
        pgd_probabilities: float32 [N,K], at the last images of one fixed attack on every image, PGD with ten steps,
            which is the same in all suites; None for files without a gradient and in records of earlier versions.

    Raises:
        DataError: an array has another type or shape, or impossible values.
    """

    index: Array
    label: Array
    clean_probabilities: Array
    adversarial_probabilities: Array
    robust: Array
    broken_by: Array
    margin: Array
    distance: Array
    eps_grid: Array
    robust_at_eps: Array
    stages: tuple[str, ...]
    classes: tuple[str, ...]
    conditions: dict[str, Any]
    example_index: Array | None = None
    example_clean: Array | None = None
    example_adversarial: Array | None = None
    pgd_probabilities: Array | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def has_pictures(self) -> bool:
        """Whether images are kept to be shown."""
        return self.example_index is not None and len(self.example_index) > 0

    @property
    def clean_correct(self) -> Array:
        """Whether the prediction on each clean image is right, bool [N]."""
        correct: Array = self.broken_by != WRONG_ON_CLEAN
        return correct

    @property
    def clean_confidence(self) -> Array:
        """The probability of the class predicted on each clean image, float32 [N]."""
        confidence: Array = self.clean_probabilities.max(axis=1)
        return confidence

    def equals(self, other: Records) -> bool:
        """Return whether other records have the same rows, names and conditions."""
        names = ("stages", "classes", "conditions")
        return all(getattr(self, name) == getattr(other, name) for name in names) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _LAYOUT
        )

    def part(self, rows: Array) -> Records:
        """Return the records of some images, in the same order and without example images.

        Args:
            rows: bool [N].
        """
        by_image = [name for name, (_, letters) in _LAYOUT.items() if letters[0] == "N"]
        arrays = {name: getattr(self, name) for name in by_image}
        selected = {name: array[rows] for name, array in arrays.items() if array is not None}
        return replace(self, **selected, example_index=None, example_clean=None, example_adversarial=None)

    def save(self, folder: Path, results: Mapping[str, Any]) -> None:
        """Write records.npz, then summary.json, each atomically.

        Args:
            folder: the folder to write to; it is made if it is missing.
            results: the statistics of these records that summary.json shows, see `robustill.analysis.summary`.

        Raises:
            DataError: the conditions cannot be written as JSON.
        """
        arrays = {name: getattr(self, name) for name in _LAYOUT if getattr(self, name) is not None}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, stages=np.array(self.stages, "U"), classes=np.array(self.classes, "U"), **arrays)
        content = buffer.getvalue()
        page = {
            "results": dict(results),
            "conditions": self.conditions,
            "records_sha256": hashlib.sha256(content).hexdigest(),
        }
        try:
            # The checksum is of the page as it will be read, where keys that are numbers have become strings.
            plain = json.loads(json.dumps(page, allow_nan=False))
            text = json.dumps(with_checksum(plain), indent=2, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"the conditions of an evaluation must be JSON: {error}") from None
        write_bytes(folder / "records.npz", content)
        write_text(folder / "summary.json", text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Records:
        """Read what `save` wrote, and check its checksum, shapes and values; nothing is unpickled.

        Raises:
            RunError: a file is missing, damaged, or of another format.
        """
        page = read_summary(folder)
        path = folder / "records.npz"
        try:
            check_header(path)
            content = read_regular_file(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror}); evaluate again to write it anew") from None
        except ValueError as error:
            raise RunError(f"{path}: not the records of an evaluation ({error}); evaluate again") from None
        if hashlib.sha256(content).hexdigest() != page["records_sha256"]:
            raise RunError(f"{path}: its checksum is not the one in summary.json; evaluate again to write it anew")
        try:
            arrays = read_arrays(content)
            names = {name: tuple(map(str, arrays.pop(name))) for name in ("stages", "classes")}
            return cls(**arrays, **names, conditions=page["conditions"])  # type: ignore[arg-type]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: not the records of an evaluation ({error}); evaluate again") from None


def read_summary(folder: Path) -> dict[str, Any]:
    """Read summary.json: a dictionary with "results", "conditions" and "records_sha256".

    Raises:
        RunError: the file is missing, damaged, or of another format.
    """
    path = folder / "summary.json"
    try:
        content = read_regular_file(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); evaluate again to write it") from None
    page = parse_checksummed(content, path, "evaluate again to write it anew")
    expected = {"results": dict, "conditions": dict, "records_sha256": str}
    wrong = [key for key, kind in expected.items() if not isinstance(page.get(key), kind)]
    if wrong:
        raise RunError(f"{path}: {', '.join(wrong)} missing or damaged; evaluate again to write it anew")
    return page


def attacked_kind(results: Iterable[Mapping[str, Any]]) -> Literal["pgd", "adversarial"]:
    """Return which calibration under attack is shown of evaluations side by side, as the end of its names in a summary.

    "pgd", such as ece_pgd, is measured at the images of one fixed attack, so that suites and networks can be compared;
    where an evaluation lacks it, "adversarial" is shown of all of them, at the image that each one kept.
    """
    return "pgd" if all("ece_pgd" in each for each in results) else "adversarial"


def has_lost_its_summary(folder: Path) -> bool:
    """Return whether summary.json of a complete evaluation is gone; one that was stopped before it has its state."""
    has_records, has_summary, has_state = [
        (folder / name).exists() for name in ("records.npz", "summary.json", ".state")
    ]
    return has_records and not has_summary and not has_state


def _check_shapes(records: Records) -> None:
    sizes: dict[str, int] = {"K": len(records.classes)}
    arrays = {name: getattr(records, name) for name in _LAYOUT}
    if len({arrays[name] is None for name in _EXAMPLES}) == 2:
        raise DataError(f"records: {', '.join(_EXAMPLES)} come together or not at all")
    for name, (dtype, letters) in _LAYOUT.items():
        array = arrays[name]
        if array is None and name in _OPTIONAL:
            continue
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != len(letters):
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise DataError(f"records: {name} is {found}, expected {dtype} [{','.join(letters)}]")
        for letter, size in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise DataError(f"records: {name} has {letter} = {size}, the others have {sizes[letter]}")
    if not sizes["N"]:
        raise DataError("records: no image, expected at least one")


def _check_values(records: Records) -> None:
    for name in ("clean_probabilities", "adversarial_probabilities", "pgd_probabilities"):
        array = getattr(records, name)
        # In this form NaN is refused, too.
        if array is not None and not (
            np.all((array >= 0) & (array <= 1.0001)) and np.all(np.abs(array.sum(axis=1) - 1) < 1e-3)
        ):
            raise DataError(f"records: {name} must be in [0,1] and sum to 1 in each row")
    for name in ("margin", "distance", "eps_grid"):
        if not np.isfinite(getattr(records, name)).all():
            raise DataError(f"records: {name} has a value that is not finite")
    if len(np.unique(records.index)) != len(records.index):
        raise DataError("records: index has an id twice, expected one row an image")
    if records.label.min() < 0 or records.label.max() >= len(records.classes):
        raise DataError(f"records: a label is outside 0..{len(records.classes) - 1}")
    if len(set(records.stages)) != len(records.stages):
        raise DataError(f"records: a stage has its name twice in {records.stages}")
    if records.broken_by.min() < WRONG_ON_CLEAN or records.broken_by.max() >= len(records.stages):
        raise DataError(f"records: broken_by is outside {WRONG_ON_CLEAN}..{len(records.stages) - 1}")
    if np.any(records.robust != (records.broken_by == ROBUST)):
        raise DataError("records: robust must hold exactly where broken_by is -1")
    # Different logits may give equal float32 probabilities: only clear contradictions are refused.
    of_label = np.take_along_axis(records.clean_probabilities, records.label[:, None], axis=1)[:, 0]
    below = records.clean_confidence - of_label > 1e-6
    if np.any(below & records.clean_correct) or np.any(~below & ~records.clean_correct & (of_label > 0.5001)):
        raise DataError("records: broken_by must be -2 exactly where the clean prediction is not the label")
    if records.example_index is not None and not np.isin(records.example_index, records.index).all():
        raise DataError("records: example_index has an id that is not in index")
