"""What an evaluation has done so far, on disk: a killed one goes on from here and gives the same records.

A finished one has its records alone; `answers` says whether they are what is asked for once more.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustill.attacks.state import AutoAttackState
from robustill.core.archives import read_arrays
from robustill.core.checksums import parse_checksummed, with_checksum
from robustill.core.errors import RunError
from robustill.core.files import write_bytes, write_text
from robustill.core.links import read_regular_file, refuse_link
from robustill.runs.records import Records

Arrays = dict[str, NDArray[Any]]
# Conditions that an evaluation finds, or that say when it was.
_FOUND = ("masking", "quick", "warnings", "date")


def answers(
    before: Records, known: Mapping[str, Any], ids: Tensor, shown: Tensor, grid: Sequence[float], *, looks: bool
) -> bool:
    """Whether records are what an evaluation of these conditions would give again.

    Args:
        before: the records.
        known: the conditions that are settled before the attack; without a checkpoint_sha256 nothing answers them.
        ids: of the images, int64 [N].
        shown: of those whose pictures are kept.
        grid: the radii of the curve.
        looks: whether a masked gradient is looked for.
    """
    there = {key: value for key, value in before.conditions.items() if key not in _FOUND}
    # As it stands in a file: a tuple is a list there.
    asked = json.loads(json.dumps({key: value for key, value in known.items() if key not in _FOUND}))
    pictures = shown[:0].numpy() if before.example_index is None else before.example_index
    return (
        asked.get("checkpoint_sha256") is not None
        and there == asked
        and ("masking" in before.conditions) == looks
        and np.array_equal(before.index, ids.numpy())
        and np.array_equal(before.eps_grid, np.asarray(grid, dtype=np.float32))
        and np.array_equal(pictures, shown.numpy())
    )


class EvaluationState:
    """Parts of the images, each with its rows once it is done and AutoAttack's state while it is not.

    The folder holds header.json, part-00000.npz ..., and part-00007.autoattack.npz; plain arrays, never pickled. It is
    made at the first write. Without a folder nothing is kept.

    Args:
        folder: where; None keeps nothing.
        conditions: what must be the same for going on, as JSON can hold it.
        part_size: images a part, where nothing is there yet.

    Raises:
        RunError: the folder holds an evaluation of other conditions, or a damaged header.
    """

    def __init__(self, folder: Path | None, conditions: Mapping[str, Any], part_size: int) -> None:
        self.folder, self.conditions, self.part_size = folder, json.loads(json.dumps(conditions)), part_size
        if folder is not None:
            refuse_link(folder)
        header = None if folder is None else folder / "header.json"
        # Without a header nobody knows what the parts in the folder are parts of.
        self._begun = header is not None and header.exists()
        if header is None or not self._begun:
            return
        mend = f"delete the folder {folder} to begin again"
        page = parse_checksummed(header.read_bytes(), header, mend)
        try:
            there, self.part_size = dict(page["conditions"]), page["part_size"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{header} is damaged: {mend}") from None
        if type(self.part_size) is not int or self.part_size < 1:
            raise RunError(f"{header} is damaged: {mend}")
        changed = [key for key in self.conditions if there.get(key) != self.conditions[key]]
        if changed:
            raise RunError(
                f"{folder} holds a half-done evaluation of other {', '.join(changed)}: "
                "repeat the command it was begun with, or delete that folder to begin again"
            )

    def part(self, number: int) -> Arrays | None:
        """The rows of a part that is done."""
        return self._read(f"part-{number:05d}.npz")

    def save_part(self, number: int, arrays: Arrays) -> None:
        """A part is done."""
        self._write(f"part-{number:05d}.npz", arrays)
        if self.folder is not None:
            (self.folder / f"part-{number:05d}.autoattack.npz").unlink(missing_ok=True)

    def progress(self, number: int) -> AutoAttackState | None:
        """AutoAttack's state in a part that is not done."""
        arrays = self._read(f"part-{number:05d}.autoattack.npz")
        return None if arrays is None else AutoAttackState.from_arrays(arrays)

    def save_progress(self, number: int, progress: AutoAttackState) -> None:
        """A batch of a part is done."""
        if self.folder is not None:
            self._write(f"part-{number:05d}.autoattack.npz", progress.arrays())

    def note(self, name: str) -> dict[str, Any] | None:
        """What `save_note` was given under this name."""
        path = self._there(f"{name}.json")
        if path is None:
            return None
        try:
            page: dict[str, Any] = parse_checksummed(path.read_bytes(), path, "")["note"]
        except (RunError, KeyError):
            return None
        return page

    def save_note(self, name: str, page: dict[str, Any]) -> None:
        """Something else that need not be done again."""
        if self.folder is not None:
            self._begin()
            write_text(self.folder / f"{name}.json", json.dumps(with_checksum({"note": json.loads(json.dumps(page))})))

    def clear(self) -> None:
        """The records are written: nothing of this is needed any more."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self) -> None:
        assert self.folder is not None
        header = self.folder / "header.json"
        if not header.exists():
            for stray in (*self.folder.glob("part-*.npz"), *self.folder.glob("*.json")):
                stray.unlink()
            page = {"conditions": self.conditions, "part_size": self.part_size}
            write_text(header, json.dumps(with_checksum(page), indent=1) + "\n")
        self._begun = True

    def _there(self, name: str) -> Path | None:
        path = None if self.folder is None or not self._begun else self.folder / name
        return path if path is not None and path.exists() else None

    def _write(self, name: str, arrays: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        self._begin()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(self.folder / name, buffer.getvalue())

    def _read(self, name: str) -> Arrays | None:
        path = self._there(name)
        if path is None:
            return None
        try:
            return read_arrays(read_regular_file(path))
        except (ValueError, OSError):
            # Files are renamed when they are whole; one that is damaged all the same costs its part once more.
            return None
