"""Write the pages of docs/reference from the docstrings, the tables and the settings of the source.

    python docs/make_reference.py

It also writes names.json and recipes.json, from which `robustill list` and `show` answer without importing torch.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import robustill as rb
from robustill.analysis.gain_model import Prediction
from robustill.analysis.teacher_measures import Measures
from robustill.analysis.teacher_ranking import RankedTeacher, TeacherRanking
from robustill.attacks.autoattack import AutoAttackResult
from robustill.attacks.suites import SUITES
from robustill.cli import listing, shown
from robustill.cli.app import app
from robustill.cli.catalogue import names_text
from robustill.config.files import meaning
from robustill.config.recipes import RECIPES
from robustill.config.schema import Config
from robustill.data import DATASETS
from robustill.data.augmentation import AUGMENTATIONS
from robustill.data.images import Dataset
from robustill.methods import METHODS
from robustill.models import MODELS
from robustill.models.card import Calibration, Card, CardEvaluation
from robustill.models.loading import LoadedNetwork, Shape
from robustill.models.robustbench import ZOO
from robustill.studies import STUDIES, Design, Row, StudyRuns
from robustill.training.loop import TrainResult

OUT = Path(__file__).with_name("reference")
NOTE = "<!-- Written by `python docs/make_reference.py`: change the docstrings instead. -->\n"
INDEX = """# Reference

- [Commands](commands.md): the command line, as `robustill COMMAND --help` describes it
- [Python](python.md): the functions and classes of the package, and the losses
- [Methods](methods.md): what the adversary maximises and what the student minimises, for each method
- [Settings](settings.md): every setting of a configuration, with its default
- [Augmentations](augmentations.md): random changes of training images, and their options
- [Studies](studies.md): those that come with the package, and what a study of your own is made of
- [Names](names.md): models, data sets, recipes, suites of attacks, and the networks of RobustBench

Letters in shapes and formulas: B batch, C H W image, K classes, N data set, E epochs; S student, T teacher, x clean
image, x' adversarial image, y label. Pixels are in [0,1], losses in nats, times in seconds.
"""
# What the functions of the package return, and what that is made of.
RESULTS = (
    TrainResult,
    AutoAttackResult,
    Dataset,
    LoadedNetwork,
    Shape,
    Card,
    CardEvaluation,
    Calibration,
    TeacherRanking,
    RankedTeacher,
    Prediction,
    Measures,
)
# Annotations are strings in every module.
ANNOTATION = re.compile(r"(?<=: |> )'([^']*)'")


def text(value: object) -> str:
    """Return the docstring of an object as a code block, so that equations keep their columns."""
    return f"```text\n{inspect.getdoc(value) or ''}\n```\n"


def call(name: str, value: Any) -> str:
    """Return the signature of an object, on several lines if it is long."""
    if inspect.isclass(value) and (issubclass(value, (Config, Exception)) or is_interface(value)):
        return name
    signature = inspect.signature(value)
    shown = ANNOTATION.sub(r"\1", str(signature)).removesuffix(" -> None")
    if len(name + shown) <= 100:
        return name + shown
    parameters = list(signature.parameters.values())
    several = [ANNOTATION.sub(r"\1", str(each)) for each in parameters]
    keywords = [number for number, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY]
    if keywords:
        several.insert(keywords[0], "*")
    inner = ",\n    ".join(several)
    return f"{name}(\n    {inner},\n){shown[shown.rindex(')') + 1 :]}"


def entry(name: str, value: Any) -> str:
    """Return the entry of one name: its heading, signature and docstring."""
    return f"### {name}\n\n```python\n{call(name, value)}\n```\n\n{text(value)}"


def members(value: type) -> str:
    """Return the properties of a class, and the methods of an interface, a line each."""
    lines = []
    for name, each in vars(value).items():
        if isinstance(each, property):
            lines.append(f"- `.{name}`: {first_line(each)}\n")
        elif is_interface(value) and inspect.isfunction(each) and not name.startswith("_"):
            arguments = ", ".join(list(inspect.signature(each).parameters)[1:])
            lines.append(f"- `.{name}({arguments})`: {first_line(each)}\n")
    return "".join(["\n", *lines] if lines else [])


def is_interface(value: type) -> bool:
    """Return whether a class is a Protocol, which nobody makes an object of."""
    return Protocol in value.__bases__


def own_functions(module: Any) -> Iterable[tuple[str, Any]]:
    """Return the public functions of a module, in the order of its file."""
    return (
        (name, each)
        for name, each in vars(module).items()
        if inspect.isfunction(each) and each.__module__ == module.__name__ and not name.startswith("_")
    )


def first_line(thing: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; a vertical bar in a cell is escaped."""
    lines = [list(header), *rows]
    marked = [[cell.replace("|", "&#124;") for cell in line] for line in lines]
    shown = [f"| {' | '.join(cells)} |" for cells in marked]
    shown.insert(1, "|" + "---|" * len(marked[0]))
    return "\n".join(shown) + "\n"


