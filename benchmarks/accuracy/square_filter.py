"""Could Square reject most patches in bfloat16, and decide in float32 only those that are near?

    python benchmarks/accuracy/square_filter.py --weights FILE --data DATA \\
        --out benchmarks/results/square-filter-DATE.json

Half a minute on one core for the public ResNet-2B2. Square runs in float32 on images of CIFAR-10 that PGD-20 leaves
robust at l∞ 8/255; every fifth patch is also tried in bfloat16. A patch is near if bfloat16 does not put its change of
the margin below the largest error that it made among the patches of the same size: a filter that loses no accepted
patch must leave the near ones to float32, beside its own pass.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from robustill.attacks import pgd
from robustill.attacks.canvas import PlainCanvas
from robustill.attacks.search import Search
from robustill.attacks.square import SharedDraws, Square, patch_side
from robustill.core.device import environment
from robustill.core.randomness import generator
from robustill.data import ImageDataset, load
from robustill.losses import ce, margin
from robustill.models import build
from robustill.models.weights import load_public_weights
from robustill.threat import Threat

THREAT, QUERIES, EVERY = Threat(norm="linf", eps=8 / 255), 5000, 5


class ComparingCanvas(PlainCanvas):
    """A canvas that tries every fifth patch in bfloat16, too.

    Args:
        search: makes the passes through the model.
        images: the first images, [R,C,H,W].
        model: images to logits.
        y: labels, [R].
    """

    def __init__(self, search: Search, images: Tensor, model: nn.Module, y: Tensor) -> None:
        super().__init__(search, images)
        self.model, self.y = model, y
        self.query = 0
        # By the side of the patch: changes of the margin in float32 and bfloat16, [2, R] a patch.
        self.changes: dict[int, list[Tensor]] = {}

    def try_patch(self, top: int, left: int, patch: Tensor) -> Tensor:
        """See `Canvas`."""
        logits = super().try_patch(top, left, patch)
        if self.query % EVERY == 0:
            with torch.no_grad():
                exact = margin(logits, self.y) - margin(self.model(self.images), self.y)
                with torch.autocast("cpu", torch.bfloat16):
                    tried, before = self.model(self.patched).float(), self.model(self.images).float()
            rounded = margin(tried, self.y) - margin(before, self.y)
            self.changes.setdefault(patch.shape[2], []).append(torch.stack([exact, rounded]))
        self.query += 1
        return logits

    def select(self, mask: Tensor) -> None:
        """See `Canvas`."""
        super().select(mask)
        self.y = self.y[mask]


def near_patches(canvas: ComparingCanvas) -> list[dict[str, float]]:
    """Return, for each size of a patch, how often it is accepted, how far bfloat16 is off, and how many are near."""
    rows = []
    for side, changes in canvas.changes.items():
        exact, rounded = torch.cat(changes, dim=1)
        error = (rounded - exact).abs().max()
        queries = sum(patch_side(query, 32, 32, odd=False) == side for query in range(QUERIES))
        rows.append({
            "side": side,
            "queries": queries,
            "accepted": float((exact > 0).double().mean()),
            "change_std": float(exact.std()),
            "largest_error": float(error),
            "near": float((rounded > -error).double().mean()),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="resnet_2b2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    normalisation = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
    model = build(arguments.model, num_classes=10, **normalisation).eval().requires_grad_(False)
    load_public_weights(model, arguments.weights)
    data = load("cifar10", root=arguments.data, split="test")
    assert isinstance(data, ImageDataset)
    x, y = data.images[: 8 * arguments.images].float() / 255, data.labels[: 8 * arguments.images]
    start = generator(0, "pgd")
    attacked = pgd(lambda z: ce(model(z), y), x, THREAT, steps=20, step_size=THREAT.eps / 4, generator=start)
    with torch.no_grad():
        robust = model(attacked).argmax(dim=1) == y
    x, y = x[robust][: arguments.images], y[robust][: arguments.images]
    canvases: list[ComparingCanvas] = []
    search = Search(model, THREAT)

    def canvas(images: Tensor) -> ComparingCanvas:
        canvases.append(ComparingCanvas(search, images, model, y))
        return canvases[0]

    def signs(image: Tensor, count: int) -> Tensor:
        return torch.rand(len(image), count, generator=generator(0, "signs")).sub_(0.5).sign_()

    draws = SharedDraws.draw(QUERIES, 3, generator(0, "plan"))
    Square(search, queries=QUERIES, draws=draws, signs=signs, canvas=canvas).run(x, y, torch.arange(len(x)))
    rows = near_patches(canvases[0])
    near = sum(row["queries"] * row["near"] for row in rows) / QUERIES
    for row in rows:
        print("  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    print(f"near in all: {near:.2f} of the queries, {len(x)} images")
    found = {"weights": arguments.weights.name, "images": len(x), "near": near, "sides": rows}
    arguments.out.write_text(json.dumps(found | {"environment": environment()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
