"""The whole configuration of a run: frozen, bounded, unknown keys refused; feeding it back repeats the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from robustill.config.settings import Settings, check_kinds, one_line
from robustill.core.errors import ConfigError, did_you_mean
from robustill.data import DATASETS, Augmentation
from robustill.data.extra import own_images
from robustill.methods import Method, build_method, method_class, method_options
from robustill.models import MODELS
from robustill.threat import Threat, parse_eps

Radius = Annotated[float, BeforeValidator(parse_eps), Field(ge=0)]
"""A number, or a fraction such as "8/255"."""


class DataConfig(Settings):
    """The images, and which of them are held out."""

    name: str = Field("digits", description="a data set of `robustill list`")
    root: Path | None = Field(None, description="where its files are")
    image_size: int | None = Field(None, ge=1, description="resize to this many pixels")
    num_classes: int | None = Field(None, ge=2, description="expected number of classes, where the set does not fix it")
    train_size: int | None = Field(None, ge=1, description="a class-balanced part of the training images; null: all")
    folds: int | None = Field(
        None, ge=2, description="parts of equal size into which the training part is drawn at random; null: one"
    )
    fold: int | None = Field(
        None,
        ge=0,
        description="number of the fold that is not trained on; from `folds` on, of another random partition",
    )
    validation: float = Field(0.1, gt=0, description="held out of the training images: a share below 1, or a count")
    augmentation: tuple[str | dict[str, dict[str, Any]], ...] = Field(
        (), description="names, or {name: {option: value}}"
    )
    cutmix: float = Field(
        0.0, ge=0, le=1, description="share of the training images that get a rectangle of another, and of its label"
    )
    extra: Path | None = Field(
        None,
        description="more training images, read where they lie: an .npz that is not compressed, or a folder of .npy",
    )
    extra_share: float = Field(0.7, gt=0, lt=1, description="of every batch that are extra images")
    label_noise: float = Field(
        0.0, ge=0, lt=1, description="share of the training labels flipped to another class, those of `extra` aside"
    )
    split_seed: int = Field(
        0, gt=-(2**64), lt=2**64, description="of the held-out part, the training part and the label noise"
    )
    download: bool = Field(False, description="fetch the files from their official address if they are missing")

    @model_validator(mode="after")
    def _possible(self) -> DataConfig:
        if self.name not in DATASETS:
            raise ValueError(f"data set {self.name!r} is unknown: {did_you_mean(self.name, DATASETS)}")
        if self.validation >= 1 and self.validation != int(self.validation):
            raise ValueError(f"validation is {self.validation:g}, expected a share below 1 or a whole number of images")
        if (self.folds is None) != (self.fold is None):
            raise ValueError(f"folds is {self.folds} and fold is {self.fold}: give both of them or neither")
        for item in self.augmentation:
            if not isinstance(item, str) and len(item) != 1:
                raise ValueError(f"augmentation {item}: expected a name, or one {{name: {{option: value}}}}")
        Augmentation(self.augmentations)
        return self

    @property
    def augmentations(self) -> list[str | tuple[str, dict[str, Any]]]:
        """As `Augmentation` takes them."""
        return [item if isinstance(item, str) else next(iter(item.items())) for item in self.augmentation]


class ModelConfig(BaseModel):
    """A network by name; every other key is an option of that network."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = Field("resnet8", description="a model of `robustill list`, or my_pkg.my_mod:build")
    mean: tuple[float, ...] | None = Field(None, description="of the images, a channel; null: the data set's")
    std: tuple[float, ...] | None = Field(None, description="of the images, a channel; null: the data set's")

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, values: Any) -> Any:
        """Every option written out, so that a stored run does not change with a later default."""
        name = values.get("name", "resnet8") if isinstance(values, Mapping) else None
        if not isinstance(name, str) or ":" in name:
            return values
        if name not in MODELS:
            raise ValueError(f"model {name!r} is unknown: {did_you_mean(name, MODELS)}")
        known = MODELS[name].options
        for key in values.keys() - known.keys() - cls.model_fields.keys():
            hint = did_you_mean(str(key), known) if known else "it has no options"
            raise ValueError(f"model {name} has no option {key!r}: {hint}")
        check_kinds(f"model {name}", known, values)
        return {**known, **values}

    @property
    def options(self) -> dict[str, Any]:
        """The network's own options."""
        return dict(self.model_extra or {})


