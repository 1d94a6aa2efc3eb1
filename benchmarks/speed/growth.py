"""Where does the cost of a run stop growing linearly: with images, classes, photographs on disk, or processes?

    python benchmarks/speed/growth.py --out benchmarks/results/growth-DATE.json

About 15 minutes on two cores with nothing else running, and 3 GB of disk. Each row has a process of its own.

- Images and classes: generated 8×8 images in an .npz file, PGD-1 on a ResNet-8 of width 4, one thread, so that all but
  the network weighs as much as it can; two epochs with recorded dynamics, then the page of the run. Seconds are
  processor time.
- Photographs: a hundred thousand JPEG files of 224×224 (a thousand different ones) in folders of classes or in tar
  archives, and as few as fit into memory; 2,000 are trained on for an epoch. Busy is processor time over wall time and
  cores, after the images were opened.
- Processes: PGD-10 on a ResNet-8 of width 16 and batches of 128, float32, by the command line, under torchrun for two
  processes; images a second of the second epoch.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robustill import write_report
from robustill.config.schema import make_config
from robustill.core.device import environment
from robustill.data import load
from robustill.training.loop import train

NUM_HELD_OUT = 100
CORES = 2


def peak() -> float:
    """The most memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_arrays(place: Path, images: int, classes: int) -> None:
    draws = np.random.default_rng(0)
    for split, count in (("train", images + NUM_HELD_OUT), ("test", classes)):
        drawn = draws.integers(256, size=(count, 8, 8), dtype=np.uint8)
        np.savez(place / f"{split}.npz", images=drawn, labels=np.arange(count) % classes)


