"""Folders whose files are written together, whole or not at all, with their checksums beside them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from robustill.core.archives import check_header, refuse_unpacking
from robustill.core.errors import CheckpointError, RunError, first_line
from robustill.core.files import new_folder
from robustill.core.links import read_regular_file

FORMAT = 1
_SUMS = "checksums.json"


def sha256(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_checksummed_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Let a folder hold these files, and checksums.json."""
    with new_folder(folder) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
        sums = {name: sha256(content) for name, content in files.items()}
        (new / _SUMS).write_text(json.dumps({"format": FORMAT, "sha256": sums}, indent=1))


def read_checksummed_file(folder: Path, name: str) -> bytes:
    """A file of `write_checksummed_folder`.

    Raises:
        CheckpointError: it is missing or damaged, or of another format.
    """
    file = folder / name
    try:
        if file.suffix in (".safetensors", ".pt"):
            _check_header(file)
        page = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        version, content, expected = page["format"], read_regular_file(file), page["sha256"][name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        missing = f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else f"{_SUMS} is wrong"
        reason = error.strerror if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) else missing
        raise CheckpointError(f"checkpoint {folder} is damaged: {reason}") from None
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint {folder} is damaged, or of another version: {unknown_format_message(version)}"
        )
    if sha256(content) != expected:
        raise CheckpointError(f"{file} is damaged: its checksum is not the one it was written with")
    return content


def _check_header(file: Path) -> None:
    """Check the header of a file that its checksum protects, so that no file of any size is read.

    Raises:
        CheckpointError: it has bytes that its header does not describe.
        OSError: it cannot be opened.
    """
    try:
        check_header(file)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {first_line(error)}") from None


def read_checksummed_state(folder: Path, name: str) -> dict[str, Any]:
    """A dictionary that torch.save wrote into a file of `write_checksummed_folder`.

    Raises:
        CheckpointError: as for `read_checksummed_file`.
    """
    content = read_checksummed_file(folder, name)
    file = io.BytesIO(content)
    try:
        refuse_unpacking(file, len(content))
        # weights_only: nothing in the file can run code, whoever put it there.
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        # A file that lies can make a reader fail in any way.
        raise CheckpointError(f"checkpoint {folder} is damaged: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {folder} is damaged: its {name} holds a {type(state).__name__}")
    return state


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with their format and a checksum of what they say."""
    page = {**values, "format": FORMAT}
    return {**page, "sha256": _sha256_json(page)}


def parse_checksummed(content: bytes, file: Path, mend: str) -> dict[str, Any]:
    """What was given to `with_checksum`, and its format.

    Args:
        content: JSON text.
        file: how an error names it.
        mend: what to do about a damaged one.

    Raises:
        RunError: it is damaged, or of another format.
    """
    try:
        page: dict[str, Any] = json.loads(content)
        checksum, version = page.pop("sha256", None), page.get("format")
        right = _sha256_json(page)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{file} is damaged ({error}): {mend}") from None
    if version != FORMAT:
        raise RunError(f"{file}: {unknown_format_message(version)}")
    # Pages of before there were checksums have none; after the format nothing else stands, unless its name has changed.
    if checksum not in (None, right) or (checksum is None and list(page)[-2:-1] == ["format"]):
        raise RunError(f"{file} is damaged (its checksum is wrong): {mend}")
    return page


def unknown_format_message(found: object) -> str:
    """How an error says that a file is of another version of this package."""
    # Of what is no number the size is not known.
    shown = repr(found) if found is None or isinstance(found, int | float) else f"a {type(found).__name__}"
    return f"format {shown}, expected {FORMAT}: it is of another version of robustill"


def _sha256_json(page: Mapping[str, Any]) -> str:
    return sha256(json.dumps(page, sort_keys=True).encode())
