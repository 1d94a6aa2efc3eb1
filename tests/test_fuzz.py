"""Every reader on damaged, hostile or senseless files: a result or a RobustillError, in bounded memory and time."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import pickle
import shutil
import tempfile
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_safetensors
from scipy.io import savemat

from robustill import plain_yaml, sealed
from robustill.data import load
from robustill.data.extra import ExtraImages
from robustill.data.folder import decode
from robustill.data.idx import read_idx
from robustill.dynamics import read_dynamics, write_epoch, write_samples
from robustill.errors import CheckpointError, DataError, RobustillError, RunError
from robustill.evaluation_state import EvaluationState
from robustill.exported import load_exported
from robustill.hub import open_folder
from robustill.loading import load_network
from robustill.models.weights import read_state_dict
from robustill.records import Records
from robustill.report.runs import read_run
from robustill.run_directory import Checkpoint, RunDirectory
from test_records import with_examples

MOST_BYTES = 64 * 2**20
"""Beside the libraries: what a file of a few kilobytes may make a reader take, by tracemalloc."""
MOST_SECONDS = 20.0
"""A hang; the machine may be busy."""

DIGITS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


REPEATABLE: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def idx() -> bytes:
    return bytes([0, 0, 8, 3]) + np.array([6, 8, 8], ">u4").tobytes() + DIGITS.tobytes()


def torch_file(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(DIGITS[0], 3, axis=2)).save(buffer, kind)
    return buffer.getvalue()


def matlab() -> bytes:
    buffer = io.BytesIO()
    arrays = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [10]], np.uint8)}
    savemat(buffer, arrays, do_compression=True)
    return buffer.getvalue()


def program() -> bytes:
    buffer = io.BytesIO()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    sizes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 2, 2),), dynamic_shapes=sizes), buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class Reader:
    """A file that is fine, and who reads it; `file` is relative to a folder of its own."""

    file: str
    fine: Callable[[], bytes]
    read: Callable[[Path], object]
    before: Callable[[Path], object] = lambda folder: None


def run_of_two_epochs(folder: Path) -> None:
    run = RunDirectory(folder)
    run.start("seed: 0\n")
    for epoch in (1, 2):
        metrics = [{"epoch": each, "validation_robust_accuracy": 0.5} for each in range(1, epoch + 1)]
        state = {"optimizer": {"lr": 0.1}, "list": [torch.ones(2)]}
        run.save(Checkpoint(epoch=epoch, model={"w": torch.ones(2)}, ema=None, state=state, metrics=metrics))
        run.append_metrics(metrics[-1])
        run.choose(keep_every=1)
        looks = {"clean_loss": np.ones(6, np.float16), "clean_margin": np.ones(6, np.float16)}
        write_epoch(folder, epoch, {**looks, "clean_correct": np.ones(6, np.bool_)})
    write_samples(folder, np.arange(6), LABELS, np.zeros(6, np.bool_))
    run.write_json("environment.json", {"python": "3"})


@functools.cache
def such_a_run() -> tempfile.TemporaryDirectory[str]:
    """It is copied: to write it takes the disk's time."""
    place = tempfile.TemporaryDirectory()
    run_of_two_epochs(Path(place.name) / "run")
    return place


def copied_run(folder: Path) -> None:
    shutil.copytree(Path(such_a_run().name) / "run", folder, dirs_exist_ok=True)


def written(file: str) -> Callable[[], bytes]:
    """A file of such a run."""
    return lambda: (Path(such_a_run().name) / "run" / file).read_bytes()


