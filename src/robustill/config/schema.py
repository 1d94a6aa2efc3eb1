"""The configuration of a run: typed, frozen, complete, so that the same configuration repeats the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from robustill.config.settings import Settings, check_option_types, first_error_line, nearest_settings
from robustill.core.errors import ConfigError, did_you_mean
from robustill.core.user_code import explain_file, names_code
from robustill.data import DATASETS, Augmentation, is_dataset
from robustill.data.extra import own_images
from robustill.data.hub import is_hub_root, root_text
from robustill.data.images import MAX_IMAGE_SIZE
from robustill.methods import METHODS, Method, build_method, method_options
from robustill.methods.base import SELF
from robustill.models import MODELS
from robustill.threat import Norm, Threat, parse_eps

_SUFFIXES = ("pt", "pth", "ckpt", "safetensors", "pt2", "onnx", "tflite")
"""Of files of weights and programs, which are no names of networks."""

_RADIUS_SCHEMA = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^[0-9.eE+-]+(/[0-9.]+)?$"}]
}
Radius = Annotated[float, BeforeValidator(parse_eps), Field(ge=0), WithJsonSchema(_RADIUS_SCHEMA)]
"""A number, or a fraction such as "8/255"."""


class DataConfig(Settings):
    """The data set, and which of its training images are used for training and for validation."""

    name: str = Field("digits", description="a data set of `robustill list`, or my_pkg.my_mod:dataset")
    root: Path | None = Field(
        None, description="folder of its files; for parquet and webdataset also hf://datasets/OWNER/NAME"
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGE_SIZE,
        description="resize the images to this width and height in pixels; null: no resizing",
    )
    num_classes: int | None = Field(None, ge=2, description="number of classes, for data sets that do not fix it")
    image_column: str | None = Field(None, description="parquet: the column of the images; null: the only one")
    label_column: str | None = Field(
        None,
        description="parquet: the column of the labels; webdataset: their key in KEY.json; null: the usual names",
    )
    train_size: int | None = Field(
        None, ge=1, description="number of training images, drawn equally from the classes; null: all"
    )
    folds: int | None = Field(
        None, ge=2, description="number of random folds of equal size of the training images; null: no folds"
    )
    fold: int | None = Field(
        None,
        ge=0,
        description="number of the fold left out of training, from 0; `folds` and above: of further random partitions",
    )
    validation: float = Field(
        0.1,
        gt=0,
        description="size of the validation set, out of the training images: a share below 1, or a number",
    )
    augmentation: tuple[str | dict[str, dict[str, Any]], ...] = Field(
        (), description="augmentations: names, or {name: {option: value}}"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the training images in which CutMix replaces a rectangle by that of another",
    )
    extra: Path | None = Field(
        None,
        description="extra training images, mapped into memory: an uncompressed .npz file, or a folder of .npy files",
    )
    extra_share: float = Field(0.7, gt=0, lt=1, description="share of every batch that are extra images")
    label_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training labels flipped to another class; labels of `extra` are not flipped",
    )
    split_seed: int = Field(
        0,
        gt=-(2**64),
        lt=2**64,
        description="seed of the validation set, of the training images and of the label noise",
    )
    download: bool = Field(False, description="download missing files from their official address")

    @model_validator(mode="after")
    def _check_data(self) -> DataConfig:
        if not is_dataset(self.name):
            raise ValueError(_unknown_data(self.name))
        if self.validation >= 1 and self.validation != int(self.validation):
            raise ValueError(f"validation is {self.validation:g}, expected a share below 1 or a whole number of images")
        if (self.folds is None) != (self.fold is None):
            raise ValueError(f"folds is {self.folds} and fold is {self.fold}: give both of them or neither")
        for item in self.augmentation:
            if not isinstance(item, str) and len(item) != 1:
                raise ValueError(f"augmentation {item}: expected a name, or one {{name: {{option: value}}}}")
        Augmentation(self.augmentations)
        return self

    @field_serializer("root")
    def _write_root(self, root: Path | None) -> str | None:
        return None if root is None else root_text(root)

    @property
    def augmentations(self) -> list[str | tuple[str, dict[str, Any]]]:
        """The augmentations as `Augmentation` takes them."""
        return [item if isinstance(item, str) else next(iter(item.items())) for item in self.augmentation]


def _unknown_data(name: str) -> str:
    """Return the error line for a name that is no data set's, or for a path in its place."""
    if (advice := explain_file(name)) is not None:
        return f"data set {name} {advice}"
    if "/" not in name and not name.endswith(".npz"):
        return f"data set {name!r} is unknown: {did_you_mean(name, DATASETS)}"
    if is_hub_root(Path(name)):
        return f"{name} is no data set: expected --data parquet --data.root {root_text(Path(name))}, or webdataset"
    return (
        f"{name} is no data set: expected a name, or --data PATH of a folder or an .npz file that exists (in a file: "
        "the path as data.root, and folder, npz, parquet or webdataset as data.name)"
    )


