import hashlib
import io
import os
from pathlib import Path

import pytest
import torch

from helpers.shards import encoded_images, samples, table, write_parquet, write_tar
from robustill.core.errors import DataError
from robustill.data import load
from robustill.data.encoded import decode
from robustill.data.images import MissingDataError, Request
from robustill.data.shards import find_shards, holds_shards


def found(root, split="train", suffix=".tar"):
    shards = find_shards(Request(name="webdataset", root=root, split=split), suffix)
    return [[shard.name for shard in each] for each in (shards.train, shards.test)], shards.is_divided


def touched(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train-00000-of-00002.tar", "train-00001-of-00002.tar"], ["test-00000-of-00001.tar"]),
        (["data/train-00000-of-00001.tar"], ["data/test-00000-of-00001.tar"]),
        (["train/0.tar", "train/1.tar"], ["test/0.tar"]),
        (["plain_text/train/0.tar"], ["plain_text/test/0.tar"]),
        (["my-Training_set.tar"], ["my-Testing_set.tar"]),
        (["imagenet1k-train-0000.tar"], ["imagenet1k-validation-00.tar"]),
        (["train/a.tar", "train.tar"], ["test/a.tar"]),
    ],
)
def test_names_of_files_and_folders_say_the_split(tmp_path, train, test):
    touched(tmp_path, *train, *test, "notes.txt", ".hidden/train.tar", "._train.tar")
    assert found(tmp_path) == ([train, test], True)


def test_validation_files_are_the_test_only_where_there_is_none(tmp_path):
    touched(tmp_path, "train.tar", "val.tar")
    assert found(tmp_path) == ([["train.tar"], ["val.tar"]], True)
    touched(tmp_path, "test.tar")
    with pytest.warns(
        UserWarning, match=r"val\.tar and others for validation are left out: validation images are held"
    ):
        assert found(tmp_path) == ([["train.tar"], ["test.tar"]], True)
    assert found(tmp_path, "test") == ([["train.tar"], ["test.tar"]], True)


def test_files_that_say_no_split_are_to_be_divided(tmp_path):
    touched(tmp_path, "b/0.tar", "b/1.tar")
    assert found(tmp_path) == ([["b/0.tar", "b/1.tar"]] * 2, False)
    # The folder above the root says nothing.
    assert found(tmp_path / "b") == ([["0.tar", "1.tar"]] * 2, False)
    assert found(tmp_path / "b" / "1.tar") == ([["1.tar"]] * 2, False)
    touched(tmp_path, "b/train.tar")
    with pytest.raises(
        DataError, match=r"b/0\.tar does not say its split as b/train\.tar does: expected train, test or"
    ):
        found(tmp_path)


def test_several_data_sets_and_missing_files_are_refused(tmp_path):
    with pytest.raises(
        MissingDataError, match=r"webdataset \(train\) not found: expected \*\.tar files in .*; give --d"
    ):
        found(tmp_path)
    with pytest.raises(MissingDataError):
        found(tmp_path / "nowhere")
    touched(tmp_path, "fine/train.tar", "coarse/train/0.tar")
    with pytest.raises(
        DataError, match=r"holds several data sets \(coarse, fine\): give one of these folders as --data\."
    ):
        found(tmp_path)
    assert found(tmp_path / "fine")[1] is False


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_half_a_download_is_noticed(tmp_path, lost):
    names = [f"train-0000{number}-of-00003.tar" for number in range(3)]
    touched(tmp_path, *(names[:lost] + names[lost + 1 :]))
    with pytest.raises(DataError, match=rf"train-0000{lost}-of-00003\.tar is missing: .* belongs to 3 files"):
        found(tmp_path)
    touched(tmp_path, names[lost])
    assert found(tmp_path) == ([names] * 2, False)


