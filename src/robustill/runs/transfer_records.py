"""The predictions of several networks on adversarial images made against each of them, without the images.

On disk they are a folder with transfer.npz (plain arrays, never pickled) and transfer.json (names, conditions,
checksum).
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustill.core.archives import read_arrays
from robustill.core.checksums import parse_checksummed, sha256, with_checksum
from robustill.core.errors import DataError, RunError
from robustill.core.files import write_bytes, write_text
from robustill.core.links import read_regular_file

Array = NDArray[Any]
_LAYOUT = {
    "index": ("int64", "N"),
    "label": ("int64", "N"),
    "clean": ("float32", "MNK"),
    "adversarial": ("float32", "MMNK"),
}
_MEND = "run robustill transfer again"


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferRecords:
    """The records of a transfer evaluation of M networks on N images.

    Args:
        names: the names of the M networks.
        index: int64 [N], the ids of the images in the data set.
        label: int64 [N].
        clean: float32 [M,N,K], the probabilities that each network gives the clean images.
        adversarial: float32 [M,M,N,K], the probabilities that each network (second index) gives the images made
            against each network (first index).
        conditions: JSON values: data, split, threat, suite, seed, networks ...

    Raises:
        DataError: an array has another type or shape, or impossible values.
    """

    names: tuple[str, ...]
    index: Array
    label: Array
    clean: Array
    adversarial: Array
    conditions: dict[str, Any]

    def __post_init__(self) -> None:
        sizes = {"M": len(self.names)}
        for name, (dtype, letters) in _LAYOUT.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != len(letters):
                raise DataError(
                    f"transfer: {name} is {array.dtype} {list(array.shape)}, expected {dtype} [{','.join(letters)}]"
                )
            for letter, size in zip(letters, array.shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise DataError(f"transfer: {name} has {letter} = {size}, the others have {sizes[letter]}")
        if min(sizes.values()) < 1 or self.label.min() < 0 or self.label.max() >= sizes["K"]:
            raise DataError("transfer: expected at least one image, and labels that are classes")
        for each in (self.clean, self.adversarial):
            # In this form NaN is refused, too.
            if not (np.all((each >= 0) & (each <= 1.0001)) and np.all(np.abs(each.sum(axis=-1) - 1) < 1e-3)):
                raise DataError("transfer: probabilities must be in [0,1] and sum to 1")

    def save(self, folder: Path) -> None:
        """Write transfer.npz, then transfer.json, each atomically."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in _LAYOUT})
        content = buffer.getvalue()
        page = {"names": list(self.names), "conditions": self.conditions, "records_sha256": sha256(content)}
        # The checksum is of the page as it will be read: with strings for numbers as keys, and lists for tuples.
        plain = json.loads(json.dumps(page))
        write_bytes(folder / "transfer.npz", content)
        write_text(folder / "transfer.json", json.dumps(with_checksum(plain), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TransferRecords:
        """Read what `save` wrote, and check it; nothing is unpickled.

        Raises:
            RunError: a file is missing, damaged, or of another format.
        """
        page_file, file = folder / "transfer.json", folder / "transfer.npz"
        try:
            header, content = read_regular_file(page_file), read_regular_file(file)
        except OSError as error:
            raise RunError(f"{error.filename} cannot be read ({error.strerror}): {_MEND}") from None
        page = parse_checksummed(_current_format(header), page_file, _MEND)
        try:
            names, conditions = tuple(map(str, page["names"])), dict(page["conditions"])
            expected = page["records_sha256"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{page_file} is damaged: {_MEND}") from None
        if sha256(content) != expected:
            raise RunError(f"{file}: its checksum is not the one in transfer.json: {_MEND}")
        try:
            arrays = read_arrays(content)
            return cls(names=names, conditions=conditions, **{name: arrays[name] for name in _LAYOUT})
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{file}: not the records of a transfer ({error}): {_MEND}") from None


def _current_format(header: bytes) -> bytes:
    """Rename the checksum in a page of an earlier version: there "sha256" was the checksum of the arrays."""
    try:
        page = json.loads(header)
        if list(page) == ["format", "names", "conditions", "sha256"]:
            page["records_sha256"] = page.pop("sha256")
            return json.dumps(page).encode()
    except (ValueError, TypeError, RecursionError):
        pass
    return header
