"""Checksums: of the files of a folder, of a JSON page, and the version of the file formats they protect."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustill.core.archives import check_header, refuse_zip_bomb
from robustill.core.errors import CheckpointError, RunError, first_line
from robustill.core.files import new_folder
from robustill.core.links import read_regular_file

FORMAT = 1
"""The version of the formats of all files that this package writes."""

_CHECKSUMS = "checksums.json"


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def unknown_format_message(version: object) -> str:
    """Return the part of an error message that says a file is of another version of this package."""
    # Only numbers are printed: any other value may be of any length.
    is_short = version is None or isinstance(version, int | float)
    shown = repr(version) if is_short else f"a {type(version).__name__}"
    return f"format {shown}, expected {FORMAT}: it is of another version of robustill"


# --- folders: files that are written together, with their checksums in checksums.json


def write_checksummed_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace a folder atomically by one that holds these files and their checksums.

    Args:
        folder: the folder to write.
        files: content by name.
    """
    with new_folder(folder) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
        sums = {name: sha256(content) for name, content in files.items()}
        (new / _CHECKSUMS).write_text(json.dumps({"format": FORMAT, "sha256": sums}, indent=1))


def read_checksummed_file(folder: Path, name: str) -> bytes:
    """Return the content of one file of a folder that `write_checksummed_folder` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    file = folder / name
    try:
        if file.suffix in (".safetensors", ".pt"):
            _check_header(file)
        page = json.loads(read_regular_file(folder / _CHECKSUMS))
        version, content, expected = page["format"], read_regular_file(file), page["sha256"][name]
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error.filename} is missing") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"checkpoint {folder} is damaged: {_CHECKSUMS} is wrong") from None
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
    """Return the dictionary that torch.save wrote into a file of a folder of `write_checksummed_folder`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    import torch

    content = read_checksummed_file(folder, name)
    file = io.BytesIO(content)
    try:
        refuse_zip_bomb(file, len(content))
        # weights_only: no code in the file is run, whoever wrote it.
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        # A forged file can make the reader fail in any way.
        raise CheckpointError(f"checkpoint {folder} is damaged: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {folder} is damaged: its {name} holds a {type(state).__name__}")
    return state


# --- JSON pages that hold their own checksum


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with the format version and a checksum of both added."""
    page = {**values, "format": FORMAT}
    return {**page, "sha256": _sha256_json(page)}


def parse_checksummed(content: bytes, file: Path, mend: str) -> dict[str, Any]:
    """Parse a page that `with_checksum` made, and return its values and its format version.

    Args:
        content: the page as JSON text.
        file: its path, for error messages.
        mend: what the user can do about a damaged page, for error messages.

    Raises:
        RunError: the page is damaged, or of another format.
    """
    try:
        page: dict[str, Any] = json.loads(content)
        checksum, version = page.pop("sha256", None), page.get("format")
        expected = _sha256_json(page)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{file} is damaged ({error}): {mend}") from None
    if version != FORMAT:
        raise RunError(f"{file}: {unknown_format_message(version)}")
    # Pages of earlier versions have no checksum, and "format" is their last key. A key behind it is a checksum whose
    # name was damaged.
    renamed = checksum is None and list(page)[-2:-1] == ["format"]
    if checksum not in (None, expected) or renamed:
        raise RunError(f"{file} is damaged (its checksum is wrong): {mend}")
    return page


def _sha256_json(page: Mapping[str, Any]) -> str:
    return sha256(json.dumps(page, sort_keys=True).encode())
