"""Every reader on damaged, hostile or senseless files: a result or a RobustillError, in bounded memory and time."""

from __future__ import annotations

import io
import pickle
import shutil
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile_files.readers import (
    READERS,
    Reader,
    npz,
    run_of_two_epochs,
    torch_file,
    torch_file_old,
    with_right_sums,
)
from robustill.core.errors import CheckpointError, DataError, RobustillError
from robustill.data import load
from robustill.models.exported_program import load_exported
from robustill.models.loading import load_network
from robustill.models.weights import read_state_dict

MOST_BYTES = 64 * 2**20
"""Beside the libraries: what a file of a few kilobytes may make a reader take, by tracemalloc."""
MOST_SECONDS = 120.0
"""Of the processor: a reader takes a tenth of a second, and more than this only if it hangs."""


@st.composite
def damaged(draw: st.DrawFn, fine: bytes) -> bytes:
    """Change a few bytes of a valid file, or return random bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(fine)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "number", "insert", "cut", "double"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            # Lengths, counts and offsets that lie.
            number = draw(st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\xff" * 8, b"99999999"]))
            content[at : at + len(number)] = number
        elif kind == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 200))]
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 200))]
    return bytes(content)


def one_line(error: RobustillError) -> None:
    assert "\n" not in str(error)


def attempted(reader: Reader, folder: Path, content: bytes) -> None:
    """A result or a RobustillError in one line; anything else fails the test."""
    reader.laid_out(folder, content)
    began = time.process_time()
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
    except RobustillError as error:
        one_line(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MOST_BYTES, f"{peak} bytes"
    assert time.process_time() - began < MOST_SECONDS


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    for number, fine in enumerate((reader.fine, *reader.others)):
        reader.laid_out(tmp_path / str(number), fine())
        reader.read(tmp_path / str(number))


def fuzzed(name: str, folder: Path, examples: int) -> None:
    reader = READERS[name]
    # A program takes a tenth of a second.
    examples = examples // 5 if name == "program" else examples
    fine = st.sampled_from([reader.fine(), *(other() for other in reader.others)])
    numbers = iter(range(10**9))

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(fine.flatmap(damaged))
    def run(content: bytes) -> None:
        own = folder / str(next(numbers))
        own.mkdir()
        attempted(reader, own, content)
        shutil.rmtree(own)

    run()


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path, 400)


# --- small files that ask for much


def zeros_zipped(name: str, size: int, head: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as file:
        file.write(head)
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    return buffer.getvalue()


def npy_head(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_arrays_that_unpack_to_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As 2**32 would take minutes to write, the bound comes down to meet them.
    monkeypatch.setattr("robustill.core.archives.LARGEST_ARRAYS", 2**25)
    bomb = zeros_zipped("images.npy", 200 * 2**20, npy_head((200 * 2**14, 8, 8)))
    assert len(bomb) < 2**18
    for name in ("npz", "records", "run dynamics/epoch-0001.npz", "part"):
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        attempted(READERS[name], folder, bomb)
    with pytest.raises(DataError, match=r"bytes when unpacked, expected at most"):
        load("npz", root=tmp_path / "npz")


def test_a_forged_shape_allocates_no_memory(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", npy_head((2**40, 8, 8)) + bytes(640))
        archive.writestr("labels.npy", npy_head((2**40,)) + bytes(640))
    (tmp_path / "train.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"train\.npz"):
        load("npz", root=tmp_path)


def compressed(archive_bytes: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive_bytes)) as there, zipfile.ZipFile(buffer, "w") as here:
        for info in there.infolist():
            here.writestr(info.filename, there.read(info), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def test_tensors_that_unpack_beyond_their_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(compressed(torch_file({"w": torch.zeros(10**6)})))
    assert file.stat().st_size < 10**5
    with pytest.raises(CheckpointError, match=r"bytes when unpacked.*torch\.save does not compress"):
        read_state_dict(file)
    program_file = tmp_path / "p.pt2"
    program_file.write_bytes(compressed(torch_file({"w": torch.zeros(10**6)})))
    with pytest.raises(CheckpointError, match="unpacked"):
        load_exported(program_file, (1, 2, 2))
    run_of_two_epochs(tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "epoch-0002" / "state.pt"
    state.write_bytes(compressed(torch_file({"epoch": 2, "w": torch.zeros(10**6)})))
    with pytest.raises(CheckpointError, match="unpacked"):
        with_right_sums("state.pt")(tmp_path / "run")


def test_many_compressed_variables_share_one_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustill.data.svhn.LARGEST_FILE", 2**21)
    zeros = zlib.compress(bytes(2**20))
    element = (15).to_bytes(4, "little") + len(zeros).to_bytes(4, "little") + zeros
    file = tmp_path / "test_32x32.mat"
    file.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + 5 * element)
    with pytest.raises(DataError):
        load("svhn", root=tmp_path, split="test")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
        "<<: &a {<<: *a}\n",
        "[" * 10**5,
        "{a: " * 10**4,
        "a: " + "9" * 10**5,
        "a: !!python/object/apply:os.mkdir [payload-ran]",
        "!!python/name:os.system",
        "a: " + "1:" * 5000 + "1",
        "? " * 10**4,
        "a: 2001-13-45",
        "x" * 300_000,
    ],
)
def test_yaml_with_bombs_or_code_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attempted(READERS["yaml"], tmp_path, text.encode())
    assert [each.name for each in tmp_path.iterdir()] == ["a.yaml"]


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.mkdir, (Path("payload-ran"),)  # type: ignore[return-value]


HOSTILE = {
    "torch.save": lambda: torch_file({"w": _Payload()}),
    "old torch.save": lambda: torch_file_old({"w": _Payload()}),
    "pickle": lambda: pickle.dumps({"w": _Payload(), "data": _Payload(), "labels": _Payload()}),
    "objects in npz": lambda: _objects(),
}


def _objects() -> bytes:
    value = np.array([_Payload()], dtype=object)
    return npz(images=value, labels=value, image=value, label=value, index=value, ids=value, clean_loss=value)


@pytest.mark.parametrize("payload", HOSTILE)
@pytest.mark.parametrize("name", READERS)
def test_no_reader_runs_a_payload(name: str, payload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("here", "file"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    attempted(READERS[name], tmp_path / "file", HOSTILE[payload]())
    assert list((tmp_path / "here").iterdir()) == []


def test_paths_in_archives_write_no_files(tmp_path: Path) -> None:
    # Nothing is ever unpacked into files by the names in an archive.
    inside = tmp_path / "inside"
    inside.mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("../escaped.npy", "/tmp/escaped.npy", "images.npy", "labels.npy"):
            archive.writestr(name, npy_head((1,)) + b"\0")
    for name in ("npz", "pt", "records", "extra"):
        attempted(READERS[name], inside, buffer.getvalue())
    assert [each.name for each in tmp_path.iterdir()] == ["inside"]
    with pytest.raises(RobustillError):
        load_network("run:../../nowhere@../../best")
