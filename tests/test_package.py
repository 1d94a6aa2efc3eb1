"""The public names of `robustill`, and the snippets of the README."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import robustill as rb


@pytest.mark.parametrize("name", rb.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(rb, name)
    assert value is getattr(rb, name)
    assert callable(value) or name == "losses"


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(rb.__file__).read_text(encoding="utf-8"))
    branches = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = set()
    for node in branches[0].body:
        if isinstance(node, ast.ImportFrom):
            typed |= {alias.asname for alias in node.names}
        else:
            assert isinstance(node, ast.Assign)
            typed.add(ast.unparse(node.targets[0]))
    public = {name for name in typed if not name.startswith("_")}
    assert public == set(rb._LOCATIONS) == set(rb.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rb.trian  # noqa: B018


def test_windows_is_refused_in_one_line() -> None:
    program = "import sys; sys.platform = 'win32'; import robustill"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: robustill runs on Linux and macOS: on Windows, use the Windows Subsystem for Linux"
    )


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == rb.__version__


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (root / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = {line.replace("==", ">=") for line in lines if not line.startswith("#")}
    # PyTorch is that of constraints.txt; of the extras, the one that the tests need with an old NumPy is among them.
    core = {each for each in project["dependencies"] if not each.startswith("torch>=")}
    assert tested == core | set(project["optional-dependencies"]["data"])


def test_the_core_imports_with_torch_and_numpy_alone() -> None:
    program = """
import sys
for name in ("pydantic", "cyclopts", "yaml", "rich", "safetensors", "sklearn", "scipy", "PIL", "matplotlib", "jinja2"):
    sys.modules[name] = None
import robustill as rb
rb.Threat, rb.pgd, rb.Step, rb.Ensemble, rb.build_method, rb.build_model, rb.losses, rb.Batch, rb.autoattack
import robustill.data, robustill.core.device, robustill.core.files
import robustill.training.averaging, robustill.training.optimizer, robustill.training.validation
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_training_and_evaluation_need_no_plots_statistics_or_image_files(tmp_path: Path) -> None:
    program = """
import sys
for name in ("sklearn", "scipy", "PIL", "matplotlib", "jinja2", "markupsafe"):
    sys.modules[name] = None
from robustill.cli import main
small = ["--model.width", "4", "--optim.epochs", "1", "--attack.steps", "1", "--data.train_size", "64"]
evaluation = ["--suite", "quick", "--num-images", "20"]
for words in (["train", "digits_at", "--run", "run", *small], ["evaluate", "run", *evaluation]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "robust" in done.stdout


def test_the_training_loop_of_the_readme_runs() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    snippet = next(block for block in blocks if "rb.build_method" in block)
    lines = snippet[snippet.index("threat = ") :]
    student, first, second = (rb.build_model("resnet8", num_classes=10, width=4, seed=seed) for seed in range(3))
    names = {
        "rb": rb,
        "model": student,
        "student": student,
        "first": first.eval(),
        "second": second.eval(),
        "x": torch.rand(4, 3, 16, 16),
        "y": torch.arange(4),
        "ids": torch.arange(4),
    }
    exec(lines, names)
    assert torch.isfinite(names["outcome"].loss).all()
    assert all(p.grad is not None for p in student.parameters())


def test_a_threat_and_a_recipe_may_be_given_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rb.build_model("resnet8", num_classes=10, in_channels=1, width=2)
    images = rb.load_data("digits", split="test")
    x, y = images.read(torch.arange(3)).float() / 255, images.labels[:3]

    def results(threat: rb.Threat | str) -> list[object]:
        options = {"threat": threat, "num_images": 10, "eps_curve": False}
        step = rb.Step(model, rb.build_method("at"), None, threat, steps=1, step_size=0.1)
        return [
            rb.pgd(lambda z: rb.losses.ce(model(z), y), x, threat, steps=1, step_size=0.1, start="clean").tolist(),
            rb.autoattack(model, x, y, threat, version=["apgd-ce"]).x_adv.tolist(),
            rb.evaluate(model, images, **options).conditions["threat"],
            step.threat,
        ]

    assert results("linf:8/255") == results(rb.Threat(norm="linf", eps=8 / 255))
    configs = []

    def prepare(config: rb.Config, device: object) -> None:
        configs.append(config)
        raise ZeroDivisionError

    monkeypatch.setattr("robustill.training.loop.set_up_training", prepare)
    with pytest.raises(ZeroDivisionError):
        rb.train("digits_at", tmp_path / "run")
    assert configs == [rb.recipe("digits_at")]


@pytest.mark.parametrize("threat", [0.03, "8/255", rb.Config().threat])
def test_an_invalid_threat_is_refused_in_one_line(threat: object) -> None:
    x = torch.rand(1, 1, 2, 2)
    with pytest.raises(rb.RobustillError, match=r"^threat .*expected .*linf:8/255"):
        rb.pgd(lambda z: z.sum(dim=(1, 2, 3)), x, threat, steps=1, step_size=0.1)


def test_an_invalid_configuration_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(rb.RobustillError, match="is no configuration: expected a Config, a recipe's name"):
        rb.train({"seed": 1}, tmp_path)
    with pytest.raises(rb.RobustillError, match="did you mean digits_at"):
        rb.train("digits_att", tmp_path)
