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
    from robustill.config import Config
    from robustill.data import load as load_data
    from robustill.errors import RobustillError
    from robustill.evaluation import evaluate
    from robustill.example import Example, load_example
    from robustill.judge import evaluate_file, evaluate_run
    from robustill.loading import load_network
    from robustill.methods import Batch, Method, Outcome, build_method
    from robustill.models import build as build_model
    from robustill.recipes import resolve as recipe
    from robustill.records import Records
    from robustill.report import report as write_report
    from robustill.step import Step
    from robustill.teachers import Ensemble
    from robustill.threat import Threat
    from robustill.training import train

# Name here: where it lies, and what it is called there.
_PLACES = {
    "losses": ("robustill.losses", None),
    "autoattack": ("robustill.attacks.autoattack", "autoattack"),
    "pgd": ("robustill.attacks.pgd", "pgd"),
    "Config": ("robustill.config", "Config"),
    "load_data": ("robustill.data", "load"),
    "RobustillError": ("robustill.errors", "RobustillError"),
    "evaluate": ("robustill.evaluation", "evaluate"),
    "Example": ("robustill.example", "Example"),
    "load_example": ("robustill.example", "load_example"),
    "evaluate_file": ("robustill.judge", "evaluate_file"),
    "evaluate_run": ("robustill.judge", "evaluate_run"),
    "load_network": ("robustill.loading", "load_network"),
    "Batch": ("robustill.methods", "Batch"),
    "Method": ("robustill.methods", "Method"),
    "Outcome": ("robustill.methods", "Outcome"),
    "build_method": ("robustill.methods", "build_method"),
    "build_model": ("robustill.models", "build"),
    "recipe": ("robustill.recipes", "resolve"),
    "Records": ("robustill.records", "Records"),
    "write_report": ("robustill.report", "report"),
    "Step": ("robustill.step", "Step"),
    "Ensemble": ("robustill.teachers", "Ensemble"),
    "Threat": ("robustill.threat", "Threat"),
    "train": ("robustill.training", "train"),
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