def python_page() -> str:
    """Return the page of the functions and classes of the package."""
    names = [name for name in rb.__all__ if name != "losses"]
    parts = [
        "# Python\n",
        "The names of the package, after `import robustill as rb`.\n",
        "## Functions and classes\n",
        *(entry(f"rb.{name}", getattr(rb, name)) for name in names),
        "## What they return\n",
        "The classes of what these functions return. `Shape` is made by hand, too: `from robustill.models.loading "
        "import Shape`.\n",
        *(entry(each.__name__, each) + members(each) for each in RESULTS),
        "## Losses\n",
        "The functions of `rb.losses`. Each returns one value per sample.\n",
        *(entry(f"rb.losses.{name}", each) for name, each in own_functions(rb.losses)),
    ]
    return "\n".join(parts)


def methods_page() -> str:
    """Return the page of the methods."""
    about = (
        "On the command line, `--method NAME` chooses a method and `--method.OPTION` sets its options. In Python, use\n"
        "`rb.build_method(NAME, OPTION=...)`. [A method of your own](../how-to/own-method.md) is a class like these.\n"
    )
    return "\n".join(["# Methods\n", about, *(entry(name, each) for name, each in METHODS.items())])


def augmentations_page() -> str:
    """Return the page of the augmentations."""
    about = (
        "`data.augmentation` is a list of names, or of names with options, applied in this order:\n"
        "`--data.augmentation '[{crop: {pad: 2}}, flip]'`. Each changes a whole batch of uint8 images at random.\n"
        "`data.cutmix` is a setting of its own, because it changes labels, too.\n"
    )
    entries = []
    for name, function in AUGMENTATIONS.items():
        plain = function.func if isinstance(function, functools.partial) else function
        options = [
            each.replace(default=function.keywords.get(each.name, each.default))
            if isinstance(function, functools.partial)
            else each
            for each in inspect.signature(plain).parameters.values()
            if each.kind is each.KEYWORD_ONLY
        ]
        shown = ", ".join(f"{each.name}: {each.default}" for each in options)
        head = f"{{{name}: {{{shown}}}}}" if shown else name
        entries.append(f"### {name}\n\n```yaml\n{head}\n```\n\n{text(plain)}")
    return "\n".join(["# Augmentations\n", about, *entries])


def studies_page() -> str:
    """Return the page of the studies."""
    about = (
        "`robustill study NAME` runs one, `robustill plan NAME` says what it costs. Keyword arguments are options:\n"
        "`--study.KEY`.\n"
    )
    own = (
        "[A study of your own](../how-to/own-study.md) is a function like these. Its module has the line\n"
        "`from robustill.studies import Design, Row`.\n"
    )
    names = ("baseline", "teacher", "student", "with_width")
    parts = [
        "# Studies\n",
        about,
        "## Built-in studies\n",
        *(entry(name, each) for name, each in STUDIES.items()),
        "## Parts of a study\n",
        own,
        entry("Design", Design),
        entry("Row", Row),
        entry("StudyRuns", StudyRuns),
        *(entry(f"runs.{name}", getattr(StudyRuns, name)) for name in names),
    ]
    return "\n".join(parts)


