"""How fast is our AutoAttack beside the authors' code, exact and fast, and do their flags agree?

    python benchmarks/speed/autoattack.py --data DATA --model resnet8 --weights WEIGHTS --threat linf:8/255 --images 48
    python benchmarks/speed/autoattack.py --data DATA --checkpoints CHECKPOINTS --file cifar10/abcrown_cifar_wide.pth \\
        --threat linf:8/255 --threat l2:0.5 --images 200
    python benchmarks/speed/autoattack.py --threat linf:0.024 --images 8    # needs no files
    python benchmarks/speed/autoattack.py ... --runs exact authors torchattacks torchattacks-defaults art \\
        --peers PACKAGES

The first takes about two minutes a round on one core, the second about five minutes, the third about one. The peers of
the last line are no dependencies (see autoattack_peers.py); those that cannot be imported are left out.

With --resume FILE what each turn found is kept, and a benchmark that was cut off goes on behind it.

All runs are in one process, in turns over groups of images, so that a busy machine slows them alike. Seconds are those
of the processor (`--clock wall` for a quiet machine with several threads). Writes benchmarks/results/autoattack-*.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyautoattack
import torch
from autoattack_peers import PEERS, available, run_art, run_torchattacks, timed
from torch import Tensor, nn

from robustill.attacks.autoattack import autoattack
from robustill.core.device import environment
from robustill.core.randomness import generator, uniform
from robustill.data import ImageDataset, load
from robustill.models import build
from robustill.models.weights import file_sha256, load_public_weights
from robustill.threat import Threat

Timed = tuple[Tensor, dict[str, float], dict[str, float]]
"""Robust flags [N], seconds a stage, and of them seconds outside the model's passes."""

BENCHMARKS = Path(__file__).parents[1]
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}


def ours(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, index: Tensor, arguments: Any, precision: str
) -> Timed:
    budgets = {"steps": arguments.steps, "queries": arguments.queries}
    result = autoattack(model, x, y, threat, index=index, precision=precision, batch_size=arguments.batch, **budgets)
    seconds = dict(zip(result.stages, result.seconds, strict=True))
    outside = {name: s - m for name, s, m in zip(result.stages, result.seconds, result.model_seconds, strict=True)}
    return result.robust, seconds, outside


def theirs(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, index: Tensor, arguments: Any) -> Timed:
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    suite = pyautoattack.AutoAttack(model, norm=name, eps=threat.eps, version="standard", seed=0)
    suite.verbose = False
    suite.square.n_queries, suite.fab.n_iter = arguments.queries, arguments.steps
    for ascent in (suite.apgd, suite.apgd_targeted):
        set_steps(ascent, arguments.steps)
    seconds: dict[str, float] = {}
    stages = {"apgd-ce": suite.apgd, "apgd-t": suite.apgd_targeted, "fab-t": suite.fab, "square": suite.square}
    for stage, attack in stages.items():
        attack.perturb = timed(attack.perturb, stage, seconds)
    _, predicted = suite.run_standard_evaluation(x, y, batch_size=arguments.batch)
    return predicted == y, seconds, {}


def set_steps(ascent: Any, steps: int) -> None:
    """Another number of steps for the authors' APGD, with the checkpoints that it derives from it."""
    ascent.n_iter = ascent.n_iter_orig = steps
    shares = {"n_iter_2": 0.22, "n_iter_min": 0.06, "size_decr": 0.03}
    for name, share in shares.items():
        setattr(ascent, name, max(int(share * steps), 1))


def peers(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, index: Tensor, arguments: Any, run: str) -> Timed:
    inputs = (model, x, y, threat, arguments.queries)
    if run == "art":
        return *run_art(*inputs, arguments.batch), {}
    return *run_torchattacks(*inputs, defaults=run.endswith("defaults")), {}


def kept(run: Callable[[], Timed], file: Path | None, key: str) -> Timed:
    """What a run found; where `file` has it from before, from there."""
    done = json.loads(file.read_text()) if file is not None and file.exists() else {}
    if key not in done:
        found, seconds, outside = run()
        done[key] = [found.tolist(), seconds, outside]
        if file is not None:
            temporary = file.with_suffix(".part")
            temporary.write_text(json.dumps(done))
            temporary.replace(file)
    found, seconds, outside = done[key]
    return torch.tensor(found), seconds, outside


def compare(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, arguments: Any) -> dict[str, Any]:
    runs: dict[str, Callable[..., Timed]] = {
        "exact": lambda *inputs: ours(*inputs, "exact"),
        "fast": lambda *inputs: ours(*inputs, "fast"),
        "authors": theirs,
        "torchattacks": lambda *inputs: peers(*inputs, "torchattacks"),
        "torchattacks-defaults": lambda *inputs: peers(*inputs, "torchattacks-defaults"),
        "art": lambda *inputs: peers(*inputs, "art"),
    }
    runs = {name: run for name, run in runs.items() if name in arguments.runs}
    flags: dict[str, list[Tensor]] = defaultdict(list)
    seconds: dict[str, dict[str, float]] = {name: defaultdict(float) for name in runs}
    outside: dict[str, dict[str, float]] = {name: defaultdict(float) for name in runs}
    for number, group in enumerate(torch.arange(len(x)).split(arguments.group)):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            inputs = (model, x[group], y[group], threat, group, arguments)
            network = arguments.file or arguments.model
            settings = f"{network} {threat} steps={arguments.steps} queries={arguments.queries} batch={arguments.batch}"
            key = f"{name} {settings} images {int(group[0])} to {int(group[-1])}"
            found, spent, beside = kept(partial(runs[name], *inputs), arguments.resume, key)
            flags[name].append(found)
            for stage in spent:
                seconds[name][stage] += spent[stage]
                outside[name][stage] += beside.get(stage, 0.0)
    robust = {name: torch.cat(each) for name, each in flags.items()}
    return {
        "threat": str(threat),
        "images": len(x),
        "robust": {name: int(each.sum()) for name, each in robust.items()},
        "differ_from_authors": {
            name: (each != robust["authors"]).nonzero().squeeze(1).tolist()
            for name, each in robust.items()
            if "authors" in robust
        },
        "seconds": {name: dict(each) for name, each in seconds.items()},
        "outside_seconds": {name: dict(outside[name]) for name in ("exact", "fast") if name in runs},
        "ratio_to_authors": ratios(seconds),
    }


