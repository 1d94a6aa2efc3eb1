"""robustill: adversarially robust knowledge distillation.

A method trains a model, with teachers, against an attack inside a threat; we evaluate it, analyse it and report.
Everything here is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustill import losses
    from robustill.attacks.autoattack import autoattack
    from robustill.attacks.pgd import pgd
    from robustill.config.recipes import resolve as recipe
    from robustill.config.schema import Config
    from robustill.core.errors import RobustillError
    from robustill.data import load as load_data
    from robustill.evaluation.evaluate import evaluate
    from robustill.evaluation.targets import evaluate_file, evaluate_run
    from robustill.methods import Batch, Method, Outcome, build_method
    from robustill.models import build as build_model
    from robustill.models.example import Example, load_example
    from robustill.models.loading import load_network
    from robustill.report import report as write_report
    from robustill.runs.records import Records
    from robustill.teachers.ensemble import Ensemble
    from robustill.threat import Threat
    from robustill.training.loop import train
    from robustill.training.step import Step


# Name here: where it lies, and what it is called there.
_PLACES = {
    "losses": ("robustill.losses", None),
    "autoattack": ("robustill.attacks.autoattack", "autoattack"),
    "pgd": ("robustill.attacks.pgd", "pgd"),
    "Config": ("robustill.config.schema", "Config"),
    "load_data": ("robustill.data", "load"),
    "RobustillError": ("robustill.core.errors", "RobustillError"),
    "evaluate": ("robustill.evaluation.evaluate", "evaluate"),
    "Example": ("robustill.models.example", "Example"),
    "load_example": ("robustill.models.example", "load_example"),
    "evaluate_file": ("robustill.evaluation.targets", "evaluate_file"),
    "evaluate_run": ("robustill.evaluation.targets", "evaluate_run"),
    "load_network": ("robustill.models.loading", "load_network"),
    "Batch": ("robustill.methods", "Batch"),
    "Method": ("robustill.methods", "Method"),
    "Outcome": ("robustill.methods", "Outcome"),
    "build_method": ("robustill.methods", "build_method"),
    "build_model": ("robustill.models", "build"),
    "recipe": ("robustill.config.recipes", "resolve"),
    "Records": ("robustill.runs.records", "Records"),
    "write_report": ("robustill.report", "report"),
    "Step": ("robustill.training.step", "Step"),
    "Ensemble": ("robustill.teachers.ensemble", "Ensemble"),
    "Threat": ("robustill.threat", "Threat"),
    "train": ("robustill.training.loop", "train"),
}
__all__ = [
    "Batch",
    "Config",
    "Ensemble",
    "Example",
    "Method",
    "Outcome",
    "Records",
    "RobustillError",
    "Step",
    "Threat",
    "autoattack",
    "build_method",
    "build_model",
    "evaluate",
    "evaluate_file",
    "evaluate_run",
    "load_data",
    "load_example",
    "load_network",
    "losses",
    "pgd",
    "recipe",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'robustill' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