class TeacherConfig(Settings):
    """One teacher; several of one role form an ensemble."""

    @model_validator(mode="before")
    @classmethod
    def _spec_alone(cls, values: Any) -> Any:
        return {"spec": values} if isinstance(values, str) else values

    spec: str = Field(
        description="run:DIR@best, run:DIR@last, run:DIR@epoch-20, a file of weights, robustbench:ID, timm:NAME, "
        "hf:FOLDER, a .pt2 file, or my_pkg.my_mod:build"
    )
    role: Literal["robust", "natural"] = "robust"
    weight: float = Field(1.0, ge=0, description="in the ensemble")
    model: ModelConfig | None = Field(None, description="the network whose weights a file holds")
    sha256: str | None = Field(None, description="of its weights, checked before they are read; null: only recorded")
    image_size: int | None = Field(None, ge=1, description="the size it wants: a resize is its first layer; null: ours")
    download: bool = Field(False, description="timm and the hub may fetch what is not here")

    @field_validator("sha256")
    @classmethod
    def _is_sha256(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"{value!r}, expected 64 hexadecimal digits in lower case")
        return value


class ThreatConfig(Settings):
    """The images the adversary may choose."""

    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: Radius = Field(8 / 255, description="in units of [0,1], or a fraction such as 8/255")

    @model_validator(mode="after")
    def _possible(self) -> ThreatConfig:
        self.build()
        return self

    def build(self) -> Threat:
        """The threat itself."""
        return Threat(norm=self.norm, eps=self.eps)


class AttackConfig(Settings):
    """The attack of the training step."""

    steps: int = Field(10, ge=0)
    step_size: Radius = Field(2 / 255, description="in units of [0,1], or a fraction such as 2/255")
    start: Literal["uniform", "gaussian", "clean"] | None = Field(None, description="null: the method's own")
    batchnorm: Literal["eval", "train"] = Field("eval", description="mode of the student during the attack")
    first_eps: Radius | None = Field(None, description="radius in the first epoch, that grows to threat.eps; null: no")
    first_steps: int | None = Field(None, ge=0, description="steps in the first epoch, that grow to steps; null: no")
    grow: float = Field(1.0, gt=0, le=1, description="share of the epochs over which first_eps and first_steps grow")


