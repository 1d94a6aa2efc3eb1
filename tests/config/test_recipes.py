"""Recipes are valid configurations, have fitting names, and can be overridden."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustill.config.files import dump_config
from robustill.config.recipes import RECIPES, resolve
from robustill.config.schema import make_config
from robustill.core.errors import ConfigError
from robustill.core.yaml import parse_yaml


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
    words = name.removeprefix(config.data.name).split("_")
    assert words[0] == ""
    # A teacher is trained by PGD-AT.
    assert {"at" if word == "teacher" else word for word in words} & {"at", "akd"} == {config.method.name}
    assert [word for word in words if word.startswith("resnet")] in ([], [config.model.name])
    assert config.threat.norm == "linf"


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
