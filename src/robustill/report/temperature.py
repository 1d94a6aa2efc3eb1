"""What a temperature changes: fitted on validation images, applied to the images that the page reports on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robustill.analysis.calibration import temperature_scaling
from robustill.analysis.evaluations import Evaluation
from robustill.analysis.runs import FinishedRun
from robustill.report.commands import evaluate_command
from robustill.runs.records import FIXED_ATTACK, attacked_kind


def temperature_sentences(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield how a temperature changes the calibration of each run's main evaluation, or how to get one.

    Any evaluation of the validation images at the same checkpoint serves. A temperature for adversarial images needs
    one under the same threat; that of the same attack is taken where there are several. Where both have the images of
    the fixed attack, it is for those.
    """
    for run in runs:
        if run.main is None or run.main.split == "validation" or run.is_network:
            continue
        found = {kind: _validation_of(run, run.main, kind) for kind in ("clean", "adversarial")}
        for kind, validation in found.items():
            if validation is not None:
                yield _temperature_sentence(run.name, kind, validation, run.main)
        if None in found.values():
            missing = [f"{kind} images" for kind, each in found.items() if each is None]
            command = evaluate_command(run, checkpoints=[run.main.checkpoint], options={"split": "validation"})
            yield f"{run.name}, {' and '.join(missing)}: for a temperature run {command} and report again."


def _validation_of(run: FinishedRun, main: Evaluation, kind: str) -> Evaluation | None:
    """Return the evaluation of the validation images that a temperature for one kind of images is fitted on."""
    candidates = [each for each in run.evaluations if (each.split, each.checkpoint) == ("validation", main.checkpoint)]
    if kind == "adversarial":
        candidates = [each for each in candidates if each.threat == main.threat]
    return min(candidates, key=lambda each: each.attack_settings != main.attack_settings, default=None)


def _temperature_sentence(name: str, kind: str, validation: Evaluation, main: Evaluation) -> str:
    if kind == "adversarial":
        kind = attacked_kind([validation.results, main.results])
    fitted, reported = (
        (getattr(each.records, f"{kind}_probabilities"), each.records.label) for each in (validation, main)
    )
    scaling = temperature_scaling(fitted, reported)
    word = "overconfident" if scaling.temperature > 1 else "underconfident"
    before, after = scaling.before["ece"], scaling.after["ece"]
    attack, images = "", FIXED_ATTACK if kind == "pgd" else kind
    if kind == "adversarial" and validation.attack_settings != main.attack_settings:
        attack = f" under {validation.attack}"
    return (
        f"{name} on {images} images: a temperature of {scaling.temperature:.2f}, fitted on {validation.images}{attack} "
        f"where the network is {word}, changes the ECE from {before:.3f} to {after:.3f}."
    )
