"""Networks on the Hugging Face hub: `push_folder` writes an exported folder there, `from_pretrained` reads it back."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from robustill.core.errors import CheckpointError, ConfigError, ModelError, first_line, printable
from robustill.models.card import Card, CardEvaluation
from robustill.models.hub import open_folder
from robustill.models.loading import LoadedNetwork, load_network
from robustill.threat import Threat

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
FOLDER_FILES = ("model.safetensors", "config.json", "README.md")
"""The files of an exported folder."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network with what its model card says of it.

    Args:
        network: the network and its origin.
        card: its threat, classes and evaluations.
    """

    network: LoadedNetwork
    card: Card

    @property
    def module(self) -> nn.Module:
        """Images [B,C,H,W] in [0,1] to logits [B,K], in eval mode."""
        return self.network.module

    @property
    def threat(self) -> Threat | None:
        """The threat that the network was trained against; None if the card does not say."""
        return self.card.threat

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes; empty if the card does not say."""
        return self.card.classes

    @property
    def evaluations(self) -> tuple[CardEvaluation, ...]:
        """The evaluations as the card states them; nothing of them has been checked."""
        return self.card.evaluations


def from_pretrained(name: str | Path, *, sha256: str | None = None) -> Pretrained:
    """Load a network that `robustill export` wrote, with its threat, classes and evaluations.

    Args:
        name: a folder; or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub, which is downloaded.
        sha256: the expected checksum of model.safetensors.

    Raises:
        CheckpointError: the folder or repository is missing, incomplete or damaged.
        RobustillError: as for `load_network`.

    Example:
        ``from_pretrained("owner/name").threat``
    """
    folder = open_folder(str(name), download=True).weights.parent
    network = load_network(f"hf:{folder}", sha256=sha256)
    return Pretrained(network=network, card=read_card(folder, network.shape.num_classes))


def read_card(folder: Path, num_classes: int) -> Card:
    """Read the card of an exported folder.

    Raises:
        CheckpointError: it is damaged.
    """
    file = folder / "config.json"
    try:
        return Card.from_json(json.loads(file.read_text(encoding="utf-8")), num_classes)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({first_line(error)}): export the network again") from None


def check_repository(name: str) -> str:
    """Return the name of a repository of the hub.

    Raises:
        ConfigError: it is not OWNER/NAME, or huggingface_hub is not installed.
    """
    if _REPOSITORY.fullmatch(name) is None:
        raise ConfigError(f"--push is {printable(name)!r}: expected OWNER/NAME on the Hugging Face hub")
    _import_hub()
    return name


def push_folder(folder: Path, repository: str) -> str:
    """Upload an exported folder to a repository of the Hugging Face hub, which is made if it does not exist.

    The address of the hub and the login are those of huggingface_hub. The metadata of the card are read with it first.

    Args:
        folder: the folder that `robustill.models.export.export_network` wrote.
        repository: OWNER/NAME.

    Returns:
        The address of the upload.

    Raises:
        ConfigError: the name is invalid, or huggingface_hub is not installed.
        ModelError: the folder is incomplete, or the upload fails.
    """
    check_repository(repository)
    missing = [name for name in FOLDER_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} has no {missing[0]}: push a folder that `robustill export` wrote")
    hub = _import_hub()
    try:
        # Parses the metadata into ModelCardData and EvalResult, and raises if one of them is invalid.
        hub.ModelCard.load(folder / "README.md")
        client = hub.HfApi()
        client.create_repo(repository, exist_ok=True)
        upload = client.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(FOLDER_FILES),
            commit_message="Upload a network exported by robustill",
        )
    except Exception as error:  # Sockets, HTTP, the client's own errors: all of them mean the same to the user.
        raise ModelError(
            f"{repository} cannot be written ({first_line(error)}): log in with `hf auth login`, or set HF_TOKEN"
        ) from None
    return str(upload.commit_url)


def _import_hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError("--push needs the extra `hub`: pip install 'robustill[hub]'") from None