def test_a_split_without_files_is_named(tmp_path):
    write_tar(tmp_path / "test.tar", samples(encoded_images(2), [0, 1]))
    with pytest.raises(MissingDataError, match=r"expected a file with train in its name in"):
        load("webdataset", root=tmp_path)
    assert len(load("webdataset", root=tmp_path, split="test")) == 2


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_images_without_a_test_split_are_divided_by_their_names(tmp_path, name):
    images, labels = encoded_images(43), [0] * 2 + [1] * 10 + [2] * 31
    root, other = tmp_path / "one", tmp_path / "other" / "place"
    for folder in (root, other):
        if name == "parquet":
            write_parquet(folder / "a.parquet", table(images[:20], labels[:20]))
            write_parquet(folder / "b.parquet", table(images[20:], labels[20:]))
        else:
            write_tar(folder / "a.tar", samples(images[:20], labels[:20]))
            write_tar(folder / "b.tar", samples(images[20:], labels[20:], 20))
    with pytest.warns(
        UserWarning, match=r"has no test images of its own: one image in five of each class is for testing"
    ):
        train = load(name, root=root)
    test = load(name, root=root, split="test")
    assert torch.bincount(test.labels).tolist() == [1, 2, 6]
    assert torch.bincount(train.labels).tolist() == [1, 8, 25]
    pixels = {image.numpy().tobytes() for each in (train, test) for image in each.images}
    assert len(pixels) == 43
    assert train.split_rule == test.split_rule
    assert f"SHA-256 of SHARD/{'ROW' if name == 'parquet' else 'KEY'}" in train.split_rule
    # The same images elsewhere, and where there are other classes as well.
    if name == "parquet":
        write_parquet(other / "c.parquet", table(encoded_images(5, seed=1), [3] * 5))
    else:
        write_tar(other / "c.tar", samples(encoded_images(5, seed=1), [3] * 5))
    again = load(name, root=other, split="test")
    assert torch.equal(again.images[again.labels < 3], test.images)


def test_the_split_is_that_of_the_hashes(tmp_path):
    images = encoded_images(10)
    path = write_parquet(tmp_path / "a.parquet", table(images, [0, 1] * 5))
    first = [
        min(range(label, 10, 2), key=lambda row: hashlib.sha256(f"a.parquet/{row}".encode()).digest())
        for label in (0, 1)
    ]
    expected = torch.stack([decode(io.BytesIO(images[row])) for row in sorted(first)])
    for root in (tmp_path, path):
        assert torch.equal(load("parquet", root=root, split="test").images, expected)


def test_one_image_of_a_class_cannot_be_divided(tmp_path):
    write_tar(tmp_path / "a.tar", samples(encoded_images(3), [0, 0, 1]))
    with pytest.raises(DataError, match=r"one image of the class 1, expected one to train on and one to test on; add"):
        load("webdataset", root=tmp_path, split="test")


def test_the_number_of_classes_is_that_of_the_training_images(tmp_path):
    write_tar(tmp_path / "train.tar", samples(encoded_images(3), [0, 2, 1]))
    write_tar(tmp_path / "test.tar", samples(encoded_images(2), [0, 1]))
    with pytest.warns(UserWarning, match=r"no images of 1 of the 3 classes \(2\)"):
        assert load("webdataset", root=tmp_path, split="test").classes == ("0", "1", "2")
    with pytest.warns(UserWarning, match=r"no images of 2 of the 5 classes \(3, 4\)"):
        assert load("webdataset", root=tmp_path, num_classes=5).num_classes == 5
    with pytest.raises(DataError, match=r"\(train\): found labels up to 2, expected 2 classes"):
        load("webdataset", root=tmp_path, num_classes=2)
    write_tar(tmp_path / "test.tar", samples(encoded_images(2), [0, 3]))
    with pytest.raises(DataError, match=r"\(test\): found labels up to 3, expected 3 classes"):
        load("webdataset", root=tmp_path, split="test")
    write_tar(tmp_path / "test.tar", samples(encoded_images(2), [-1, -1]))
    with pytest.raises(DataError, match=r"\(test\): found the label -1, expected 0 or more, as labelled images have"):
        load("webdataset", root=tmp_path, split="test")
    write_tar(tmp_path / "train.tar", samples(encoded_images(2), [0, 10**6]))
    with pytest.raises(DataError, match=r"found labels up to 1000000, expected less than 100,000 classes"):
        load("webdataset", root=tmp_path)


@pytest.mark.parametrize("name", ["parquet", "webdataset"])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, name, monkeypatch):
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    images = encoded_images(4)
    if name == "parquet":
        path = write_parquet(tmp_path / "test.parquet", table(images, [0, 1, 0, 1]))
    else:
        path = write_tar(tmp_path / "test.tar", samples(images, [0, 1, 0, 1]))
    dataset = load(name, root=tmp_path, split="test")
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match=rf"{path.name} has changed while it was in use: repeat the command"):
        dataset.read(torch.arange(4))
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(DataError, match="has changed"):
        dataset.read(torch.arange(4))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert dataset.read(torch.tensor([3, 1])).shape == (2, 3, 4, 5)
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        dataset.read(torch.arange(4))


def test_shards_are_told_from_other_data(tmp_path: Path):
    touched(tmp_path, "tars/a/0.tar", "images/train/cat/1.png", "file.parquet")
    assert holds_shards(tmp_path / "tars", ".tar")
    assert not holds_shards(tmp_path / "images", ".tar")
    assert holds_shards(tmp_path / "file.parquet", ".parquet")
    assert not holds_shards(tmp_path / "file.parquet", ".tar")
