"""How do time and memory of a training grow, and how well does `robustill plan` say so before?

    python benchmarks/speed/cost.py --out benchmarks/results/cost-DATE.json

About five minutes on two cores. Generated JPEG files, read where they lie once they are more than memory should hold,
PGD-10 (PGD-2 from 128 pixels on), bf16. From the same beginning one thing grows at a time: image size, student,
teachers, number of images. Each row has a process of its own: first the forecast of `robustill plan` from a probe of a
few seconds, then two epochs of training, whose second is compared with it. Memory is what the process came to at most,
beyond what it had before its first step.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import resource
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from robustill.config.schema import make_config
from robustill.core.device import environment
from robustill.data import encoded
from robustill.models import build
from robustill.training.cost import forecast
from robustill.training.loop import train

HELD_OUT = 32
ROWS: dict[str, dict[str, Any]] = {
    "from here": {},
    "64×64 pixels": {"size": 64, "images": 256, "batch": 32},
    "128×128 pixels, PGD-2": {"size": 128, "images": 192, "batch": 16, "steps": 2},
    "224×224 pixels, PGD-2": {"size": 224, "images": 128, "batch": 8, "steps": 2},
    "224×224 pixels, streamed": {"size": 224, "images": 128, "batch": 8, "steps": 2, "stream": True},
    "ResNet-8 of width 32": {"width": 32},
    "MobileNetV2": {"model": "mobilenetv2", "images": 192},
    "ResNet-18": {"model": "resnet18", "images": 128},
    "WideResNet-28-10, PGD-2": {"model": "wideresnet", "images": 64, "batch": 16, "steps": 2},
    "WideResNet-28-10, PGD-2, recompute": {
        "model": "wideresnet",
        "images": 64,
        "batch": 16,
        "steps": 2,
        "recompute": True,
    },
    "one teacher like it": {"teachers": 1},
    "three teachers like it": {"teachers": 3},
    "a ResNet-18 for its teacher": {"teachers": 1, "teacher": "resnet18"},
    "twice the images": {"images": 1024},
    "four times the images": {"images": 2048},
    "streamed": {"stream": True},
}


def draw(place: Path, count: int, size: int) -> None:
    draws = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 4)):
        for at in range(number):
            file = place / split / f"class-{at % 2}" / f"{at}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draws.integers(256, size=(8, 8, 3), dtype=np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, quality=90)


def network(name: str, width: int) -> dict[str, Any]:
    return {"name": name, **({"width": width} if name == "resnet8" else {})}


def configuration(place: Path, row: dict[str, Any], size: int, images: int) -> dict[str, Any]:
    student = network(row.get("model", "resnet8"), row.get("width", 16))
    teachers = []
    if "teachers" in row:
        model = network(row.get("teacher", student["name"]), row.get("width", 16))
        built = build(num_classes=2, image_size=size, **model)
        save_file(built.state_dict(), place / "teacher.safetensors")
        teachers = [{"spec": str(place / "teacher.safetensors"), "model": model}] * row["teachers"]
    return {
        "data": {"name": "folder", "root": str(place), "train_size": images, "validation": HELD_OUT,
                 "augmentation": ["crop", "flip"]},
        "model": {**student, "mean": [0.5] * 3, "std": [0.25] * 3},
        "method": {"name": "akd" if teachers else "at"},
        "teachers": teachers,
        "attack": {"steps": row.get("steps", 10), "step_size": "2/255"},
        "optim": {"epochs": 2, "batch_size": row.get("batch", 64)},
        "dynamics": {"record": False},
        "compute": {"precision": "bf16", "threads": row["threads"], "device": "cpu",
                    "recompute": row.get("recompute", False)},
    }  # fmt: skip


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(row: dict[str, Any], pipe: Connection) -> None:
    size, images = row.get("size", 32), row.get("images", 512)
    if row.get("stream"):
        encoded.MEMORY_BOUND = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draw(place, images + HELD_OUT, size)
        config = make_config(configuration(place, row, size, images))
        before = peak()
        said = forecast(config, seconds=5)
        lines = train(config, place / "run", progress=False).metrics
    pipe.send({
        "images": images, "step_gflops_an_image": round(said.step_gflops, 3),
        "forecast_images_per_second": round(said.images_per_second, 1),
        "images_per_second": round(images / lines[1]["seconds"], 1),
        "megabytes": round(peak() - before),
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    print("| | GFLOP a step and image | images/s forecast | images/s | GFLOP/s | MB |")
    print("|---|---|---|---|---|---|")
    for name in arguments.rows:
        mine, theirs = context.Pipe()
        process = context.Process(target=measured, args=({**ROWS[name], "threads": arguments.threads}, theirs))
        process.start()
        theirs.close()
        row = found[name] = mine.recv()
        process.join()
        rate = row["images_per_second"]
        print(
            f"| {name} | {row['step_gflops_an_image']:.2f} | {row['forecast_images_per_second']:.1f} | {rate:.1f} "
            f"| {rate * row['step_gflops_an_image']:.0f} | {row['megabytes']} |",
            flush=True,
        )
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {**environment(), "threads": arguments.threads}
        content = {"date": datetime.date.today().isoformat(), "environment": machine, "rows": found}
        arguments.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
