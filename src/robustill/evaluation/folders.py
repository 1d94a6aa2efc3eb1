"""The folders of the records of a network: one for each split, threat, suite and network, read, locked and written."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustill.analysis.summary import summary
from robustill.attacks.suites import find_suite
from robustill.config.schema import Config
from robustill.core.distributed import process_group
from robustill.core.errors import RunError
from robustill.core.files import exclusive_lock_in
from robustill.core.fingerprint import Fingerprint, compute_fingerprint
from robustill.core.links import refuse_link
from robustill.data import Dataset
from robustill.evaluation.evaluate import predictions_match
from robustill.models.loading import LoadedNetwork
from robustill.runs.records import Records, read_summary
from robustill.threat import Threat

# Images whose probabilities are compared with those in records of earlier versions.
_NUM_COMPARED = 16
_READ_ONLY_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, kw_only=True)
class RecordsFolders:
    """The folders of the records of one network.

    Args:
        parent: the folder that contains them.
        name: name of the network in their names.
        network: the network.
        split: of the images.
        data: name of the data set.
        settings: of the evaluation: suite, num_images, first, precision and seed.
        trained: the configuration of the run that trained the network; None for a network without a run.
    """

    parent: Path
    name: str
    network: LoadedNetwork
    split: str
    data: str
    settings: Mapping[str, Any]
    trained: Config | None

    def folder(self, threat: Threat, of_images: int, fingerprint: str) -> Path:
        """Return the folder for the records; never one with records of other images, or of another file."""
        folder = self.parent / self._name(threat, of_images)
        try:
            recorded = read_summary(folder)["conditions"]
        except RunError:
            return folder
        suffixes = []
        if recorded.get("data_fingerprint") != fingerprint:
            suffixes.append(file_name(fingerprint))
        # The records of a run's checkpoint are replaced when it changes; two files of one name are both kept.
        if self.trained is None and recorded.get("checkpoint_sha256") != self.network.sha256:
            suffixes.append(self.network.sha256[:12])
        return folder.with_name("-".join([folder.name, *suffixes]))

    def folder_of_network(self, folder: Path, dataset: Dataset, device: torch.device, label: str | None) -> Path:
        """Return the folder, or for a file another one if it has records of these weights in another network.

        Raises:
            RunError: the folder of a run has such records.
        """
        if not (folder / "summary.json").is_file() or not process_group().is_main:
            return folder
        module = self.network.module.to(device)
        fingerprint = compute_fingerprint(module, dataset.image_shape, device=device)
        for number in itertools.count(1):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-network-{number}")
            difference = self._difference(candidate, fingerprint, dataset, device)
            if difference is None:
                break
            if self.trained is not None:
                raise RunError(
                    f"{candidate} holds an evaluation of the same weights in another network ({difference}): restore "
                    "its code, or move that folder away to evaluate this one"
                )
        if candidate != folder and label is not None:
            print(
                f"{label}: {folder} holds an evaluation of the same weights in another network; "
                f"this one is kept in {candidate}",
                file=sys.stderr,
            )
        return candidate

    def _difference(self, folder: Path, fingerprint: Fingerprint, dataset: Dataset, device: torch.device) -> str | None:
        """Return what distinguishes the network from that of the records in a folder, if it has the same weights."""
        try:
            recorded = read_summary(folder)["conditions"]
        except RunError:
            return None
        if recorded.get("checkpoint_sha256") != self.network.sha256:
            return None
        if "fingerprint" in recorded or self.trained is not None:
            return fingerprint.difference(recorded.get("fingerprint"))
        # Records of earlier versions.
        before = load_records(folder)
        if before is None or recorded.get("data_fingerprint") != dataset.fingerprint:
            return None
        ids = torch.from_numpy(before.index[:_NUM_COMPARED])
        x = dataset.read(ids).to(device).float() / 255
        matches = predictions_match(before, self.network.module, x, ids)
        return None if matches or fingerprint.note else "its probabilities of the evaluated images differ"

    def _name(self, threat: Threat, of_images: int) -> str:
        """Return the split, the network and the suite, and every setting that is not the default."""
        suite, first = self.settings["suite"], self.settings.get("first")
        count = first or self.settings["num_images"] or find_suite(suite).num_images
        parts = [self.split, self.name, re.sub(r"[^\w-]+", "+", suite)]
        if self.trained is not None and self.data != self.trained.data.name:
            parts.append(f"on-{file_name(self.data)}")
        if self.settings["precision"] != "exact":
            parts.append(self.settings["precision"])
        if count is not None and count < of_images:
            # A subset never replaces the whole, nor another subset of its size.
            parts.append(f"first-{count}-images" if first is not None else f"{count}-images")
        if self.settings.get("seed", 0) != 0:
            parts.append(f"seed-{self.settings['seed']}")
        if self.trained is None or threat != self.trained.threat.build():
            parts.append(str(threat).replace("/", "_").replace(":", "-"))
        return "-".join(parts)


def file_name(text: str) -> str:
    """Return the text with everything that may not stand in the name of a folder replaced by a hyphen."""
    return re.sub(r"[^\w.+-]+", "-", text)


@contextmanager
def lock(folder: Path, before: Records | None = None) -> Iterator[None]:
    """Lock the folder of an evaluation; not where it cannot be written to and has finished records to be read.

    The folder may come from someone else: links are refused.
    """
    refuse_link(folder)
    refuse_link(folder / ".state")
    refusal = f"{folder} is being written by another process: wait for it, or choose another suite or --out"
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock_in(folder / ".state", refusal))
        except OSError as error:
            if before is None or error.errno not in _READ_ONLY_ERRNOS:
                remedy = "give another --out, or make it writable"
                raise RunError(f"{folder} cannot be written ({error.strerror}): {remedy}") from None
        yield


def load_records(folder: Path) -> Records | None:
    """Return the records of an earlier evaluation; None if they are missing or damaged."""
    try:
        return Records.load(folder)
    except RunError:
        return None


def save_records(records: Records, folder: Path) -> None:
    """Save the records, and remove the state of the evaluation that gave them."""
    records.save(folder, summary(records))
    # The intermediate results are deleted only when the records are safe.
    shutil.rmtree(folder / ".state", ignore_errors=True)
