"""Data sets that a function of the user returns, by import path."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import robustill as rb
from helpers.official_layouts import random_images
from robustill.config.files import load_config, named_code
from robustill.config.schema import Config
from robustill.core.errors import ConfigError, DataError, RobustillError
from robustill.core.user_code import UntrustedCodeError, only_named
from robustill.data import Dataset, ImageDataset, load

IMAGES = random_images(6, (3, 8, 8))
LABELS = [0, 1, 2, 0, 1, 2]


class Pairs(list):  # type: ignore[type-arg]
    """Items (image, label) with the names of the classes."""

    classes = ("a", "b", "c")


def pairs(images: Any = None, labels: Any = None) -> Pairs:
    images = torch.from_numpy(IMAGES) if images is None else images
    return Pairs(zip(images, LABELS if labels is None else labels, strict=True))


@pytest.fixture
def my_data(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(dataset=lambda split: pairs())
    monkeypatch.setitem(sys.modules, "my_data", module)
    return module


def loaded(my_data: SimpleNamespace, content: Any, **settings: Any) -> Dataset:
    my_data.dataset = lambda split: content
    return load("my_data:dataset", **settings)


HWC = IMAGES.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    "images",
    [
        torch.from_numpy(IMAGES),
        torch.from_numpy(IMAGES).float() / 255,
        torch.from_numpy(IMAGES / 255),
        IMAGES,
        HWC,
        [Image.fromarray(each) for each in HWC],
    ],
    ids=["bytes", "float32", "float64", "array", "HWC", "pictures"],
)
def test_every_form_of_an_image_gives_the_same_pixels(images: Any, my_data: SimpleNamespace) -> None:
    dataset = loaded(my_data, pairs(images))
    assert torch.equal(dataset.read(torch.arange(6)), torch.from_numpy(IMAGES))
    assert dataset.labels.tolist() == LABELS
    assert (dataset.name, dataset.classes, dataset.image_shape) == ("my_data:dataset", ("a", "b", "c"), (3, 8, 8))


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "LA", "1", "L"])
def test_a_picture_of_any_mode_has_the_pixels_of_its_file(mode: str, my_data: SimpleNamespace, tmp_path: Path) -> None:
    pictures = [Image.fromarray(each).convert(mode) for each in HWC]
    file = tmp_path / "first.tiff"
    pictures[0].save(file)
    with Image.open(file) as stored:
        expected = torch.from_numpy(np.array(stored.convert("RGB"))).permute(2, 0, 1)
    found = loaded(my_data, pairs(pictures)).read(torch.arange(6))[0]
    assert torch.equal(found, expected[:1] if mode in ("1", "L", "LA") else expected)


def test_a_picture_of_floats_is_rounded_to_bytes(my_data: SimpleNamespace) -> None:
    pictures = [Image.fromarray(each[0].astype(np.float32) / 255) for each in IMAGES]
    assert pictures[0].mode == "F"
    assert torch.equal(loaded(my_data, pairs(pictures)).read(torch.arange(6)), torch.from_numpy(IMAGES[:, :1]))


def test_a_picture_of_sixteen_bits_is_refused(my_data: SimpleNamespace) -> None:
    pictures = [Image.fromarray(each[0].astype(np.uint16)) for each in IMAGES]
    with pytest.raises(DataError, match="image 0 has pixels of mode I;16, expected 8 bits a channel: convert it"):
        loaded(my_data, pairs(pictures))


def test_grey_images_get_a_channel_and_are_resized(my_data: SimpleNamespace) -> None:
    grey = torch.from_numpy(IMAGES[:, 0])
    assert torch.equal(loaded(my_data, pairs(grey)).read(torch.arange(6)), grey[:, None])
    assert loaded(my_data, pairs(grey), image_size=4).image_shape == (1, 4, 4)


def test_labels_of_torch_and_numpy_and_a_number_of_classes_are_taken(my_data: SimpleNamespace) -> None:
    labels = [torch.tensor(1), np.int32(0), 1, 0, 1, 0]
    dataset = loaded(my_data, list(pairs(labels=labels)), num_classes=4)
    assert (dataset.labels.tolist(), dataset.num_classes) == ([1, 0, 1, 0, 1, 0], 4)


def test_the_function_gets_the_settings_that_it_names(my_data: SimpleNamespace, tmp_path: Any) -> None:
    calls: list[dict[str, Any]] = []

    def dataset(split: str, root: Any = None, **more: Any) -> Pairs:
        calls.append({"split": split, "root": root, **more})
        return pairs()

    my_data.dataset = dataset
    load("my_data:dataset", split="test", root=tmp_path, image_size=8)
    assert calls == [{"split": "test", "root": tmp_path, "image_size": 8, "num_classes": None}]
    my_data.dataset = lambda split, image_size: calls.append({"split": split, "size": image_size}) or pairs()
    load("my_data:dataset", image_size=8)
    assert calls[1] == {"split": "train", "size": 8}


def test_a_data_set_of_robustill_keeps_its_images_and_gets_the_name(my_data: SimpleNamespace) -> None:
    own = ImageDataset(
        name="mine",
        split="train",
        images=torch.from_numpy(IMAGES),
        labels=torch.tensor(LABELS),
        classes=("a", "b", "c"),
    )
    dataset = loaded(my_data, own)
    assert (dataset.name, dataset.fingerprint) == ("my_data:dataset", own.fingerprint)
    with pytest.raises(DataError, match="my_data:dataset returned the split 'train', expected 'test'"):
        load("my_data:dataset", split="test")


def test_the_fingerprint_is_that_of_the_content(my_data: SimpleNamespace) -> None:
    one = loaded(my_data, pairs()).fingerprint
    assert loaded(my_data, pairs(torch.from_numpy(IMAGES) / 255)).fingerprint == one
    assert loaded(my_data, pairs(torch.from_numpy(IMAGES).flip(0))).fingerprint != one
    assert loaded(my_data, pairs(labels=LABELS[::-1])).fingerprint != one


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (iter([]), "expected a length and items"),
        (Pairs(), "no images"),
        (Pairs([1, 2]), r"item 0 is no \(image, label\): TypeError"),
        (Pairs([(IMAGES[0], "cat")]), r"item 0 is no \(image, label\): ValueError"),
        (list(pairs()), "does not say its classes: give --data.num_classes, or return"),
        (pairs(labels=[0, 1, 2, 3, 4, 5]), "found labels up to 5, expected 3 classes"),
        (pairs([*IMAGES[:5], IMAGES[5, :, :4]]), r"shapes \(3, 8, 8\) and \(3, 4, 8\), expected one shape: resize"),
        (pairs(IMAGES.astype(np.float32)), r"image 0: images from .* expected floats in \[0,1\]"),
        (pairs(IMAGES.astype(np.int64)), r"image 0 is int64, expected uint8, or floats in \[0,1\]"),
        (pairs(IMAGES.reshape(6, -1)), r"image 0 has the shape \(192,\), expected \[C,H,W\] or \[H,W\]"),
    ],
)
def test_what_is_no_data_set_is_an_error_of_one_line(content: Any, message: str, my_data: SimpleNamespace) -> None:
    with pytest.raises(DataError, match=message) as caught:
        loaded(my_data, content)
    assert "\n" not in str(caught.value)


def test_a_function_that_cannot_be_called_is_an_error_of_one_line(my_data: SimpleNamespace) -> None:
    def fails(split: str) -> Any:
        raise OSError("no\ndisk")

    def refused(match: str, name: str = "my_data:dataset") -> None:
        with pytest.raises(RobustillError, match=match) as caught:
            load(name)
        assert "\n" not in str(caught.value)

    my_data.dataset = fails
    refused(r"my_data:dataset \(train\) fails: OSError: no")
    my_data.dataset = lambda: pairs()
    refused(r"takes no argument `split`, expected dataset\(split\)")
    refused("my_data has no function 'other'", "my_data:other")
    refused("cannot import 'no_such_module'", "no_such_module:dataset")
    refused("names a file: write its module, my_data:dataset", "my_data.py:dataset")


@pytest.mark.usefixtures("my_data")
def test_only_the_command_line_names_the_function(tmp_path: Any) -> None:
    with only_named(origin="run/config.yaml"), pytest.raises(UntrustedCodeError, match="my_data:dataset"):
        load("my_data:dataset")
    values = {"data": {"name": "my_data:dataset", "root": "a:b"}}
    assert named_code(values) == ("my_data:dataset",)
    assert named_code(Config(**values)) == ("my_data:dataset",)
    path = tmp_path / "own.yaml"
    path.write_text("data: {name: 'my_data:dataset'}\n")
    with pytest.raises(UntrustedCodeError, match="my_data:dataset"):
        load_config(path)
    assert load_config(path, trust_code=["my_data:dataset"]).data.name == "my_data:dataset"
    with pytest.raises(ConfigError, match=r"data set my_data.py:dataset names a file: write its module"):
        Config(data={"name": "my_data.py:dataset"})


def test_a_network_is_trained_on_it_and_evaluated(tmp_path: Any, my_data: SimpleNamespace) -> None:
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    my_data.dataset = lambda split: pairs(images, [number % 3 for number in range(40)])
    overrides = ["--data", "my_data:dataset", *"--model resnet8 --model.width 2 --data.validation 10".split()]
    overrides += "--optim.epochs 1 --optim.batch_size 10 --attack.steps 1 --validation.steps 1".split()
    with pytest.warns(UserWarning, match=r"validation|guessing"):
        rb.train(rb.recipe("digits_at", [*overrides, "--data.train_size", "null"]), tmp_path / "run", progress=False)
    with pytest.raises(UntrustedCodeError, match="my_data:dataset"):
        rb.evaluate_run(tmp_path / "run", checkpoints="last", progress=False)
    settings: dict[str, Any] = {"checkpoints": "last", "suite": "pgd-20", "num_images": 9, "progress": False}
    (records,) = rb.evaluate_run(tmp_path / "run", **settings, trust_code=["my_data:dataset"]).values()
    assert len(records) == 9
