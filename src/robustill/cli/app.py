"""The command line `robustill`: one function a command, and `main`, which runs the one that the user names."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

import cyclopts

from robustill.cli.board import board
from robustill.cli.evaluate import check, evaluate, sheet
from robustill.cli.exit import exiting_at_once_under_torchrun, reporting_errors
from robustill.cli.parameters import Overrides, RecipeName, TrustCode
from robustill.cli.results import deploy_report, difficulty, export, report, transfer
from robustill.cli.shown import read_recipes
from robustill.cli.study import plan, study
from robustill.cli.teachers import rank
from robustill.cli.terminal import escaped_output
from robustill.core.errors import RobustillError, printable
from robustill.core.user_code import names_code, only_named, paths_in, search_in

# Each command imports torch itself, so that `robustill --help` prints at once.

app = cyclopts.App(
    name="robustill",
    help="Adversarially robust knowledge distillation: train robust teachers and students, evaluate their robust "
    "accuracy, and report it on one page.",
    version_flags=["--version"],
    # The help texts hold no markup, and importing the Markdown parser takes a quarter of the start-up time.
    help_format="plaintext",
    # main() reports an interrupt itself, and says how to resume.
    suppress_keyboard_interrupt=False,
)
teachers = cyclopts.App(name="teachers", help="Measure teachers before distilling from them.")
teachers.command(check)
teachers.command(rank)
app.command(teachers)
app.command(board)
for command in (evaluate, sheet, study, plan, report, difficulty, transfer, deploy_report, export):
    app.command(command)


def main() -> None:
    """Run one command; an error that the user can mend is printed as one line, with exit code 2."""
    # A user's own module, such as my_pkg.my_mod, usually lies in the working directory.
    search_in(Path.cwd())
    if sys.argv[1:2] == ["__complete"]:
        # The script of a shell reads what is printed here: control characters delimit it.
        app(sys.argv[1:])
        return
    # Import paths that are not on the command line can only come from a file.
    with (
        escaped_output(),
        exiting_at_once_under_torchrun(),
        reporting_errors(),
        only_named(*paths_in(sys.argv[1:])),
    ):
        app(sys.argv[1:], exit_on_error=False, print_error=False)


@app.command
def train(
    recipe: RecipeName,
    *overrides: Overrides,
    run: Path,
    track: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] | None = None,
    trust_code: TrustCode = None,
) -> None:
    """Train a student, or resume its training; the same command on the same run directory resumes it.

    To share every batch among several processes:
      torchrun --nproc-per-node 2 -m -- robustill train ...

    Parameters
    ----------
    run
        Run directory for the checkpoints, the metrics and the configuration.
    track
        Trackers that follow the run, its evaluations and its page, on this machine unless their own settings say
        otherwise: tensorboard, wandb, mlflow, trackio.
    """
    from robustill.config.recipes import resolve
    from robustill.core.distributed import torchrun_group
    from robustill.training.loop import train as train_run

    with torchrun_group() as group:
        config = resolve(recipe, overrides, trust_code=trust_code or ())
        result = train_run(config, run, trust_code=trust_code or (), track=track or ())
    if not group.is_main:
        return
    best = next(line for line in result.metrics if line["epoch"] == result.best)
    command = ["robustill", "evaluate", f"./{run}" if str(run).startswith("-") else str(run)]
    code = [each for each in (config.model.name, config.data.name) if names_code(each)]
    if code:
        # The run names the code of its network and images, which an evaluation does not import by itself.
        command += ["--trust-code", ",".join(code)]
    print(
        f"{printable(str(run))}: best of {len(result.metrics)} epochs is {result.best}, on validation images "
        f"clean {best['validation_clean_accuracy']:.3f}, robust {best['validation_robust_accuracy']:.3f}; "
        f"next: {printable(shlex.join(command))}"
    )
    for warning in result.warnings:
        print(f"! {warning}")


@app.command(name="list")
def list_(
    kind: Literal["methods", "models", "data", "recipes", "studies", "suites", "robustbench"] | None = None,
    pattern: str | None = None,
    /,
    *,
    long: bool = False,
) -> None:
    """List the names that other commands take: methods, models, data sets, recipes, studies, suites of attacks ...

    Parameters
    ----------
    kind
        The kind of names to list, with a line about each; by default the names of all kinds.
    pattern
        List only names that contain this text, or that match it if it has a * or a ?.
    long
        Also print formulas, options and the cost of a step.
    """
    from robustill.cli.listing import list_names

    list_names(kind, pattern, long=long)


@app.command
def show(recipe: RecipeName, *overrides: Overrides, trust_code: TrustCode = None) -> None:
    """Print the whole configuration that `train` would run as YAML, with a comment on each setting."""
    if not overrides and (text := read_recipes().get(recipe)) is not None:
        print(text, end="")
        return
    from robustill.config.files import explain_config
    from robustill.config.recipes import resolve

    print(explain_config(resolve(recipe, overrides, trust_code=trust_code or ())), end="")


@app.command
def schema() -> None:
    """Print the JSON schema of a configuration file, by which editors complete and check its settings."""
    import json

    from robustill.config.schema import Config

    print(
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}, indent=2)
    )


@app.command
def doctor(run: Path | None = None, /, *, device: str = "auto") -> None:
    """Check the installation and, if a run is given, every file of it; exit with 1 if something is wrong.

    Parameters
    ----------
    run
        A run directory whose files are compared with their checksums.
    device
        Device to check: auto, cpu, cuda, cuda:1 ...
    """
    from robustill.cli.doctor import examine_installation, examine_run
    from robustill.cli.tables import findings_table

    # The run comes first: a wrong path is reported before the installation is timed.
    run_findings = [] if run is None else examine_run(run)
    findings = [*examine_installation(device), *run_findings]
    findings_table(findings)
    if any(each.verdict == "wrong" for each in findings):
        sys.exit(1)


@app.command
def quickstart(*, run: Path = Path("runs/quickstart"), seed: int = 0) -> None:
    """Distil a robust student from three teachers on bundled images of digits, and report it, in a few minutes.

    Parameters
    ----------
    run
        Folder for the run directories and the report.
    seed
        Random seed of the data split and the students; the seeds of the teachers follow from it.
    """
    from robustill.cli.quickstart import quickstart as run_quickstart

    run_quickstart(run, seed=seed)


@app.command(name="--install-completion")
def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None, output: Path | None = None) -> None:
    """Install the completion of commands, options and names, such as recipes and methods, for a shell.

    Parameters
    ----------
    shell
        By default the shell that runs this command.
    output
        Only write the completion script to this file; by default also load it when the shell starts.
    """
    from cyclopts.completion import ShellDetectionError

    try:
        path = app.install_completion(shell=shell, output=output, add_to_startup=output is None)
    except ShellDetectionError:
        raise RobustillError("the shell is not known: give --shell bash, zsh or fish") from None
    print(f"wrote {printable(str(path))}" + ("; open a new shell to use it" if output is None else ""))
