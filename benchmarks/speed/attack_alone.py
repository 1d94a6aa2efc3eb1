"""How fast is PGD-40 alone, ours beside the plain loop, foolbox, torchattacks and ART?

    python benchmarks/speed/attack_alone.py --weights FILE --peers PACKAGES \\
        --out benchmarks/results/attack-alone-DATE.json

About two minutes on one core. ResNet-8 of width 16 on 3×32×32 (random images, and random weights without --weights),
128 images, l∞ 8/255, step 2/255, a random start, one thread, processor time. Every attack is asked for the same; what
it found is judged by the same network in float32: the mean cross-entropy at its images, and how many stayed in the
ball.

The peers are no dependencies; they are looked for in the running environment and in the folder given with --peers, and
left out where they are not:

    python -m venv PEERS && PEERS/bin/pip install -c constraints.txt torchattacks adversarial-robustness-toolbox foolbox
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from robustill.core.device import environment
from robustill.core.memory_format import place
from robustill.core.randomness import generator, uniform
from robustill.methods import AT, Batch
from robustill.models import build
from robustill.threat import Threat
from robustill.training.step import Step

EPS, STEP_SIZE, STEPS, CLASSES = 8 / 255, 2 / 255, 40, 10

Attack = Callable[[], Tensor]


def ours(model: nn.Module, x: Tensor, y: Tensor, precision: Literal["fp32", "bf16"]) -> Attack:
    step = Step(
        model, AT(), None, Threat(norm="linf", eps=EPS), steps=STEPS, step_size=STEP_SIZE, precision=precision,
        light=True,
    )  # fmt: skip
    batch = Batch(x=x.contiguous(memory_format=torch.channels_last), y=y, index=torch.arange(len(y)))
    return lambda: step.attack(batch, generator(0, "attack"))


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Attack:
    def run() -> Tensor:
        x_adv = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            x_adv = x_adv.detach() + STEP_SIZE * grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
        return x_adv

    return run


def torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Attack:
    attack = importlib.import_module("torchattacks").PGD(model, eps=EPS, alpha=STEP_SIZE, steps=STEPS)
    return lambda: attack(x, y)


def foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Attack:
    package = importlib.import_module("foolbox")
    wrapped = package.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = package.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS)
    return lambda: attack.run(wrapped, x, package.criteria.Misclassification(y), epsilon=EPS)


def art(model: nn.Module, x: Tensor, y: Tensor) -> Attack:
    classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=x.shape[1:], nb_classes=CLASSES, clip_values=(0.0, 1.0)
    )
    attack = importlib.import_module("art.attacks.evasion").ProjectedGradientDescentPyTorch(
        classifier, eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=1, batch_size=len(x), verbose=False
    )
    return lambda: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def attacks(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Attack]:
    found: dict[str, Attack] = {"plain loop": plain(model, x, y)}
    for name, make in {"torchattacks": torchattacks, "foolbox": foolbox, "art": art}.items():
        try:
            found[name] = make(model, x, y)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    light = place(copy_of(model), torch.device("cpu"))
    for precision in ("fp32", "bf16"):
        found[f"ours {precision}"] = ours(light, x, y, precision)
    return found


def copy_of(model: nn.Module) -> nn.Module:
    other = build("resnet8", num_classes=CLASSES, in_channels=3, image_size=32, width=16).eval()
    other.load_state_dict(model.state_dict())
    return other


def measure(found: dict[str, Attack], model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in found}
    threat, rows = Threat(norm="linf", eps=EPS), {}
    for number in range(rounds + 1):
        for name in sorted(found, reverse=bool(number % 2)):
            began = time.process_time()
            x_adv = found[name]()
            if number:  # the first sets things up
                seconds[name].append(time.process_time() - began)
            else:
                with torch.no_grad():
                    loss = float(F.cross_entropy(model(x_adv), y))
                inside = int(threat.contains(x_adv, x).sum())
                rows[name] = {"mean_loss": round(loss, 4), "in_the_ball": inside}
    others = {name: statistics.median(values) for name, values in seconds.items() if not name.startswith("ours")}
    best = min(others, key=others.__getitem__)
    for name, values in seconds.items():
        rows[name]["seconds"] = round(statistics.median(values), 3)
        ratios = [other / mine for other, mine in zip(seconds[best], values, strict=True)]
        rows[name]["is_faster_than_the_best_other_by"] = round(statistics.median(ratios), 2)
    return {"best_other": best, "images": len(x), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a .safetensors or .pt file of the network's weights")
    parser.add_argument("--peers", type=Path, help="folder of packages to look for the others in")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peers is not None:
        sys.path.append(str(arguments.peers))
    model = build("resnet8", num_classes=CLASSES, in_channels=3, image_size=32, width=16).eval()
    if arguments.weights is not None:
        file = arguments.weights
        known = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        model.load_state_dict(known)
    x = uniform(torch.empty(arguments.images, 3, 32, 32), generator(0, "images"))
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    content = measure(attacks(model, x, y), model, x, y, arguments.rounds)
    content = {"date": datetime.date.today().isoformat(), "environment": environment(), **content}
    print(json.dumps(content["rows"], indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
