"""Teachers' logits on clean images, kept on disk between steps, epochs and runs.

An entry belongs to one image, pixel for pixel as the teacher saw it: its key is a digest of these pixels. So an
augmented image is another entry, whatever the augmentation was, and runs of other methods, students or data share the
entries of images that they have in common. Runs that differ in the method alone see the same images in every epoch,
also extra ones and mixtures of two (CutMix): the second one never asks the teacher about a clean image.

    config.compute.teacher_cache = DIR     # DIR/robust, DIR/natural: cache.json, keys, logits

`cache.json` says who spoke: sha256, weight and size of every teacher, how they were combined, precision, device, torch.
A cache of others is refused. A batch is taken from the cache whole or not at all: what is computed, is computed in the
very batch that it would be computed in without a cache. A hit is bit for bit what the teacher says, as long as it gives
an image the same logits at every place of a batch, which convolutions on a CPU do.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.core.errors import ConfigError
from robustill.core.files import write_text

_ENTRY = np.dtype([("image", "V16"), ("logits", "V8")])


class TeacherCache:
    """Logits by image, in two files that only grow: one of digests, one of float32 rows.

    Every row carries a digest of its own, so that a damaged one is computed again; what a killed process left half
    written is cut off. One process at a time writes; others read what was there when they began. In memory an entry
    costs about 150 bytes.

    Args:
        folder: made if it is missing.
        identity: JSON-able; who speaks.
        num_classes: K.

    Raises:
        ConfigError: the folder holds the logits of another identity, or something else.

    Example:
        >>> import tempfile
        >>> cache = TeacherCache(Path(tempfile.mkdtemp()) / "robust", {"sha256": "00"}, num_classes=2)
        >>> x = torch.ones(1, 1, 2, 2)
        >>> cache.put(x, torch.tensor([[1.0, 2.0]]))
        >>> cache.get(x), cache.get(0 * x)
        (tensor([[1., 2.]]), None)
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], num_classes: int) -> None:
        self.folder = folder
        self.num_classes = num_classes
        self.hits = self.misses = 0
        # As JSON gives it back: tuples are lists there.
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._is_open = False
        self._check_folder()

    def _open(self) -> None:
        """At the first image: a run that is refused before has written nothing."""
        if self._is_open:
            return
        self._is_open, folder, num_classes = True, self.folder, self.num_classes
        if not (folder / "cache.json").is_file():
            write_text(folder / "cache.json", json.dumps(self.identity, indent=1))
        lock = (folder / "lock").open("ab")
        self.writes = _locked(lock)
        self._keys, self._logits = ((folder / name).open("ab") for name in ("keys", "logits"))
        weakref.finalize(self, _close, lock, self._keys, self._logits)
        count = min(self._keys.tell() // _ENTRY.itemsize, self._logits.tell() // (4 * num_classes))
        if self.writes:
            self._keys.truncate(count * _ENTRY.itemsize)
            self._logits.truncate(count * 4 * num_classes)
        self._map(count)
        self._rows = {entry.tobytes(): row for row, entry in enumerate(self._entries["image"])}

    def get(self, images: Tensor) -> Tensor | None:
        """The logits of a batch, float32 [B,K] on the images' device; None if those of any image are missing."""
        self._open()
        rows = [self._rows.get(key) for key in _digests(images, 16)]
        if None not in rows:
            found = torch.from_numpy(self._values[np.asarray(rows, dtype=np.int64)])
            whole = [entry.tobytes() for entry in self._entries["logits"][np.asarray(rows, dtype=np.int64)]]
            if whole == _digests(found, 8):
                self.hits += len(rows)
                return found.to(images.device)
        self.misses += len(rows)
        return None

    def put(self, images: Tensor, logits: Tensor) -> None:
        """Keep what the teacher said of a batch; does nothing in a process that only reads."""
        self._open()
        if not self.writes:
            return
        values = logits.detach().float().cpu().contiguous()
        entries = zip(_digests(images, 16), _digests(values, 8), values, strict=True)
        count = len(self._entries)
        for key, check, row in entries:
            known = self._rows.get(key)
            if known is not None and (known >= len(self._entries) or self._is_whole(known)):
                continue
            self._logits.write(row.numpy().astype("<f4").tobytes())
            self._keys.write(key + check)
            self._rows[key] = count
            count += 1
        # The rows before their digests: a digest without its row would be cut off with all that follows.
        self._logits.flush()
        self._keys.flush()
        self._map(count)

    def _is_whole(self, row: int) -> bool:
        [check] = _digests(torch.from_numpy(self._values[[row]]), 8)
        return bool(self._entries["logits"][row].tobytes() == check)

    def _map(self, count: int) -> None:
        shape = (count, self.num_classes)
        if count == 0:
            self._entries, self._values = np.empty(0, _ENTRY), np.empty(shape, np.float32)
            return
        self._entries = np.memmap(self.folder / "keys", _ENTRY, "r", shape=(count,))
        self._values = np.memmap(self.folder / "logits", "<f4", "r", shape=shape)

    def _check_folder(self) -> None:
        file = self.folder / "cache.json"
        if not file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ConfigError(f"{self.folder} is no teacher cache, nor empty: give compute.teacher_cache another")
            return
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            there = None
        there = there if isinstance(there, dict) else {}
        different = [key for key in self.identity if there.get(key) != self.identity[key]]
        if different:
            raise ConfigError(
                f"{self.folder} holds the logits of others ({', '.join(different)} differ from {file.name}): "
                "give compute.teacher_cache another folder, or delete this one"
            )


class Cached(nn.Module):
    """A teacher that looks its logits on clean images up; on others, and for gradients, it is the teacher itself."""

    def __init__(self, network: nn.Module, cache: TeacherCache) -> None:
        super().__init__()
        self.network = network
        self.cache = cache

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [0,1] -> logits [B,K]."""
        return self.network(x)  # type: ignore[no-any-return]

    def on_clean(self, x: Tensor) -> Tensor:
        """Logits of images that may come again, [B,K]."""
        found = self.cache.get(x)
        if found is None:
            found = self.network(x)
            self.cache.put(x, found)
        return found


def _digests(tensor: Tensor, size: int) -> list[bytes]:
    """One for each row, of its values in row-major order."""
    rows = tensor.detach().cpu().contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=size).digest() for row in rows]


def _locked(file: IO[bytes]) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _close(*files: IO[bytes]) -> None:
    for file in files:
        file.close()
