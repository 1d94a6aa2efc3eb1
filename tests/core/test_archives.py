"""The header of a file of tensors is looked at before all of it is read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robustill.core.archives import check_header
from robustill.core.checksums import read_checksummed_file, write_checksummed_folder
from robustill.core.errors import CheckpointError, RunError
from robustill.core.links import refuse_special_files
from robustill.models.loading import Shape, load_network
from robustill.runs.records import Records

SHAPE = Shape(num_classes=4, in_channels=3, image_size=(8, 8))
TENSORS = {"a": torch.zeros(3, 5), "b": torch.zeros(0), "layer.name." * 20: torch.ones(1, dtype=torch.int64)}


def grown(path: Path, size: int = 2**36) -> Path:
    """The same content, and nothing up to a size: it takes no room on the disk."""
    os.truncate(path, size)
    return path


def test_whole_files_pass(tmp_path: Path) -> None:
    many = {f"weight.{number}": torch.zeros(number % 7) for number in range(300)}
    for number, tensors in enumerate((TENSORS, many, {"one": torch.zeros(1)})):
        save_file(tensors, tmp_path / f"{number}.safetensors", metadata={"format": "pt"})
        torch.save(tensors, tmp_path / f"{number}.pth")
        torch.save(tensors, tmp_path / f"{number}.old", _use_new_zipfile_serialization=False)
        np.savez(tmp_path / f"{number}.npz", **{key: value.numpy() for key, value in tensors.items()})
        np.savez_compressed(tmp_path / f"{number}.small.npz", x=np.zeros(10_000))
    for file in tmp_path.iterdir():
        check_header(file)


def test_a_sparse_tail_behind_an_old_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w.pth"
    torch.save({"state_dict": TENSORS, "epoch": 10**9}, file, _use_new_zipfile_serialization=False)
    check_header(file)
    monkeypatch.setattr("robustill.models.loading.file_sha256", None)
    for content in (file.read_bytes(), pickle.dumps(10**30), b"\x80\x02", b"\x80\x02\x8e" + b"\xff" * 7 + b"\0"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"w\.pth is damaged, or not a file of torch\.save \(.+\)"):
            load_network(str(grown(file)), shape=SHAPE, name="resnet8")


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt2", "npz"])
def test_sparse_files_are_refused_at_once(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"w.{suffix}"
    file.touch()
    monkeypatch.setattr("robustill.models.loading.file_sha256", None)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"w\.\w+ is damaged, or not a (safetensors file|file of torch\.save)"
        ):
            load_network(str(grown(file)), shape=SHAPE, name=None if suffix == "pt2" else "resnet8")
        if suffix == "safetensors":
            save_file(TENSORS, file)
        else:
            torch.save(TENSORS, file)


def test_a_link_to_weights_is_followed(tmp_path: Path) -> None:
    # As in the cache of Hugging Face.
    save_file(TENSORS, tmp_path / "0123abcd")
    (tmp_path / "link.safetensors").symlink_to("0123abcd")
    with pytest.raises(CheckpointError, match="cannot be loaded into the model"):
        load_network(str(tmp_path / "link.safetensors"), shape=SHAPE, name="resnet8")


def test_checkpoints_and_records_of_a_run_are_looked_at_first(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "state.pt")
    save_file(TENSORS, tmp_path / "x.safetensors")
    content = {name: (tmp_path / name).read_bytes() for name in ("state.pt", "x.safetensors")}
    write_checksummed_folder(tmp_path / "epoch", content)
    for name, right in content.items():
        assert read_checksummed_file(tmp_path / "epoch", name) == right
        grown(tmp_path / "epoch" / name)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checksummed_file(tmp_path / "epoch", name)
    with pytest.raises(RunError):
        Records.load(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    grown(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match=r"metrics\.jsonl has 68,719,476,736 bytes, and is no text of a run: remove it"):
        refuse_special_files(tmp_path)
