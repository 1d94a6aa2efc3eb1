"""Recipes are valid configurations, have fitting names, and can be overridden."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustill.config.files import dump_config
from robustill.config.recipes import RECIPES, resolve
from robustill.config.schema import make_config
from robustill.config.split import load_split
from robustill.core.errors import ConfigError
from robustill.core.yaml import parse_yaml
from robustill.data.folder import SPLIT_RULE
from robustill.evaluation.targets import evaluate_run
from robustill.models import build
from robustill.models.robustbench import find_entry
from robustill.runs.directory import RunDirectory
from robustill.training.loop import train


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]()
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert resolve(str(tmp_path / "a.yaml")) == resolve(name) == config
    assert make_config(parse_yaml(dump_config(config), name)) == config
    assert (RECIPES[name].__doc__ or "").strip().endswith(".")


@pytest.mark.parametrize("name", RECIPES)
def test_names_of_recipes_hold_data_method_and_model(name: str) -> None:
    config = RECIPES[name]()
    # A folder holds the user's own images.
    words = name.removeprefix({"folder": "images"}.get(config.data.name, config.data.name)).split("_")
    assert words[0] == ""
    # A teacher is trained by PGD-AT.
    assert {"at" if word == "teacher" else word for word in words} & {"at", "akd"} == {config.method.name}
    assert [word for word in words if word.startswith("resnet")] in ([], [config.model.name])
    assert config.threat.norm == "linf"


@pytest.mark.parametrize(
    ("name", "small"),
    [
        pytest.param("cifar10_akd_preactresnet18_1m", [], marks=pytest.mark.slow),
        ("cifar10_akd_wrn28_10_1m", ["--model.depth", "10", "--model.width", "1"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_recipes_of_the_fields_scale_train_in_miniature(name: str, small: list[str], tmp_path: Path) -> None:
    """On 8x8 images, a file of generated ones and a small teacher; everything else is the recipe's."""
    draws = np.random.default_rng(0)
    for part, number in (("train", 60), ("test", 20), ("generated", 50)):
        images = draws.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", image=images, label=np.arange(number) % 10)
    save_file(build("resnet8", num_classes=10, width=2, seed=0).state_dict(), tmp_path / "teacher.safetensors")
    teacher = f"[{{spec: {tmp_path}/teacher.safetensors, model: {{name: resnet8, width: 2}}}}]"
    words = ["--data.name", "npz", "--data.root", str(tmp_path), "--data.extra", f"{tmp_path}/generated.npz"]
    words += ["--data.validation", "20", "--teachers", teacher, "--optim.epochs", "1", "--optim.batch_size", "20"]
    words += ["--attack.steps", "1", "--validation.steps", "1", "--compute.device", "cpu", "--compute.threads", "1"]
    config = resolve(name, [*words, *small])
    assert (config.optim.ema, config.optim.label_smoothing, config.optim.schedule) == (0.995, 0.1, "cosine")
    result = train(config, tmp_path / "run", progress=False)
    assert np.isfinite(result.metrics[0]["train_loss"])
    split = RunDirectory(tmp_path / "run").read_json("split.json")
    assert split is not None
    assert split["extra"]["images"] == 50


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_1m")])
def test_teachers_of_the_zoo_are_known_and_robust_to_the_students_threat(name: str) -> None:
    (teacher,) = RECIPES[name]().teachers
    entry = find_entry(teacher.spec.removeprefix("robustbench:"), 10)
    assert (entry.data, entry.norm, entry.model) == ("cifar10", "Linf", "wideresnet_silu")
    # The usual radius of its leaderboard.
    assert RECIPES[name]().threat.eps == 8 / 255


def test_overrides_change_a_recipe() -> None:
    config = resolve("cifar10_at_resnet18", ["--method", "trades", "--method.beta", "3", "--model", "resnet8"])
    base = RECIPES["cifar10_at_resnet18"]()
    assert (config.method.name, config.method.options["beta"], config.model.name) == ("trades", 3, "resnet8")
    assert (config.optim, config.data, config.threat) == (base.optim, base.data, base.threat)


def test_a_distillation_recipe_can_become_plain_training() -> None:
    with pytest.raises(ConfigError, match=r"remove it \(--teachers \[\]\)"):
        resolve("cifar10_akd_resnet18", ["--method", "at"])
    at = resolve("cifar10_akd_resnet18", ["--method", "at", "--teachers", "[]"])
    assert at == resolve("cifar10_at_resnet18")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nosuch", "recipe 'nosuch' is unknown"),
        ("cifar10_at_resnet81", "did you mean"),
        ("nosuch.yaml", "cannot be read"),
        ("a.yml", "cannot be read"),
        ("", "is unknown"),
    ],
)
def test_unknown_recipes_are_refused(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        resolve(name)


@pytest.mark.filterwarnings("ignore:.*no better than guessing")
def test_a_folder_of_classes_is_trained_on_and_evaluated(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for number in range(200):
        file = tmp_path / "own" / f"class-{number % 4}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (12, 8, 3), dtype=np.uint8)).save(file)
    small = ["--model.width", "2", "--optim.epochs", "1", "--compute.threads", "1", "--compute.device", "cpu"]
    config = resolve("images_at", ["--data.root", str(tmp_path / "own"), "--data.image_size", "8", *small])
    with pytest.warns(UserWarning, match="own has no folders train and test: one image in five"):
        train(config, tmp_path / "run", progress=False)
    split = RunDirectory(tmp_path / "run").read_json("split.json")
    assert split is not None
    assert split["split_rule"] == SPLIT_RULE
    # Enough validation images to tell epochs apart, of every class.
    assert (split["images"], len(split["validation"])) == (160, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = load_split(config, "validation").labels
    assert torch.bincount(labels).tolist() == [8] * 4
    (records,) = evaluate_run(
        tmp_path / "run", checkpoints="last-ema", suite="pgd-20", eps_curve=False, progress=False
    ).values()
    assert (records.conditions["num_images"], records.conditions["split_rule"]) == (40, SPLIT_RULE)
    student = resolve(
        "images_akd", ["--data.root", str(tmp_path / "own"), "--teachers", f"run:{tmp_path}/run@last-ema"]
    )
    assert (student.data, student.threat, student.optim) == (
        config.data.model_copy(update={"image_size": None}),
        config.threat,
        config.optim.model_copy(update={"epochs": 60}),
    )