class MethodConfig(BaseModel):
    """A method by name; every other key is an option of that method, as published where it is left out."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = Field("at", description="a method of `robustill list`, or my_pkg.my_mod:MyMethod")

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, values: Any) -> Any:
        """Every option written out, so that a stored run does not change with a later default."""
        name = values.get("name", "at") if isinstance(values, Mapping) else None
        if not isinstance(name, str):
            return values
        defaults = {key: each.default for key, each in method_options(name).items() if each.default is not each.empty}
        check_kinds(f"method {name}", defaults, values)
        return {**defaults, **values}

    @model_validator(mode="after")
    def _possible(self) -> MethodConfig:
        build_method(self.name, **self.options)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.model_extra or {})


class OptimConfig(Settings):
    """Optimizer, learning rate and length of the run."""

    name: Literal["sgd", "adamw"] = "sgd"
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(0.1, gt=0, description="the peak")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(False, description="of sgd")
    weight_decay: float = Field(5e-4, ge=0)
    decay_all: bool = Field(True, description="weight decay on BatchNorm and biases too")
    schedule: Literal["onecycle", "cosine", "multistep", "constant"] = "onecycle"
    warmup: float = Field(0.4, ge=0, lt=1, description="share of the steps on which the rate rises linearly from 0")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), description="of multistep, as shares of the steps"
    )
    decay: float = Field(0.1, gt=0, le=1, description="of multistep, at each milestone")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the label that the student's loss spreads evenly over all classes"
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="parts of the student that are not trained, such as [conv1, layer1], BatchNorm included",
    )
    accumulate: int = Field(1, ge=1, description="parts of a batch whose gradients are added up, to save memory")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of a step's gradient")
    rollbacks: int = Field(
        0,
        ge=0,
        description="how often a run whose loss is no longer finite, or whose robust accuracy collapses, goes back to "
        "its last good epoch with half the learning rate; then it stops, or goes on with a warning",
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an exponential moving average of the weights")
    swa: float | None = Field(
        None, ge=0, lt=1, description="stochastic weight averaging of the epochs after this share of them"
    )
    awp: float | None = Field(
        None, gt=0, lt=1, description="adversarial weight perturbation, relative to each weight's length, e.g. 0.005"
    )

    @model_validator(mode="after")
    def _possible(self) -> OptimConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class ValidationConfig(Settings):
    """How the held-out part chooses `best`."""

    every: int = Field(1, ge=1, description="epochs between two looks; the last epoch always gets one")
    steps: int = Field(10, ge=1, description="of its PGD attack")
    step_size: Radius | None = Field(None, description="null: a quarter of eps")
    patience: int | None = Field(None, ge=1, description="stop after this many looks without a new best; null: never")

    def length(self, eps: float) -> float:
        """Of one step, for this radius of the threat."""
        return eps / 4 if self.step_size is None else self.step_size


class DynamicsConfig(Settings):
    """What is kept of every training image in every epoch."""

    record: bool = Field(True, description="keep loss, margin and correctness of each, in dynamics/ of the run")
    clean_every: int = Field(
        5, ge=1, description="epochs between two passes over clean images, where the method makes none of its own"
    )


# Settings of earlier versions that change no number: a stored configuration may still have them, and they are ignored.
_RETIRED_COMPUTE = frozenset({"cuda_graphs"})


class ComputeConfig(Settings):
    """Where and in which precision."""

    device: str = "auto"
    threads: int | None = Field(None, ge=1, le=1024, description="of the CPU; null: as many as there are")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the networks; losses are float32 always")
    light_attack: bool = Field(
        True, description="attack a copy of the student with BatchNorm folded: the same function, sooner"
    )
    recompute: bool = Field(
        False,
        description="activation checkpointing, for students too large for the memory: blocks keep their input alone "
        "and are computed again on the way back",
    )
    keep_memory: bool = Field(
        True, description="with glibc, keep freed memory for the next step: up to a quarter of its time on a CPU"
    )
    teacher_cache: Path | None = Field(
        None,
        description="folder for what teachers say of clean images, shared by runs with the same teachers; null: none",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_retired(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if key not in _RETIRED_COMPUTE}


class Config(Settings):
    """One training run.

    Example:
        >>> Config(method={"name": "trades", "beta": 5}, threat={"eps": "4/255"}).threat.eps == 4 / 255
        True
    """

    seed: int = Field(0, ge=0, lt=2**64, description="of the weights, the order, the augmentation and the attack")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    initial: str | None = Field(
        None, description="whose weights the student begins with, e.g. run:DIR@best or a file; null: random ones"
    )
    method: MethodConfig = MethodConfig()
    teachers: tuple[TeacherConfig, ...] = ()
    teacher_mean: Literal["probabilities", "logits"] = Field("probabilities", description="what an ensemble averages")
    threat: ThreatConfig = ThreatConfig()
    attack: AttackConfig = AttackConfig()
    optim: OptimConfig = OptimConfig()
    validation: ValidationConfig = ValidationConfig()
    keep_every: int | None = Field(
        None, ge=1, description="keep the checkpoint of every k-th epoch; null: best and last"
    )
    dynamics: DynamicsConfig = DynamicsConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _teachers_fit(self) -> Config:
        roles = method_class(self.method.name).roles
        given = {teacher.role for teacher in self.teachers}
        for role in sorted(set(roles) - given):
            raise ValueError(f"method {self.method.name} needs a teacher of role {role}: add one to `teachers`")
        for role in sorted(given - set(roles)):
            mend = f"give only those of role {' and '.join(roles)}" if roles else "remove it (--teachers [])"
            raise ValueError(f"method {self.method.name} has no use for a teacher of role {role}: {mend}")
        for role in given:
            if all(teacher.weight == 0 for teacher in self.teachers if teacher.role == role):
                raise ValueError(f"every teacher of role {role} has weight 0: give one of them a weight")
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> Config:
        for name, size in (("attack", self.attack.step_size), ("validation", self.validation.step_size)):
            if self.threat.norm == "linf" and size is not None and size > 1:
                raise ValueError(f"{name}.step_size is {size:g}, but images are in [0,1]: did you mean {size:g}/255?")
        for name, first, last in (
            ("eps", self.attack.first_eps, self.threat.eps),
            ("steps", self.attack.first_steps, self.attack.steps),
        ):
            if first is not None and first > last:
                raise ValueError(f"attack.first_{name} is {first:g}, expected at most the {last:g} that it grows to")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> Config:
        name = self.method.name
        # A method may be built on another one.
        parts = [each for each in build_method(name, **self.method.options).modules() if isinstance(each, Method)]
        if self.optim.accumulate > 1 and any(part.whole_batch for part in parts):
            raise ValueError(f"method {name} compares the images of a whole batch: optim.accumulate must be 1")
        if self.data.cutmix > 0 and any(part.single_label for part in parts):
            raise ValueError(f"method {name} is defined for images of one class: data.cutmix must be 0")
        if self.data.extra is not None:
            own_images(self.optim.batch_size, self.data.extra_share)
        return self


def make_config(values: Mapping[str, Any]) -> Config:
    """A Config from nested plain values.

    Raises:
        ConfigError: one line for the first thing that is wrong, with the nearest known key where a key is unknown.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(one_line(error, Config)) from None