def with_right_sums(name: str) -> Callable[[Path], object]:
    """Read a checkpoint whose checksums its author has mended: what is in it is all that protects."""

    def read(folder: Path) -> object:
        checkpoint = folder / "checkpoints" / "epoch-0002"
        sums = json.loads((checkpoint / "checksums.json").read_text())
        sums["sha256"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        (checkpoint / "checksums.json").write_text(json.dumps(sums))
        return RunDirectory(folder).checkpoint(2)

    return read


def records_with_a_right_sum(folder: Path) -> Records:
    page = json.loads((folder / "summary.json").read_text())
    del page["sha256"]
    page["records_sha256"] = hashlib.sha256((folder / "records.npz").read_bytes()).hexdigest()
    (folder / "summary.json").write_text(json.dumps(page))
    return Records.load(folder)


def saved_records() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with_examples().save(Path(folder))
        return (Path(folder) / "records.npz").read_bytes()


CIFAR = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
HUB = {"name": "lenet", "options": {}, "num_classes": 10, "in_channels": 1, "image_size": [28, 28]}

READERS = {
    "yaml": Reader("a.yaml", lambda: b"a: [1, 2.5, {b: c}]\nd: 'e'\n", lambda f: plain_yaml.read(f / "a.yaml", "it")),
    "npz": Reader("train.npz", lambda: npz(images=DIGITS, labels=LABELS), lambda f: load("npz", root=f)),
    "idx": Reader("x", idx, lambda f: read_idx(f / "x", num_axes=3)),
    "idx.gz": Reader("x.gz", lambda: gzip.compress(idx()), lambda f: read_idx(f / "x.gz", num_axes=3)),
    "cifar": Reader(
        "cifar-10-batches-py/test_batch",
        lambda: pickle.dumps(CIFAR, protocol=2),
        lambda f: load("cifar10", root=f, split="test"),
    ),
    "cifar binary": Reader(
        "cifar-10-batches-bin/test_batch.bin", lambda: bytes(2 * 3073), lambda f: load("cifar10", root=f, split="test")
    ),
    "mat": Reader("test_32x32.mat", matlab, lambda f: load("svhn", root=f, split="test")),
    **{
        kind: Reader(f"x.{kind}", lambda kind=kind: picture(kind.upper()), lambda f, kind=kind: decode(f / f"x.{kind}"))  # type: ignore[misc]
        for kind in ("png", "jpeg", "bmp", "webp", "ppm")
    },
    "extra": Reader(
        "e.npz", lambda: npz(image=DIGITS, label=LABELS), lambda f: ExtraImages(f / "e.npz", (1, 8, 8), 3).fingerprint
    ),
    "pt": Reader("w.pt", lambda: torch_file({"w": torch.ones(3)}), lambda f: read_state_dict(f / "w.pt")),
    "safetensors": Reader(
        "w.safetensors", lambda: save_safetensors({"w": torch.ones(3)}), lambda f: read_state_dict(f / "w.safetensors")
    ),
    "hub": Reader(
        "config.json",
        lambda: json.dumps(HUB).encode(),
        lambda f: open_folder(str(f), download=False),
        lambda f: (f / "model.safetensors").write_bytes(save_safetensors({"w": torch.ones(1)})),
    ),
    "records": Reader("records.npz", saved_records, records_with_a_right_sum, lambda f: with_examples().save(f)),
    "header": Reader(
        "header.json",
        lambda: json.dumps(sealed.sealed_page({"conditions": {"seed": 0}, "part_size": 5})).encode(),
        lambda f: EvaluationState(f, {"seed": 0}, 5),
    ),
    "part": Reader(
        "part-00000.autoattack.npz",
        lambda: npz(stages_done=LABELS, conditions=np.array("x")),
        lambda f: EvaluationState(f, {}, 5).progress(0),
        lambda f: (f / "header.json").write_text(json.dumps(sealed.sealed_page({"conditions": {}, "part_size": 5}))),
    ),
    **{
        f"run {file}": Reader(file, written(file), lambda f: read_run(f, "run"), copied_run)
        for file in ("config.yaml", "metrics.jsonl", "environment.json", "checkpoints/best")
    },
    **{
        f"run {file}": Reader(file, written(file), read_dynamics, copied_run)
        for file in ("dynamics/samples.npz", "dynamics/epoch-0001.npz")
    },
    **{
        f"run {name}": Reader(
            f"checkpoints/epoch-0002/{name}",
            written(f"checkpoints/epoch-0002/{name}"),
            with_right_sums(name),
            copied_run,
        )
        for name in ("state.pt", "model.safetensors", "metrics.json")
    },
    "run checksums.json": Reader(
        "checkpoints/epoch-0002/checksums.json",
        written("checkpoints/epoch-0002/checksums.json"),
        lambda f: RunDirectory(f).checkpoint(2),
        copied_run,
    ),
}


@st.composite
def damaged(draw: st.DrawFn, fine: bytes) -> bytes:
    """A few changes to a fine file, or nonsense."""
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
    file = folder / reader.file
    reader.before(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    began = time.monotonic()
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
    assert time.monotonic() - began < MOST_SECONDS


@pytest.mark.parametrize("name", READERS)
def test_a_fine_file_is_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.before(tmp_path)
    (tmp_path / reader.file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / reader.file).write_bytes(reader.fine())
    if name == "part":
        with pytest.raises(RunError, match="lacks"):
            reader.read(tmp_path)
        return
    reader.read(tmp_path)


def fuzzed(name: str, folder: Path, examples: int) -> None:
    reader = READERS[name]
    fine = reader.fine()
    numbers = iter(range(10**9))

    @settings(max_examples=examples, **REPEATABLE)
    @given(damaged(fine))
    def run(content: bytes) -> None:
        own = folder / str(next(numbers))
        own.mkdir()
        attempted(reader, own, content)
        shutil.rmtree(own)

    run()


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    fuzzed(name, tmp_path, 400)


@pytest.mark.slow
def test_damaged_programs(tmp_path: Path) -> None:
    fine = program()
    (tmp_path / "p.pt2").write_bytes(fine)
    assert load_exported(tmp_path / "p.pt2", (1, 2, 2))(torch.zeros(3, 1, 2, 2)).shape == (3, 2)

    @settings(max_examples=60, **REPEATABLE)
    @given(damaged(fine))
    def run(content: bytes) -> None:
        (tmp_path / "p.pt2").write_bytes(content)
        try:
            load_exported(tmp_path / "p.pt2", (1, 2, 2))
        except RobustillError as error:
            one_line(error)

    run()


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


def test_arrays_that_unpack_to_gigabytes_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As 2**32 would take minutes to write, the bound comes down to meet them.
    monkeypatch.setattr("robustill.archives.LARGEST_ARRAYS", 2**25)
    bomb = zeros_zipped("images.npy", 200 * 2**20, npy_head((200 * 2**14, 8, 8)))
    assert len(bomb) < 2**18
    for name in ("npz", "records", "run dynamics/epoch-0001.npz", "part"):
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        attempted(READERS[name], folder, bomb)
    with pytest.raises(DataError, match=r"bytes when unpacked, expected at most"):
        load("npz", root=tmp_path / "npz")


def test_a_header_that_lies_about_its_shape_takes_no_memory(tmp_path: Path) -> None:
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


def test_tensors_that_unpack_to_more_than_their_file_are_refused(tmp_path: Path) -> None:
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
    monkeypatch.setattr("robustill.data.matlab.LARGEST_FILE", 2**21)
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
def test_yaml_that_asks_for_much_or_for_code(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def torch_file_old(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


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


def test_names_in_archives_lead_nowhere(tmp_path: Path) -> None:
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
