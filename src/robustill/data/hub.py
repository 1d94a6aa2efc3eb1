"""Image sets of the Hugging Face hub, hf://datasets/OWNER/NAME; nothing is downloaded unless the user asks for it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from robustill.core.errors import DataError, first_line

# A Path keeps one of the slashes.
_PREFIX = re.compile("hf:/+")
_PART = r"[\w.-]+"
_ROOT = re.compile(
    rf"hf:/+datasets/(?P<repository>{_PART}/{_PART})(@(?P<revision>(refs/(convert|pr)/)?[^/]+))?(/(?P<folder>.+))?",
    re.ASCII,
)


def is_hub_root(root: Path) -> bool:
    """Return whether a root is an address of the hub."""
    return _PREFIX.match(str(root)) is not None


def root_text(root: Path) -> str:
    """Return a root as it is written, where a Path has lost a slash.

    Example:
        >>> root_text(Path("hf://datasets/owner/name"))
        'hf://datasets/owner/name'
    """
    return _PREFIX.sub("hf://", str(root), count=1) if is_hub_root(root) else str(root)


def download_shards(name: str, root: Path, patterns: tuple[str, ...], *, download: bool) -> Path:
    """Download a data set of the hub to the cache of huggingface_hub; files that are there are not downloaded again.

    Args:
        name: the name of the data set, such as "parquet".
        root: hf://datasets/OWNER/NAME, OWNER/NAME@REVISION, or OWNER/NAME/FOLDER for a folder of it.
        patterns: those of the files to download; none if the data set cannot come from the hub.
        download: whether the user asked for it.

    Returns:
        The folder with the files.

    Raises:
        DataError: the address is none, the user did not ask for it, huggingface_hub is not installed, or it fails.
    """
    address = root_text(root)
    if not patterns:
        raise DataError(f"{address}: the data set {name} cannot come from there, expected parquet or webdataset")
    found = _ROOT.fullmatch(str(root))
    if found is None or ".." in root.parts:
        raise DataError(f"{address} is no data set of the Hugging Face hub: expected hf://datasets/OWNER/NAME")
    if not download:
        raise DataError(f"{address} is on the Hugging Face hub: give --data.download true to download it, or a folder")
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise DataError(f"{address} needs the extra `hub`: pip install 'robustill[hub]'") from None
    folder = found["folder"]
    wanted = [pattern if folder is None else f"{folder}/{pattern}" for pattern in patterns]
    try:
        snapshot = hub.snapshot_download(
            found["repository"], repo_type="dataset", revision=found["revision"], allow_patterns=wanted
        )
    except Exception as error:  # Sockets, HTTP, the client's own errors: all of them mean the same to the user.
        raise DataError(
            f"{address} cannot be downloaded ({first_line(error)}): download it by hand and give its folder"
        ) from None
    return Path(snapshot) / (folder or "")
