"""Recipes: named functions that return a configuration, as a starting point for overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustill.config.files import load_config
from robustill.config.overrides import apply_overrides
from robustill.config.schema import Config, make_config
from robustill.config.settings import short_repr
from robustill.core.errors import ConfigError, did_you_mean
from robustill.core.user_code import TrustCode
from robustill.core.validation import check_texts

_CIFAR: dict[str, Any] = {"name": "cifar10", "root": "data", "augmentation": ["crop", "flip"], "validation": 0.02}
_ONE_CYCLE: dict[str, Any] = {"learning_rate": 0.21, "weight_decay": 5e-4, "batch_size": 256, "epochs": 50}
_PGD: dict[str, Any] = {"steps": 7, "step_size": 2 / 255}
# Chosen on validation images (benchmarks/LOG.md): few images, a fifth of them with a wrong label, long training. A
# PGD-AT student overfits to them, and a teacher helps most against overfitting; with clean labels it hardly overfits.
_DIGITS: dict[str, Any] = {"name": "digits", "train_size": 250, "validation": 500, "label_noise": 0.2}


def digits_at() -> Config:
    """PGD-AT of a ResNet-8 on 250 digits of which a fifth have wrong labels, l∞ 0.15: the quickstart's baseline."""
    return make_config(
        {
            "data": _DIGITS,
            "model": {"name": "resnet8", "width": 16},
            "method": {"name": "at"},
            "threat": {"eps": 0.15},
            "attack": {"steps": 10, "step_size": 0.0375},
            "optim": {"epochs": 60, "batch_size": 64, "learning_rate": 0.1},
            "validation": {"every": 2},
            # Images of 8×8 pixels hardly use a second core.
            "compute": {"threads": 1},
        }
    )


def digits_teacher() -> Config:
    """A teacher of the quickstart: weakly adversarially trained (three quarters of the radius) and early-stopped."""
    return make_config(
        {
            **digits_at().model_dump(mode="json"),
            "threat": {"eps": 0.1125},
            "attack": {"steps": 10, "step_size": 0.028125},
            "validation": {"every": 2, "patience": 8},
        }
    )


def digits_akd() -> Config:
    """AKD of the quickstart's student from the three teachers that `robustill quickstart` trains."""
    return make_config(
        {
            **digits_at().model_dump(mode="json"),
            "method": {"name": "akd", "alpha": 0.8},
            "teachers": [f"run:runs/quickstart/teacher-{number}@best" for number in range(3)],
        }
    )


def fashion_mnist_at() -> Config:
    """PGD-AT of a CNN-A on 500 images of Fashion-MNIST of which a fifth have wrong labels, l∞ 0.1: for studies."""
    return make_config(
        {
            "data": {"name": "fashion_mnist", "root": "data", "train_size": 500, "validation": 500, "label_noise": 0.2},
            "model": {"name": "cnn_a"},
            "method": {"name": "at"},
            "threat": {"eps": 0.1},
            "attack": {"steps": 10, "step_size": 0.025},
            "optim": {"epochs": 60, "batch_size": 32, "learning_rate": 0.1},
            "validation": {"every": 2},
            "compute": {"threads": 1},
        }
    )


def fashion_mnist_full_at() -> Config:
    """PGD-AT of a CNN-A on all of Fashion-MNIST, l∞ 0.1, three minutes on one core."""
    return make_config(
        {
            "data": {"name": "fashion_mnist", "root": "data", "validation": 3000},
            "model": {"name": "cnn_a"},
            "method": {"name": "at"},
            "threat": {"eps": 0.1},
            "attack": {"steps": 3, "step_size": 2.5 / 3 * 0.1, "first_eps": 0, "grow": 0.25},
            "optim": {"epochs": 10, "batch_size": 128, "learning_rate": 0.1},
            "validation": {"every": 2, "steps": 5},
            "compute": {"threads": 1, "precision": "bf16"},
        }
    )