def ratios(seconds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Seconds of the authors' code by those of each run, a stage and in all."""
    if "authors" not in seconds:
        return {}
    authors = seconds["authors"]
    return {
        name: {
            **{stage: authors[stage] / spent[stage] for stage in spent if spent[stage] and stage in authors},
            "all": sum(authors.values()) / sum(spent.values()),
        }
        for name, spent in seconds.items()
    }


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['model']} {result['threat']}, {result['images']} images")
    print("| run | seconds a stage (ratio to the authors'; share outside the model's passes) | all | robust | differ |")
    print("|---|---|---|---|---|")
    for name, seconds in result["seconds"].items():
        ratio = result["ratio_to_authors"].get(name, {})
        outside = result["outside_seconds"].get(name, {})
        cells = [cell(f"{stage} ", spent, ratio.get(stage), outside.get(stage)) for stage, spent in seconds.items()]
        total = sum(seconds.values())
        whole = cell("", total, ratio.get("all"), sum(outside.values()) if outside else None)
        differ = result["differ_from_authors"].get(name, [])
        print(f"| {name} | {', '.join(cells)} | {whole} | {result['robust'][name]} | {differ} |", flush=True)


def cell(name: str, seconds: float, ratio: float | None, outside: float | None) -> str:
    notes = [] if ratio is None else [f"{ratio:.2f}×"]
    notes += [] if outside is None or not seconds else [f"{100 * outside / seconds:.0f} %"]
    return f"{name}{seconds:.1f}" + (f" ({'; '.join(notes)})" if notes else "")


def network(arguments: Any) -> tuple[str, str, nn.Module, Path]:
    """Its name, its data set, itself, and its weights' file."""
    if arguments.checkpoints is not None:
        table = json.loads((BENCHMARKS / "public_checkpoints.json").read_text(encoding="utf-8"))
        (row,) = [each for each in table if each["file"] == arguments.file]
        data = arguments.file.partition("/")[0]
        channels, size = (3, 32) if data == "cifar10" else (1, 28)
        model = build(row["model"], num_classes=10, in_channels=channels, image_size=size, **row["normalisation"])
        return arguments.file, data, model, arguments.checkpoints / arguments.file
    return arguments.model, "cifar10", build(arguments.model, num_classes=10, seed=0, **CIFAR), arguments.weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="without it images are drawn at random, and labels are predictions")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument(
        "--weights", type=Path, help="of --model; without it they are random, and labels are predictions"
    )
    parser.add_argument("--checkpoints", type=Path, help="folder of public checkpoints, instead of --model")
    parser.add_argument("--file", help="which of them")
    parser.add_argument("--threat", action="append", type=Threat.parse, required=True)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--group", type=int, default=48, help="images in each turn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB, ours and the authors'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--runs", nargs="+", default=["exact", "fast", "authors"])
    parser.add_argument("--peers", type=Path, help="folder of packages to look for torchattacks and art in")
    parser.add_argument("--resume", type=Path, help="file of what each turn found, to go on from and to write to")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for run in [run for run in arguments.runs if run in PEERS and not available(run, arguments.peers)]:
        print(f"{run} is left out: {PEERS[run]} cannot be imported; --peers names a folder that has it")
        arguments.runs.remove(run)
    name, data, model, weights = network(arguments)
    if weights is not None:
        load_public_weights(model, weights)
    model.eval()
    if arguments.data is not None:
        dataset = load(data, root=arguments.data, split="test")
        assert isinstance(dataset, ImageDataset)
        x, y = dataset.images[: arguments.images].float() / 255, dataset.labels[: arguments.images]
    else:
        x = uniform(torch.empty(arguments.images, 3, 32, 32), generator(0, "images"))
    if weights is None or arguments.data is None:
        with torch.no_grad():
            y = torch.cat([model(images).argmax(dim=1) for images in x.split(arguments.batch)])
    clock = mock.patch("time.perf_counter", time.process_time if arguments.clock == "cpu" else time.perf_counter)
    results = []
    for threat in arguments.threat:
        with clock:
            result = {"model": name, **compare(model, x, y, threat, arguments)}
        show(result)
        results.append(result)
    settings = {
        key: str(value)
        for key, value in vars(arguments).items()
        if key in ("batch", "queries", "steps", "group", "clock")
    }
    sha256 = file_sha256(weights) if weights is not None else None
    report = {"date": str(date.today()), "environment": environment(), "weights_sha256": sha256, **settings}
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = name.replace("/", "-").rpartition(".")[0] or name
    path = arguments.out / f"autoattack-{stem}-{date.today()}.json"
    path.write_text(json.dumps({**report, "results": results}, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