class ModelConfig(BaseModel):
    """A network by name; every other key is an option of that network."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = Field(
        "resnet8", description="a model of `robustill list`, timm:NAME, torchvision:NAME, or my_pkg.my_mod:build"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="mean of each channel; null: the training images', and 0 for a file of weights"
    )
    std: tuple[float, ...] | None = Field(
        None, description="standard deviation of each channel; null: the training images', and 1 for a file of weights"
    )
    quantize: Literal["int8"] | None = Field(
        None, description="int8: train with weights and activations rounded as in an int8 file; null: not rounded"
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _split_text(cls, value: Any) -> Any:
        """Take ".49, .48, .45", as a command line without brackets gives it, and one number for grey images."""
        if isinstance(value, str):
            return [part.strip() for part in value.strip("()[] ").split(",")]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return [value]
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_in_options(cls, values: Any) -> Any:
        """Add the default of every option, so that a later default does not change a stored run."""
        name = values.get("name", "resnet8") if isinstance(values, Mapping) else None
        if not isinstance(name, str) or ":" in name:
            return values
        if name not in MODELS:
            raise ValueError(f"model {name!r} is unknown: {_model_hint(name)}")
        known = MODELS[name].options
        for key in values.keys() - known.keys() - cls.model_fields.keys():
            hint = did_you_mean(str(key), known) if known else "it has no options"
            raise ValueError(f"model {name} has no option {key!r}: {hint}")
        check_option_types(f"model {name}", known, values)
        return {**known, **values}

    @property
    def options(self) -> dict[str, Any]:
        """The network's own options, and whether it is quantised."""
        rounding = {} if self.quantize is None else {"quantize": self.quantize}
        return {**(self.model_extra or {}), **rounding}


def _model_hint(name: str) -> str:
    """Return the end of an error message about an unknown network: what the name may mean."""
    module, dot, function = name.rpartition(".")
    if function in _SUFFIXES:
        return "give the name of the network as --model, and a file of its weights as --initial or --weights"
    if not dot or not function:
        return did_you_mean(name, MODELS)
    return f"an import path is written {module.replace('/', '.')}:{'FUNCTION' if function == 'py' else function}"


