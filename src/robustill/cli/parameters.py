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

TrustCode = Annotated[
    str | None,
    cyclopts.Parameter(
        help="Import paths that files may name, such as the network of a run: my_mod:net,my_mod:Method. Importing them "
        "runs their code; what no option names is refused.",
    ),
]
"""Import paths with commas, as `robustill.core.user_code.only_named` takes them."""

TargetOverrides = Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)]
"""A target, or settings such as --data.root DIR laid over its configuration; the docstring of the verb says which."""
