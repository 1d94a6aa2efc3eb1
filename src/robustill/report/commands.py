"""The commands that the page prints: to repeat what it shows and to add what it lacks. A shell runs each as it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun, find_teacher
from robustill.core.errors import printable
from robustill.core.formatting import flatten
from robustill.core.user_code import paths_in

_WITH_CODE = ("model", "method", "initial", "teachers", "data", "optim")
"""Parts of a configuration that may name an import path."""


def repeat_commands(run: FinishedRun) -> list[str]:
    """Return the commands that repeat a run and its evaluations in a new directory next to it."""
    if run.is_network:
        return [_evaluate_network(run, each) for each in run.evaluations]
    again = f"{run.path}-again"
    train = ["robustill", "train", str(run.path / "config.yaml"), "--run", again]
    commands = [_join([*train, *_trust_options(_training_code(run))])]
    checkpoints_by_options: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for evaluation in run.evaluations:
        options = tuple(_evaluation_options(run, evaluation).items())
        checkpoints_by_options.setdefault(options, []).append(evaluation.checkpoint)
    for options, checkpoints in checkpoints_by_options.items():
        commands.append(evaluate_command(run, path=again, checkpoints=checkpoints, options=dict(options)))
    return [*commands, _join(["robustill", "report", again, "--out", "report.html"])]


def evaluate_command(
    run: FinishedRun,
    *,
    path: str | None = None,
    checkpoints: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> str:
    """Return the command that evaluates a run.

    Args:
        run: the run.
        path: its directory, if it is another than now.
        checkpoints: the checkpoints; empty is the default of the command.
        options: the options of the command, by name.
    """
    words = ["robustill", "evaluate", str(run.path) if path is None else path]
    if checkpoints:
        words += ["--checkpoint", *checkpoints]
    for name, value in (options or {}).items():
        words += [f"--{name}", value]
    return _join([*words, *_trust_options(code_of(run.config, ("model", "data")))])


def code_of(config: Mapping[str, Any], parts: Sequence[str] = _WITH_CODE) -> list[str]:
    """Return the import paths that parts of a configuration name, which only `--trust-code` allows a file to do."""
    values = {part: config[part] for part in parts if part in config}
    # A folder of data may be named like an import path.
    texts = (value for key, value in flatten(values) if not key.startswith("data.") or key == "data.name")
    return list(dict.fromkeys(paths_in(texts)))


def missing_notes(run: FinishedRun) -> Iterator[tuple[str, str]]:
    """Yield what the report cannot show of a run: what is missing in a word, and a note with the command to add it."""
    if not run.metrics and not run.is_network:
        yield "metrics", f"{run.name} has no metrics: its training has not finished an epoch, so it has no curves."
    for name in run.outdated:
        reason = f"{name} of {run.name} is of an epoch that is no longer that checkpoint, and left out"
        yield f"current {name}", f"{reason}: run {evaluate_command(run)}"
    if not run.evaluations:
        yield "evaluation", f"{run.name} has not been evaluated: run {evaluate_command(run)}"
    elif run.main is not None and not len(run.main.records.eps_grid):
        note = f"{run.name} was evaluated at one radius only: it has no curve of robust accuracy against eps."
        yield "curve", note
    if run.evaluations and not any(each.records.has_pictures for each in run.evaluations):
        yield "pictures", f"The evaluation of {run.name} has no pictures."


def like_main_command(run: FinishedRun, evaluation: Evaluation) -> str:
    """Return the command that evaluates a run as another one was evaluated."""
    return evaluate_command(run, options=_evaluation_options(run, evaluation))


def _evaluation_options(run: FinishedRun, evaluation: Evaluation) -> dict[str, str]:
    """Return the options that repeat an evaluation of a run, in their order."""
    conditions = evaluation.conditions
    values: dict[str, Any] = {"suite": evaluation.suite.get("name")}
    if evaluation.split != "test":
        values["split"] = evaluation.split
    if evaluation.is_subset:
        values["first" if evaluation.is_first else "num-images"] = len(evaluation.records)
    if str(conditions.get("precision")).startswith("bf16"):
        values["precision"] = "fast"
    values["seed"] = conditions.get("seed")
    if evaluation.threat is not None and evaluation.threat != run.threat:
        values["threat"] = conditions["threat"].get("text")
    if run.get("data.name") not in (None, conditions.get("data")) and "data" in conditions:
        values["data"] = conditions["data"]
    return {name: str(value) for name, value in values.items() if value is not None}


def _evaluate_network(run: FinishedRun, evaluation: Evaluation) -> str:
    """Return the command that repeats the evaluation of a network; the place of its file is not recorded."""
    conditions = evaluation.conditions
    words = ["robustill", "evaluate", evaluation.checkpoint]
    if conditions.get("model") is not None:
        words += ["--model", str(conditions["model"])]
    normalisation = conditions.get("normalisation")
    for name, value in (normalisation if isinstance(normalisation, Mapping) else {}).items():
        if value is not None:
            words += [f"--model.{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    surrogates = conditions.get("surrogates")
    specs = (
        [str(each["spec"]) for each in surrogates.values() if isinstance(each, Mapping) and "spec" in each]
        if isinstance(surrogates, Mapping)
        else []
    )
    options = {
        "data": conditions.get("data"),
        **_evaluation_options(run, evaluation),
        "surrogate": ",".join(specs) or None,
    }
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return _join(words)


def _training_code(run: FinishedRun) -> list[str]:
    """Return the import paths that the configuration of a run and those of its teachers name."""
    found = [find_teacher(str(each.get("spec"))) for each in run.teachers]
    teachers = [path for each in found if each is not None for path in code_of(each.config, ("model",))]
    return list(dict.fromkeys([*code_of(run.config), *teachers]))


def _trust_options(code: Sequence[str]) -> list[str]:
    return ["--trust-code", ",".join(code)] if code else []


def _join(words: Sequence[str]) -> str:
    """Join words to a command line; a path may hold anything but a character that steers a terminal."""
    return printable(shlex.join(words))
