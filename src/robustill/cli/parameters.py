"""The type of argument that several commands share."""

from __future__ import annotations

from typing import Annotated

import cyclopts

Overrides = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="Settings that replace those of the recipe: --method.alpha 0.8 --threat linf:8/255 --optim.epochs 30 ...",
    ),
]
"""Settings that replace those of a recipe or configuration file."""
