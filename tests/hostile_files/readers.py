"""Every reader of files with a valid file: the table for tests of damaged and hostile files."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pyarrow.parquet import write_table
from safetensors.torch import save as save_safetensors
from scipy.io import savemat

from helpers.records_by_hand import save_records, with_examples
from helpers.shards import encoded, samples, table, tar
from helpers.small_runs import small_config
from robustill.analysis.human_agreement import check_difficulty
from robustill.analysis.human_labels import read_human_labels
from robustill.analysis.runs import read_run
from robustill.attacks.state import AutoAttackState
from robustill.config.files import dump_config, load_config
from robustill.core.checksums import with_checksum
from robustill.core.yaml import read_yaml
from robustill.data import load
from robustill.data.encoded import decode
from robustill.data.extra import ExtraImages
from robustill.data.idx import read_idx
from robustill.evaluation.state import EvaluationState
from robustill.models import build
from robustill.models.exported_program import load_exported
from robustill.models.loading import Shape, load_network
from robustill.models.weights import read_state_dict
from robustill.runs.checkpoints import Checkpoint
from robustill.runs.directory import RunDirectory
from robustill.runs.dynamics import read_dynamics, write_epoch, write_samples
from robustill.runs.records import Records
from robustill.runs.transfer_records import TransferRecords
from robustill.teachers.cache import TeacherCache

DIGITS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


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


def torch_file_old(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(DIGITS[0], 3, axis=2)).save(buffer, kind)
    return buffer.getvalue()


def pictures() -> list[bytes]:
    return [encoded(np.repeat(digit, 3, axis=2)) for digit in DIGITS]


def parquet(**options: Any) -> bytes:
    buffer = io.BytesIO()
    write_table(table(pictures(), LABELS, ["a", "b", "c"]), buffer, **options)
    return buffer.getvalue()


def matlab(compressed: bool = True) -> bytes:
    buffer = io.BytesIO()
    arrays = {
        "X": np.arange(32 * 32 * 3 * 2, dtype=np.uint8).reshape(32, 32, 3, 2),
        "y": np.array([[1], [10]], np.uint8),
    }
    savemat(buffer, arrays, do_compression=compressed)
    return buffer.getvalue()


def program() -> bytes:
    buffer = io.BytesIO()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    sizes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 2, 2),), dynamic_shapes=sizes), buffer)
    return buffer.getvalue()


@dataclass(frozen=True)
class Reader:
    """A valid file and its reader.

    Args:
        file: relative to a folder of its own.
        fine: its content.
        read: given that folder.
        before: what else has to be in the folder.
        others: of the same meaning, with less in the way of damage: not compressed, without checksum, an older format.
    """

    file: str
    fine: Callable[[], bytes]
    read: Callable[[Path], object]
    before: Callable[[Path], object] = lambda folder: None
    others: tuple[Callable[[], bytes], ...] = ()

    def laid_out(self, folder: Path, content: bytes) -> None:
        """Write the file into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.before(folder)
        (folder / self.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(content)


NETWORK = {
    "name": "resnet8",
    "options": {"width": 2},
    "num_classes": 3,
    "in_channels": 1,
    "image_size": [8, 8],
}


def network() -> torch.nn.Module:
    return build("resnet8", num_classes=3, in_channels=1, image_size=(8, 8), width=2, seed=0)


def run_of_two_epochs(folder: Path) -> None:
    run = RunDirectory(folder)
    run.start(dump_config(small_config()))
    for epoch in (1, 2):
        metrics = [{"epoch": each, "validation_robust_accuracy": 0.5} for each in range(1, epoch + 1)]
        state = {"optimizer": {"lr": 0.1}, "list": [torch.ones(2)]}
        weights = network().state_dict()
        run.checkpoints.save(Checkpoint(epoch=epoch, model=weights, ema=None, state=state, metrics=metrics))
        run.append_metrics(metrics[-1])
        run.checkpoints.choose(run.metrics(), keep_every=1)
        looks = {"clean_loss": np.ones(6, np.float16), "clean_margin": np.ones(6, np.float16)}
        write_epoch(folder, epoch, {**looks, "clean_correct": np.ones(6, np.bool_)})
    write_samples(folder, np.arange(6), LABELS, np.zeros(6, np.bool_))
    run.write_json("environment.json", {"python": "3"})
    run.write_json("model.json", NETWORK)
    run.checkpoints.save_unfinished(3, {"list": [torch.ones(2)]})


@functools.cache
def such_a_run() -> tempfile.TemporaryDirectory[str]:
    """Make the run once; tests copy it, which is faster."""
    place = tempfile.TemporaryDirectory()
    run_of_two_epochs(Path(place.name) / "run")
    return place


def run_chosen(folder: Path) -> object:
    """Read the metrics as a training that continues does."""
    run = RunDirectory(folder)
    run.checkpoints.choose(run.metrics(), keep_every=1)
    return read_run(folder, "run")


def copied_run(folder: Path) -> None:
    shutil.copytree(Path(such_a_run().name) / "run", folder, dirs_exist_ok=True)


def written(file: str) -> Callable[[], bytes]:
    """Return the content of a file of the run."""
    return lambda: (Path(such_a_run().name) / "run" / file).read_bytes()


def unsealed(file: str) -> Callable[[], bytes]:
    """Return a JSON page of an earlier version, without a checksum."""

    def old() -> bytes:
        page = json.loads(written(file)())
        del page["sha256"]
        return json.dumps(page).encode()

    return old


def unsealed_metrics() -> bytes:
    lines = [json.loads(line) for line in written("metrics.jsonl")().splitlines()]
    return b"".join(json.dumps({**line, "check": None}).encode() + b"\n" for line in lines)


def sums_mended(folder: Path, name: str) -> None:
    """Correct the checksum of a file, as the author of a forged file would."""
    sums = json.loads((folder / "checksums.json").read_text())
    sums["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))


def with_right_sums(name: str) -> Callable[[Path], object]:
    """Read a checkpoint whose checksums have been corrected."""

    def read(folder: Path) -> object:
        sums_mended(folder / "checkpoints" / "epoch-0002", name)
        return RunDirectory(folder).checkpoints.read(2)

    return read


def unfinished_with_right_sums(folder: Path) -> object:
    sums_mended(folder / "checkpoints" / "unfinished", "state.pt")
    return RunDirectory(folder).checkpoints.load_unfinished(3)


def records_with_a_right_sum(folder: Path) -> Records:
    page = json.loads((folder / "summary.json").read_text())
    page.pop("sha256", None)
    page["records_sha256"] = hashlib.sha256((folder / "records.npz").read_bytes()).hexdigest()
    (folder / "summary.json").write_text(json.dumps(page))
    return Records.load(folder)


def saved_records(file: str) -> Callable[[], bytes]:
    def content() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            save_records(with_examples(), Path(folder))
            return (Path(folder) / file).read_bytes()

    return content


def unpacked(content: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return the same arrays, uncompressed."""

    def plain() -> bytes:
        with np.load(io.BytesIO(content())) as archive:
            return npz(**archive)

    return plain


def unsealed_summary() -> bytes:
    page = json.loads(saved_records("summary.json")())
    del page["sha256"]
    return json.dumps(page).encode()


def transfer_records() -> TransferRecords:
    halves = np.full((2, 3, 2), 0.5, np.float32)
    return TransferRecords(
        names=("a", "b"),
        index=np.arange(3),
        label=np.array([0, 1, 1]),
        clean=halves,
        adversarial=np.stack([halves, halves]),
        conditions={"seed": 0},
    )


def saved_transfer(file: str) -> Callable[[], bytes]:
    def content() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            transfer_records().save(Path(folder))
            return (Path(folder) / file).read_bytes()

    return content


def transfer_with_a_right_sum(folder: Path) -> TransferRecords:
    """As files of before the page had a checksum of itself."""
    page = json.loads((folder / "transfer.json").read_text())
    page = {"format": 1, "names": page["names"], "conditions": page["conditions"]}
    page["sha256"] = hashlib.sha256((folder / "transfer.npz").read_bytes()).hexdigest()
    (folder / "transfer.json").write_text(json.dumps(page))
    return TransferRecords.load(folder)


def unsealed_transfer() -> bytes:
    """As it was before it had a checksum of itself."""
    with tempfile.TemporaryDirectory() as folder:
        transfer_records().save(Path(folder))
        transfer_with_a_right_sum(Path(folder))
        return (Path(folder) / "transfer.json").read_bytes()


def progress() -> bytes:
    return npz(**AutoAttackState.initial("x", torch.zeros(2, 1, 4, 4), 2).arrays())


def full_cache(folder: Path) -> None:
    cache = TeacherCache(folder, {"sha256": "00"}, num_classes=2)
    cache.put(IMAGES, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def cached(file: str) -> Callable[[], bytes]:
    def content() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            full_cache(Path(folder))
            return (Path(folder) / file).read_bytes()

    return content


IMAGES = torch.arange(8.0).reshape(2, 1, 2, 2)
VOTES = np.array([[8, 2, 0], [0, 10, 0], [5, 1, 4], [9, 0, 1]], dtype=np.uint8)
CHECKS = [{"id": 1, "given_original_label": 1, "mturk": {"given": 3, "guessed": 1, "neither": 1}}]
TABLE = b"id,label,flipped,loss\n0,0,0,0.5\n1,1,0,1.5\n2,0,0,2.5\n3,0,0,1e-3\n"
RAMP = (np.arange(2 * 3072) % 251).astype(np.uint8)
CIFAR = {"data": RAMP.reshape(2, 3072), "labels": [0, 1]}

READERS = {
    "yaml": Reader("a.yaml", lambda: b"a: [1, 2.5, {b: c}]\nd: 'e'\n", lambda f: read_yaml(f / "a.yaml", "it")),
    "config": Reader("c.yaml", lambda: dump_config(small_config()).encode(), lambda f: load_config(f / "c.yaml")),
    "npz": Reader("train.npz", lambda: npz(images=DIGITS, labels=LABELS), lambda f: load("npz", root=f)),
    "idx": Reader("x", idx, lambda f: read_idx(f / "x", num_axes=3)),
    "idx.gz": Reader(
        "x.gz",
        lambda: gzip.compress(idx()),
        lambda f: read_idx(f / "x.gz", num_axes=3),
        others=(lambda: gzip.compress(idx(), 0),),
    ),
    "cifar": Reader(
        "cifar-10-batches-py/test_batch",
        lambda: pickle.dumps(CIFAR, protocol=2),
        lambda f: load("cifar10", root=f, split="test"),
        others=(lambda: pickle.dumps(CIFAR, protocol=4),),
    ),
    "cifar binary": Reader(
        "cifar-10-batches-bin/test_batch.bin",
        lambda: b"\x01" + RAMP[:3072].tobytes() + b"\x01" + RAMP[3072:].tobytes(),
        lambda f: load("cifar10", root=f, split="test"),
    ),
    "mat": Reader(
        "test_32x32.mat",
        matlab,
        lambda f: load("svhn", root=f, split="test"),
        others=(lambda: matlab(compressed=False),),
    ),
    **{
        kind: Reader(f"x.{kind}", lambda kind=kind: picture(kind.upper()), lambda f, kind=kind: decode(f / f"x.{kind}"))  # type: ignore[misc]
        for kind in ("png", "jpeg", "bmp", "webp", "ppm")
    },
    "parquet": Reader(
        "test.parquet",
        parquet,
        lambda f: load("parquet", root=f, split="test"),
        others=(
            lambda: parquet(compression="none", use_dictionary=False),
            lambda: parquet(data_page_version="2.0", compression="zstd"),
        ),
    ),
    "tar": Reader(
        "test.tar",
        lambda: tar(samples(pictures(), LABELS.tolist())),
        lambda f: load("webdataset", root=f, split="test"),
        others=(
            lambda: tar([("é" * 99 + name, content) for name, content in samples(pictures(), [0] * 6)]),
            lambda: tar([("é" + name, content) for name, content in samples(pictures(), [0] * 6)], tarfile.PAX_FORMAT),
        ),
    ),
    "extra": Reader(
        "e.npz", lambda: npz(image=DIGITS, label=LABELS), lambda f: ExtraImages(f / "e.npz", (1, 8, 8), 3).fingerprint
    ),
    "pt": Reader(
        "w.pt",
        lambda: torch_file({"w": torch.ones(3)}),
        lambda f: read_state_dict(f / "w.pt"),
        others=(lambda: torch_file_old({"w": torch.ones(3)}), lambda: torch_file([{"net": {"w": torch.ones(3)}}])),
    ),
    "safetensors": Reader(
        "w.safetensors", lambda: save_safetensors({"w": torch.ones(3)}), lambda f: read_state_dict(f / "w.safetensors")
    ),
    "program": Reader("p.pt2", program, lambda f: load_exported(f / "p.pt2", (1, 2, 2))),
    "hub": Reader(
        "config.json",
        lambda: json.dumps(NETWORK).encode(),
        lambda f: load_network(f"hf:{f}", shape=Shape(num_classes=3, in_channels=1, image_size=(8, 8))),
        lambda f: (f / "model.safetensors").write_bytes(save_safetensors(network().state_dict())),
    ),
    "votes": Reader("votes.npz", lambda: npz(counts=VOTES), lambda f: read_human_labels(f / "votes.npz")),
    "labels": Reader(
        "labels.npz",
        lambda: npz(clean_label=LABELS, aggre_label=LABELS),
        lambda f: read_human_labels(f / "labels.npz").targets(np.arange(6), LABELS),
    ),
    "checks": Reader(
        "checks.json",
        lambda: json.dumps(CHECKS).encode(),
        lambda f: read_human_labels(f / "checks.json").targets(np.arange(6), LABELS),
    ),
    "scores": Reader(
        "scores.csv",
        lambda: TABLE,
        lambda f: check_difficulty(f / "scores.csv", [f / "votes.npz"]),
        lambda f: (f / "votes.npz").write_bytes(npz(counts=VOTES)),
    ),
    "cache.json": Reader(
        "cache.json", cached("cache.json"), lambda f: TeacherCache(f, {"sha256": "00"}, num_classes=2), full_cache
    ),
    **{
        f"cache {file}": Reader(
            file, cached(file), lambda f: TeacherCache(f, {"sha256": "00"}, num_classes=2).get(IMAGES), full_cache
        )
        for file in ("keys", "logits")
    },
    "records": Reader(
        "records.npz",
        saved_records("records.npz"),
        records_with_a_right_sum,
        lambda f: save_records(with_examples(), f),
        others=(unpacked(saved_records("records.npz")),),
    ),
    "summary": Reader(
        "summary.json",
        saved_records("summary.json"),
        Records.load,
        lambda f: save_records(with_examples(), f),
        others=(unsealed_summary,),
    ),
    "transfer.json": Reader(
        "transfer.json",
        saved_transfer("transfer.json"),
        TransferRecords.load,
        lambda f: transfer_records().save(f),
        others=(unsealed_transfer,),
    ),
    "transfer.npz": Reader(
        "transfer.npz",
        saved_transfer("transfer.npz"),
        transfer_with_a_right_sum,
        lambda f: transfer_records().save(f),
        others=(unpacked(saved_transfer("transfer.npz")),),
    ),
    "header": Reader(
        "header.json",
        lambda: json.dumps(with_checksum({"conditions": {"seed": 0}, "part_size": 5})).encode(),
        lambda f: EvaluationState(f, {"seed": 0}, 5),
        others=(lambda: json.dumps({"conditions": {"seed": 0}, "part_size": 5, "format": 1}).encode(),),
    ),
    "part": Reader(
        "part-00000.autoattack.npz",
        progress,
        lambda f: EvaluationState(f, {}, 5).load_attack_state(0),
        lambda f: (f / "header.json").write_text(json.dumps(with_checksum({"conditions": {}, "part_size": 5}))),
    ),
    "run config.yaml": Reader(
        "config.yaml",
        written("config.yaml"),
        lambda f: read_run(f, "run"),
        copied_run,
        others=(lambda: written("config.yaml")().partition(b"\n")[2],),
    ),
    "run metrics.jsonl": Reader(
        "metrics.jsonl", written("metrics.jsonl"), run_chosen, copied_run, others=(unsealed_metrics,)
    ),
    "run environment.json": Reader(
        "environment.json",
        written("environment.json"),
        lambda f: read_run(f, "run"),
        copied_run,
        others=(unsealed("environment.json"),),
    ),
    "run model.json": Reader(
        "model.json",
        written("model.json"),
        lambda f: load_network(f"run:{f}@last"),
        copied_run,
        others=(unsealed("model.json"),),
    ),
    "network config.yaml": Reader(
        "config.yaml",
        written("config.yaml"),
        lambda f: load_network(f"run:{f}@last"),
        copied_run,
        others=(lambda: written("config.yaml")().partition(b"\n")[2],),
    ),
    "run checkpoints/best": Reader(
        "checkpoints/best",
        written("checkpoints/best"),
        lambda f: read_run(f, "run"),
        copied_run,
        others=(lambda: b"epoch-0001\n",),
    ),
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
    "run unfinished": Reader(
        "checkpoints/unfinished/state.pt",
        written("checkpoints/unfinished/state.pt"),
        unfinished_with_right_sums,
        copied_run,
    ),
    "run checksums.json": Reader(
        "checkpoints/epoch-0002/checksums.json",
        written("checkpoints/epoch-0002/checksums.json"),
        lambda f: RunDirectory(f).checkpoints.read(2),
        copied_run,
    ),
}
