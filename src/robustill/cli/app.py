"""The command line `robustill`: registers one function a verb, and runs the one that was asked for."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

import cyclopts

from robustill.cli.evaluate import check, evaluate
from robustill.cli.exit import at_once_among_several, one_line
from robustill.cli.parameters import Overrides, TrustCode
from robustill.cli.results import difficulty, export, report, transfer
from robustill.cli.study import plan, study
from robustill.cli.terminal import escaped_output
from robustill.core.errors import printable
from robustill.core.user_code import only_named, paths_in, search_in

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
teachers.command(check)
app.command(teachers)
for verb in (evaluate, study, plan, report, difficulty, transfer, export):
    app.command(verb)


def main() -> None:
    """Run one command; a mistake that the user can mend is one line and exit code 2."""
    # my_pkg.my_mod:build lies here more often than not.
    search_in(Path.cwd())
    # What else is imported, a file names.
    with escaped_output(), at_once_among_several(), one_line(), only_named(*paths_in(sys.argv[1:])):
        app(sys.argv[1:], exit_on_error=False, print_error=False)


@app.command
def train(recipe: str, *overrides: Overrides, run: Path, trust_code: TrustCode = None) -> None:
    """Train a student, or go on with it where an earlier call stopped.

    Several processes share every batch: torchrun --nproc-per-node 2 -m -- robustill train ...

    Parameters
    ----------
    recipe
        A recipe of `robustill list recipes`, or a .yaml file.
    run
        The run directory: the same command on the same directory continues it.
    """
    from robustill.config.recipes import resolve
    from robustill.core.distributed import joined
    from robustill.training.loop import train as train_run

    with joined() as group:
        result = train_run(resolve(recipe, overrides, trust_code=trust_code or ()), run, trust_code=trust_code or ())
    if not group.is_main:
        return
    name = printable(str(run))
    best = next(line for line in result.metrics if line["epoch"] == result.best)
    print(
        f"{name}: best of {len(result.metrics)} epochs is {result.best}, on held-out images "
        f"clean {best['validation_clean_accuracy']:.3f}, robust {best['validation_robust_accuracy']:.3f}; "
        f"next: robustill evaluate {printable(shlex.quote(str(run)))}"
    )


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
    from robustill.cli.tables import list_tables

    list_tables(what)


@app.command
def show(recipe: str, *overrides: Overrides, trust_code: TrustCode = None) -> None:
    """Print the resolved YAML of a recipe or a configuration file: what `train` would run, and what its settings mean.

    Parameters
    ----------
    recipe
        A recipe of `robustill list recipes`, or a .yaml file.
    """
    from robustill.config.files import explain_config
    from robustill.config.recipes import resolve

    print(explain_config(resolve(recipe, overrides, trust_code=trust_code or ())), end="")


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
    from robustill.cli.doctor import examine_installation, examine_run
    from robustill.cli.tables import findings_table

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
    from robustill.cli.quickstart import quickstart as run_quickstart

    run_quickstart(run, seed=seed)
