"""What `robustill show RECIPE` prints for a recipe as it is, without importing torch.

It is read from recipes.json, which `python docs/make_reference.py` writes; with settings that replace some of a recipe,
or for a file, the configuration is built and checked.
"""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).with_name("recipes.json")
"""The whole configuration of each recipe as YAML, with a comment on each setting."""


def read_recipes() -> dict[str, str]:
    """Return the text of each recipe."""
    recipes: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"))
    return recipes


def recipes_text() -> str:
    """Return the content of recipes.json, from the recipes themselves."""
    from robustill.config.files import explain_config
    from robustill.config.recipes import RECIPES

    return json.dumps({name: explain_config(recipe()) for name, recipe in RECIPES.items()}, indent=1) + "\n"
