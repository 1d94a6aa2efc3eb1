"""A user's mistake is one line and exit code 2, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers.command_line import Call
from helpers.small_runs import tree

TRAIN = "train a.yaml --run new "
AKD = TRAIN + "--method akd --teachers "
NPZ = "--model.mean [0.5,0.5,0.5] --model.std [0.2,0.2,0.2] --data.validation 30 --data.train_size null --data npz "
FILE = "evaluate weights.safetensors --model.width 2 "

MISTAKES = {
    # Numbers that could be written, but not read back.
    TRAIN + "--seed 18446744073709551616": "seed",
    TRAIN + "--data.split_seed -18446744073709551616": "split_seed",
    # Exports.
    "export run": "export needs a file or a folder to write, or --push OWNER/NAME",
    "export nothing new": "nothing is no run directory, it does not exist",
    "export run full": "full exists: give another name",
    "export run a.yaml": "a.yaml exists: give another name",
    "export run@epoch-9 new": "no checkpoint 'epoch-9'",
    "export half new": "is damaged",
    "export hf:four new": "hf:four has no config.json: expected config.json and model.safetensors",
    # Recipes and configuration files.
    "train a.yaml": "--run is missing: write robustill train RECIPE ... --run",
    "train a.yaml --run": "--run has no value",
    "train": "RECIPE is missing: write robustill train RECIPE",
    "train --run new --data digits": "--data is not expected before RECIPE: write robustill train RECIPE --data",
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
    TRAIN + "--data nowhere/images": "nowhere/images is no data set: expected a name, or --data PATH of a folder or an",
    TRAIN + "--data four/train.npz": "four/train.npz is one file, whose images would be trained on and tested on",
    TRAIN + "--data four --data.root bright": "--data.root is given twice",
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
    AKD + "hf:nowhere": "hf:nowhere is not a folder",
    AKD + "[]": "method akd needs a teacher of role robust",
    AKD + '["run:run@best",{"spec":"run:run@last","role":"natural"}]': "give only those of role robust",
    TRAIN + "--method adr": "method adr learns from the average of the student's own weights, and optim.ema is null",
    TRAIN + "--method adr --optim.ema 0.9 --teachers run:run@best": "remove it (--teachers [])",
    TRAIN + "--method adr --optim.ema 0.9 --method.base mart": "method adr has base 'mart': expected at or trades",
    TRAIN + "--method igdm --method.base adr --teachers run:run@best": "method igdm has base 'adr', which takes",
    TRAIN + "--method sgls --method.momentum 1.5": "momentum is 1.5, expected a number of at least 0 and at most 1",
    TRAIN + "--method sgls --data.cutmix 0.5": "method sgls is defined for images of one class: data.cutmix must be 0",
    TRAIN + "--method te --method.momentum 1": "momentum is 1, expected a number of at least 0 and at most 0.999",
    TRAIN
    + "--method rebat --optim.ema 0.9 --method.begin 2": "begin is 2, expected a number of at least 0 and at most 1",
    TRAIN + "--method mtard --teachers run:run@best": "method mtard needs a teacher of role natural",
    TRAIN
    + "--method igdm --method.base mtard --teachers run:run@best": "takes teachers robust, natural: expected a base",
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
    "difficulty run --uncertainty four/train.npz": "train.npz contains images, labels: expected counts",
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
    TRAIN
    + "--data.extra packed.npz --data.extra_share 0.001": "give a share that leaves at least one image of each kind",
    TRAIN + "--data.cutmix -1": "greater than or equal to 0",
    TRAIN + "--data.cutmix 0.5 --method mart": "method mart is defined for images of one class: data.cutmix must be 0",
    "train a.yaml --run run --data.cutmix 0.5": "was made by another configuration: data.cutmix is 0.0 there and 0.5",
    # Evaluation.
    "evaluate": "nothing to evaluate",
    "evaluate nowhere": "nowhere is no run directory, it does not exist",
    "evaluate nowhere/a:b": "nowhere/a:b is no run directory, it does not exist",
    "evaluate --data digits net.pt2": "'net.pt2' is not expected here: an override is written --group.key VALUE, after",
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
    "evaluate run --num-images 0": "0 images requested",
    "evaluate run --num-images -3": "-3 images requested",
    "evaluate run --num-images 100000": "100000 images requested",
    "evaluate run --num-images many": "many",
    "evaluate run --batch-size 0": "batch_size is 0",
    "evaluate run --split held-out": "held-out",
    "evaluate run --checkpoint best epoch-7": "no checkpoint 'epoch-7'",
    "evaluate run --checkpoint best-ema": "no checkpoint 'best-ema'",
    "evaluate run --num-imgs 5": "--num-imgs is no option: did you mean --num-images?",
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
    "study": "STUDY is missing",
    "study --seed 3 alpha": "--seed is not expected before STUDY: write robustill study STUDY --seed",
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
    "study alpha --data cifar10 --data.root nowhere --runs new": "nowhere",
    "plan alhpa": "did you mean alpha",
    "plan methods --method akd": "leave --method out",
    # The rest.
    "report": "",
    "report nowhere": "nowhere",
    "doctor nowhere": "nowhere is no run directory, it does not exist",
    "doctor full": "full is no run directory (it has no config.yaml)",
    "doctor run run": "run is not expected here: see robustill doctor --help",
    "doctor run --device": "--device has no value",
    "list nosuch": "nosuch",
    "nosuch": "nosuch",
    "quickstart --seed many": "many",
    # Hints that name the cause, and the setting that is meant.
    "evaluate net.onnx --data digits --threat linf:0.1": "net.onnx is damaged, or not an ONNX model",
    "evaluate script.pt --model resnet8 --data digits --threat linf:0.1": "script.pt is a TorchScript program",
    "evaluate script.pt --data digits --threat linf:0.1": "script.pt is a TorchScript program",
    "teachers check net.onnx --data digits --threat linf:0.1": "net.onnx is an ONNX model",
    "export net.onnx new": "net.onnx is an ONNX model",
    AKD + "net.onnx": "net.onnx is an ONNX model",
    AKD + "[weights.safetensors]": "--teachers '[{spec: weights.safetensors, model: {name: resnet18}}]'",
    "evaluate run --surrogate weights.safetensors": "--surrogate weights.safetensors holds weights only",
    "teachers check run:run --student weights.safetensors": "--student weights.safetensors holds weights only",
    "transfer run weights.safetensors": "network weights.safetensors holds weights only: give a network that names its",
    TRAIN + "--method mynet.py:M": "names a file: write its module, mynet:M, and start in its folder",
    TRAIN + "--model mynet.py:net": "names a file: write its module, mynet:net",
    TRAIN + "--model nets.mynet.net": "model 'nets.mynet.net' is unknown: an import path is written nets.mynet:net",
    "study nets/mynet.py:s": "names a file: write its module, mynet:s, and start in nets",
    TRAIN + "--width 3": "unknown key width: did you mean model.width?",
    TRAIN + "--alpha 0.3": "unknown key alpha: did you mean method.alpha?",
    TRAIN + "--weights w.pt": "unknown key weights: did you mean initial?",
    TRAIN + "--epochs 3": "unknown key epochs: did you mean optim.epochs?",
    TRAIN + "--lr 3": "did you mean optim.learning_rate?",
    TRAIN + "--optim.lr 3": "did you mean optim.learning_rate?",
    TRAIN + "--batch-size 3": "did you mean optim.batch_size?",
    TRAIN + "--steps 3": "did you mean attack.steps or validation.steps?",
    "evaluate run --eps 8/255": "--eps has no effect on an evaluation: did you mean --threat.eps?",
    "evaluate run --num-image 3": "--num-image is no option: did you mean --num-images?",
    "transfer run run:run@last --num-image 3": "did you mean --num-images?",
    "study alpha --run new": "--run is no option: did you mean --runs?",
    "plan alpha --seed-s 3": "--seed-s is no option: did you mean --seeds?",
    TRAIN + "--compute.cuda_graphs true": "compute.cuda_graphs no longer exists: leave it out",
    "evaluate run --compute.cuda_graphs true": "compute.cuda_graphs no longer exists: leave it out",
    TRAIN + NPZ + "--data.root beyond": "images from 0 to 1.0000001192092896, expected floats in [0,1]",
    # Names and sizes that cannot be.
    "report run --out .": ". is a folder and cannot be written: give the name of a new file",
    "report run --out full": "full is a folder and cannot be written: give the name of a new file",
    TRAIN + "--data.image_size 100000": "less than or equal to 4096",
    TRAIN + "--data.image_size 4096": "digits: 1297 images of 4096×4096 pixels take 20 GiB, more than the 1 GiB of",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: str, workspace: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(os, "sysconf", lambda _: 2**15)
    before = tree(workspace)
    code, out, err = call(*words.split())
    assert code == 2, err
    assert err.startswith("robustill: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert MISTAKES[words] in err
    assert out == ""
    assert tree(workspace) == before


def test_the_table_of_mistakes_has_not_shrunk() -> None:
    assert len(MISTAKES) >= 110
