"""The parts of a study: the rows of its table, and the runs of each seed that fill them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robustill.config.schema import Config, make_config, make_method_config
from robustill.core.errors import ConfigError
from robustill.core.formatting import slug
from robustill.methods import build_method, method_class, method_options
from robustill.runs.directory import split_checkpoint
from robustill.training.cost import passes_per_image

WEAK_EPS_SHARE = 0.75
"""The radius of a weakly trained teacher as a share of the student's, as in the recipes for digits."""
SWA_START = {"kdswa": 0.5, "saad": 0.5}
"""Methods that are published with stochastic weight averaging, and the share of the epochs after which it starts."""
EMA_DECAY = {"adr": 0.995, "rebat": 0.999}
"""Methods that learn from the average of their own weights, and its published decay, for a recipe without average."""

# An image costs thousands of queries of each file, unlike in the evaluation of the network.
_NUM_SHIPPED_IMAGES = 500
# Number of epochs at which the first teacher is saved, if the recipe has no keep_every.
_NUM_AGES = 6
# Distance between the seeds of two folds: larger than any seed of a run without folds.
_SEEDS_A_FOLD = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a study's table, which one run of every seed fills.

    Args:
        label: its name in the table.
        run: the name of the run, as `StudyRuns` returns it.
        series: the curve in the figures that the row is a point of; None for no curve.
        value: the position of that point on the axis.
        against: the label of the row that it is compared with, seed by seed; None for a baseline.
    """

    label: str
    run: str
    series: str | None = None
    value: float | None = None
    against: str | None = None


@dataclass(frozen=True, kw_only=True)
class Subsets:
    """The run of a row repeated on random subsets of its training images, to measure memorisation.

    Args:
        row: the label of the row.
        runs: the names of the repeated runs; run k leaves out fold k (see `data.fold`).
        folds: the number of folds that each partition of the images has.
    """

    row: str
    runs: tuple[str, ...]
    folds: int


@dataclass(frozen=True, kw_only=True)
class Design:
    """The design of a study: its rows, the same for every seed.

    Args:
        rows: the rows of the table.
        axis: the label of the axis of the figures; None if the rows have no values on a common axis.
        subsets: repeated runs that measure the memorisation of some rows.
        ship: export the run of each row in float32 and in int8, measure both files, and attack them as they are.
    """

    rows: tuple[Row, ...]
    axis: str | None = None
    subsets: tuple[Subsets, ...] = ()
    ship: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The evaluation at the end of a run.

    Args:
        suite: the name of the suite of attacks.
        num_images: number of images, class-balanced; None for all.
        split: "test", or "pool" for the images from which the training images were drawn.
        ship: whether the run is also exported and attacked as it is shipped.
        checkpoints: such as "best-ema"; None for the best and the last epoch, and their averages.
    """

    suite: str
    num_images: int | None = None
    split: Literal["test", "pool"] = "test"
    ship: bool = False
    checkpoints: tuple[str, ...] | None = None

    @property
    def num_shipped_images(self) -> int:
        """The largest number of test images that the files are attacked on."""
        return self.num_images or _NUM_SHIPPED_IMAGES