# Chosen on validation images: with flips as the only augmentation, a student of this size overfits within 40 epochs;
# if the radius does not grow from 0, its accuracy often stays at chance.
def cifar10_part_at() -> Config:
    """PGD-AT of a ResNet-2B2 on 5,000 images of CIFAR-10, l∞ 8/255, two minutes on one core: for studies."""
    return make_config(
        {
            "data": {**_CIFAR, "train_size": 5000, "validation": 1000, "augmentation": ["flip"]},
            "model": {"name": "resnet_2b2"},
            "method": {"name": "at"},
            "threat": {"eps": 8 / 255},
            "attack": {"steps": 3, "step_size": 2.5 / 3 * 8 / 255, "first_eps": 0, "grow": 0.25},
            "optim": {"epochs": 40, "batch_size": 128, "learning_rate": 0.1},
            "validation": {"every": 2, "steps": 5},
            "compute": {"threads": 1, "precision": "bf16"},
        }
    )


# Found by benchmarks/studies/recipe_search.py on held-out images; docs/results/recipe.md has its test.
def cifar10_part_teacher() -> Config:
    """PGD-AT of a ResNet-2B2 on 5,000 images of CIFAR-10 with crops and EMA: a teacher, and a stronger baseline."""
    values = cifar10_part_at().model_dump(mode="json")
    return make_config(
        {
            **values,
            "data": {**values["data"], "augmentation": ["crop", "flip"]},
            "optim": {**values["optim"], "ema": 0.99},
        }
    )


def cifar10_part_akd() -> Config:
    """AKD of a ResNet-2B2 on 5,000 images of CIFAR-10 from runs/teacher-0 to 2: the best distillation of a search."""
    return make_config(
        {
            **cifar10_part_teacher().model_dump(mode="json"),
            "method": {"name": "akd", "alpha": 0.5},
            "teachers": [f"run:runs/teacher-{number}@best-ema" for number in range(3)],
        }
    )


# Rice et al. 2020 overfit with this schedule, batch, learning rate, weight decay and augmentation (their 200 epochs are
# 100 here, and 10 attack steps are 3). Whether this network does has not been tried yet.
def cifar10_quarter_at() -> Config:
    """PGD-AT of a ResNet-18 of a quarter of its width on 10,000 images of CIFAR-10, l∞ 8/255: for studies."""
    return make_config(
        {
            "data": {**_CIFAR, "train_size": 10000, "validation": 1000},
            "model": {"name": "resnet18", "width": 16},
            "method": {"name": "at"},
            "threat": {"eps": 8 / 255},
            "attack": {"steps": 3, "step_size": 2.5 / 3 * 8 / 255},
            "optim": {"epochs": 100, "batch_size": 128, "learning_rate": 0.1, "schedule": "multistep", "warmup": 0.0},
            "validation": {"every": 2, "steps": 5},
            "compute": {"threads": 1, "precision": "bf16"},
        }
    )


# Nothing is known of the images, so each choice is one that rarely fails: a radius that grows from 0, weights that are
# averaged, and a fifth of the training images to choose the epoch by, of which even a folder of 200 images has 32.
def images_at() -> Config:
    """PGD-AT of a ResNet-8 (width 32) on your own images, l∞ 4/255: --data.root DIR --data.image_size 64."""
    return make_config(
        {
            "data": {"name": "folder", "augmentation": ["crop", "flip"], "validation": 0.2},
            "model": {"name": "resnet8", "width": 32},
            "method": {"name": "at"},
            "threat": {"eps": 4 / 255},
            "attack": {"steps": 3, "step_size": 2.5 / 3 * 4 / 255, "first_eps": 0, "grow": 0.25},
            "optim": {"epochs": 60, "batch_size": 64, "learning_rate": 0.1, "ema": 0.99},
            "validation": {"every": 2},
            "compute": {"precision": "bf16"},
        }
    )


