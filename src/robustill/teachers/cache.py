"""The cache of a teacher's logits on clean images, on disk, shared by steps, epochs and runs.

An entry belongs to one image, pixel for pixel as the teacher received it: its key is a digest of these pixels. An
augmented image is therefore another entry, whatever the augmentation was, and runs with other methods, students or
data share the entries of the images that they have in common. Runs that differ in the method alone draw the same images
in every epoch, including extra images and mixtures of two (CutMix), so the second run never computes the teacher on a
clean image.

    config.compute.teacher_cache = DIR     # DIR/robust-0123456789abcdef: cache.json, keys, logits

`cache.json` identifies the teachers: sha256, weight and image size of each, how they are combined, precision, device,
version of torch, and the fingerprint of what they compute together. Runs with other teachers, such as the seeds of a
study, have a cache of their own in the same folder; one of teachers whose code has changed is refused. A batch is read
from the cache as a whole or computed as a whole, so that a computed batch is the batch that would be computed without a
cache. The cached logits equal the teacher's bit for bit as long as the teacher gives an image the same logits at every
position of a batch, which convolutions on a CPU do.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from robustill.core.errors import ConfigError
from robustill.core.files import take_lock, write_text
from robustill.core.fingerprint import Fingerprint

if TYPE_CHECKING:
    from filelock import BaseFileLock

_KEY_BYTES, _CHECKSUM_BYTES = 16, 8
_ENTRY_BYTES = _KEY_BYTES + _CHECKSUM_BYTES


class TeacherCache:
    """Logits by image, in two files that only grow: one of digests, one of float32 rows.

    Every row has a checksum, so that a damaged row is computed again; the incomplete end that a killed process leaves
    is cut off. One process at a time writes; others read the entries that were there when they opened the cache. An
    entry takes about 150 bytes of memory.

    Args:
        folder: created if it is missing.
        identity: what the logits depend on, JSON-serialisable.
        num_classes: K.
        fingerprint: of the teachers; None, and a cache of earlier versions without one, are not compared.

    Raises:
        ConfigError: the folder holds the logits of another identity or fingerprint, or something else.

    Example:
        >>> import tempfile
        >>> cache = TeacherCache(Path(tempfile.mkdtemp()) / "robust", {"sha256": "00"}, num_classes=2)
        >>> x = torch.ones(1, 1, 2, 2)
        >>> cache.put(x, torch.tensor([[1.0, 2.0]]))
        >>> cache.get(x), cache.get(0 * x)
        (tensor([[1., 2.]]), None)
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], num_classes: int, fingerprint: Fingerprint | None = None
    ) -> None:
        self.folder = folder
        self.num_classes = num_classes
        # As it is read back from JSON, where tuples become lists.
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.fingerprint = fingerprint
        self._row_bytes = 4 * num_classes
        # The row of each image by its digest, and the checksums of all rows, one behind the other.
        self._rows: dict[bytes, int] = {}
        self._checksums = bytearray()
        self._is_open = False
        self._check_folder()

    def _open(self) -> None:
        """Open the files at the first image, so that a run that is refused before it starts has written nothing."""
        if self._is_open:
            return
        self._is_open = True
        if not (self.folder / "cache.json").is_file():
            page = self.identity
            if self.fingerprint is not None:
                page = {**page, "fingerprint": self.fingerprint.to_json()}
            write_text(self.folder / "cache.json", json.dumps(page, indent=1))
        lock = _writers_lock(self.folder / "lock")
        self.is_writer = lock is not None
        self._keys = (self.folder / "keys").open("ab")
        self._logits = (self.folder / "logits").open("a+b")
        weakref.finalize(self, _close, lock, self._keys, self._logits)
        count = min(self._keys.tell() // _ENTRY_BYTES, self._logits.tell() // self._row_bytes)
        if self.is_writer:
            self._keys.truncate(count * _ENTRY_BYTES)
            self._logits.truncate(count * self._row_bytes)
        with (self.folder / "keys").open("rb") as keys:
            content = keys.read(count * _ENTRY_BYTES)
        ends = range(_ENTRY_BYTES, len(content) + 1, _ENTRY_BYTES)
        self._add(content[end - _ENTRY_BYTES : end] for end in ends)

    def _add(self, entries: Iterable[bytes]) -> None:
        """Add entries of the file of digests, in their order there."""
        for entry in entries:
            self._rows[entry[:_KEY_BYTES]] = len(self._checksums) // _CHECKSUM_BYTES
            self._checksums += entry[_KEY_BYTES:]

    def get(self, images: Tensor) -> Tensor | None:
        """Return the logits of a batch, float32 [B,K] on the images' device, or None if any of them is missing."""
        self._open()
        rows = []
        for key in _digests(images, _KEY_BYTES):
            row = self._read(key)
            if row is None:
                return None
            rows.append(row)
        values = np.frombuffer(b"".join(rows), "<f4").astype(np.float32).reshape(len(rows), self.num_classes)
        return torch.from_numpy(values).to(images.device)

    def put(self, images: Tensor, logits: Tensor) -> None:
        """Store the logits of a batch; do nothing in a process that only reads."""
        self._open()
        if not self.is_writer:
            return
        values = logits.detach().float().cpu().contiguous().numpy().astype("<f4")
        new: dict[bytes, bytes] = {}
        for key, value in zip(_digests(images, _KEY_BYTES), values, strict=True):
            if key not in new and self._read(key) is None:
                new[key] = value.tobytes()
        entries = [key + _digest(value, _CHECKSUM_BYTES) for key, value in new.items()]
        # Rows before digests: a digest without its row would be cut off together with everything after it.
        self._logits.write(b"".join(new.values()))
        self._logits.flush()
        self._keys.write(b"".join(entries))
        self._keys.flush()
        self._add(entries)

    def _read(self, key: bytes) -> bytes | None:
        """Return the row of an image, or None if there is none, or none with the checksum that was stored with it.

        It is read, not mapped: a file that is truncated lacks rows then, where a mapping would end the process.
        """
        row = self._rows.get(key)
        if row is None:
            return None
        content = os.pread(self._logits.fileno(), self._row_bytes, row * self._row_bytes)
        checksum = self._checksums[row * _CHECKSUM_BYTES : (row + 1) * _CHECKSUM_BYTES]
        return content if _digest(content, _CHECKSUM_BYTES) == checksum else None

    def _check_folder(self) -> None:
        """Raise ConfigError unless the folder is missing, empty, or the cache of the same identity."""
        file = self.folder / "cache.json"
        if not file.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ConfigError(
                    f"{self.folder} is neither a teacher cache nor empty: give compute.teacher_cache another folder"
                )
            return
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            stored = {}
        if not isinstance(stored, dict):
            stored = {}
        different = [key for key in self.identity if stored.get(key) != self.identity[key]]
        if different:
            raise ConfigError(
                f"{self.folder} holds the logits of other teachers ({', '.join(different)} differ from {file.name}): "
                "give compute.teacher_cache another folder, or delete this one"
            )
        difference = None if self.fingerprint is None else self.fingerprint.difference(stored.get("fingerprint"))
        if difference is not None:
            raise ConfigError(
                f"{self.folder} holds the logits of these weights in other code ({difference}): "
                "give compute.teacher_cache another folder, or delete this one"
            )


class CachedTeacher(nn.Module):
    """A teacher with a cache in front of it for clean images; other images and gradients go to the teacher itself."""

    def __init__(self, network: nn.Module, cache: TeacherCache) -> None:
        super().__init__()
        self.network = network
        self.cache = cache

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,C,H,W] in [0,1], without the cache."""
        return self.network(x)  # type: ignore[no-any-return]

    def clean_logits(self, x: Tensor) -> Tensor:
        """Return the logits [B,K] of clean images [B,C,H,W], from the cache or computed and stored there."""
        logits = self.cache.get(x)
        if logits is None:
            logits = self.network(x)
            self.cache.put(x, logits)
        return logits


def _digests(tensor: Tensor, size: int) -> list[bytes]:
    """Return one digest of `size` bytes per row, of its values in row-major order."""
    return [_digest(row.tobytes(), size) for row in tensor.detach().cpu().contiguous().flatten(1).numpy()]


def _digest(content: bytes, size: int) -> bytes:
    return hashlib.blake2b(content, digest_size=size).digest()


def _writers_lock(file: Path) -> BaseFileLock | None:
    """Take the lock of the process that writes; None where another one has it, or the file system has no locks."""
    try:
        return take_lock(file)
    except OSError:
        return None


def _close(lock: BaseFileLock | None, *files: IO[bytes]) -> None:
    for file in files:
        file.close()
    if lock is not None:
        lock.release()
