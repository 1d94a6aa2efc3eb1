"""What is built for users is complete, and works in an environment that has nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import robustill

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

SMALL = "--model.width 4 --optim.epochs 2 --attack.steps 2 --data.train_size 100 --data.validation 50".split()


def run(*words: str | Path, cwd: Path) -> str:
    """Run a program outside this environment, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: str, folder: Path) -> Path:
    """Build "wheel" or "sdist" of a source tree."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (built,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    package = Path(robustill.__file__).parent
    paths = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {f"robustill/{path.relative_to(package).as_posix()}": path.read_bytes() for path in paths}
    found = contents(wheel)
    assert {name: found[name] for name in found if name.startswith("robustill/")} == expected
    others = {name.partition("/")[0] for name in found.keys() - expected.keys()}
    assert others == {f"robustill-{robustill.__version__}.dist-info"}
    made = {"cli/names.json", "cli/recipes.json", "analysis/gain_model.json"}
    assert made | {"data/digits.npz", "report/templates/page.html.j2", "py.typed"} <= {
        name.partition("/")[2] for name in expected
    }


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(ROOT, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(tmp_path / f"robustill-{robustill.__version__}", "wheel", tmp_path / "again")
    assert contents(again) == contents(wheel)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Path]:
    """The programs of a fresh environment, which is too large to be kept with the folders of the tests."""
    venv.create(tmp_path / "venv", with_pip=True)
    yield tmp_path / "venv" / "bin"
    shutil.rmtree(tmp_path / "venv")


def test_a_fresh_environment_trains_evaluates_and_reports(wheel: Path, programs: Path, tmp_path: Path) -> None:
    constraints = ROOT / "constraints.txt"
    run(programs / "python", "-m", "pip", "install", "--quiet", "-c", constraints, wheel, cwd=tmp_path)
    run(programs / "python", "-m", "pip", "check", cwd=tmp_path)
    # The extras are what their name says.
    installed = run(programs / "python", "-m", "pip", "list", "--format", "freeze", cwd=tmp_path).lower()
    assert "torch==" in installed
    assert not [
        name for name in ("timm", "tensorboard", "ray", "onnx", "scikit", "hugging") if f"\n{name}" in installed
    ]

    command = programs / "robustill"
    run(command, "train", "digits_teacher", "--run", "teacher", *SMALL, cwd=tmp_path)
    run(command, "train", "digits_akd", "--run", "akd", "--teachers", "[run:teacher@best]", *SMALL, cwd=tmp_path)
    assert "robust" in run(command, "evaluate", "akd", "--suite", "pgd-20", cwd=tmp_path)
    run(command, "report", "akd", "teacher", "--out", "page.html", cwd=tmp_path)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "akd" in page
    example = "import robustill as rb; print(rb.load_example().student.training, rb.__file__)"
    printed = run(programs / "python", "-I", "-c", example, cwd=tmp_path)
    assert printed.startswith(f"False {programs.parent}")