class TeacherConfig(Settings):
    """One teacher; several teachers of one role form an ensemble."""

    @model_validator(mode="before")
    @classmethod
    def _wrap_spec(cls, values: Any) -> Any:
        return {"spec": values} if isinstance(values, str) else values

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe what `_wrap_spec` accepts: a specification alone, or one with settings."""
        return {"anyOf": [{"type": "string"}, handler(core_schema)]}

    spec: str = Field(
        description="run:DIR@best, run:DIR@last, run:DIR@epoch-20, a file of weights, robustbench:ID, timm:NAME, "
        "torchvision:NAME=FILE, hf:FOLDER, a .pt2 file, or my_pkg.my_mod:build"
    )
    role: Literal["robust", "natural"] = "robust"
    weight: float = Field(1.0, ge=0, description="weight in the ensemble of its role")
    model: ModelConfig | None = Field(None, description="the network that a file of weights is for")
    sha256: str | None = Field(
        None, description="SHA-256 of its weights, checked before they are read; null: only recorded"
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGE_SIZE,
        description="input size of the teacher, whose images are resized to it; null: that of the data",
    )
    download: bool = Field(False, description="let timm and the hub download what is missing")

    @field_validator("sha256")
    @classmethod
    def _check_sha256(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"{value!r}, expected 64 hexadecimal digits in lower case")
        return value


class ThreatConfig(Settings):
    """The threat: the images that the adversary may choose."""

    norm: Norm = "linf"
    eps: Radius = Field(8 / 255, description="radius, in units of [0,1] or as a fraction such as 8/255")

    @model_validator(mode="after")
    def _check_threat(self) -> ThreatConfig:
        self.build()
        return self

    def build(self) -> Threat:
        """Return the threat that these settings describe."""
        return Threat(norm=self.norm, eps=self.eps)


class AttackConfig(Settings):
    """The attack of the training step."""

    steps: int = Field(10, ge=0, description="number of steps")
    step_size: Radius = Field(2 / 255, description="in units of [0,1], or a fraction such as 2/255")
    start: Literal["uniform", "gaussian", "clean"] | None = Field(
        None, description="starting point: uniform, gaussian or clean; null: that of the method"
    )
    noise: float | None = Field(
        None,
        ge=0,
        description="start from uniform noise of so many radii, and project no step to the radius (N-FGSM: 2, with one "
        "step of the radius); null: projected",
    )
    batchnorm: Literal["eval", "train"] = Field("eval", description="mode of the student during the attack")
    guard: int | None = Field(
        None,
        ge=1,
        description="steps between two checks for catastrophic overfitting to one or two steps, which PGD-3 answers up "
        "to the next check; null: none",
    )
    first_eps: Radius | None = Field(
        None, description="radius in the first epoch, growing to threat.eps; null: constant"
    )
    first_steps: int | None = Field(
        None, ge=0, description="steps in the first epoch, growing to `steps`; null: constant"
    )
    grow: float = Field(1.0, gt=0, le=1, description="share of the epochs over which first_eps and first_steps grow")


class MethodConfig(BaseModel):
    """The method by name; every other key is an option of that method, whose default is the published value."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = Field("at", description="a method of `robustill list`, or my_pkg.my_mod:MyMethod")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_options(cls, values: Any) -> Any:
        """Add the default of every option, so that a later default does not change a stored run."""
        name = values.get("name", "at") if isinstance(values, Mapping) else None
        if not isinstance(name, str):
            return values
        defaults = {key: each.default for key, each in method_options(name).items() if each.default is not each.empty}
        check_option_types(f"method {name}", defaults, values)
        return {**defaults, **values}

    @model_validator(mode="after")
    def _check_method(self) -> MethodConfig:
        build_method(self.name, **self.options)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.model_extra or {})

    @property
    def changed_options(self) -> dict[str, Any]:
        """The options that differ from their defaults, in the order in which the method takes them."""
        defaults = {key: each.default for key, each in method_options(self.name).items()}
        return {key: self.options[key] for key in defaults if self.options[key] != defaults[key]}


