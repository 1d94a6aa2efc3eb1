"""State of an unfinished evaluation on disk, from which an interrupted call resumes with the same records in the end.

A finished evaluation leaves its records alone; `is_reusable` says whether they answer another call.
"""

from __future__ import annotations

import io
import json
import warnings
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
from robustill.core.fingerprint import Fingerprint
from robustill.core.links import read_regular_file, refuse_link
from robustill.runs.records import Records

Arrays = dict[str, NDArray[Any]]
# Conditions that are results of the evaluation, or its date.
_RESULTS = (
    *("masking", "quick", "warnings", "date", "curve", "deployment", "attacked_as_shipped"),
    # Records of earlier versions are without this attack; they are not attacked again for it.
    "calibration_attack",
)
# Names, which a run may change, and what the fingerprint compares.
_NAMES = ("run", "fingerprint", "normalisation")


def is_reusable(
    before: Records,
    conditions: Mapping[str, Any],
    ids: Tensor,
    picture_ids: Tensor,
    eps_grid: Sequence[float],
    *,
    check_masking: bool,
) -> bool:
    """Return whether records are what an evaluation under these conditions would give again.

    Args:
        before: the records.
        conditions: the conditions before the attack; without a checkpoint_sha256 no records match them.
        ids: ids of the images, int64 [N].
        picture_ids: ids of the images that are stored as pictures.
        eps_grid: the radii of the curve.
        check_masking: whether gradient masking is checked.
    """
    recorded, expected = _compared(before.conditions), _compared(conditions)
    recorded_pictures = picture_ids[:0].numpy() if before.example_index is None else before.example_index
    return (
        expected.get("checkpoint_sha256") is not None
        and recorded == expected
        and ("masking" in before.conditions) == check_masking
        and np.array_equal(before.index, ids.numpy())
        and np.array_equal(before.eps_grid, np.asarray(eps_grid, dtype=np.float32))
        and np.array_equal(recorded_pictures, picture_ids.numpy())
    )


