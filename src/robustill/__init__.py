"""robustill: adversarially robust knowledge distillation.

A method trains a model, with teachers, against an attack inside a threat; we evaluate it, analyse it and report.
The names of this package are imported when they are first used, so that `import robustill` is quick.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("robustill runs on Linux and macOS: on Windows, use the Windows Subsystem for Linux")

__version__ = "0.1.0"

# Each public name and where it is defined: "module:attribute", or a module.
_LOCATIONS = {
    "Batch": "robustill.methods:Batch",
    "Config": "robustill.config.schema:Config",
    "Ensemble": "robustill.teachers.ensemble:Ensemble",
    "Example": "robustill.models.example:Example",
    "ImageState": "robustill.methods:ImageState",
    "Method": "robustill.methods:Method",
    "Outcome": "robustill.methods:Outcome",
    "Pretrained": "robustill.models.sharing:Pretrained",
    "Records": "robustill.runs.records:Records",
    "RobustillError": "robustill.core.errors:RobustillError",
    "Step": "robustill.training.step:Step",
    "Threat": "robustill.threat:Threat",
    "autoattack": "robustill.attacks.autoattack:autoattack",
    "build_method": "robustill.methods:build_method",
    "build_model": "robustill.models:build",
    "evaluate": "robustill.evaluation.evaluate:evaluate",
    "evaluate_file": "robustill.evaluation.targets:evaluate_file",
    "evaluate_run": "robustill.evaluation.targets:evaluate_run",
    "export": "robustill.evaluation.export:export",
    "from_pretrained": "robustill.models.sharing:from_pretrained",
    "load_data": "robustill.data:load",
    "load_example": "robustill.models.example:load_example",
    "load_network": "robustill.models.loading:load_network",
    "losses": "robustill.losses",
    "pgd": "robustill.attacks.pgd:pgd",
    "rank_teachers": "robustill.studies.candidates:rank_teachers",
    "recipe": "robustill.config.recipes:resolve",
    "train": "robustill.training.loop:train",
    "write_report": "robustill.report:report",
}

# Type checkers and editors read the imports; at run time `__getattr__` reads the table. A test compares the two.
if TYPE_CHECKING:
    from robustill import data as _data
    from robustill import losses as losses
    from robustill import models as _models
    from robustill import report as _report
    from robustill.attacks.autoattack import autoattack as autoattack
    from robustill.attacks.pgd import pgd as pgd
    from robustill.config import recipes as _recipes
    from robustill.config.schema import Config as Config
    from robustill.core.errors import RobustillError as RobustillError
    from robustill.evaluation.evaluate import evaluate as evaluate
    from robustill.evaluation.export import export as export
    from robustill.evaluation.targets import evaluate_file as evaluate_file
    from robustill.evaluation.targets import evaluate_run as evaluate_run
    from robustill.methods import Batch as Batch
    from robustill.methods import ImageState as ImageState
    from robustill.methods import Method as Method
    from robustill.methods import Outcome as Outcome
    from robustill.methods import build_method as build_method
    from robustill.models.example import Example as Example
    from robustill.models.example import load_example as load_example
    from robustill.models.loading import load_network as load_network
    from robustill.models.sharing import Pretrained as Pretrained
    from robustill.models.sharing import from_pretrained as from_pretrained
    from robustill.runs.records import Records as Records
    from robustill.studies.candidates import rank_teachers as rank_teachers
    from robustill.teachers.ensemble import Ensemble as Ensemble
    from robustill.threat import Threat as Threat
    from robustill.training.loop import train as train
    from robustill.training.step import Step as Step

    build_model = _models.build
    load_data = _data.load
    recipe = _recipes.resolve
    write_report = _report.report
else:
    __all__ = sorted(_LOCATIONS)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'robustill' has no attribute {name!r}")
    module_name, _, attribute = _LOCATIONS[name].partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, attribute) if attribute else module


def __dir__() -> list[str]:
    return sorted(_LOCATIONS)