class OptimConfig(Settings):
    """The optimizer, the learning rate and the length of the run."""

    name: str = Field("sgd", description="sgd, adamw, my_pkg.my_mod:MyOptimizer, or timm:NAME")
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(0.1, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd, and of those of timm")
    nesterov: bool = Field(False, description="Nesterov momentum for sgd")
    weight_decay: float = Field(5e-4, ge=0)
    decay_all: bool = Field(True, description="apply weight decay to BatchNorm and biases, too")
    schedule: Literal["onecycle", "cosine", "multistep", "constant"] = "onecycle"
    warmup: float = Field(
        0.4, ge=0, lt=1, description="share of the steps in which the learning rate rises linearly from 0"
    )
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), description="milestones of multistep, as shares of the steps"
    )
    decay: float = Field(0.1, gt=0, le=1, description="factor of multistep at each milestone")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the label that is spread evenly over all classes"
    )
    freeze: tuple[str, ...] = Field(
        (),
        description="parts of the student that are not trained, with their BatchNorm, such as [conv1, layer1]",
    )
    accumulate: int = Field(
        1, ge=1, description="number of parts of a batch whose gradients are accumulated, to save memory"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient of a step; null: not clipped")
    rollbacks: int = Field(
        0,
        ge=0,
        description="how often a run whose loss is not finite, or whose robust accuracy collapses, returns to its last "
        "good epoch with half the learning rate; after that it stops, or continues with a warning",
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an exponential moving average of the weights; null: none"
    )
    swa: float | None = Field(
        None, ge=0, lt=1, description="share of the epochs after which stochastic weight averaging begins; null: none"
    )
    awp: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="adversarial weight perturbation: its size relative to the norm of a weight, as 0.005; null: none",
    )

    @model_validator(mode="after")
    def _check_optim(self) -> OptimConfig:
        own = ("sgd", "adamw")
        if self.name not in own and not self.name.startswith("timm:") and not names_code(self.name):
            raise ValueError(
                f"optimizer {self.name!r} is unknown: expected {', '.join(own)}, my_pkg.my_mod:MyOptimizer or timm:NAME"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class ValidationConfig(Settings):
    """The validation during training, which chooses the `best` epoch."""

    every: int = Field(1, ge=1, description="epochs between two validations; the last epoch is always validated")
    steps: int = Field(10, ge=1, description="steps of its PGD attack")
    step_size: Radius | None = Field(None, description="step size of its PGD attack; null: a quarter of eps")
    patience: int | None = Field(
        None, ge=1, description="stop after so many validations without a new best; null: never"
    )

    def length(self, eps: float) -> float:
        """Return the step size for a radius of the threat."""
        return eps / 4 if self.step_size is None else self.step_size


class DynamicsConfig(Settings):
    """The training dynamics: what is recorded of every training image in every epoch."""

    record: bool = Field(True, description="record loss, margin and correctness of each image in RUN/dynamics")
    clean_every: int = Field(
        5, ge=1, description="epochs between two passes over the clean images, for methods that make none"
    )


class ComputeConfig(Settings):
    """The device, the precision, and trade-offs between time and memory."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps or xpu; auto: the first GPU, or the CPU")
    threads: int | None = Field(None, ge=1, le=1024, description="threads of the CPU; null: torch's default")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="precision of the networks; losses are always in float32"
    )
    light_attack: bool = Field(
        True, description="attack a copy of the student with BatchNorm folded: the same function in less time"
    )
    recompute: bool = Field(
        False,
        description="activation checkpointing, to save memory: blocks keep only their input and are computed again "
        "in the backward pass",
    )
    keep_memory: bool = Field(
        True, description="with glibc, keep freed memory for the next step: saves up to a quarter of its time on a CPU"
    )
    teacher_cache: Path | None = Field(
        None,
        description="folder for the logits of teachers on clean images, shared by runs; null: no cache",
    )


class Config(Settings):
    """The configuration of one training run.

    Raises:
        ConfigError: a key is unknown or a value is impossible; the message is one line about the first such key.

    Example:
        >>> Config(method={"name": "trades", "beta": 5}, threat={"eps": "4/255"}).threat.eps == 4 / 255
        True
    """

    if not TYPE_CHECKING:
        # Type checkers take the constructor of the fields below, with their types.
        def __init__(self, /, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(first_error_line(error, Config, _option_settings())) from None

    seed: int = Field(0, ge=0, lt=2**64, description="seed of the weights, the order, the augmentation and the attack")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    initial: str | None = Field(
        None, description="initial weights of the student, e.g. run:DIR@best or a file; null: random"
    )
    method: MethodConfig = MethodConfig()
    teachers: tuple[TeacherConfig, ...] = ()
    teacher_mean: Literal["probabilities", "logits"] = Field("probabilities", description="what an ensemble averages")
    threat: ThreatConfig = ThreatConfig()
    attack: AttackConfig = AttackConfig()
    optim: OptimConfig = OptimConfig()
    validation: ValidationConfig = ValidationConfig()
    keep_every: int | None = Field(
        None, ge=1, description="keep the checkpoint of every k-th epoch, too; null: only the best and the last"
    )
    dynamics: DynamicsConfig = DynamicsConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _check_teachers(self) -> Config:
        # A method's teachers may depend on its options.
        roles = build_method(self.method.name, **self.method.options).roles
        needed = [role for role in roles if role != SELF]
        given = {teacher.role for teacher in self.teachers}
        if SELF in roles and self.optim.ema is None:
            raise ValueError(
                f"method {self.method.name} learns from the average of the student's own weights, and optim.ema is "
                "null: give the decay of the average, such as --optim.ema 0.995"
            )
        for role in sorted(set(needed) - given):
            raise ValueError(f"method {self.method.name} needs a teacher of role {role}: add one to `teachers`")
        for role in sorted(given - set(needed)):
            mend = f"give only those of role {' and '.join(needed)}" if needed else "remove it (--teachers [])"
            raise ValueError(f"method {self.method.name} has no use for a teacher of role {role}: {mend}")
        for role in given:
            if all(teacher.weight == 0 for teacher in self.teachers if teacher.role == role):
                raise ValueError(f"every teacher of role {role} has weight 0: give one of them a weight")
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> Config:
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
    def _check_noise(self) -> Config:
        attack = self.attack
        if attack.noise is None:
            return self
        for key, is_meaningless in (("start", attack.start is not None), ("first_eps", attack.first_eps is not None)):
            if is_meaningless:
                raise ValueError(f"attack.noise replaces attack.{key}: leave one of the two out")
        if self.threat.norm == "l1":
            raise ValueError("attack.noise is for linf and l2, since the steps of l1 need the projection: leave it out")
        return self

    @model_validator(mode="after")
    def _check_method_and_data(self) -> Config:
        name = self.method.name
        # A method may contain another one.
        modules = build_method(name, **self.method.options).modules()
        parts = [module for module in modules if isinstance(module, Method)]
        if self.optim.accumulate > 1 and any(part.whole_batch for part in parts):
            raise ValueError(f"method {name} compares the images of a whole batch: optim.accumulate must be 1")
        if self.data.cutmix > 0 and any(part.single_label for part in parts):
            raise ValueError(f"method {name} is defined for images of one class: data.cutmix must be 0")
        if self.data.extra is not None:
            own_images(self.optim.batch_size, self.data.extra_share)
        return self


def _option_settings() -> list[str]:
    """Return the options of all networks and methods, which are settings such as "model.width" and "method.alpha"."""
    options = [f"model.{option}" for entry in MODELS.values() for option in entry.options]
    options += [f"method.{option}" for name in METHODS for option in method_options(name)]
    return list(dict.fromkeys(options))


def setting_hint(key: str, used: Sequence[str]) -> str:
    """Return the end of an error message about a setting that has no effect: the one that is meant, or all groups.

    Args:
        key: the setting.
        used: the groups of settings that have an effect.

    Example:
        >>> setting_hint("eps", ["data", "threat"]), setting_hint("seed", ["data", "threat"])
        ('did you mean --threat.eps?', 'expected settings of data, threat only')
        >>> setting_hint("width", ["model"])
        'did you mean --model.width?'
    """
    near = [] if key in Config.model_fields else nearest_settings(key, Config, used, options=_option_settings())
    near = [each for each in near if each.partition(".")[0] in used]
    if near:
        return f"did you mean {' or '.join(f'--{each}' for each in near)}?"
    return f"expected settings of {', '.join(used)} only"


def make_config(values: Mapping[str, Any]) -> Config:
    """Build a Config from nested plain values.

    Raises:
        ConfigError: a key is unknown or a value is impossible; the message is one line about the first such key.
    """
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"{key} is {key!r}, expected a word as the key")
    return Config(**values)


def make_method_config(values: Mapping[str, Any]) -> MethodConfig:
    """Build a MethodConfig from plain values: a name, and options.

    Raises:
        ConfigError: an option is unknown or its value is impossible; the message is one line about the first such key.
    """
    try:
        return MethodConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_error_line(error, MethodConfig)) from None