class StudyRuns:
    """The runs of one seed, which determines the data split, the noisy labels, the teachers and the students.

    `baseline`, `teacher` and `student` add a run and return its name; a run of the same configuration is added once.
    A name consists of all that distinguishes the run, so that two studies in one folder share the runs that they have
    in common.

    Args:
        recipe: the whole configuration of the baseline, as plain values; students differ in their method and teachers.
        teacher: the whole configuration of a teacher with the student's radius, as plain values.
        method: name and options of the students' method.
        seed: the seed of these runs.
        folder: the folder of these runs, where a student finds its teachers.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        teacher: Mapping[str, Any],
        method: Mapping[str, Any],
        seed: int,
        folder: Path,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.folder = folder
        self.configs: dict[str, Config] = {}
        self._teacher = teacher
        self._method = method
        self._fold: int | None = None
        self._width_suffix = ""

    def without_fold(self, fold: int, folds: int) -> StudyRuns:
        """Return these runs, teachers included, trained without one fold of their images, with weights of their own."""
        runs = copy.copy(self)
        data = {"folds": folds, "fold": fold}
        runs.recipe = {**self.recipe, "data": {**self.recipe["data"], **data}}
        runs._teacher = {**self._teacher, "data": {**self._teacher["data"], **data}}
        runs._fold = fold
        return runs

    def with_width(self, width: float) -> StudyRuns:
        """Return these runs with a student and a baseline of another width; their teachers are unchanged."""
        runs = copy.copy(self)
        runs.recipe = {**self.recipe, "model": {**self.recipe["model"], "width": width}}
        runs._width_suffix = "" if width == self.width else f"-width-{width:g}"
        return runs

    @property
    def width(self) -> float:
        """The width of the student in the recipe: a whole number of channels, or a share of the published ones.

        Raises:
            ConfigError: the student's network has no width.
        """
        width = self.recipe["model"].get("width")
        if not isinstance(width, int | float) or isinstance(width, bool):
            raise ConfigError(
                f"model {self.recipe['model']['name']} has no number as its width: use one that has, such as resnet8, "
                "cnn_a or mobilenetv2"
            )
        return width

    @property
    def method(self) -> str:
        """The name of the students' method."""
        return str(self._method["name"])

    @property
    def method_options(self) -> dict[str, Any]:
        """The options of the students' method that differ from their defaults."""
        return make_method_config(self._method).changed_options

    @property
    def baseline_label(self) -> str:
        """The name of the recipe's method."""
        return str(self.recipe["method"]["name"])

    @property
    def teacher_epochs(self) -> int:
        """The number of epochs that a teacher is trained."""
        return int(self._teacher["optim"]["epochs"])

    @property
    def ages(self) -> list[int]:
        """The epochs at which the first teacher is saved during its training, ascending, without the last one."""
        return list(range(self._keep_every, self.teacher_epochs, self._keep_every))

    @property
    def _keep_every(self) -> int:
        every: int | None = self._teacher["keep_every"]
        return every or math.ceil(self.teacher_epochs / _NUM_AGES)

    def baseline(
        self,
        noise: float | None = None,
        *,
        tag: str | None = None,
        attack: Mapping[str, Any] | None = None,
        optim: Mapping[str, Any] | None = None,
    ) -> str:
        """Add the run of the recipe itself, and return its name.

        Args:
            noise: share of noisy labels; None for the recipe's.
            tag: the end of the name, if `attack` or `optim` change the recipe.
            attack: settings that replace those of the training attack in the recipe.
            optim: settings that replace those of the optimization in the recipe.
        """
        changed = {"attack": attack or {}, "optim": optim or {}}
        values = {**self.recipe, **{group: {**self.recipe[group], **new} for group, new in changed.items()}}
        name = slug(self.baseline_label) + self._width_suffix + self._data_suffix(noise)
        if values != self.recipe:
            name = f"{name}-{tag}"
        return self._add(name, values, self.seed, noise)

    def equal_compute(self, student: str) -> str:
        """Add the run of the recipe with as many epochs as a student and its teachers cost, and return its name.

        Passes of images are counted, and one through a teacher as one through the student; the column TFLOP of the
        table says what both took.

        Args:
            student: the name of a run of these.
        """
        baseline = self.baseline()
        student_and_teachers = self._passes(student) + sum(map(self._passes, self._all_teachers_of(student)))
        epochs = round(self.recipe["optim"]["epochs"] * student_and_teachers / self._passes(baseline))
        return self.baseline(tag=f"epochs-{epochs}", optim={"epochs": epochs})

    def _passes(self, name: str) -> float:
        """Return the number of passes of one image in the training of a run, without the training of its teachers."""
        config = self.configs[name]
        return config.optim.epochs * sum(passes_per_image(config))

    def teachers_of(self, name: str) -> set[str]:
        """Return the names of the runs of this seed that teach a run; not those that teach them, nor other networks."""
        specs = [teacher.spec.partition(":")[2] for teacher in self.configs[name].teachers]
        runs = [Path(split_checkpoint(spec)[0]) for spec in specs]
        return {run.name for run in runs if run.parent == self.folder}

    def _all_teachers_of(self, name: str) -> set[str]:
        direct = self.teachers_of(name)
        return direct.union(*map(self._all_teachers_of, direct))

    def teacher(self, number: int = 0, *, share: float = WEAK_EPS_SHARE, noise: float | None = None) -> str:
        """Add a teacher, by default a weakly trained one, and return its name.

        Args:
            number: teachers of different numbers have different seeds.
            share: its radius as a share of the student's; 0 is ordinary training, whose best epoch has the best clean
                accuracy.
            noise: share of noisy labels; None for the recipe's.
        """
        values = dict(self._teacher)
        values["threat"] = _scaled(values["threat"], ("eps",), share)
        values["attack"] = _scaled(values["attack"], ("step_size", "first_eps"), share)
        # Without early stopping, so that its later epochs exist and `best` is the best epoch of a whole run.
        values["validation"] = {**_scaled(values["validation"], ("step_size",), share), "patience": None}
        if share == 0:
            values["attack"] = {**values["attack"], "steps": 0, "first_steps": None}
        name = self._teacher_name(number, share, noise)
        if name == "teacher-0":
            values["keep_every"] = self._keep_every
        return self._add(name, values, 1000 + 100 * self.seed + number, noise)

    def _teacher_name(self, number: int, share: float, noise: float | None) -> str:
        eps = "" if share == WEAK_EPS_SHARE else f"-eps-{share:g}"
        return f"teacher-{number}{eps}{self._data_suffix(noise)}"

    def student(
        self,
        tag: str,
        teachers: Sequence[str | Mapping[str, Any]] = (),
        *,
        method: str | None = None,
        noise: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a student, the recipe with a distillation method and teachers, and return its name.

        Args:
            tag: the end of the name, if `teachers` or `options` change the default student of that method.
            teachers: robust teachers: checkpoints of these runs, such as "teacher-0@best", or networks from elsewhere
                by their settings in a configuration, such as {"spec": "robustbench:ID"}; by default the best epoch of
                the first teacher. If the method takes a natural teacher too, it is added.
            method: the name of a method; None for the study's.
            noise: share of noisy labels; None for the recipe's.
            options: options of the method.

        Raises:
            ConfigError: the study's method has no robust teacher.
        """
        chosen = self._method if method is None else {"name": method}
        if method is None and "robust" not in method_class(self.method).roles:
            raise ConfigError(
                f"method {self.method} has no robust teacher to study: use one that has, such as akd, ard or rslad"
            )
        first_teacher = [f"{self._teacher_name(0, WEAK_EPS_SHARE, noise)}@best"]
        if not teachers and "robust" in method_class(chosen["name"]).roles:
            self.teacher(noise=noise)
        values = self._student(chosen, teachers or first_teacher, noise, options or {})
        # The default student is only compared with; its teacher is not added, since no other student may need it.
        default = self._student(chosen, first_teacher, noise, {})
        name = slug(str(chosen["name"])) + self._width_suffix + self._data_suffix(noise)
        if values != default:
            name = f"{name}-{tag}"
        return self._add(name, values, self.seed, noise)

    def _student(
        self,
        method: Mapping[str, Any],
        teachers: Sequence[str | Mapping[str, Any]],
        noise: float | None,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        # With the value of every option, so that an option given at its default changes nothing.
        complete = make_method_config({**method, **options})
        roles = build_method(complete.name, **complete.options).roles
        specs: list[dict[str, Any]] = []
        if "robust" in roles:
            specs += [
                {"spec": f"run:{self.folder / each}", "role": "robust"} if isinstance(each, str) else dict(each)
                for each in teachers
            ]
        if "natural" in roles:
            natural = self.teacher(share=0, noise=noise)
            specs.append({"spec": f"run:{self.folder / natural}@best", "role": "natural"})
        optim = dict(self.recipe["optim"])
        if method["name"] in SWA_START:
            optim["swa"] = SWA_START[method["name"]]
        if optim["ema"] is None:
            optim["ema"] = EMA_DECAY.get(method["name"])
        return {**self.recipe, "method": complete.model_dump(mode="json"), "teachers": specs, "optim": optim}

    def mixing_option(self) -> str:
        """Return the name of the method's option that weighs the teacher against the label.

        Raises:
            ConfigError: the students' method has no such option.
        """
        options = method_options(self.method)
        for name in ("mix", "alpha"):
            if name in options and (name == "mix" or self.method == "akd"):
                return name
        raise ConfigError(f"method {self.method} does not mix teacher and label: use akd, ard, rslad or iad")

    def _data_suffix(self, noise: float | None) -> str:
        """Return the part of a run's name for its label noise and the fold that it leaves out."""
        suffix = "" if noise is None or noise == self.recipe["data"]["label_noise"] else f"-noise-{noise:g}"
        if self._fold is not None:
            suffix += f"-{self.recipe['data']['folds']}-folds-without-{self._fold}"
        return suffix

    def _add(self, name: str, values: Mapping[str, Any], seed: int, noise: float | None) -> str:
        data = {**values["data"], "split_seed": self.seed}
        if noise is not None:
            data["label_noise"] = noise
        if self._fold is not None:
            seed += _SEEDS_A_FOLD * (self._fold + 1)
        config = make_config({**values, "data": data, "seed": seed})
        if self.configs.setdefault(name, config) != config:
            raise ConfigError(f"two runs of the study are called {name}: give each its own tag")
        return name


def _scaled(group: Mapping[str, Any], keys: Sequence[str], share: float) -> dict[str, Any]:
    """Multiply the values of some keys by `share`; None stays None."""
    return {**group, **{key: group[key] * share for key in keys if group[key] is not None}}
