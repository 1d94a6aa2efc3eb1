"""The commands that attack a network: `evaluate`, `sheet` and `teachers check`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts

from robustill.cli.parameters import TrustCode, check_options, completing
from robustill.core.errors import RobustillError, printable

if TYPE_CHECKING:
    from robustill.runs.records import Records


EvaluateTarget = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="A run directory; a file of weights with --model NAME; an exported program .pt2; an .onnx file, with "
        "--suite deployed; robustbench:ID=FILE; or my_pkg.my_mod:build. All but a run need --data NAME (or a folder of "
        "images or .npz files) and --threat NORM:EPS. Settings that replace those of its configuration may follow: "
        "--data.root DIR --threat linf:4/255 --compute.precision bf16 ...",
    ),
]
TeacherSpec = Annotated[
    str,
    cyclopts.Parameter(
        help="run:DIR@best, robustbench:ID, timm:NAME=FILE, hf:FOLDER, a .pt2 file, my_pkg.my_mod:build, or a file of "
        "weights with --model NAME. All but a run need --data NAME --threat NORM:EPS."
    ),
]
TeacherOverrides = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="Settings of data, threat, model and compute that replace those of its configuration: --data.root DIR "
        "--threat linf:8/255 ...",
    ),
]


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The options of `evaluate`; the text of a field is its help on the command line."""

    weights: Path | None = None
    """A file of weights for --model NAME or --model my_pkg.my_mod:build, in place of a target."""
    checkpoint: Annotated[list[str] | None, cyclopts.Parameter(consume_multiple=True)] = None
    """Checkpoints of a run: best, last, epoch-20 ...; by default best and last."""
    suite: Annotated[str, cyclopts.Parameter(completer=completing("suites"))] = "pgd"
    """Attacks: a suite of `robustill list suites`, where standard is AutoAttack; or a list: apgd-ce,square."""
    quick: bool = False
    """Evaluate 256 images with few attacks, for use during development; the results are marked as quick."""
    precision: Literal["exact", "fast"] = "exact"
    """fast computes the gradients of AutoAttack in bfloat16; success is still decided in float32."""
    threats: str | None = None
    """Several threats, also those that the network was not trained for: linf:8/255,l2:0.5,l1:12"""
    split: Annotated[
        Literal["train", "pool", "validation", "test"],
        cyclopts.Parameter(
            help="Images to attack. validation: the training images held out to choose the best epoch. pool: the other "
            "images that the run chose from the training set, with their noisy labels and any fold left out by "
            "data.fold."
        ),
    ] = "test"
    num_images: int | None = None
    """Number of images, class-balanced; by default all. A subset is named as such in every result."""
    first: int | None = None
    """In place of class-balanced images, evaluate the first ones in the order of the data set, as papers often do."""
    batch_size: int = 256
    """Number of images at a time; the results do not depend on it."""
    seed: int = 0
    """Random seed of the attacks."""
    eps_curve: bool = True
    """Also measure the robust accuracy at several other values of eps."""
    masking: bool | None = None
    """Check first on 64 images whether the network masks its gradients; by default if AutoAttack is run."""
    surrogate: str | None = None
    """A network with the same classes, whose adversarial images that check tries as well: run:DIR@best ...; for the
    suite deployed the network in float32 that the file was made from, and others after commas."""
    out: Path = Path("evaluations")
    """Folder for the records of a network that is no run; those of a run are written to its run directory."""
    robustbench_json: Path | None = None
    """Also write this JSON file for RobustBench's leaderboard; fields that cannot be known are null."""
    trust_code: TrustCode = None

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments that `evaluate_run` and `evaluate_file` share.

        Raises:
            RobustillError: both a suite and --quick are given.
        """
        if self.quick and self.suite not in ("pgd", "quick"):
            raise RobustillError(f"--quick is a suite of its own: leave --suite {self.suite} or --quick out")
        return {
            "suite": "quick" if self.quick else self.suite,
            "threats": tuple(self.threats.split(",")) if self.threats else (),
            "precision": self.precision,
            "split": self.split,
            "num_images": self.num_images,
            "first": self.first,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "eps_curve": self.eps_curve,
            "masking": self.masking,
            "surrogate": self.surrogate,
            "trust_code": self.trust_code or (),
        }


def evaluate(*target: EvaluateTarget, options: EvaluateOptions = EvaluateOptions()) -> None:
    """Attack the test images and record the result of every image; the same command resumes a stopped evaluation.

    To share the images among several processes:
      torchrun --nproc-per-node 2 -m -- robustill evaluate ...
    """
    from robustill.cli.tables import results_table
    from robustill.core.distributed import torchrun_group
    from robustill.evaluation.targets import evaluate_file, evaluate_run, is_network_spec

    settings = options.settings()
    named = target[0] if target and not target[0].startswith("-") else None
    overrides = target if named is None else target[1:]
    check_options(overrides, [each.name for each in fields(EvaluateOptions)])
    if named is not None and options.weights is not None:
        raise RobustillError(f"{named} and --weights {options.weights}: give one of them")
    network = named or options.weights
    is_file = named is None or is_network_spec(named)
    if is_file and options.checkpoint is not None:
        raise RobustillError(f"--checkpoint names one of a run, but {network} is a file of weights: leave it out")
    if options.robustbench_json is not None:
        _check_leaderboard_entry(options, options.robustbench_json, is_file=is_file)
    # Who has finished waits for the others, whose last part may take hours under AutoAttack.
    with torchrun_group(timedelta(days=7)) as group:
        settings["progress"] = group.is_main
        if is_file:
            results = evaluate_file(network, out=options.out, overrides=overrides, **settings)
        else:
            assert named is not None
            results = evaluate_run(named, checkpoints=options.checkpoint, overrides=overrides, **settings)
    if not group.is_main:
        return
    results_table(results)
    if not is_file:
        _track(Path(str(named)), results)
    if options.robustbench_json is not None:
        _write_leaderboard_entry(results, options.robustbench_json)


def _track(run: Path, results: Mapping[Path, Records]) -> None:
    """Store the results in the trackers that follow the run."""
    from robustill.analysis.summary import summary
    from robustill.runs.tracking import tracked

    with tracked(run) as followed:
        if followed is not None:
            for folder, records in results.items():
                followed.add_evaluation(folder.name, records.conditions["epoch"], summary(records))


def _check_leaderboard_entry(options: EvaluateOptions, path: Path, *, is_file: bool) -> None:
    """Refuse a leaderboard entry that several evaluations would write, or that would replace another file."""
    from robustill.evaluation.leaderboard import check_place, check_single_evaluation

    check_place(path)
    num_threats = len(options.threats.split(",")) if options.threats else 1
    num_checkpoints = 1 if is_file else len(options.checkpoint or ["best", "last"])
    check_single_evaluation(num_threats * num_checkpoints)


def _write_leaderboard_entry(results: Mapping[Path, Records], path: Path) -> None:
    from robustill.evaluation.leaderboard import write_robustbench

    records = next(iter(results.values()))
    missing = ", ".join(write_robustbench(records, path)) or "nothing"
    print(f"wrote {printable(str(path))}; to be filled in by hand: {missing}")


def sheet(
    *target: EvaluateTarget,
    weights: Path | None = None,
    checkpoint: str = "best",
    threats: str | None = None,
    suite: Annotated[str, cyclopts.Parameter(completer=completing("suites"))] = "standard",
    precision: Literal["exact", "fast"] = "exact",
    num_images: int | None = None,
    first: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    corruptions: Path | None = None,
    evaluations: Path = Path("evaluations"),
    out: Path = Path("sheet.html"),
    trust_code: TrustCode = None,
) -> None:
    """Measure a network in every way: attacks in three norms, corruptions, rotations, calibration; write one page.

    Attacks that have been recorded are not repeated, and the same command resumes a stopped one.

    Parameters
    ----------
    weights
        A file of weights for --model NAME or --model my_pkg.my_mod:build, in place of a target.
    checkpoint
        Checkpoint of a run: best, last, epoch-20 ...
    threats
        Threats, the first of which the network was trained for: linf:8/255,l2:0.5,l1:12. By default its own, and one of
        each other norm, with the radii that the field would take.
    suite
        Attacks: a suite of `robustill list suites`, where standard is AutoAttack.
    precision
        fast computes the gradients of AutoAttack in bfloat16; success is still decided in float32.
    num_images
        Number of images, class-balanced; by default all. A subset is named as such in every result.
    first
        In place of class-balanced images, take the first ones in the order of the data set.
    seed
        Random seed of the attacks and of the corruptions.
    batch_size
        Number of images at a time; the results do not depend on it.
    corruptions
        Folder with the published files of CIFAR-10-C or CIFAR-100-C; by default corruptions in their style are made.
    evaluations
        Folder for the records of a network that is no run; those of a run are written to its run directory.
    out
        File for the page; the numbers are written beside it as .json.
    """
    from robustill.cli.tables import sheet_table
    from robustill.evaluation.sheet import measure_sheet
    from robustill.report.sheet import check_sheet_place, sheet_lines, write_sheet

    named = target[0] if target and not target[0].startswith("-") else None
    overrides = target if named is None else target[1:]
    check_options(overrides, [name for name in inspect.signature(sheet).parameters if name != "target"])
    if named is not None and weights is not None:
        raise RobustillError(f"{named} and --weights {weights}: give one of them")
    check_sheet_place(out)
    numbers = out.with_suffix(".json")
    measured = measure_sheet(
        named or weights,
        out=numbers,
        checkpoint=checkpoint,
        overrides=overrides,
        threats=tuple(threats.split(",")) if threats else (),
        official=corruptions,
        evaluations=evaluations,
        trust_code=trust_code or (),
        suite=suite,
        precision=precision,
        num_images=num_images,
        first=first,
        seed=seed,
        batch_size=batch_size,
    )
    write_sheet(measured, out)
    sheet_table(sheet_lines(measured), measured["not_tried"])
    print(f"wrote {printable(str(out))} and {printable(str(numbers))}")


def check(
    spec: TeacherSpec,
    *overrides: TeacherOverrides,
    student: str | None = None,
    split: Literal["validation", "train", "test"] = "validation",
    num_images: int = 1000,
    seconds: float = 45,
    seed: int = 0,
    sha256: str | None = None,
    image_size: int | None = None,
    download: bool = False,
    trust_code: TrustCode = None,
) -> None:
    """Measure the accuracy, calibration and confidence of a teacher on clean and adversarial images.

    Parameters
    ----------
    student
        Another network, specified like the teacher, to measure how often the two agree.
    split
        Images to measure it on. validation: training images that are held out, on which a network that was trained
        elsewhere may have been trained.
    num_images
        Largest number of images, class-balanced. A subset is named as such in the result.
    seconds
        Time limit: no batch is begun that would end after it.
    seed
        Random seed of the choice of images and of the attack.
    sha256
        Expected SHA-256 of the teacher's weights; any other is refused.
    image_size
        Image size that the teacher expects, if the images of the data set are of another size.
    download
        Let timm and the Hugging Face hub download weights that are not on this machine.
    """
    check_options(overrides, ["student", "split", "num_images", "seconds", "sha256", "image_size", "download"])
    from robustill.cli.tables import teacher_table
    from robustill.teachers.check import check_spec

    result = check_spec(
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
    teacher_table(result)
