"""The files for clusters ask robustill for what it can do, with the variables that the cluster sets."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.pages import DOCS, ROOT

FILES = sorted((ROOT / "examples" / "cluster").iterdir())
PROGRAMS = {
    # Each prints its name and arguments, but for what stands between the scheduler and robustill.
    "robustill": 'echo robustill "$@" "RAY_ADDRESS=${RAY_ADDRESS:-}"',
    "ray": 'echo ray "$@"',
    "torchrun": 'echo torchrun "$@"',
    "srun": 'exec "$@"',
    "scontrol": "printf 'node-a\\nnode-b\\n'",
}


def run(script: str, *words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with programs of our own in the place of those of a cluster."""
    for name, line in PROGRAMS.items():
        program = folder / name
        program.write_text(f"#!/bin/bash\n{line}\n")
        program.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    command = ["bash", str(ROOT / "examples" / "cluster" / script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_array_divides_a_study_into_parts(tmp_path: Path) -> None:
    for number in ("1", "8"):
        variables = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "8"}
        done = run("slurm_study.sh", "guidelines", "--seeds", "3", folder=tmp_path, **variables)
        assert done.stdout == f"robustill study guidelines --seeds 3 --part {number}/8 RAY_ADDRESS=\n"
    text = (ROOT / "examples" / "cluster" / "slurm_study.sh").read_text(encoding="utf-8")
    # Parts are counted from 1.
    assert "#SBATCH --array=1-8" in text
    done = run("slurm_study.sh", "guidelines", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_training_meets_at_the_first_machine(tmp_path: Path) -> None:
    variables = {
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "7",
    }
    done = run("slurm_train.sh", "digits_at", "--run", "r", folder=tmp_path, **variables)
    assert done.stdout == (
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id 7 --rdzv-endpoint node-a:29500 "
        "-m -- robustill train digits_at --run r\n"
    )


def test_ray_is_started_joined_and_used(tmp_path: Path) -> None:
    def printed(*words: str) -> str:
        return run("ray_study.sh", *words, folder=tmp_path).stdout

    assert printed("head", "--num-gpus", "2").startswith("ray start --head --port 6379 ")
    assert printed("join", "a:6379") == "ray start --address a:6379\n"
    used = printed("run", "a:6379", "guidelines", "--gpus-per-run", "0.5")
    assert used == "robustill study guidelines --gpus-per-run 0.5 --engine ray RAY_ADDRESS=a:6379\n"
    done = run("ray_study.sh", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("ray_study.sh")) == (2, "", 3)


def test_every_pod_has_a_part_of_its_own(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "cluster" / "kubernetes_study.yaml").read_text(encoding="utf-8")
    spec = yaml.safe_load(text)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed"
    (program, option), (line,) = container["command"], container["args"]
    stand_in = tmp_path / "robustill"
    stand_in.write_text('#!/bin/bash\necho "${@: -1}"\n')
    stand_in.chmod(0o755)
    parts = set()
    for index in range(spec["completions"]):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run([program, option, line], env=environment, capture_output=True, text=True, check=True)
        parts.add(done.stdout.strip())
    assert parts == {f"{number}/{spec['completions']}" for number in range(1, spec["completions"] + 1)}
    # The user of the image, to whom the volume belongs.
    user = spec["template"]["spec"]["securityContext"]
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"--uid {user['runAsUser']} " in image
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in spec["template"]["spec"]["volumes"]}


def test_the_image_gets_the_files_that_it_copies() -> None:
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.*)$", image, re.MULTILINE) for name in line.split()[:-1]}
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER (?!root)", image, re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_the_page_shows_every_file(file: Path) -> None:
    page = (DOCS / "how-to" / "several-machines.md").read_text(encoding="utf-8")
    assert f'--8<-- "examples/cluster/{file.name}"' in page