def images_akd() -> Config:
    """AKD of the student of images_at from runs/teacher, a run of images_at with, for instance, --model resnet18."""
    return make_config(
        {
            **images_at().model_dump(mode="json"),
            "method": {"name": "akd", "alpha": 0.5},
            "teachers": ["run:runs/teacher@best-ema"],
        }
    )


def cifar10_at_resnet18() -> Config:
    """PGD-AT of a ResNet-18 on CIFAR-10, l∞ 8/255: the baseline."""
    return make_config(
        {
            "data": _CIFAR,
            "model": {"name": "resnet18"},
            "method": {"name": "at"},
            "threat": {"eps": 8 / 255},
            "attack": _PGD,
            "optim": _ONE_CYCLE,
            "keep_every": 5,
        }
    )


def cifar10_teacher_resnet18() -> Config:
    """A weakly adversarially trained ResNet-18, l∞ 6/255 (our choice of radius), with every 5th epoch as a teacher."""
    return cifar10_at_resnet18().model_copy(update={"threat": make_config({"threat": {"eps": 6 / 255}}).threat})


def cifar10_akd_resnet18() -> Config:
    """AKD of a ResNet-18 on CIFAR-10 from runs/teacher-0 and runs/teacher-1, l∞ 8/255."""
    return make_config(
        {
            **cifar10_at_resnet18().model_dump(mode="json"),
            "method": {"name": "akd"},
            "teachers": ["run:runs/teacher-0@best", "run:runs/teacher-1@best"],
        }
    )


def cifar10_at_resnet8() -> Config:
    """PGD-AT of a small ResNet-8 (width 32) on CIFAR-10, l∞ 8/255: an hour or two on a laptop's CPU."""
    return make_config(
        {
            **cifar10_at_resnet18().model_dump(mode="json"),
            "model": {"name": "resnet8", "width": 32},
            "optim": {**_ONE_CYCLE, "batch_size": 128, "learning_rate": 0.1, "epochs": 30},
            "compute": {"precision": "bf16"},
        }
    )


def cifar10_akd_resnet8() -> Config:
    """AKD of a small ResNet-8 (width 16) on CIFAR-10 from runs/teacher, l∞ 8/255."""
    return make_config(
        {
            **cifar10_at_resnet8().model_dump(mode="json"),
            "model": {"name": "resnet8", "width": 16},
            "method": {"name": "akd"},
            "teachers": ["run:runs/teacher@best"],
        }
    )


def cifar10_akd_preactresnet18_1m() -> Config:
    """AKD of a SiLU PreAct ResNet-18 on CIFAR-10 with a million generated images, l∞ 8/255: for a GPU.

    data/cifar10_edm_1m.npz is the file of 1M images for CIFAR-10 that Wang et al. 2023 published; the weights of the
    teacher go into the cache folder (`robustbench:`). It has not been trained yet; `robustill plan` with
    `--device-profile` forecasts its hours.

    As in the published command and code of Wang et al. 2023, "Better diffusion models further improve adversarial
    training", for a WRN-28-10 and 1M images: 400 epochs of 50,000 images, batches of 512 of which 70 % are generated,
    learning rate 0.2, cosine after a warm-up of 2.5 % of the epochs, SGD with Nesterov momentum 0.9 and weight decay
    5e-4, label smoothing 0.1, averaged weights of decay 0.995, crops and flips, PGD-10 of step size 2/255, and 1,024
    validation images. Gowal et al. 2021 and Rebuffi et al. 2021 have the same decay, warm-up, share of generated images
    and smoothing in their published configuration, and batches of 1024 at learning rate 0.4; so do Rade and
    Moosavi-Dezfooli 2022 in their command for a WRN-28-10. The architecture is that of Rebuffi et al. 2021.

    From Maroto et al. 2022: the loss, temperature 1, and a teacher at the epoch that was best on held-out images.
    Our choice: α 0.8, the default of the method; the teacher, a WRN-28-10 of Wang et al. 2023, which was selected in
    that way; PGD-10 every tenth epoch for validation; bf16.
    """
    return make_config(
        {
            "data": {
                **_CIFAR,
                "validation": 1024,
                "extra": "data/cifar10_edm_1m.npz",
                "extra_share": 0.7,
            },
            "model": {"name": "preactresnet18_silu"},
            "method": {"name": "akd", "alpha": 0.8, "temperature": 1.0},
            "teachers": ["robustbench:Wang2023Better_WRN-28-10"],
            "threat": {"eps": 8 / 255},
            "attack": {"steps": 10, "step_size": 2 / 255},
            "optim": {
                "epochs": 400,
                "batch_size": 512,
                "learning_rate": 0.2,
                "nesterov": True,
                "schedule": "cosine",
                "warmup": 0.025,
                "label_smoothing": 0.1,
                "ema": 0.995,
            },
            "validation": {"every": 10, "steps": 10},
            "compute": {"precision": "bf16"},
        }
    )


