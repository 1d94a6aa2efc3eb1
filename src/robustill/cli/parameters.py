"""The types of arguments that several commands share."""

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

TrustCode = Annotated[
    str | None,
    cyclopts.Parameter(
        help="Import paths that files may name, such as the network of a run: my_mod:net,my_mod:Method. Importing them "
        "runs their code; an import path that only a file names is refused.",
    ),
]
"""Import paths separated by commas, as `robustill.core.user_code.only_named` takes them."""
