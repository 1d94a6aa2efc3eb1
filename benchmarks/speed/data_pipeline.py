"""How many images a second reach a training step, and what share of the step waits for them?

    python benchmarks/speed/data_pipeline.py --out benchmarks/results/data-pipeline-DATE.json

About a minute. In memory: crop with 4 pixels of padding and flip on uint8 batches of 32×32, beside the same done image
by image with PIL through torch's DataLoader, as scripts do it; in turns, one process, one thread. Streaming: generated
JPEG files of 256×256 brought to 224×224, decoded ahead in threads. The share is of a PGD-10 step of a ResNet-8 of width
16, batch 128, in bf16. Processor time where one thread works, wall time for the streaming part.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from steps import repeated
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from robustill.core.device import environment
from robustill.core.memory_format import place
from robustill.data import Augmentation, ImageDataset, Loader, encoded, load
from robustill.methods import AT, Batch
from robustill.models import build
from robustill.threat import Threat
from robustill.training.optimizer import build_optimizer
from robustill.training.step import Step

COUNT, BATCH, EPS = 10_000, 128, 8 / 255


def drawn(count: int, side: int) -> ImageDataset:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=draws)
    labels = torch.arange(count) % 10
    return ImageDataset(name="drawn", split="train", images=images, labels=labels, classes=tuple("0123456789"))


class OneByOne(TorchDataset[tuple[Tensor, int]]):
    """Padding, crop and flip of one PIL image at a time, then a float tensor."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.arrays = dataset.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        padded = ImageOps.expand(Image.fromarray(self.arrays[index]), border=4, fill=0)
        left, top = (int(each) for each in torch.randint(9, (2,)))
        picture = padded.crop((left, top, left + 32, top + 32))
        if torch.rand(1) < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255), self.labels[index]


def ours(dataset: ImageDataset) -> Loader:
    ids = torch.arange(len(dataset))
    return Loader(dataset, ids, batch_size=BATCH, seed=0, augmentation=Augmentation(["crop", "flip"]))


def in_memory(rounds: int) -> dict[str, object]:
    dataset = drawn(COUNT, 32)
    loader, scripts = ours(dataset), DataLoader(OneByOne(dataset), batch_size=BATCH, shuffle=True)
    runs: dict[str, Callable[[], int]] = {
        "ours": lambda: sum(len(y) for _, y, _ in loader.epoch(0)),
        "image by image": lambda: sum(len(y) for _, y in scripts),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            count = run()
            if number:  # the first sets things up
                rates[name].append(count / (time.process_time() - began))
    ratios = [mine / other for mine, other in zip(rates["ours"], rates["image by image"], strict=True)]
    return {
        "images_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "is_faster_by": round(statistics.median(ratios), 1),
        "quartiles": [round(each, 1) for each in statistics.quantiles(ratios, n=4)[::2]],
        "share_of_a_training_step": round(BATCH / statistics.median(rates["ours"]) / step_seconds(rounds), 4),
    }


def step_seconds(rounds: int) -> float:
    student = place(build("resnet8", num_classes=10, width=16), torch.device("cpu")).train()
    threat = Threat(norm="linf", eps=EPS)
    step = Step(student, AT(), None, threat, steps=10, step_size=EPS / 4, precision="bf16", light=True)
    optimizer = build_optimizer(
        [student], "sgd", learning_rate=1e-4, weight_decay=5e-4, decay_all=False, momentum=0.9, nesterov=True
    )
    x, y, index = next(ours(drawn(BATCH, 32)).epoch(0))
    run = repeated(step, Batch(x=x.contiguous(memory_format=torch.channels_last), y=y, index=index), optimizer)
    run()
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def streaming(count: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        draws = np.random.default_rng(0)
        for number in range(count):
            place = Path(folder) / "train" / f"class-{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draws.integers(256, size=(16, 16, 3), dtype=np.uint8))
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
        # As if there were more than memory holds.
        encoded.MEMORY_BOUND = 0
        dataset = load("folder", root=Path(folder), image_size=224)
        ids = torch.arange(count)
        loader = Loader(dataset, ids, batch_size=32, seed=0, augmentation=Augmentation(["flip"]))
        began = time.perf_counter()
        seen = sum(len(y) for _, y, _ in loader.epoch(0))
        spent = time.perf_counter() - began
    return {"images": seen, "images_per_second": round(seen / spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streamed", type=int, default=2000, help="JPEG files to generate")
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = {"date": datetime.date.today().isoformat(), "environment": environment()}
    content |= {"in_memory": in_memory(arguments.rounds), "streaming": streaming(arguments.streamed)}
    print(json.dumps(content, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