def small_images(images: int, classes: int = 10, method: str = "at") -> dict[str, float]:
    """Train two epochs on generated images, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_arrays(place, images, classes)
        config = make_config(
            {
                "data": {"name": "npz", "root": str(place), "validation": NUM_HELD_OUT},
                "model": {"name": "resnet8", "width": 4},
                "method": {"name": method},
                "attack": {"steps": 1, "step_size": "8/255"},
                "optim": {"epochs": 2, "batch_size": 128},
                "compute": {"device": "cpu", "threads": 1},
            }
        )
        before, began = peak(), time.process_time()
        train(config, place / "run", progress=False)
        trained, megabytes = time.process_time(), peak() - before
        size = sum(file.stat().st_size for file in (place / "run").rglob("*") if file.is_file())
        write_report([place / "run"], place / "page.html")
        return {
            "microseconds_an_image_and_epoch": 1e6 * (trained - began) / 2 / images,
            "training_seconds": trained - began,
            "page_seconds": time.process_time() - trained,
            "megabytes": megabytes,
            "megabytes_on_disk": size / 2**20,
        }


def pictures() -> list[bytes]:
    draws, found = np.random.default_rng(0), []
    for _ in range(1000):
        coarse = Image.fromarray(draws.integers(256, size=(14, 14, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((224, 224), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def write_folders(place: Path, count: int) -> None:
    drawn = pictures()
    for split, number in (("train", count), ("test", 10)):
        for at in range(number):
            file = place / split / f"class-{at % 10}" / f"{at}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(drawn[at % len(drawn)])


def write_shards(place: Path, count: int) -> None:
    drawn = pictures()
    for split, number in (("train", count), ("test", 10)):
        for first in range(0, number, 10_000):
            with tarfile.open(place / f"{split}-{first // 10_000:04d}.tar", "w") as archive:
                for at in range(first, min(first + 10_000, number)):
                    for suffix, content in ((".jpg", drawn[at % len(drawn)]), (".cls", str(at % 10).encode())):
                        member = tarfile.TarInfo(f"{at:06d}{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))


def photographs(kind: str, count: int, trained: int) -> dict[str, float]:
    """Open JPEG files, and train an epoch on some of them."""
    write = {"folder": write_folders, "webdataset": write_shards}[kind]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write(place, count)
        data = {"name": kind, "root": str(place), "train_size": trained, "validation": NUM_HELD_OUT}
        if kind == "webdataset":
            data["num_classes"] = 10
        config = make_config(
            {
                "data": {**data, "augmentation": ["crop", "flip"]},
                "model": {"name": "resnet8", "width": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
                "attack": {"steps": 2, "step_size": "8/255"},
                "optim": {"epochs": 1, "batch_size": 16},
                "compute": {"device": "cpu", "threads": CORES, "precision": "bf16"},
            }
        )
        began = time.perf_counter(), time.process_time()
        number = len(load(kind, root=place, **({"num_classes": 10} if kind == "webdataset" else {})))
        opened, before = (time.perf_counter(), time.process_time()), peak()
        lines = train(config, place / "run", progress=False).metrics
        ended = time.perf_counter(), time.process_time()
        # Training opens the images once more.
        opening, seconds = (opened[0] - began[0], ended[0] - opened[0] - (opened[0] - began[0]))
        busy = ended[1] - opened[1] - (opened[1] - began[1])
        return {
            "images": number,
            "opening_seconds": opening,
            "images_per_second": trained / lines[0]["seconds"],
            "busy": busy / seconds / CORES,
            "megabytes": peak() - before,
        }


def processes(count: int, threads: int) -> dict[str, float]:
    """Train by the command line with a number of processes of a number of threads each."""
    images = 4096
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draws = np.random.default_rng(0)
        for split, number in (("train", images + NUM_HELD_OUT), ("test", 10)):
            drawn = draws.integers(256, size=(number, 32, 32, 3), dtype=np.uint8)
            np.savez(place / f"{split}.npz", images=drawn, labels=np.arange(number) % 10)
        words = ["robustill", "train", "cifar10_part_at", "--run", str(place / "run")]
        settings = {
            "data.name": "npz", "data.root": place, "data.train_size": images, "data.validation": NUM_HELD_OUT,
            "model": "resnet8", "attack.steps": 10, "optim.epochs": 2, "optim.batch_size": 128,
            "compute.device": "cpu", "compute.threads": threads, "dynamics.record": "false",
        }  # fmt: skip
        words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "--"]
        command = [sys.executable, "-m", *(launcher if count > 1 else []), *words]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        metrics = (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rate = images / json.loads(metrics[1])["seconds"]
        return {"processes": count, "threads": threads, "images_per_second": rate}


Row = tuple[Callable[..., dict[str, float]], dict[str, Any]]


def rows(largest: int, photos: int) -> dict[str, Row]:
    counts = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= largest]
    some, trained = min(20_000, largest), photos // 50
    few = trained + 2 * NUM_HELD_OUT
    return {
        **{f"{count:,} images": (small_images, {"images": count}) for count in counts},
        **{f"{k:,} classes": (small_images, {"images": some, "classes": k}) for k in (10, 100, 1000)},
        "1,000 classes, TE": (small_images, {"images": some, "classes": 1000, "method": "te"}),
        f"{few:,} photographs, in memory": (photographs, {"kind": "folder", "count": few, "trained": trained}),
        **{
            f"{photos:,} photographs, {name}": (photographs, {"kind": kind, "count": photos, "trained": trained})
            for name, kind in (("folders", "folder"), ("tar archives", "webdataset"))
        },
        "one thread": (processes, {"count": 1, "threads": 1}),
        "two threads": (processes, {"count": 1, "threads": 2}),
        "two processes": (processes, {"count": 2, "threads": 1}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000, help="the largest number of small images")
    parser.add_argument("--photos", type=int, default=100_000, help="the number of JPEG files")
    parser.add_argument("--rows", nargs="+", help="the rows to measure; by default all")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    every = rows(arguments.largest, arguments.photos)
    unknown = [name for name in arguments.rows or () if name not in every]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: choose from {', '.join(every)}")
    context, found = multiprocessing.get_context("spawn"), {}
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name in arguments.rows or every:
            measure, settings = every[name]
            numbers = pool.submit(measure, **settings).result()
            found[name] = {key: round(value, 3) for key, value in numbers.items()}
            print(f"{name}: " + ", ".join(f"{key} {value:,g}" for key, value in found[name].items()), flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"date": datetime.date.today().isoformat(), "environment": environment(), "rows": found}
        arguments.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