def _compared(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions that must be equal, as JSON gives them back: tuples become lists."""
    kept: dict[str, Any] = {
        key: value for key, value in json.loads(json.dumps(conditions)).items() if key not in (*_RESULTS, *_NAMES)
    }
    if isinstance(kept.get("surrogate"), dict):
        # Not the path of its file.
        kept["surrogate"] = kept["surrogate"].get("sha256")
    if isinstance(kept.get("surrogates"), dict):
        kept["surrogates"] = [each.get("sha256") for each in kept["surrogates"].values() if isinstance(each, dict)]
    return kept


def fingerprints_to_json(network: Fingerprint, surrogate: Fingerprint | None) -> dict[str, Any]:
    """Return the fingerprint of a network, and of the surrogate of its check of gradient masking, as JSON values."""
    page = network.to_json()
    return page if surrogate is None else {**page, "surrogate": surrogate.to_json()}


def are_same_networks(stored: object, network: Fingerprint, surrogate: Fingerprint | None) -> bool:
    """Return whether nothing distinguishes the networks from those of what `fingerprints_to_json` returned."""
    of_surrogate = stored.get("surrogate") if isinstance(stored, Mapping) else None
    return network.difference(stored) is None and (surrogate is None or surrogate.difference(of_surrogate) is None)


class EvaluationState:
    """The parts of an evaluation: the rows of each finished part, and AutoAttack's state of each unfinished one.

    The folder contains header.json, part-00000.npz ..., part-00007.autoattack.npz ... and notes; plain arrays, never
    pickled. It is created at the first write, or by `create`. Without a folder nothing is stored.

    Args:
        folder: where to store the state; None stores nothing.
        conditions: what must be the same for an evaluation to be resumed, JSON-able.
        part_size: images in a part; ignored if the folder already has a header, which gives the number.
        fingerprint: of the network; None does not compare it.

    Raises:
        RunError: the folder holds an evaluation of other conditions or of another network, or a damaged header.
    """

    def __init__(
        self,
        folder: Path | None,
        conditions: Mapping[str, Any],
        part_size: int,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        self.folder, self.conditions, self.part_size = folder, json.loads(json.dumps(conditions)), part_size
        self.fingerprint = fingerprint
        if folder is not None:
            refuse_link(folder)
        # Parts without a header are ignored: nothing says which evaluation they belong to.
        self._has_header = False
        if folder is not None and (folder / "header.json").exists():
            self._read_header(folder)
            self._has_header = True

    def _read_header(self, folder: Path) -> None:
        """Compare the conditions of the header with those of this evaluation, and take its part size."""
        header = folder / "header.json"
        remedy = f"delete the folder {folder} to start again"
        page = parse_checksummed(_read_page(header, remedy), header, remedy)
        try:
            recorded, self.part_size = dict(page["conditions"]), page["part_size"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{header} is damaged: {remedy}") from None
        if type(self.part_size) is not int or self.part_size < 1:
            raise RunError(f"{header} is damaged: {remedy}")
        changed = [key for key in self.conditions if recorded.get(key) != self.conditions[key]]
        if changed:
            raise RunError(
                f"{folder} holds an unfinished evaluation with other {', '.join(changed)}: "
                "repeat the command that started it, or delete that folder to start again"
            )
        if self.fingerprint is not None:
            self._check_fingerprint(folder, page.get("fingerprint"), self.fingerprint)

    def _check_fingerprint(self, folder: Path, stored: object, fingerprint: Fingerprint) -> None:
        """Refuse a state of the same weights inside other code; say where only the weights could be compared."""
        difference = fingerprint.difference(stored)
        if difference is not None:
            raise RunError(
                f"{folder} holds an unfinished evaluation of the same weights in another network ({difference}): "
                "restore its code and its normalisation, or delete that folder to start again"
            )
        if fingerprint.note:
            warnings.warn(
                f"{folder} is resumed, but the network {fingerprint.note}: only its weights were compared, no code",
                stacklevel=5,
            )

    def create(self) -> None:
        """Create the folder with its header, if there is to be one, so that a disk that refuses it does so now.

        Raises:
            RunError: the folder cannot be written to.
        """
        if self.folder is None:
            return
        try:
            self._write_header()
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be written to ({error.strerror}): choose another --out, or mend that; "
                "nothing was attacked"
            ) from None

    def load_part(self, number: int) -> Arrays | None:
        """Return the rows of a finished part; None if it is not finished."""
        return self._read(f"part-{number:05d}.npz")

    def save_part(self, number: int, arrays: Arrays) -> None:
        """Save the rows of a finished part, and delete AutoAttack's state of it."""
        self._write(f"part-{number:05d}.npz", arrays)
        if self.folder is not None:
            (self.folder / f"part-{number:05d}.autoattack.npz").unlink(missing_ok=True)

    def load_attack_state(self, number: int) -> AutoAttackState | None:
        """Return AutoAttack's state of an unfinished part; None if there is none."""
        arrays = self._read(f"part-{number:05d}.autoattack.npz")
        return None if arrays is None else AutoAttackState.from_arrays(arrays)

    def save_attack_state(self, number: int, attack_state: AutoAttackState) -> None:
        """Save AutoAttack's state of an unfinished part, after each batch."""
        if self.folder is not None:
            self._write(f"part-{number:05d}.autoattack.npz", attack_state.arrays())

    def load_note(self, name: str) -> dict[str, Any] | None:
        """Return the page that `save_note` saved under this name; None if it is missing or damaged."""
        path = self._existing(f"{name}.json")
        if path is None:
            return None
        try:
            page: dict[str, Any] = parse_checksummed(_read_page(path, ""), path, "")["note"]
        except (RunError, KeyError):
            return None
        return page

    def save_note(self, name: str, page: dict[str, Any]) -> None:
        """Save any other intermediate result, JSON-able."""
        if self.folder is not None:
            self._write_header()
            plain = json.loads(json.dumps(page))
            write_text(self.folder / f"{name}.json", json.dumps(with_checksum({"note": plain})))

    def _write_header(self) -> None:
        assert self.folder is not None
        header = self.folder / "header.json"
        if not header.exists():
            for stray in (*self.folder.glob("part-*.npz"), *self.folder.glob("*.json")):
                stray.unlink()
            page: dict[str, Any] = {"conditions": self.conditions, "part_size": self.part_size}
            if self.fingerprint is not None:
                page["fingerprint"] = self.fingerprint.to_json()
            write_text(header, json.dumps(with_checksum(page), indent=1) + "\n")
        self._has_header = True

    def _existing(self, name: str) -> Path | None:
        """Return the path of a file of this evaluation; None if it does not exist."""
        if self.folder is None or not self._has_header:
            return None
        path = self.folder / name
        return path if path.exists() else None

    def _write(self, name: str, arrays: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        self._write_header()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(self.folder / name, buffer.getvalue())

    def _read(self, name: str) -> Arrays | None:
        path = self._existing(name)
        if path is None:
            return None
        try:
            return read_arrays(read_regular_file(path))
        except (ValueError, OSError):
            # Files are renamed once they are complete; a part that is damaged all the same is attacked again.
            return None


def _read_page(file: Path, remedy: str) -> bytes:
    try:
        return read_regular_file(file)
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}): {remedy}") from None
