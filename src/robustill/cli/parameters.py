"""Types of arguments that several verbs of the command line take."""

from __future__ import annotations

from typing import Annotated

import cyclopts

Overrides = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="Settings laid over the configuration: --method.alpha 0.8 --threat linf:8/255 --optim.epochs 30 ...",
    ),
]
"""The settings of a configuration."""

TargetOverrides = Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)]
"""A target, or settings such as --data.root DIR laid over its configuration; the docstring of the verb says which."""
