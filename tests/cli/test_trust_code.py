"""No command runs code that only a file names; code of the user's own stays a matter of one option."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from helpers.command_line import Call
from helpers.small_runs import small_config, small_values, weights
from robustill.cli.doctor import examine_run
from robustill.config.files import load_config, named_code
from robustill.config.recipes import resolve
from robustill.config.schema import Config
from robustill.core import user_code
from robustill.core.checksums import sha256, with_checksum
from robustill.core.errors import ConfigError, RobustillError
from robustill.core.user_code import UntrustedCodeError
from robustill.evaluation.targets import evaluate_run
from robustill.evaluation.transfer import transfer_specs
from robustill.methods import AT
from robustill.models.export import export_network
from robustill.models.loading import load_network
from robustill.teachers.check import check_spec
from robustill.training.cost import forecast
from robustill.training.loop import train

HOSTILE = "import pathlib; pathlib.Path('ran').write_text('')\nfrom os import system\n"
NETWORK = """
from torch import nn
def net(*, num_classes, in_channels, image_size, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))
"""
METHOD = "from robustill.methods import AT\nclass Mine(AT):\n    pass\n"
QUICK: dict[str, Any] = {"suite": "pgd-20", "num_images": 10, "eps_curve": False, "pictures": False, "progress": False}
WORDS = ["--suite", "pgd-20", "--num-images", "10", "--no-eps-curve"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(optim={"epochs": 1}), run, progress=False)
    return run


@pytest.fixture
def room(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run of a stranger, whose network and method are `hostile_code:system`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_code, "_search_folders", [])
    monkeypatch.chdir(tmp_path)
    for name in ("hostile_code", "my_mod", "my_method"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "hostile_code.py").write_text(HOSTILE)
    (tmp_path / "my_mod.py").write_text(NETWORK)
    (tmp_path / "my_method.py").write_text(METHOD)
    shutil.copytree(trained, "stranger")
    name_code(Path("stranger"), "hostile_code:system", {"command": "touch ran"})
    return tmp_path


def name_code(run: Path, path: str, options: dict[str, Any]) -> None:
    """Let model.json and config.yaml name it, with right checksums."""
    page = json.loads((run / "model.json").read_text())
    del page["sha256"], page["format"]
    (run / "model.json").write_text(json.dumps(with_checksum({**page, "name": path, "options": options})))
    values = small_values(model={"name": path}, method={"name": path}, initial=path, optim={"epochs": 1})
    text = yaml.safe_dump({**values, "teachers": []})
    (run / "config.yaml").write_text(f"# format 1, sha256 of the lines below: {sha256(text.encode())}\n{text}")


COMMANDS = {
    "evaluate": ["evaluate", "stranger", *WORDS],
    "evaluate as a target": ["evaluate", "run:stranger", "--data", "digits", "--threat", "linf:0.1", *WORDS],
    "surrogate": ["evaluate", "trained", *WORDS, "--surrogate", "run:stranger"],
    "export": ["export", "stranger", "out"],
    "check": ["teachers", "check", "run:stranger"],
    "student": ["teachers", "check", "run:trained", "--student", "run:stranger"],
    "transfer": ["transfer", "trained", "run:stranger"],
    "transfer of a folder": ["transfer", "stranger", "trained"],
    "initial": ["train", "a.yaml", "--run", "new", "--initial", "run:stranger"],
    "teachers": ["train", "a.yaml", "--run", "new", "--method", "akd", "--teachers", "[run:stranger]"],
    "train a file": ["train", "stranger/config.yaml", "--run", "new"],
    "train in it": ["train", "stranger/config.yaml", "--run", "stranger"],
    "show": ["show", "stranger/config.yaml"],
    "plan": ["plan", "stranger/config.yaml"],
    "plan with a teacher": ["plan", "a.yaml", "--method", "akd", "--teachers", "[run:stranger]"],
    "study": ["study", "teacher-eps", "--recipe", "stranger/config.yaml"],
    "plan a study": ["plan", "teacher-eps", "--recipe", "stranger/config.yaml"],
    "a base of a method": ["train", "base.yaml", "--run", "new"],
    "a companion": ["train", "peer.yaml", "--run", "new"],
    "a teacher in a file": ["train", "teacher.yaml", "--run", "new"],
    "the network of a teacher in a file": ["train", "file.yaml", "--run", "new"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_command_runs_what_a_file_names(words: list[str], room: Path, trained: Path, call: Call) -> None:
    shutil.copytree(trained, "trained")
    code = "hostile_code:system"
    changes: dict[str, dict[str, Any]] = {
        "a": {},
        "base": {"method": {"name": "igdm", "base": code}, "teachers": ["run:trained"]},
        "peer": {"method": {"name": "peerad", "peer": code}},
        "teacher": {"method": {"name": "akd"}, "teachers": [code]},
        "file": {"method": {"name": "akd"}, "teachers": [{"spec": "w.pth", "model": {"name": code}}]},
    }
    for name, change in changes.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(small_values(**change)))
    torch.save({}, "w.pth")
    before = sorted(Path().rglob("*"))
    status, _, said = call(*words)
    assert status == 2, said
    assert len(said.splitlines()) == 1
    assert "names the code hostile_code:system" in said
    assert "--trust-code hostile_code:system" in said
    assert "hostile_code" not in sys.modules
    assert sorted(Path().rglob("*")) == before


def test_python_functions_run_it_as_little(room: Path, trained: Path) -> None:
    shutil.copytree(trained, "trained")
    calls: list[Callable[[], Any]] = [
        lambda: load_network("run:stranger"),
        lambda: evaluate_run("stranger", **QUICK),
        lambda: export_network("run:stranger", Path("out")),
        lambda: check_spec("run:stranger"),
        lambda: transfer_specs(["trained", "stranger"]),
        lambda: resolve("stranger/config.yaml"),
        lambda: load_config(Path("stranger/config.yaml")),
        lambda: train("stranger/config.yaml", "new"),
        lambda: train(small_config(initial="run:stranger"), "new"),
        lambda: train(small_config(method={"name": "akd"}, teachers=["run:stranger"]), "new"),
        lambda: forecast(small_config(method={"name": "akd"}, teachers=["run:stranger"])),
    ]
    for each in calls:
        with pytest.raises(UntrustedCodeError, match=r"--trust-code hostile_code:system \(in Python"):
            each()
    # A stored configuration is only compared.
    with pytest.raises(RobustillError, match="another configuration"):
        train(small_config(), "stranger", progress=False)
    assert "hostile_code" not in sys.modules
    assert not Path("ran").exists()


def test_doctor_shows_the_code_and_imports_nothing(room: Path, call: Call) -> None:
    found = {each.subject: each for each in examine_run("stranger")}
    assert found["code"].verdict == "note"
    assert found["code"].message.startswith("hostile_code:system: ")
    assert found["code"].message.endswith("--trust-code hostile_code:system")
    assert "hostile_code" not in sys.modules
    assert not Path("ran").exists()


@pytest.mark.filterwarnings("default:.*no better than guessing")
def test_a_network_of_ones_own_is_trained_resumed_and_evaluated(room: Path, call: Call) -> None:
    Path("a.yaml").write_text(yaml.safe_dump(small_values(optim={"epochs": 1})))
    words = ["train", "a.yaml", "--model", "my_mod:net", "--method", "my_method:Mine", "--run", "own"]
    code, out, _ = call(*words)
    assert code == 0
    first = weights(Path("own"))
    assert call(*words)[0] == 0
    assert weights(Path("own")) == first
    command = shlex.split(out.splitlines()[0].partition("; next: robustill ")[2])
    assert command == ["evaluate", "own", "--trust-code", "my_mod:net"]
    assert call(*command, *WORDS)[0] == 0
    code, _, said = call("evaluate", "own", *WORDS)
    assert code == 2
    assert said.splitlines() == [
        "robustill: own/model.json names the code my_mod:net, which runs when it is imported: if you trust it, "
        "add --trust-code my_mod:net (in Python: trust_code=['my_mod:net'])"
    ]
    assert call("evaluate", "own", "--model", "my_mod:net", *WORDS)[0] == 0
    assert call("evaluate", "own", "--trust-code", "my_mod:net", "--checkpoint", "best", *WORDS)[0] == 0
    code, _, said = call("export", "own", "own.pt2", "--trust-code", "my_mod:net")
    assert (code, said.count("warning:")) == (0, 1)
    assert "warning: run:own is no better than guessing among 10 classes: right on " in said
    assert call("teachers", "check", "run:own", "--model", "my_mod:net", "--num-images", "10")[0] == 0
    both = ["--trust-code", "my_mod:net,my_method:Mine"]
    assert call("show", "own/config.yaml", *both)[0] == 0
    assert call("show", "own/config.yaml", "--trust-code", "my_mod:net")[0] == 2


def test_python_trusts_by_name_or_everything(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(room)
    config = Config(**small_values(model={"name": "my_mod:net"}, method={"name": "my_method:Mine"}))
    assert config.method.name == "my_method:Mine"
    train(config, "own", progress=False)
    train(config, "own", progress=False)
    for trust in (True, "my_mod:net", ["my_mod:net"]):
        assert isinstance(load_network("run:own", trust_code=trust).module, nn.Sequential)
    assert load_network("run:own", name="my_mod:net").epoch is not None
    with pytest.raises(RobustillError, match=r"run:own is the network my_mod:net: leave the model my_mod:other out"):
        load_network("run:own", name="my_mod:other")
    with pytest.raises(UntrustedCodeError):
        load_network("run:own", trust_code="my_mod:other")
    # The same network as the student's: the user has named it. The method is not needed for an evaluation.
    student = small_config(model={"name": "my_mod:net"}, method={"name": "akd"}, teachers=["run:own"])
    train(student, "student", progress=False)
    with pytest.raises(UntrustedCodeError):
        train(small_config(method={"name": "akd"}, teachers=["run:own"]), "other", progress=False)
    other = small_config(method={"name": "akd"}, teachers=["run:own"], optim={"epochs": 1})
    train(other, "other", progress=False, trust_code=True)
    (records,) = evaluate_run("own", checkpoints="best", overrides=["--model", "my_mod:net"], **QUICK).values()
    assert np.isfinite(records.margin).all()


def test_named_code_of_a_configuration() -> None:
    values = {"initial": "a:b", "method": {"name": "igdm", "base": "c:d"}, "data": {"root": "x:y"}, "teachers": None}
    assert named_code(values) == ("c:d", "a:b")
    assert named_code(small_config()) == ()
    assert named_code({"teachers": [{"spec": "run:a", "model": {"name": "e:f"}}], "model": "g:h"}) == ("g:h", "e:f")


def test_what_a_file_names_is_refused_even_where_it_is_not_imported_yet(room: Path) -> None:
    Path("b.yaml").write_text(yaml.safe_dump({"model": {"name": "my_mod:net"}}))
    with pytest.raises(UntrustedCodeError):
        load_config(Path("b.yaml"))
    assert load_config(Path("b.yaml"), ["--model", "my_mod:net"]).model.name == "my_mod:net"
    assert load_config(Path("b.yaml"), ["--model", "resnet8"]).model.name == "resnet8"
    assert load_config(Path("b.yaml"), trust_code="my_mod:net").model.name == "my_mod:net"
    with pytest.raises(ConfigError, match="unknown"):
        load_config(Path("b.yaml"), ["--model", "resnet9"])


def test_methods_are_still_taken_by_their_path() -> None:
    assert small_config(method={"name": f"{AT.__module__}:AT"}).method.name.endswith(":AT")
