"""Where a network lies is said in many ways; which one it is makes the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.small_runs import small_values
from robustill.config.schema import make_config
from robustill.core.errors import RunError
from robustill.runs.directory import RunDirectory
from robustill.training.provenance import begin, difference


def values(spec: str = "run:teachers/0@best", **changes: Any) -> dict[str, Any]:
    given = {**small_values(), "method": {"name": "akd"}, "teachers": [{"spec": spec}], **changes}
    return make_config(given).model_dump(mode="json")


@pytest.mark.parametrize("spec", ["run:{}/teachers/0@best", "run:./teachers/../teachers/0@best"])
def test_a_run_may_be_named_from_here_or_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert difference(values(), values(spec.format(tmp_path))) is None
    first = values(initial="run:teachers/0@best")
    assert difference(first, values(initial=spec.format(tmp_path))) is None


def test_a_file_may_be_named_from_here_or_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").touch()
    assert difference(values("a.pt"), values(str(tmp_path / "a.pt"))) is None


@pytest.mark.parametrize("other", ["run:teachers/0@last", "run:elsewhere/teachers/0@best", "timm:resnet18"])
def test_another_network_is_another_run_and_is_said_as_it_was_given(other: str) -> None:
    found = difference(values(), values(other))
    assert found is not None
    key, there, here = found
    assert (key, there[0]["spec"], here[0]["spec"]) == ("teachers", "run:teachers/0@best", other)


def test_where_it_is_computed_makes_no_other_run() -> None:
    moved = values(compute={"device": "cpu", "threads": 3}, data={**small_values()["data"], "root": "elsewhere"})
    assert difference(values(compute={"device": "auto"}), moved) is None
    assert difference(values(), values(seed=4)) == ("seed", 0, 4)


def test_a_run_directory_refuses_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustill.config.files import dump_config

    monkeypatch.chdir(tmp_path)
    run = RunDirectory("run")
    begin(run, dump_config(make_config(values())))
    begin(run, dump_config(make_config(values(f"run:{tmp_path}/teachers/0@best"))))
    with pytest.raises(
        RunError, match=r"run was made by another configuration: teachers is .*0@best.* there and .*0@last"
    ):
        begin(run, dump_config(make_config(values("run:teachers/0@last"))))


@pytest.mark.parametrize("value", [True, False])
def test_a_run_with_a_retired_setting_is_the_same_run(tmp_path: Path, value: bool) -> None:
    from robustill.config.files import dump_config

    text = dump_config(make_config(values()))
    run = RunDirectory(tmp_path / "run")
    run.start(text.replace("compute:\n", f"compute:\n  cuda_graphs: {str(value).lower()}\n"))
    assert run.config()["compute"]["cuda_graphs"] is value
    begin(run, text)
    assert make_config(run.config()) == make_config(values())