def cifar10_akd_wrn28_10_1m() -> Config:
    """AKD of a SiLU WRN-28-10 on CIFAR-10 with a million generated images, l∞ 8/255: for a large GPU.

    As `cifar10_akd_preactresnet18_1m`, whose published numbers are those of this network. Our choice is the teacher, a
    WRN-70-16 of Wang et al. 2023, since a WRN-28-10 would teach its equal. `--optim.accumulate 4` and
    `--compute.recompute true` save memory.
    """
    return make_config(
        {
            **cifar10_akd_preactresnet18_1m().model_dump(mode="json"),
            "model": {"name": "wideresnet_silu", "depth": 28, "width": 10},
            "teachers": ["robustbench:Wang2023Better_WRN-70-16"],
        }
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "digits_at": digits_at,
    "digits_teacher": digits_teacher,
    "digits_akd": digits_akd,
    "images_at": images_at,
    "images_akd": images_akd,
    "fashion_mnist_at": fashion_mnist_at,
    "fashion_mnist_full_at": fashion_mnist_full_at,
    "cifar10_part_at": cifar10_part_at,
    "cifar10_part_teacher": cifar10_part_teacher,
    "cifar10_part_akd": cifar10_part_akd,
    "cifar10_quarter_at": cifar10_quarter_at,
    "cifar10_at_resnet18": cifar10_at_resnet18,
    "cifar10_teacher_resnet18": cifar10_teacher_resnet18,
    "cifar10_akd_resnet18": cifar10_akd_resnet18,
    "cifar10_at_resnet8": cifar10_at_resnet8,
    "cifar10_akd_resnet8": cifar10_akd_resnet8,
    "cifar10_akd_preactresnet18_1m": cifar10_akd_preactresnet18_1m,
    "cifar10_akd_wrn28_10_1m": cifar10_akd_wrn28_10_1m,
}


def resolve(name: str, overrides: list[str] | tuple[str, ...] = (), *, trust_code: TrustCode = False) -> Config:
    """Return the configuration of a recipe or a YAML file, with overrides applied.

    Args:
        name: a key of RECIPES, or a path that ends in .yaml or .yml.
        overrides: settings that replace those of the recipe, as on the command line, such as ["--method.alpha", "0.8"].
        trust_code: import paths that the file may name although the overrides do not; True is all of them.

    Raises:
        UntrustedCodeError: only the file names an import path.
        ConfigError: there is no such recipe or file, or an override is impossible.
    """
    if not isinstance(name, str | Path):
        expected = "a Config, a recipe's name or a .yaml file's"
        raise ConfigError(f"{short_repr(name)} is no configuration: expected {expected}")
    overrides = check_texts("overrides", overrides, '["--optim.epochs", "30"]')
    if Path(name).suffix in (".yaml", ".yml"):
        return load_config(Path(name), overrides, trust_code=trust_code)
    if name not in RECIPES:
        hint = did_you_mean(str(name), RECIPES)
        raise ConfigError(f"recipe {name!r} is unknown ({hint}); a configuration file ends in .yaml")
    return make_config(apply_overrides(RECIPES[name]().model_dump(mode="json"), overrides))
