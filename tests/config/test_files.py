"""Comments explain the settings of a configuration and do not change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustill.config.files import dump_config, explain_config
from robustill.config.recipes import RECIPES, resolve


@pytest.mark.parametrize("name", RECIPES)
def test_an_explained_configuration_reads_back_equal(name: str, tmp_path: Path) -> None:
    config = resolve(name)
    (tmp_path / "a.yaml").write_text(explain_config(config))
    assert resolve(str(tmp_path / "a.yaml")) == config


def test_only_settings_have_comments() -> None:
    config = resolve("cifar10_akd_resnet18")
    lines = explain_config(config).splitlines()
    assert [line.partition(" # ")[0].rstrip() for line in lines] == [
        line.rstrip() for line in dump_config(config).splitlines()
    ]
    meanings = {line.partition(":")[0]: line.partition(" # ")[2] for line in lines}
    assert meanings["  learning_rate"] == "peak learning rate"
    assert meanings["teacher_mean"] == "what an ensemble averages: probabilities or logits"
    assert meanings["  norm"] == "linf or l2 or l1"
    assert meanings["optim"] == ""
