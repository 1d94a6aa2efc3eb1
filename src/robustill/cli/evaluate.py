"""Verbs of the command line that attack: `evaluate`, and `teachers check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts

from robustill.cli.parameters import TargetOverrides, TrustCode
from robustill.core.errors import RobustillError, printable


def evaluate(
    *target: TargetOverrides,
    weights: Path | None = None,
    checkpoint: Annotated[list[str] | None, cyclopts.Parameter(consume_multiple=True)] = None,
    suite: str = "pgd",
    quick: bool = False,
    precision: Literal["exact", "fast"] = "exact",
    threats: str | None = None,
    split: Literal["train", "pool", "validation", "test"] = "test",
    num_images: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    eps_curve: bool = True,
    masking: bool | None = None,
    surrogate: str | None = None,
    out: Path = Path("evaluations"),
    robustbench_json: Path | None = None,
    trust_code: TrustCode = None,
) -> None:
    """Attack the test images and keep one row an image; stopped and called again, it goes on.

    Several processes share the images: torchrun --nproc-per-node 2 -m -- robustill evaluate ...

    Parameters
    ----------
    target
        A run directory; a file of weights with --model NAME; a program .pt2; robustbench:ID=FILE; my_pkg.my_mod:build.
        All but runs need --data NAME (or a folder of images or .npz files) and --threat NORM:EPS. Then settings laid
        over its configuration: --data.root DIR --threat linf:4/255 --compute.precision bf16 ...
    weights
        In place of a target: a file of weights for --model NAME or --model my_pkg.my_mod:build.
    checkpoint
        Of a run: best, last, epoch-20 ...; by default best and last.
    suite
        The attacks, see `robustill list suites`; standard is AutoAttack. Or some of its attacks: apgd-ce,square.
    quick
        Few attacks on 256 images: a look during development, labelled as such.
    precision
        fast computes AutoAttack's gradients in bfloat16; decisions stay in float32.
    threats
        Several, for a sheet on what it was not trained for: linf:8/255,l2:0.5,l1:12
    split
        Which images; validation is the part held out of the training images, by which best was chosen, pool the part
        trained on, with its noise of labels and a fold that data.fold left out.
    num_images
        A class-balanced part of them; always labelled as such.
    batch_size
        Images at a time; it does not change the result.
    seed
        Of the random starts.
    eps_curve
        Also measure robust accuracy against eps.
    masking
        First look on 64 images whether the gradient is masked; by default where AutoAttack runs.
    surrogate
        A network of the same classes whose adversarial images that look tries too: run:DIR@best ...
    out
        Where the records of a network without a run go; those of a run go into its directory.
    robustbench_json
        Also write the fields that RobustBench's leaderboard asks for; those that nobody here knows are null.
    """
    from robustill.cli.tables import results_table
    from robustill.core.distributed import joined
    from robustill.evaluation.leaderboard import check_place, refuse_several, write_robustbench
    from robustill.evaluation.targets import evaluate_file, evaluate_run, names_a_network

    settings: dict[str, Any] = {
        "suite": "quick" if quick else suite,
        "threats": tuple(threats.split(",")) if threats else (),
        "precision": precision,
        "split": split,
        "num_images": num_images,
        "batch_size": batch_size,
        "seed": seed,
        "eps_curve": eps_curve,
        "masking": masking,
        "surrogate": surrogate,
        "trust_code": trust_code or (),
    }
    if quick and suite not in ("pgd", "quick"):
        raise RobustillError(f"--quick is a suite of its own: leave --suite {suite} or --quick out")
    given = target[0] if target and not target[0].startswith("-") else None
    overrides = target if given is None else target[1:]
    if given is not None and weights is not None:
        raise RobustillError(f"{given} and --weights {weights}: give one of them")
    network = given or weights
    alone = given is None or names_a_network(given)
    if alone and checkpoint is not None:
        raise RobustillError(f"--checkpoint names one of a run, but {network} is a file of weights: leave it out")
    if robustbench_json is not None:
        check_place(robustbench_json)
        refuse_several(max(1, len(settings["threats"])) * (1 if alone else len(checkpoint or ["best", "last"])))
    with joined() as group:
        if alone:
            found = evaluate_file(network, out=out, overrides=overrides, progress=group.is_main, **settings)
        else:
            assert given is not None
            found = evaluate_run(given, checkpoints=checkpoint, overrides=overrides, progress=group.is_main, **settings)
    if not group.is_main:
        return
    results_table(found)
    if robustbench_json is not None:
        missing = write_robustbench(next(iter(found.values())), robustbench_json)
        print(f"wrote {printable(str(robustbench_json))}; to be filled in by hand: {', '.join(missing) or 'nothing'}")


def check(
    spec: str,
    *overrides: TargetOverrides,
    student: str | None = None,
    split: Literal["train", "test"] = "test",
    num_images: int = 1000,
    seconds: float = 45,
    seed: int = 0,
    sha256: str | None = None,
    image_size: int | None = None,
    download: bool = False,
    trust_code: TrustCode = None,
) -> None:
    """Say what a teacher is, and its accuracy, calibration and confidence on clean and adversarial images.

    Parameters
    ----------
    spec
        run:DIR@best, robustbench:ID, timm:NAME=FILE, hf:FOLDER, a .pt2 file, my_pkg.my_mod:build, or --model's weights.
        All but runs need --data NAME --threat NORM:EPS.
    overrides
        Settings of data, threat, model and compute laid over its configuration: --data.root DIR --threat linf:8/255 ...
    student
        Such a specification; how often does it agree with the teacher?
    split
        Which images.
    num_images
        At most so many, class-balanced; always labelled as such.
    seconds
        No batch is begun that would end later.
    seed
        Of the images and of the attack's starts.
    sha256
        What the teacher's must be.
    image_size
        The size of images that the teacher wants, where it is not the data set's.
    download
        timm and the hub may fetch what is not here.
    """
    from robustill.cli.tables import teacher_table
    from robustill.teachers.check import check_spec

    found = check_spec(
        spec,
        overrides=overrides,
        student=student,
        split=split,
        num_images=num_images,
        seconds=seconds,
        seed=seed,
        sha256=sha256,
        image_size=image_size,
        download=download,
        trust_code=trust_code or (),
    )
    teacher_table(found)
