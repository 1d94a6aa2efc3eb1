import subprocess
import sys

import pytest

from helpers.official_layouts import write_mnist
from robustill.core.errors import DataError
from robustill.data import DATASETS, load


def test_an_unknown_name_suggests_a_known_one():
    with pytest.raises(DataError, match="did you mean cifar10"):
        load("cifar-10")
    with pytest.raises(DataError, match=r"known: .*digits"):
        load("something else")


def test_another_number_of_classes_than_expected(tmp_path):
    with pytest.raises(DataError, match="digits: found 10 classes, expected 100"):
        load("digits", num_classes=100)
    assert load("digits", num_classes=10).num_classes == 10


@pytest.mark.parametrize("image_size", [0, -4])
def test_an_image_size_that_cannot_be(image_size):
    with pytest.raises(DataError, match="expected 1 or more"):
        load("digits", image_size=image_size)


@pytest.mark.parametrize("split", ["Train", "val", "validation", ""])
def test_a_split_that_is_none_is_not_taken_for_the_test_images(split):
    with pytest.raises(DataError, match=f"split '{split}' is unknown: expected train or test"):
        load("digits", split=split)


def test_any_set_can_be_resized():
    assert load("digits", image_size=16).image_shape == (1, 16, 16)


def test_without_a_root_the_folder_data_is_read(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data/MNIST/raw")
    monkeypatch.chdir(tmp_path)
    assert len(load("mnist")) == 20


def test_the_root_may_be_text_with_a_tilde(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("mnist", root="~")) == 20


def test_rows_agree_with_themselves():
    for name, entry in DATASETS.items():
        assert entry.description, name
        if entry.mean is not None and entry.std is not None:
            assert len(entry.mean) == len(entry.std) == entry.image_shape[0]


def test_mean_and_standard_deviation_of_digits():
    pixels = load("digits").images.double() / 255
    assert DATASETS["digits"].mean == pytest.approx([pixels.mean().item()], abs=5e-5)
    assert DATASETS["digits"].std == pytest.approx([pixels.std(correction=0).item()], abs=5e-5)


def test_importing_takes_torch_and_numpy_alone():
    heavy = ["scipy", "PIL", "sklearn", "matplotlib", "pydantic", "torchvision"]
    code = f"import sys, robustill.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