def names_page() -> str:
    """Return the page of the names that other commands take."""
    models = (
        (f"`{name}`", each.description, ", ".join(f"{key}={value}" for key, value in each.options.items()))
        for name, each in MODELS.items()
    )
    networks = (
        (f"`{each.data}/{each.norm}/{each.name}`", f"{each.clean:.2f}", f"{each.autoattack:.2f}", each.model)
        for each in ZOO
    )
    parts = [
        "# Names\n",
        "`robustill list` prints them, too.\n",
        "## Models\n",
        table(("model", "", "options"), models),
        "## Data sets\n",
        table(("data set", ""), ((f"`{name}`", each.description) for name, each in DATASETS.items())),
        "## Recipes\n",
        "`robustill show NAME` prints the whole configuration.\n",
        table(("recipe", ""), ((f"`{name}`", first_line(each)) for name, each in RECIPES.items())),
        "## Suites of attacks\n",
        table(("suite", "attacks"), ((f"`{name}`", str(each)) for name, each in SUITES.items())),
        "## RobustBench\n",
        "Accuracies in percent, as its leaderboard states them. A file is named `robustbench:ID=FILE`.\n",
        table(("network", "clean", "AutoAttack", "model"), networks),
    ]
    return "\n".join(parts)


def settings_page() -> str:
    """Return the page of the settings of a configuration."""
    about = (
        "The settings of a configuration file and their defaults, by group. On the command line `--GROUP.NAME` sets\n"
        "one, such as `--optim.epochs 30`; those without a group are `--NAME`. `robustill show RECIPE` prints the\n"
        "values of a recipe.\n"
    )
    fields = Config.model_fields
    alone = {name: each for name, each in fields.items() if group_of(each) is None}
    parts = ["# Settings\n", about, "## Without a group\n", settings_table(alone)]
    for name, each in fields.items():
        group = group_of(each)
        if group is not None:
            parts += [f"## {name}\n", inspect.getdoc(group) or "", "", settings_table(group.model_fields)]
    return "\n".join(parts)


def group_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the class of a group of settings; for a list of groups that of one of them; None for a single setting."""
    for each in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if inspect.isclass(each) and issubclass(each, BaseModel):
            return each
    return None


def settings_table(fields: Mapping[str, FieldInfo]) -> str:
    """Return a table of settings: name, default and meaning."""
    rows = ((f"`{name}`", default(each), meaning(each)) for name, each in fields.items())
    return table(("setting", "default", "meaning"), rows)


def default(field: FieldInfo) -> str:
    """Return the default of a setting as a configuration file has it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if not isinstance(value, float):
        return str(value)
    levels = value * 255
    return f"{value:g}" if len(f"{value:g}") < 6 or levels % 1 else f"{levels:.0f}/255"


def commands_page() -> str:
    """Return the help texts of all commands; the site has a table of contents of its own."""
    intro, _, rest = app.generate_docs(output_format="markdown").partition("## Table of Contents")
    return intro.replace("# robustill\n", "# Commands\n", 1) + rest[rest.index("**Commands**") :]


PAGES: dict[str, Callable[[], str]] = {
    "index.md": lambda: INDEX,
    "commands.md": commands_page,
    "python.md": python_page,
    "methods.md": methods_page,
    "settings.md": settings_page,
    "augmentations.md": augmentations_page,
    "studies.md": studies_page,
    "names.md": names_page,
}


def reference() -> dict[str, str]:
    """Return every page by its name."""
    return {name: NOTE + page() for name, page in PAGES.items()}


if __name__ == "__main__":
    for name, content in reference().items():
        (OUT / name).write_text(content, encoding="utf-8")
    listing.FILE.write_text(names_text(), encoding="utf-8")
    shown.FILE.write_text(shown.recipes_text(), encoding="utf-8")
