"""The command line: one verb a function, each of which parses, builds a Config and calls the library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts

from robustill.cli_trained import Words, difficulty, export, report, transfer
from robustill.ending import at_once_among_several, one_line
from robustill.errors import RobustillError, did_you_mean

# torch is imported by the verbs that need it: `robustill --help` answers at once.

app = cyclopts.App(
    name="robustill",
    help="Adversarially robust knowledge distillation: teacher, student, honest robust accuracy, a page that shows it.",
    version_flags=["--version"],
    # Its text holds no markup, and the reader of Markdown takes a quarter of the start-up time.
    help_format="plaintext",
    # So that main() can say how to go on.
    suppress_keyboard_interrupt=False,
)

teachers = cyclopts.App(name="teachers", help="Look at a teacher before learning from it.")
app.command(teachers)
for verb in (report, difficulty, transfer, export):
    app.command(verb)

Overrides = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="Settings laid over the configuration: --method.alpha 0.8 --threat linf:8/255 --optim.epochs 30 ...",
    ),
]


def main() -> None:
    """Run one command; a mistake that the user can mend is one line and exit code 2."""
    # my_pkg.my_mod:build lies here more often than not; last, so that it hides nothing that is installed.
    sys.path.append(str(Path.cwd()))
    with at_once_among_several(), one_line():
        app(sys.argv[1:], exit_on_error=False, print_error=False)


@app.command
def train(recipe: str, *overrides: Overrides, run: Path) -> None:
    """Train a student, or go on with it where an earlier call stopped.

    Several processes share every batch: torchrun --nproc-per-node 2 -m -- robustill train ...

    Parameters
    ----------
    recipe
        A recipe of `robustill list recipes`, or a .yaml file.
    run
        The run directory: the same command on the same directory continues it.
    """
    from robustill.distributed import joined
    from robustill.recipes import resolve
    from robustill.training import train as train_run

    with joined() as group:
        result = train_run(resolve(recipe, overrides), run)
    if not group.first:
        return
    best = next(line for line in result.metrics if line["epoch"] == result.best)
    print(
        f"{run}: best of {len(result.metrics)} epochs is {result.best}, on held-out images "
        f"clean {best['validation_clean_accuracy']:.3f}, robust {best['validation_robust_accuracy']:.3f}; "
        f"next: robustill evaluate {run}"
    )


@app.command
def evaluate(
    *target: Words,
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
    from robustill.distributed import joined
    from robustill.judge import evaluate_file, evaluate_run, names_a_network
    from robustill.leaderboard import refuse_several, write_robustbench
    from robustill.tables import results_table

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
        refuse_several(max(1, len(settings["threats"])) * (1 if alone else len(checkpoint or ["best", "last"])))
    with joined() as group:
        if alone:
            found = evaluate_file(network, out=out, overrides=overrides, progress=group.first, **settings)
        else:
            assert given is not None
            found = evaluate_run(given, checkpoints=checkpoint, overrides=overrides, progress=group.first, **settings)
    if not group.first:
        return
    results_table(found)
    if robustbench_json is not None:
        missing = write_robustbench(next(iter(found.values())), robustbench_json)
        print(f"wrote {robustbench_json}; to be filled in by hand: {', '.join(missing) or 'nothing'}")


@app.command
def study(
    study: str,
    *overrides: Overrides,
    seeds: int = 3,
    workers: int | None = None,
    runs: Path | None = None,
    recipe: str = "digits_at",
    suite: str = "pgd",
    num_images: int | None = None,
    engine: Literal["local", "ray"] = "local",
) -> None:
    """Run a grid of configurations and seeds with shared teachers; stopped and called again, it goes on.

    Overrides are of the recipe, for teachers and students alike; --method ard and --method.* are the students';
    --teacher.* are the teachers' alone, such as --teacher.model.width 32.

    Parameters
    ----------
    study
        One of `robustill list studies`, or my_pkg.my_mod:my_study.
    seeds
        How many; each has its own split, teachers and students.
    workers
        Runs at once; by default as many as the cores have room for.
    runs
        The folder for its runs and results, runs/STUDY by default; studies of one recipe in one folder share runs.
    recipe
        The baseline, a recipe without teachers or a .yaml file.
    suite
        Of the evaluation at the end of each run, see `robustill list suites`.
    num_images
        How many test images that evaluation takes; by default all.
    engine
        ray: a task a run, on this machine or on the cluster that RAY_ADDRESS names.
    """
    from robustill.studies.running import run_study, study_and_crew
    from robustill.studies.showing import print_results

    planned, crew = study_and_crew(study, overrides, seeds, workers, runs, recipe, suite, num_images, engine)
    result = run_study(planned, crew)
    print_results(planned, result)
    if any(outcome.error for outcome in result.outcomes.values()):
        sys.exit(1)


@app.command
def plan(
    name: str,
    *overrides: Overrides,
    seeds: int = 3,
    workers: int | None = None,
    runs: Path | None = None,
    recipe: str = "digits_at",
    suite: str = "pgd",
    num_images: int | None = None,
) -> None:
    """Print what a run or a study will cost on this machine; nothing is trained or written.

    Of a run: passes, floating-point operations, images/s and memory of its own training step, measured, and the hours
    that follow. Of a study: the grid of its runs, what they share, and how long it takes about.

    Parameters
    ----------
    name
        A recipe or a .yaml file for one run; otherwise a study, and all that follows as for `robustill study`.
    """
    from robustill.recipes import RECIPES, resolve

    if name in RECIPES or Path(name).suffix in (".yaml", ".yml"):
        from robustill.forecast import forecast
        from robustill.tables import forecast_table

        forecast_table(name, forecast(resolve(name, overrides)))
        return
    from robustill.studies import STUDIES
    from robustill.studies.running import study_and_crew
    from robustill.studies.showing import print_plan

    if name not in STUDIES and ":" not in name:
        known = did_you_mean(name, [*RECIPES, *STUDIES])
        raise RobustillError(f"{name!r} is no recipe, no .yaml file and no study: {known}")
    print_plan(*study_and_crew(name, overrides, seeds, workers, runs, recipe, suite, num_images, "local"))


@app.command(name="list")
def list_(
    what: Literal["methods", "models", "data", "recipes", "studies", "suites", "robustbench"] | None = None,
) -> None:
    """List methods, models, data sets, recipes, studies, suites of attacks and RobustBench's networks.

    Parameters
    ----------
    what
        One of them; all by default.
    """
    from robustill.tables import list_tables

    list_tables(what)


@teachers.command
def check(
    spec: str,
    *overrides: Words,
    student: str | None = None,
    split: Literal["train", "test"] = "test",
    num_images: int = 1000,
    seconds: float = 45,
    seed: int = 0,
    sha256: str | None = None,
    image_size: int | None = None,
    download: bool = False,
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
    from robustill.tables import teacher_table
    from robustill.teacher_check import check_spec

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
    )
    teacher_table(found)


@app.command
def show(recipe: str, *overrides: Overrides) -> None:
    """Print the resolved YAML of a recipe or a configuration file: what `train` would run, and what its settings mean.

    Parameters
    ----------
    recipe
        A recipe of `robustill list recipes`, or a .yaml file.
    """
    from robustill.explain import explained
    from robustill.recipes import resolve

    print(explained(resolve(recipe, overrides)), end="")


@app.command
def doctor(run: Path | None = None, /, *, device: str = "auto") -> None:
    """Look at the installation and, for a run, at every file of it; exit code 1 where something is wrong.

    Parameters
    ----------
    run
        A run directory: every checksum of it is compared.
    device
        auto, cpu, cuda, cuda:1 ...
    """
    from robustill.doctor import examine_installation, examine_run
    from robustill.tables import findings_table

    # The run first: what is no run directory is said at once.
    of_run = [] if run is None else examine_run(run)
    findings = [*examine_installation(device), *of_run]
    findings_table(findings)
    if any(each.verdict == "wrong" for each in findings):
        sys.exit(1)


@app.command
def quickstart(*, run: Path = Path("runs/quickstart"), seed: int = 0) -> None:
    """Distil a robust student from weakly trained teachers on bundled digits, and show what it gains, in minutes.

    Parameters
    ----------
    run
        The folder for its run directories and its page.
    seed
        Of the students and teachers.
    """
    from robustill.quickstart import quickstart as run_quickstart

    run_quickstart(run, seed=seed)
