"""What several networks say of the adversarial images made against each of them, on disk without the images.

A folder holds transfer.npz (plain arrays, never pickled) and transfer.json (names, conditions, checksum).
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

Array = NDArray[Any]
_LAYOUT = {
    "index": ("int64", "N"),
    "label": ("int64", "N"),
    "clean": ("float32", "MNK"),
    "adversarial": ("float32", "MMNK"),
}
_AGAIN = "run robustill transfer again"


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferRecords:
    """Of M networks and N images.

    Args:
        names: M, of the networks.
        index: int64 [N], ids in the data set.
        label: int64 [N].
        clean: float32 [M,N,K], probabilities of each network.
        adversarial: float32 [M,M,N,K], of each network (second) for the images made against each (first).
        conditions: what JSON can hold: data, split, threat, suite, seed, networks ...

    Raises:
        DataError: an array has another type or shape, or values that cannot be.
    """

    names: tuple[str, ...]
    index: Array
    label: Array
    clean: Array
    adversarial: Array
    conditions: dict[str, Any]

    def __post_init__(self) -> None:
        sizes = {"M": len(self.names)}
        for name, (kind, letters) in _LAYOUT.items():
            array = getattr(self, name)
            if array.dtype != kind or array.ndim != len(letters):
                raise DataError(
                    f"transfer: {name} is {array.dtype} {list(array.shape)}, expected {kind} [{','.join(letters)}]"
                )
            for letter, size in zip(letters, array.shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    raise DataError(f"transfer: {name} has {letter} = {size}, the others have {sizes[letter]}")
        if min(sizes.values()) < 1 or self.label.min() < 0 or self.label.max() >= sizes["K"]:
            raise DataError("transfer: expected at least one image, and labels that are classes")
        for each in (self.clean, self.adversarial):
            # Written so that nan fails it too.
            if not (np.all((each >= 0) & (each <= 1.0001)) and np.all(np.abs(each.sum(axis=-1) - 1) < 1e-3)):
                raise DataError("transfer: probabilities must be in [0,1] and sum to 1")

    def save(self, folder: Path) -> None:
        """Writes folder/transfer.npz, then folder/transfer.json, each whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in _LAYOUT})
        content = buffer.getvalue()
        page = {"names": list(self.names), "conditions": self.conditions, "records_sha256": sha256(content)}
        # As it will be read: keys that are numbers become words, tuples lists.
        plain = json.loads(json.dumps(page))
        write_bytes(folder / "transfer.npz", content)
        write_text(folder / "transfer.json", json.dumps(with_checksum(plain), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TransferRecords:
        """What `save` wrote, checked; nothing is unpickled.

        Raises:
            RunError: a file is missing, damaged, or of another format.
        """
        page_file, file = folder / "transfer.json", folder / "transfer.npz"
        try:
            header, content = page_file.read_bytes(), file.read_bytes()
        except OSError as error:
            raise RunError(f"{error.filename} cannot be read ({error.strerror}): {_AGAIN}") from None
        page = parse_checksummed(_of_today(header), page_file, _AGAIN)
        try:
            known = {"names": tuple(map(str, page["names"])), "conditions": dict(page["conditions"])}
            expected = page["records_sha256"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{page_file} is damaged: {_AGAIN}") from None
        if sha256(content) != expected:
            raise RunError(f"{file}: its checksum is not the one in transfer.json: {_AGAIN}")
        try:
            found = read_arrays(content)
            return cls(**known, **{name: found[name] for name in _LAYOUT})  # type: ignore[arg-type]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{file}: not the records of a transfer ({error}): {_AGAIN}") from None


def _of_today(header: bytes) -> bytes:
    """A page of before it had a checksum of itself: what stood under its name was that of the arrays."""
    try:
        page = json.loads(header)
        if list(page) == ["format", "names", "conditions", "sha256"]:
            page["records_sha256"] = page.pop("sha256")
            return json.dumps(page).encode()
    except (ValueError, TypeError, RecursionError):
        pass
    return header
