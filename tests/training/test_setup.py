"""Setting up a run: the use of every image, and what is refused before training begins."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.evaluation_cases import viewing
from helpers.small_runs import small_config, small_values, weights
from robustill.config.schema import make_config
from robustill.config.split import load_split, make_split
from robustill.core.errors import ConfigError, DataError, ModelError
from robustill.data import load
from robustill.training import setup as training_setup
from robustill.training.loop import train
from robustill.training.setup import set_up_training

CPU = torch.device("cpu")


def split_of(**data: object):  # type: ignore[no-untyped-def]
    digits = load("digits", split="train")
    return digits.labels, make_split(small_config(data=data), digits.labels, 10)


@pytest.mark.parametrize("validation", [30, 0.1])
def test_parts_are_disjoint_balanced_and_of_the_right_size(validation: float) -> None:
    labels, split = split_of(validation=validation, train_size=100)
    assert len(split.train) == 100
    assert len(split.validation) == (30 if validation == 30 else round(0.1 * len(labels)))
    assert not set(split.train.tolist()) & set(split.validation.tolist())
    assert torch.equal(labels[split.train].bincount(), torch.full((10,), 10))
    assert int(labels[split.validation].bincount().min()) >= int(0.9 * len(split.validation) / 10)


def test_all_remaining_images_are_for_training() -> None:
    labels, split = split_of(train_size=None)
    assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(len(labels)))


def test_the_validation_part_depends_on_its_seed_alone() -> None:
    _, one = split_of()
    _, other = split_of(train_size=None, label_noise=0.3, augmentation=["flip"])
    _, seeded = split_of(split_seed=1)
    assert torch.equal(one.validation, other.validation)
    assert not torch.equal(one.validation, seeded.validation)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.975])
def test_label_noise_is_exact_and_only_on_training_images(share: float) -> None:
    labels, split = split_of(train_size=40, label_noise=share)
    wrong = (split.labels != labels).nonzero().flatten()
    assert len(wrong) == round(share * 40)
    assert wrong.tolist() == sorted(split.flipped.tolist())
    assert set(wrong.tolist()) <= set(split.train.tolist())


def test_a_fold_is_left_out_of_the_training_part_only() -> None:
    _, whole = split_of(train_size=100, label_noise=0.2)
    folds = [split_of(train_size=100, label_noise=0.2, folds=3, fold=fold)[1] for fold in range(6)]
    for split in folds:
        assert torch.equal(split.pool, whole.train)
        assert torch.equal(split.validation, whole.validation)
        # The same labels are wrong, whether they are trained on or not.
        assert torch.equal(split.labels, whole.labels)
        assert torch.equal(split.flipped, whole.flipped)
        assert len(split.left_out) in (33, 34)
    assert torch.equal(torch.cat([split.left_out for split in folds[:3]]).sort().values, whole.train)
    assert not torch.equal(folds[0].left_out, folds[3].left_out)
    assert len(whole.left_out) == 0


def test_the_pool_is_all_folds_with_their_noisy_labels() -> None:
    config = small_config(data={"train_size": 100, "label_noise": 0.2, "folds": 4, "fold": 1})
    digits, pool = load("digits", split="train"), load_split(config, "pool")
    split = make_split(config, digits.labels, 10)
    assert torch.equal(pool.labels, split.labels[split.pool])
    assert torch.equal(pool.read(torch.arange(100)), digits.read(split.pool))
    assert int((pool.labels != digits.labels[split.pool]).sum()) == 20


def test_batches_have_noisy_labels_and_validation_true_ones() -> None:
    setup = set_up_training(small_config(data={"label_noise": 0.5}), CPU)
    for _, y, index in setup.loader.epoch(0):
        assert torch.equal(y, setup.split.labels[index])
    assert torch.equal(setup.validation[1], setup.dataset.labels[setup.split.validation])


def test_unknown_normalisation_is_computed_from_training_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(60) % 3)
    data = {"name": "npz", "root": str(tmp_path), "train_size": 30, "validation": 30}
    setup = set_up_training(small_config(data=data), CPU)
    used = torch.from_numpy(images)[setup.split.train].double() / 255
    state = setup.student.state_dict()
    torch.testing.assert_close(state["normalize.mean"].flatten().double(), used.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(state["normalize.std"].flatten().double(), used.std(dim=(0, 2, 3)))
    given = set_up_training(small_config(data=data, model={"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}), CPU)
    assert given.student.state_dict()["normalize.std"].flatten().tolist() == [1, 2, 3]


def test_the_normalisation_of_many_images_is_of_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_setup, "_MAX_MEASURED_IMAGES", 100)
    labels = np.arange(300) // 100
    images = np.broadcast_to((labels * 100).astype(np.uint8)[:, None, None, None], (300, 3, 8, 8))
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    data = {"name": "npz", "root": str(tmp_path), "train_size": 270, "validation": 30}
    state = set_up_training(small_config(data=data), CPU).student.state_dict()
    # A third of the images each are 0, 100/255 and 200/255; of 100 of them the mean has a standard error of 0.03.
    assert state["normalize.mean"].flatten().tolist() == pytest.approx([100 / 255] * 3, abs=0.09)
    assert state["normalize.std"].flatten().tolist() == pytest.approx([(2 / 3) ** 0.5 * 100 / 255] * 3, abs=0.04)


def test_a_users_own_network_is_not_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("users_module")
    module.tiny = lambda *, num_classes, in_channels, image_size, width: nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes)
    )
    monkeypatch.setitem(sys.modules, "users_module", module)
    student = set_up_training(small_config(model={"name": "users_module:tiny"}), CPU).student
    assert [type(layer) for layer in student] == [nn.Flatten, nn.Linear, nn.Linear]
    with pytest.raises(ModelError, match="no attribute `normalize`"):
        set_up_training(small_config(model={"name": "users_module:tiny", "mean": [0.5], "std": [0.5]}), CPU)


@pytest.mark.parametrize("method", ["at", "akd", "peerad"])
def test_a_network_that_views_feature_maps_is_trained(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("users_module")
    module.net = lambda: viewing(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)))
    monkeypatch.setitem(sys.modules, "users_module", module)
    teachers = [] if method != "akd" else [{"spec": "users_module:net"}, {"spec": "users_module:net"}]
    small = small_values(method={"name": method}, optim={"epochs": 1, "ema": 0.9}, teachers=teachers)
    run = train(make_config({**small, "model": {"name": "users_module:net"}}), tmp_path / "run", progress=False)
    assert run.best == 1


def test_a_network_that_cannot_be_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot be built"):
        set_up_training(small_config(model={"name": "torch.nn:Linear", "width": 2}), CPU)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train_size": 10**6}, "data.train_size is 1000000, but only"),
        ({"folds": 41, "fold": 0}, "data.folds is 41, but only 40"),
        ({"validation": 10**6}, "data.validation: cannot hold out"),
        ({"validation": 1e-6}, "no image would be held out"),
    ],
)
def test_a_part_that_is_too_large_names_its_key(data: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up_training(small_config(data=data), CPU)


@pytest.mark.parametrize(("norm", "widest"), [("l2", 8.0), ("l1", 64.0)])
def test_a_radius_larger_than_the_image_space_is_refused(norm: str, widest: float) -> None:
    set_up_training(small_config(threat={"norm": norm, "eps": widest}), CPU)
    with pytest.raises(ConfigError, match=f"further apart than {widest:g} in {norm}"):
        set_up_training(small_config(threat={"norm": norm, "eps": widest * 1.01}), CPU)


def test_one_file_for_training_and_testing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "all.npz"
    np.savez(file, images=np.zeros((60, 8, 8), np.uint8), labels=np.arange(60) % 10)
    with pytest.raises(ConfigError, match="is one file, whose images would be trained on and tested on: give a folder"):
        set_up_training(small_config(data={"name": "npz", "root": str(file)}), CPU)


def own_images(root: Path, split: str, shape: tuple[int, ...] = (8, 8), labels: int = 3) -> dict[str, object]:
    """Settings of an npz data set, of which one split is written."""
    images = np.random.default_rng(0).integers(0, 256, (60, *shape), dtype=np.uint8)
    np.savez(root / f"{split}.npz", images=images, labels=np.arange(60) % labels)
    return {"name": "npz", "root": str(root), "train_size": None, "validation": 30, "num_classes": 3}


def own_folder(root: Path, split: str, classes: str, side: int = 8) -> dict[str, object]:
    """Settings of a folder of images, of which one split is written."""
    for name in classes:
        (root / split / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (side, side), (10 * number, 0, 0)).save(root / split / name / f"{number}.png")
    return {"name": "folder", "root": str(root), "train_size": None, "validation": 30}


def test_missing_test_images_are_a_warning(tmp_path: Path) -> None:
    data = own_images(tmp_path, "train")
    with pytest.warns(UserWarning, match=r"no test images, so the run can be trained but .*expected .*test.npz"):
        alone = set_up_training(small_config(data=data), CPU)
    own_images(tmp_path, "test", labels=2)
    with pytest.warns(UserWarning, match=r"test\.npz: no images of 1 of the 3 classes \(2\)"):
        setup = set_up_training(small_config(data=data), CPU)
    assert setup.shape == alone.shape
    weights, expected = setup.student.state_dict(), alone.student.state_dict()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert torch.equal(setup.split.validation, alone.split.validation)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"shape": (9, 9)},
            r"test images are 1×9×9 images, 3 classes; expected, .*, 1×8×8 images, 3 classes: mend",
        ),
        ({"shape": (8, 8, 3)}, r"test images are 3×8×8 images"),
        ({"labels": 4}, r"test.npz: found labels up to 3, expected 3 classes \(these are test images: mend them"),
    ],
)
def test_test_images_that_do_not_fit_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    data = own_images(tmp_path, "train")
    own_images(tmp_path, "test", **wrong)
    for num_classes in (3, None):
        with pytest.raises(DataError, match=message):
            set_up_training(small_config(data={**data, "num_classes": num_classes}), CPU)


def test_damaged_test_images_are_refused(tmp_path: Path) -> None:
    data = own_images(tmp_path, "train")
    (tmp_path / "test.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"test.npz: damaged .*these are test images: mend them, or move them away"):
        set_up_training(small_config(data=data), CPU)


def test_a_test_folder_without_a_class_is_said(tmp_path: Path) -> None:
    data = own_folder(tmp_path, "train", "ab")
    own_folder(tmp_path, "test", "a")
    with pytest.warns(UserWarning, match=r"test: no images of 1 of the 2 classes \(b\)"):
        set_up_training(small_config(data=data), CPU)


def test_a_dozen_validation_images_are_said() -> None:
    data = {"name": "digits", "train_size": 40, "validation": 12}
    with pytest.warns(UserWarning, match=r"only 12 validation images .* to ±14 points: add training images"):
        set_up_training(small_config(data=data), CPU)
    with pytest.warns(UserWarning, match=r"only 12 validation images .*: give --data.validation 259$"):
        set_up_training(small_config(data={**data, "train_size": None}), CPU)


@pytest.mark.parametrize(
    ("classes", "side", "message"),
    [("ab", 9, "test images are 3×9×9"), ("az", 8, "a class that is not in ")],
)
def test_a_test_folder_that_does_not_fit_is_refused(tmp_path: Path, classes: str, side: int, message: str) -> None:
    data = own_folder(tmp_path, "train", "ab")
    own_folder(tmp_path, "test", classes, side)
    with pytest.raises(DataError, match=message):
        set_up_training(small_config(data=data), CPU)


# --- networks of other kinds


def lazy(num_classes: int, **_: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def normed(num_classes: int, **_: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.BatchNorm1d(num_classes))


def refusing(groups: object, lr: float) -> torch.optim.Optimizer:
    raise ValueError("no")


def scripted(num_classes: int, **_: Any) -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, num_classes))
    with warnings.catch_warnings():
        # torch.jit is to be removed some day.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(layers)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": f"{__name__}:lazy"}},
        {"method": {"name": "ard"}, "teachers": [f"{__name__}:lazy"]},
        {"method": {"name": "peerad", "peer": f"{__name__}:lazy"}},
        {"initial": f"{__name__}:lazy"},
    ],
)
def test_lazy_layers_are_refused_wherever_a_network_enters(changes: dict[str, Any]) -> None:
    with pytest.raises(
        ModelError, match="lazy has lazy layers, whose weights do not exist yet: call it once"
    ) as caught:
        set_up_training(small_config(**changes), CPU)
    assert "\n" not in str(caught.value)


def test_a_script_module_is_trained_resumed_and_taught_from(tmp_path: Path) -> None:
    config = small_config(
        model={"name": f"{__name__}:scripted"},
        optim={"ema": 0.9, "swa": 0.0},
        method={"name": "ard"},
        teachers=[f"{__name__}:scripted"],
    )
    train(config, tmp_path / "whole", progress=False)
    # The last epoch again, from the checkpoint of the one before.
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "epoch-0002")
    train(config, tmp_path / "again", progress=False)
    assert weights(tmp_path / "whole", "epoch-1") != weights(tmp_path / "whole", "last")
    for name in ("last", "last-ema", "last-swa"):
        assert weights(tmp_path / "again", name) == weights(tmp_path / "whole", name)


@pytest.mark.parametrize(
    ("optim", "line"),
    [
        ({"awp": 0.01, "freeze": ["1"]}, "awp with a student of which no weight of two dimensions"),
        ({"name": f"{__name__}:refusing"}, "cannot be built: ValueError: no"),
    ],
)
def test_nothing_is_written_of_a_run_that_cannot_begin(optim: dict[str, Any], line: str, tmp_path: Path) -> None:
    config = small_config(model={"name": f"{__name__}:normed"}, optim=optim)
    with pytest.raises(ConfigError, match=line):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_weights_of_a_script_module_are_not_perturbed(tmp_path: Path) -> None:
    config = small_config(model={"name": f"{__name__}:scripted"}, optim={"awp": 0.01})
    with pytest.raises(ConfigError, match=r"awp with a ScriptModule, .*: train the network that it was made from"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
