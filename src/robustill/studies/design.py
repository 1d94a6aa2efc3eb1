"""What a study is made of: runs by name, one set for each seed, and the rows of a table that they fill."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robustill.config.schema import Config, MethodConfig, make_config
from robustill.core.errors import ConfigError
from robustill.core.formatting import slug
from robustill.methods import method_class, method_options

# Of the student's radius: the teachers of the digits recipes.
WEAK = 0.75
# How many epochs of the first teacher are kept, where the recipe does not say.
_AGES = 6
# More than a study without folds has.
_SEEDS_A_FOLD = 1_000_000
AVERAGED = {"kdswa": 0.5, "saad": 0.5}
"""Methods whose losses go together with stochastic weight averaging, and the share of the epochs before it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a study's table: a run of every seed.

    Args:
        label: as the table shows it.
        run: the name of its run.
        series: the curve that it is a point of; None is no point.
        value: where on the axis.
        against: the label of the row that it is compared with, seed by seed; None is a baseline.
    """

    label: str
    run: str
    series: str | None = None
    value: float | None = None
    against: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subsets:
    """The run of a row again on random parts of its training images, from which memorisation is read.

    Args:
        row: the label of that row.
        runs: their names; run k leaves out fold k, see `data.fold`.
        folds: of a partition.
    """

    row: str
    runs: tuple[str, ...]
    folds: int


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a study asks.

    Args:
        rows: of the table; the same for every seed.
        axis: what is swept, as the figure says it; None where nothing is.
        subsets: of some of the rows, for how much of their training images they memorise.
    """

    rows: tuple[Row, ...]
    axis: str | None = None
    subsets: tuple[Subsets, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The evaluation at the end of a run.

    Args:
        suite: its attacks.
        num_images: how many, of every class the same share; None for all.
        split: "test", or "pool" for the images that its part was drawn from.
    """

    suite: str
    num_images: int | None = None
    split: Literal["test", "pool"] = "test"


class StudyRuns:
    """The runs of one seed: the data, the wrong labels, the teachers and the students all follow from it.

    Each is added when it is first asked for, and is named by what sets it apart. So two studies in one folder share
    what they have in common: the baseline, the teachers, and the student that both of them need.

    Args:
        recipe: the baseline's whole configuration, as plain values; the students differ from it in method and teachers.
        teacher: that of a teacher with the student's radius.
        method: the students' name of a method, and options.
        seed: of all of it.
        folder: where the runs lie, so that a student finds its teachers.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        teacher: Mapping[str, Any],
        method: Mapping[str, Any],
        seed: int,
        folder: Path,
    ) -> None:
        self.recipe, self._teacher, self._method, self.seed, self.folder = recipe, teacher, method, seed, folder
        self.found: dict[str, Config] = {}
        self._fold: int | None = None
        self._narrower: int | None = None

    def without(self, fold: int, folds: int) -> StudyRuns:
        """The same runs, teachers too, trained without a fold of their images; each fold has weights of its own."""
        parts = copy.copy(self)
        data = {"folds": folds, "fold": fold}
        parts.recipe, parts._teacher = (
            {**values, "data": {**values["data"], **data}} for values in (self.recipe, self._teacher)
        )
        parts._fold = fold
        return parts

    def of_width(self, width: int) -> StudyRuns:
        """The same runs with a student, and its baseline, of another width; the teachers are those they were."""
        narrower = copy.copy(self)
        narrower.recipe = {**self.recipe, "model": {**self.recipe["model"], "width": width}}
        narrower._narrower = None if width == self.width else width
        return narrower

    @property
    def width(self) -> int:
        """Of the student, as its recipe has it.

        Raises:
            ConfigError: its network has no width.
        """
        model = self.recipe["model"]
        if not isinstance(model.get("width"), int):
            raise ConfigError(f"model {model['name']} has no whole number as its width: take resnet8 or cnn_a, say")
        return int(model["width"])

    @property
    def method(self) -> str:
        """The name of the students' method."""
        return str(self._method["name"])

    @property
    def baseline_label(self) -> str:
        """The name of the recipe's method."""
        return str(self.recipe["method"]["name"])

    @property
    def teacher_epochs(self) -> int:
        """How long a teacher is trained, at most."""
        return int(self._teacher["optim"]["epochs"])

    @property
    def ages(self) -> list[int]:
        """The epochs of the first teacher that are kept on the way, ascending; the last epoch is not among them."""
        return list(range(self._keep_every, self.teacher_epochs, self._keep_every))

    @property
    def _keep_every(self) -> int:
        every: int | None = self._teacher["keep_every"]
        return every or math.ceil(self.teacher_epochs / _AGES)

    def baseline(
        self, noise: float | None = None, *, tag: str | None = None, attack: Mapping[str, Any] | None = None
    ) -> str:
        """The recipe itself.

        Args:
            noise: share of wrong labels; None is the recipe's.
            tag: what sets it apart where its adversary is another.
            attack: settings laid over the recipe's adversary.
        """
        values = {**self.recipe, "attack": {**self.recipe["attack"], **(attack or {})}}
        name = slug(self.baseline_label) + self._size + self._suffix(noise)
        return self._add(name if values == self.recipe else f"{name}-{tag}", values, self.seed, noise)

    def teacher(self, number: int = 0, *, share: float = WEAK, noise: float | None = None) -> str:
        """A teacher, weakly trained where nothing else is asked for.

        Args:
            number: each has weights and an order of the images of its own.
            share: its radius, as a share of the student's; 0 is ordinary training, whose `best` is the best clean
                accuracy.
            noise: share of wrong labels; None is the recipe's.
        """
        values = dict(self._teacher)
        values["threat"] = _scaled(values["threat"], ("eps",), share)
        values["attack"] = _scaled(values["attack"], ("step_size", "first_eps"), share)
        # Trained to the end: its later ages are there, and `best` is the best of a whole run.
        values["validation"] = {**_scaled(values["validation"], ("step_size",), share), "patience": None}
        if share == 0:
            values["attack"] = {**values["attack"], "steps": 0, "first_steps": None}
        name = self._teacher_name(number, share, noise)
        if name == "teacher-0":
            values["keep_every"] = self._keep_every
        return self._add(name, values, 1000 + 100 * self.seed + number, noise)

    def _teacher_name(self, number: int, share: float, noise: float | None) -> str:
        return f"teacher-{number}" + (f"-eps-{share:g}" if share != WEAK else "") + self._suffix(noise)

    def student(
        self,
        tag: str,
        teachers: Sequence[str] = (),
        *,
        method: str | None = None,
        noise: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The recipe with the study's method, or another, and teachers.

        Args:
            tag: what sets it apart from the student of that method with its teachers and options left out.
            teachers: robust ones, such as "teacher-0@best"; none is the first teacher's best epoch. Where the method
                takes a natural one, that is always added.
            method: None is that of the study.
            noise: share of wrong labels; None is the recipe's.
            options: of the method.

        Raises:
            ConfigError: the study's method learns from no robust teacher.
        """
        chosen = self._method if method is None else {"name": method}
        if method is None and "robust" not in method_class(self.method).roles:
            raise ConfigError(f"method {self.method} has no robust teacher to study: take akd, ard or rslad, say")
        first = [f"{self._teacher_name(0, WEAK, noise)}@best"]
        if not teachers and "robust" in method_class(chosen["name"]).roles:
            self.teacher(noise=noise)
        wanted = self._student(chosen, teachers or first, noise, options or {})
        # Only compared with: a teacher that no other student needs is not trained for it.
        plain = self._student(chosen, first, noise, {})
        name = slug(str(chosen["name"])) + self._size + self._suffix(noise)
        return self._add(name if wanted == plain else f"{name}-{tag}", wanted, self.seed, noise)

    def _student(
        self, method: Mapping[str, Any], teachers: Sequence[str], noise: float | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        roles = method_class(method["name"]).roles
        given: list[dict[str, str]] = []
        if "robust" in roles:
            given += [{"spec": f"run:{self.folder / each}", "role": "robust"} for each in teachers]
        if "natural" in roles:
            natural = self.teacher(share=0, noise=noise)
            given.append({"spec": f"run:{self.folder / natural}@best", "role": "natural"})
        optim = dict(self.recipe["optim"])
        if method["name"] in AVERAGED:
            optim["swa"] = AVERAGED[method["name"]]
        # Every option written out: one that is given as it is anyway sets nothing apart.
        spelled = MethodConfig.model_validate({**method, **options}).model_dump(mode="json")
        return {**self.recipe, "method": spelled, "teachers": given, "optim": optim}

    def mixing_option(self) -> str:
        """The option of the students' method that is the weight of the teacher beside the label.

        Raises:
            ConfigError: it has none.
        """
        options = method_options(self.method)
        for name in ("mix", "alpha"):
            if name in options and (name == "mix" or self.method == "akd"):
                return name
        raise ConfigError(f"method {self.method} does not mix teacher and label: take akd, ard, rslad or iad")

    @property
    def _size(self) -> str:
        return "" if self._narrower is None else f"-width-{self._narrower}"

    def _suffix(self, noise: float | None) -> str:
        wrong = "" if noise is None or noise == self.recipe["data"]["label_noise"] else f"-noise-{noise:g}"
        return wrong if self._fold is None else f"{wrong}-{self.recipe['data']['folds']}-folds-without-{self._fold}"

    def _add(self, name: str, values: Mapping[str, Any], seed: int, noise: float | None) -> str:
        data = {**values["data"], "split_seed": self.seed}
        if noise is not None:
            data["label_noise"] = noise
        if self._fold is not None:
            seed += _SEEDS_A_FOLD * (self._fold + 1)
        config = make_config({**values, "data": data, "seed": seed})
        if self.found.setdefault(name, config) != config:
            raise ConfigError(f"two runs of the study are called {name}: give each a tag of its own")
        return name


def _scaled(group: Mapping[str, Any], keys: Sequence[str], share: float) -> dict[str, Any]:
    return {**group, **{key: group[key] * share for key in keys if group[key] is not None}}
