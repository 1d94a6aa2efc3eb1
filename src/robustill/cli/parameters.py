"""The types of arguments that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from robustill.cli.listing import read_names
from robustill.core.errors import RobustillError

Words = list[tuple[str, str]]
"""What a shell offers for a word, each with a description."""


def completing(*kinds: str) -> Callable[[Any], Words]:
    """Return the function that completes a name of these kinds, see `robustill list`."""

    def complete(_: Any) -> Words:
        words = [(row[0], row[1]) for kind in kinds for row in read_names()[kind]]
        if "recipes" in kinds:
            files = sorted(str(path) for path in Path().glob("*.yaml"))
            words += [(file, "a configuration file") for file in files if file.isprintable()]
        return words

    return complete


def _complete_setting(context: Any) -> Words:
    """Return the names that the setting before the cursor takes; none where it takes a number or a file."""
    tokens = context.argument.tokens
    kind = {"--method": "methods", "--model": "models", "--data": "data"}.get(tokens[-1].value if tokens else "")
    return [] if kind is None else completing(kind)(context)


RecipeName = Annotated[
    str,
    cyclopts.Parameter(completer=completing("recipes"), help="A recipe of `robustill list recipes`, or a .yaml file."),
]
Overrides = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        completer=_complete_setting,
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


def check_options(words: Sequence[str], options: Sequence[str]) -> None:
    """Check that no word among the settings is a misspelt option of the command.

    Args:
        words: the settings that follow a command.
        options: the names of the options of the command, such as "num_images".

    Raises:
        RobustillError: a word is the name of neither a setting nor a group of settings, and nearly one of an option.
    """
    from robustill.config.schema import Config

    for word in words:
        name = word.partition("=")[0]
        key = name[2:].replace("-", "_")
        if not name.startswith("--") or "." in name or key in Config.model_fields:
            continue
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.75)
        if near:
            raise RobustillError(f"{name} is no option: did you mean --{near[0].replace('_', '-')}?")
