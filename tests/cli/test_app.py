"""The command line: what is right works, what is wrong is one line and exit code 2, and nothing is written."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.small_runs import lines, small_values, tree, weights
from helpers.tiny_studies import recipe
from robustill.attacks.suites import SUITES
from robustill.cli import app as cli
from robustill.config.recipes import RECIPES
from robustill.data import DATASETS
from robustill.methods import METHODS
from robustill.models import MODELS
from robustill.studies import STUDIES

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`robustill` with these words: exit code, what it printed, what it printed on stderr."""
    # Given back after the test: main() replaces it for its process.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robustill", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return called


def npz(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, images=images, labels=labels)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configurations, a run, a file of weights, and data that is right and wrong."""
    room = tmp_path_factory.mktemp("room")
    draws = np.random.default_rng(0)
    colour, labels = draws.random((40, 3, 8, 8)), np.arange(40) % 4
    npz(room / "four" / "train.npz", colour, labels)
    npz(room / "four" / "test.npz", colour, labels)
    npz(room / "bright" / "train.npz", colour * 255, labels)
    npz(room / "cut" / "train.npz", colour, labels)
    cut = room / "cut" / "train.npz"
    cut.write_bytes(cut.read_bytes()[:500])
    (room / "full").mkdir()
    (room / "full" / "thesis.tex").write_text("years of work")
    (room / "a.yaml").write_text(yaml.safe_dump(small_values()))
    (room / "list.yaml").write_text("- a\n- b\n")
    (room / "broken.yaml").write_text("a: [")
    (room / "laughs.yaml").write_text("a: &a [x]\nb: [*a, *a]\n")
    (room / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (room / "typo.yaml").write_text("optim: {epoch: 3}\n")
    (room / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (room / "folder.yaml").mkdir()
    (room / "noise.pt").write_bytes(b"noise" * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(room)
        patch.setattr(sys, "argv", ["robustill", "train", "a.yaml", "--run", "run"])
        with pytest.raises(SystemExit):
            cli.main()
    (room / "weights.safetensors").write_bytes(
        (room / "run" / "checkpoints" / "epoch-0002" / "model.safetensors").read_bytes()
    )
    torch.save({"w": room}, room / "payload.pt")
    (room / "plain.pt").write_bytes(pickle.dumps({"w": room}))
    (room / "half.safetensors").write_bytes((room / "weights.safetensors").read_bytes()[:3000])
    torch.save(load_file(room / "weights.safetensors"), room / "half.pt")
    (room / "half.pt").write_bytes((room / "half.pt").read_bytes()[:3000])
    shutil.copytree(room / "run", room / "half")
    for weights_file in (room / "half" / "checkpoints").glob("*/model.safetensors"):
        weights_file.write_bytes(weights_file.read_bytes()[:3000])
    digits = np.zeros((40, 8, 8, 1), dtype=np.uint8)
    np.savez_compressed(room / "packed.npz", image=digits, label=labels)
    np.savez(room / "payload.npz", image=digits, label=np.array([room] * 40, dtype=object))
    return room


TRAIN = "train a.yaml --run new "
AKD = TRAIN + "--method akd --teachers "
NPZ = "--model.mean [0.5,0.5,0.5] --model.std [0.2,0.2,0.2] --data.validation 8 --data.train_size null --data npz "
FILE = "evaluate weights.safetensors --model.width 2 "

BAD = {
    # Numbers that could be written, but not read back.
    TRAIN + "--seed 18446744073709551616": "seed",
    TRAIN + "--data.split_seed -18446744073709551616": "split_seed",
    # Exports.
    "export run": "--out",
    "export nothing new": "nothing is no run directory, it does not exist",
    "export run full": "full exists: give another name",
    "export run a.yaml": "a.yaml exists: give another name",
    "export run@epoch-9 new": "no checkpoint 'epoch-9'",
    "export half new": "is damaged",
    "export hf:four new": "is no run directory",
    # Recipes and configuration files.
    "train a.yaml": "--run",
    "train": "--recipe",
    "train nosuch --run new": "recipe 'nosuch' is unknown",
    "train cifar10_at_resnet81 --run new": "did you mean cifar10_at_resnet18",
    "train missing.yaml --run new": "missing.yaml cannot be read",
    "train list.yaml --run new": "expected keys and values",
    "train broken.yaml --run new": "broken.yaml is not YAML",
    "train laughs.yaml --run new": "aliases",
    "train binary.yaml --run new": "no UTF-8 text",
    "train twice.yaml --run new": "key 'seed' is there twice",
    "train typo.yaml --run new": "unknown key optim.epoch: did you mean epochs",
    "train folder.yaml --run new": "Is a directory",
    "show nosuch": "recipe 'nosuch' is unknown",
    "show a.yaml --method trads": "did you mean trades",
    # Overrides.
    TRAIN + "alpha 3": "an override is written --group.key VALUE",
    TRAIN + "--seed": "has no value",
    TRAIN + "--sede 3": "did you mean seed",
    TRAIN + "--optim.epohcs 3": "did you mean epochs",
    TRAIN + "--method.alpha 3": "method at has no option 'alpha'",
    TRAIN + "--model.widht 3": "did you mean width",
    TRAIN + "--seed 1 --seed 2": "given twice",
    # Values.
    TRAIN + "--method adkk": "method 'adkk' is unknown",
    TRAIN + "--method os:system": "expected a subclass of robustill.Method",
    TRAIN + "--method nosuch_module:AT": "cannot be imported",
    TRAIN + "--model nosuch": "model 'nosuch' is unknown",
    TRAIN + "--model math:sqrt": "cannot be built",
    TRAIN + "--model.width 0": "has layers without a single weight",
    TRAIN + "--model.width -1": "cannot be built with {'width': -1}",
    TRAIN + "--model.width wide": "expected a whole number",
    TRAIN + "--threat.eps 8": "did you mean 8/255?",
    TRAIN + "--threat linf:8": "did you mean 8/255?",
    TRAIN + "--threat linf": "expected NORM:EPS",
    TRAIN + "--threat l7:0.1": "norm 'l7' is unknown",
    TRAIN + "--threat l2:100": "further apart than 8 in l2",
    TRAIN + "--threat.eps .nan": "finite",
    TRAIN + "--attack.step_size 2": "did you mean 2/255?",
    TRAIN + "--optim.epochs 0": "greater than or equal to 1",
    TRAIN + "--optim.learning_rate fast": "expected a number",
    TRAIN + "--optim.learning_rate .inf": "finite",
    TRAIN + "--compute.device toaster": "device 'toaster' is unknown",
    TRAIN + "--compute.device meta": "device 'meta' is unknown",
    TRAIN + "--compute.device cpu:x": "device 'cpu:x' cannot be used",
    TRAIN + "--compute.precision bf61": "expected 'fp32' or 'bf16'",
    TRAIN + "--compute.threads 100000000": "less than or equal to 1024",
    # Data.
    TRAIN + "--data nosuch": "data set 'nosuch' is unknown",
    TRAIN + "--data cifar10 --data.root nowhere": "nowhere",
    TRAIN + "--data cifar10 --data.root run": "run",
    TRAIN + "--data.num_classes 5": "10 classes",
    TRAIN + "--data.train_size 100000": "data.train_size is 100000",
    TRAIN + "--data.validation 100000": "data.validation",
    TRAIN + "--data.validation 0.0001": "no image would be held out",
    TRAIN + "--data.augmentation [crpo]": "did you mean crop",
    TRAIN + "--data.augmentation [{}]": "expected a name, or one",
    TRAIN + "--model.mean [0.5,0.5]": "one value for each of the 1 channels",
    TRAIN + "--model.std [0]": "expected positive values",
    TRAIN + NPZ + "--data.root four --data.num_classes 3": "found labels up to 3, expected 3 classes",
    TRAIN + NPZ + "--data.root bright": "expected floats in [0,1]",
    TRAIN + NPZ + "--data.root cut": "train.npz",
    TRAIN + NPZ + "--data.root nowhere": "nowhere",
    # Run directories.
    "train a.yaml --run run --threat.eps 0.2": "was made by another configuration: threat.eps is 0.1 there and 0.2",
    "train a.yaml --run run --seed 7": "was made by another configuration: seed is 0 there and 7",
    "train a.yaml --run full": "not empty and no run directory (it holds thesis.tex)",
    "train a.yaml --run a.yaml": "is a file",
    # Teachers.
    TRAIN + "--method akd": "needs a teacher of role robust",
    TRAIN + "--teachers run:run@best": "has no use for a teacher",
    TRAIN + "--method akd --teachers run:nowhere": "nowhere is no run directory, it does not exist",
    TRAIN + "--method akd --teachers run:run@epoch-9": "expected best, last, or one of those kept: epoch-1, epoch-2",
    TRAIN + "--method akd --teachers nowhere.pt": "nowhere.pt not found",
    TRAIN + "--method akd --teachers weights.safetensors": "say which network they belong to",
    TRAIN + NPZ + "--data.root four --method akd --teachers run:run@best": "1×8×8 images, 10 classes; here are 3×8×8",
    AKD + "run:run@bset": "run has no checkpoint 'bset': expected best, last, or one of those kept: epoch-1, epoch-2",
    AKD + "run": "run is a run directory: write run:run@best",
    AKD + "robustbench:Standrad": "robustbench:Standrad is unknown: did you mean Standard?",
    AKD + "robustbench:Standard": "was trained on 3×32×32 images, 10 classes; here are 1×8×8 images, 10 classes",
    AKD + "nosuch_module:build": "cannot import 'nosuch_module'",
    AKD + "hf:nowhere": "hf:nowhere is no folder here",
    AKD + "[]": "method akd needs a teacher of role robust",
    AKD + '["run:run@best",{"spec":"run:run@last","role":"natural"}]': "give only those of role robust",
    TRAIN + "--method mtard --teachers run:run@best": "method mtard needs a teacher of role natural",
    TRAIN
    + "--method igdm --method.base mtard --teachers run:run@best": "which takes teachers robust, natural: expected one",
    AKD + '[{"spec":"weights.safetensors","model":{"name":"resnet8","width":3}}]': "of another shape",
    AKD + '[{"spec":"weights.safetensors","model":{"name":"lenet"}}]': "9 missing",
    AKD + '[{"spec":"half.safetensors","model":{"name":"resnet8"}}]': "half.safetensors is damaged",
    AKD + '[{"spec":"half.pt","model":{"name":"resnet8"}}]': "half.pt is damaged",
    AKD + '[{"spec":"payload.pt","model":{"name":"resnet8"}}]': "payload.pt would run code when read",
    AKD + '[{"spec":"plain.pt","model":{"name":"resnet8"}}]': "plain.pt is damaged, or no plain file of torch.save",
    AKD + "run:half@best": "model.safetensors is damaged",
    TRAIN + "--initial payload.pt": "payload.pt would run code when read",
    "teachers check half.pt --model resnet8 --data digits --threat linf:0.1": "half.pt is damaged",
    "teachers check run:run@best run:run@last": "'run:run@last' is not expected here",
    "teachers check run:run@best --data npz --data.root four": "1×8×8 images, 10 classes; here are 3×8×8 images, 4 c",
    # Images one by one.
    "transfer run": "at least two networks",
    "transfer run run:run@last --out full": "full is not empty and holds no transfer",
    "transfer run run:run@last --optim.epochs 3": "--optim has no effect on a transfer",
    "transfer run robustbench:Standard": "was trained on 3×32×32 images",
    "report run --transfer full": "transfer.json cannot be read",
    "difficulty run --uncertainty nowhere.npz": "nowhere.npz not found",
    "difficulty run --uncertainty payload.npz": "payload.npz: damaged or not of the expected format",
    "difficulty run --uncertainty four/train.npz": "train.npz holds images, labels: expected counts",
    "difficulty list.yaml --uncertainty four/train.npz": "list.yaml is no run directory",
    # Extra images and mixed labels.
    TRAIN + "--data.extra nowhere.npz": "nowhere.npz not found",
    TRAIN + "--data.extra four/train.npz": "images are float64 of shape (40, 3, 8, 8), expected uint8",
    TRAIN + "--data.extra packed.npz": "unpack the file (python -m zipfile -e packed.npz FOLDER) and give the folder",
    TRAIN + "--data.extra cut/train.npz": "damaged",
    TRAIN + "--data.extra payload.npz": "holds Python objects, which are never read",
    TRAIN + "--data.extra payload.pt": "no array named",
    TRAIN + "--data.extra full": "no file named images|x|image.npy",
    TRAIN + "--data.extra packed.npz --data.extra_share 0": "greater than 0",
    TRAIN + "--data.extra packed.npz --data.extra_share 0.001": "give a share that leaves one of each kind",
    TRAIN + "--data.cutmix -1": "greater than or equal to 0",
    TRAIN + "--data.cutmix 0.5 --method mart": "method mart is defined for images of one class: data.cutmix must be 0",
    "train a.yaml --run run --data.cutmix 0.5": "was made by another configuration: data.cutmix is 0.0 there and 0.5",
    # Evaluation.
    "evaluate": "nothing to evaluate",
    "evaluate nowhere": "nowhere is no run directory, it does not exist",
    "evaluate full": "full is no run directory",
    "evaluate run --suite nosuch": "suite 'nosuch' is unknown",
    "evaluate run --suite pgd-02": "did you mean pgd-20",
    "evaluate run --suite apgd-ec": "did you mean",
    "evaluate run --suite standard --quick": "leave --suite standard or --quick out",
    "evaluate run --precision fats": "fats",
    "evaluate run --threats linf:8/255,l2": "expected NORM:EPS",
    "evaluate run --threats l2:100": "no two images of digits are further apart than 8 in l2",
    "evaluate run --weights weights.safetensors": "give one of them",
    "evaluate run --robustbench-json entry.json": "give one --checkpoint",
    "evaluate --model resnet8 --data digits --threat linf:0.1": "nothing to evaluate",
    "evaluate --model no_such.module:build --data digits --threat linf:0.1": "cannot import",
    "evaluate --weights weights.safetensors --data digits --threat linf:0.1": "give --model too",
    "evaluate --weights nowhere.pt --model resnet8 --data digits --threat linf:0.1": "nowhere.pt not found",
    "evaluate robustbench:Nobody2020 --data digits --threat linf:0.1": "robustbench:Nobody2020 is unknown",
    "evaluate run --num-images 0": "0 images wanted",
    "evaluate run --num-images -3": "-3 images wanted",
    "evaluate run --num-images 100000": "100000 images wanted",
    "evaluate run --num-images many": "many",
    "evaluate run --batch-size 0": "batch_size is 0",
    "evaluate run --split held-out": "held-out",
    "evaluate run --checkpoint best epoch-7": "no checkpoint 'epoch-7'",
    "evaluate run --checkpoint best-ema": "no checkpoint 'best-ema'",
    "evaluate run --num-imgs 5": "--num_imgs has no effect",
    "evaluate run --model.width 4": "--model has no effect",
    "evaluate run --threat linf:8": "did you mean 8/255?",
    "evaluate run --data npz --data.root four": "the model",
    "evaluate weights.safetensors": "give --model too",
    FILE + "--model resnet8": "give --data too",
    FILE + "--model resnet8 --data digits": "give --threat too",
    FILE + "--model lenet --data digits --threat linf:0.1": "has no option 'width'",
    FILE + "--model wideresnet --model.width 4 --data digits --threat linf:0.1": "--model.width is given twice",
    FILE + "--model resnet8 --data digits --threat linf:0.1 --checkpoint best": "leave it out",
    FILE.replace("2", "4") + "--model resnet8 --data digits --threat linf:0.1": "of another shape",
    FILE + "--model resnet8 --data npz --data.root four --threat linf:0.1": "of another shape",
    "evaluate noise.pt --model resnet8 --data digits --threat linf:0.1": "noise.pt is damaged",
    "evaluate payload.pt --model resnet8 --data digits --threat linf:0.1": "would run code",
    # Studies.
    "study": "--study",
    "study alhpa": "study 'alhpa' is unknown: did you mean alpha",
    "study alpha --method at": "method at does not mix",
    "study alpha --seeds 0": "--seeds is 0",
    "study alpha --seeds many": "many",
    "study alpha --seed 3": "a study sets seed itself",
    "study alpha --optim.epohcs 3": "did you mean epochs",
    "study alpha --recipe nosuch": "recipe 'nosuch' is unknown",
    "study alpha --suite nosuch": "suite 'nosuch' is unknown",
    "study alpha --engine slurm": "slurm",
    "study alpha --workers 1000": "workers × 1 threads are more than the",
    "study alpha --runs full": "full is not empty and holds no study (it holds thesis.tex)",
    "study alpha --runs a.yaml": "is a file",
    "study alpha --runs a@b": "has an @ in its name",
    "study alpha --data cifar10 --data.root nowhere --runs new": "nowhere",
    "plan alhpa": "did you mean alpha",
    "plan methods --method akd": "leave --method out",
    # The rest.
    "report": "",
    "report nowhere": "nowhere",
    "doctor nowhere": "nowhere is no run directory, it does not exist",
    "doctor full": "full is no run directory (it has no config.yaml)",
    "doctor run run": "run",
    "doctor run --device": "--device",
    "list nosuch": "nosuch",
    "nosuch": "nosuch",
    "quickstart --seed many": "many",
}


@pytest.mark.parametrize("words", BAD)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: str, room: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room)
    before = tree(room)
    code, out, err = call(*words.split())
    assert code == 2, err
    assert err.startswith("robustill: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert BAD[words] in err
    assert out == ""
    assert tree(room) == before


def test_the_table_of_mistakes_is_long() -> None:
    assert len(BAD) >= 110


def test_doctor_finds_a_whole_run_whole_and_a_damaged_one_damaged(
    room: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room)
    code, out, err = call("doctor", "run")
    assert (code, err) == (0, "")
    assert re.search(r"^ok +metrics.jsonl +whole, 2 epochs *$", out, re.M)
    code, alone, err = call("doctor", "--device", "cpu")
    assert (code, err) == (0, "")
    for what in ("versions", "libraries", "device", "repeats", "float32", "bf16"):
        assert re.search(rf"^(ok|note) +{what} ", alone, re.M), what
    assert "metrics.jsonl" not in alone
    code, out, _ = call("doctor", "half", "--device", "cpu")
    assert code == 1
    assert re.search(r"^WRONG +checkpoints/epoch-0002 ", out, re.M)


def test_show_then_train_repeats(room: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, shown, _ = call("show", str(room / "a.yaml"), "--seed", "4")
    (tmp_path / "b.yaml").write_text(shown)
    assert call("train", "b.yaml", "--run", "one")[0] == 0
    code, out, _ = call("train", str(room / "a.yaml"), "--run", "two", "--seed", "4")
    assert code == 0
    assert "next: robustill evaluate two" in out
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert call("show", "b.yaml")[1] == shown


def test_train_again_says_the_same(room: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room)
    before = tree(room / "run")
    code, out, _ = call("train", "a.yaml", "--run", "run")
    assert code == 0
    assert out.startswith("run: best of 2 epochs is ")
    assert tree(room / "run") == before


def test_evaluate_a_run_and_its_file_alike(
    room: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes((room / "weights.safetensors").read_bytes())
    assert load_file(tmp_path / "w.safetensors")
    more = ["--num-images", "20", "--suite", "pgd-20", "--no-eps-curve"]
    named = ["--model", "resnet8", "--model.width", "2", "--data", "digits", "--threat", "linf:0.1"]
    code, out, _ = call("evaluate", "w.safetensors", *more, *named)
    assert code == 0
    assert "20 images, a subset of 500; linf:0.1; suite pgd-20" in out
    assert (tmp_path / "evaluations" / "test-w-pgd-20-20-images-linf-0.1" / "summary.json").exists()


def test_list_names_everything(call: Call) -> None:
    code, out, _ = call("list")
    assert code == 0
    words = out.split()
    for name in (*METHODS, *MODELS, *DATASETS, *RECIPES, *STUDIES, *SUITES):
        assert name in words
    code, only, _ = call("list", "recipes")
    assert code == 0
    assert "akd" not in only.split()


def test_a_plan_writes_nothing_and_a_study_ends_in_a_table(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["helpers.tiny_studies:pair", "--recipe", recipe(tmp_path / "data"), "--seeds", "1", "--suite", "pgd-20"]
    before = tree(tmp_path)
    code, out, _ = call("plan", *words)
    assert code == 0
    assert "1 seed: 4 runs, 1 of them shared teachers" in out
    assert re.search(r"akd-alpha-1 +akd +2 +0\.1 +teacher-0 ", out)
    assert tree(tmp_path) == before
    code, out, _ = call("study", *words)
    assert code == 0
    assert re.search(r"alpha 1 +best", out)
    assert (tmp_path / "runs" / "pair" / "pair-akd.tex").is_file()
    assert "4 of them are done" in call("plan", *words)[1]
    code, out, err = call("study", *words, "--optim.learning_rate", "1e30", "--runs", "broken")
    assert code == 1
    assert "! seed-0/akd-alpha-1: not run: it needs seed-0/teacher-0, which failed" in out
    assert "seed-0/at: failed: epoch 1 gave" in err


def test_difficulty_beside_what_people_said(call: Call, tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    np.savez(tmp_path / "said.npz", clean_label=labels, worse_label=np.where(labels == 1, 2, labels))
    (tmp_path / "scores.csv").write_text(
        "id,label,hard\n" + "".join(f"{i},{i % 3},{i % 3 == 1:d}\n" for i in range(30))
    )
    words = ["difficulty", str(tmp_path / "scores.csv"), "--uncertainty", str(tmp_path / "said.npz")]
    code, out, _ = call(*words, "--out", str(tmp_path / "found.csv"))
    assert code == 0
    assert re.search(r"hard +1\.000 +1\.000–1\.000 +1\.000", out)
    assert "worse_label differs,scores.csv,hard,30,,,,10,1.0,1.0,1.0,1.0" in (tmp_path / "found.csv").read_text()
    (tmp_path / "said.npz").write_bytes(b"PK")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "said.npz: damaged" in err
    assert call("difficulty", str(tmp_path), "--uncertainty", str(tmp_path / "nowhere.npz"))[0] == 2


def test_a_transfer_is_printed_written_and_shown(
    call: Call, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room)
    words = ["--num-images", "20", "--suite", "pgd-20", "--out", str(tmp_path / "t"), "--threat", "linf:0.05"]
    code, out, _ = call("transfer", "run", "run:run@epoch-1", *words)
    assert code == 0
    assert re.search(r"2 run@epoch-1 +[01]\.[0-9]{3} +[01]\.[0-9]{3}", out)
    assert "20 images, a subset of 500; linf:0.05; suite pgd-20" in out
    code, _, _ = call("report", "run", "--transfer", str(tmp_path / "t"), "--out", str(tmp_path / "page.html"))
    assert code == 0
    assert "run@epoch-1" in (tmp_path / "page.html").read_text()


def test_a_full_disk_elsewhere_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "page.html")

    monkeypatch.setattr("robustill.cli.tables.list_tables", full)
    assert call("list") == (2, "", "robustill: page.html: No space left on device\n")


def test_a_warning_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(*_: object) -> None:
        warnings.warn("two\nlines", stacklevel=1)

    monkeypatch.setattr("robustill.cli.tables.list_tables", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = call("list")
    assert shown == (0, "", "robustill: warning: two lines\n")


@pytest.mark.parametrize(("kind", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_how_to_go_on(
    call: Call, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals, expected: int
) -> None:
    monkeypatch.setattr("robustill.cli.tables.list_tables", lambda *_: signal.raise_signal(kind))
    before = signal.getsignal(kind)
    line = f"robustill: stopped by {kind.name}; nothing finished is lost; the same command goes on\n"
    assert call("list") == (expected, "", line)
    assert signal.getsignal(kind) == before


# --- as a process of its own


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from robustill.cli.app import main; main()", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_a_mistake_in_a_real_process(room: Path) -> None:
    done = process("train", "a.yaml", "--run", "new", "--threat.eps", "8", cwd=room)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("robustill: threat: eps 8 is larger than 1, but images are in [0,1]: did you mean 8/255?\n")


def test_help_of_every_verb_needs_no_torch(tmp_path: Path) -> None:
    script = """
import sys
from robustill.cli import app as cli
for verb in ["", "train", "evaluate", "report", "list", "show", "quickstart", "difficulty", "transfer", "export"]:
    sys.argv = ["robustill", *verb.split(), "--help"]
    try:
        cli.main()
    except SystemExit as exit_:
        assert not exit_.code, verb
    print("end of", verb)
assert not {"torch", "pydantic", "sklearn", "matplotlib", "markdown_it"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.count("end of") == 10
    for expected in ("--run", "--checkpoint", "--num-images", "--out", "--seed", "A run directory; a file of weights"):
        assert expected in done.stdout
    assert not list(tmp_path.iterdir())
