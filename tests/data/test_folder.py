import hashlib
import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.official_layouts import random_images
from robustill.core.errors import DataError
from robustill.data import ImageDataset, load
from robustill.data.encoded import StreamingDataset, decode


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Three classes of two images for training, one for testing, 10×12 RGB."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(["ant", "bee", "cat"]):
            for number, pixels in enumerate(random_images(count, (10, 12, 3), label)):
                save(tmp_path / split / name / f"{number}.png", pixels)
    return tmp_path


@pytest.fixture
def streaming(root, monkeypatch):
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 6 * 10 * 12 * 3 - 1)
    return load("folder", root=root)


def test_a_small_folder_is_in_memory(root):
    train = load("folder", root=root)
    assert isinstance(train, ImageDataset)
    assert train.classes == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = np.concatenate([random_images(2, (10, 12, 3), label) for label in range(3)]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(train.images.numpy(), expected)
    assert len(load("folder", root=root, split="test")) == 3


def test_a_large_folder_streams_the_same_images(root, streaming, monkeypatch):
    assert isinstance(streaming, StreamingDataset)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 6 * 10 * 12 * 3)
    memory = load("folder", root=root)
    assert isinstance(memory, ImageDataset)
    assert (len(streaming), streaming.image_shape, streaming.num_classes) == (6, (3, 10, 12), 3)
    assert torch.equal(streaming.labels, memory.labels)
    ids = torch.tensor([5, 0, 3])
    assert torch.equal(streaming.read(ids), memory.read(ids))
    assert torch.equal(streaming.subset(ids).read(torch.arange(3)), memory.read(ids))
    assert streaming.subset(ids).labels.tolist() == [2, 0, 1]
    other = streaming.labels.flip(0)
    assert torch.equal(streaming.subset(ids, other).labels, other[ids])
    assert streaming.read(ids[:0]).shape == (0, 3, 10, 12)


def test_streaming_fingerprint_follows_paths_sizes_and_labels(root, streaming):
    paths = [f"{name}/{number}.png" for name in ("ant", "bee", "cat") for number in (0, 1)]
    lines = "".join(f"{path}\0{(root / 'train' / path).stat().st_size}\n" for path in paths)
    labels = np.array([0, 0, 1, 1, 2, 2], dtype="<i8").tobytes()
    assert streaming.fingerprint == hashlib.sha256(b"(3, 10, 12)" + lines.encode() + labels).hexdigest()
    (root / "train/ant/0.png").rename(root / "train/ant/2.png")
    assert load("folder", root=root).fingerprint != streaming.fingerprint


def test_different_sizes_need_an_image_size(root):
    save(root / "train/bee/other.png", random_images(1, (16, 12, 3))[0])
    with pytest.raises(DataError, match=r"other\.png: 16×12 pixels while .*0\.png has 10×12; give --data\.image_size"):
        load("folder", root=root)


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG", "x.bmp", "x.webp"])
def test_other_image_formats_are_read(root, name):
    grey = np.full((10, 12), 100, dtype=np.uint8)
    save(root / "train/ant" / name, grey)
    train = load("folder", root=root)
    assert len(train) == 7
    assert train.images[2].float().sub(100).abs().max() <= 3


def test_files_that_are_not_images_are_left_out(root):
    (root / "train/ant/notes.txt").write_text("not an image")
    (root / "train/.hidden").mkdir()
    assert len(load("folder", root=root)) == 6


def test_unexpected_folders_are_refused(root):
    (root / "train/dog").mkdir()
    with pytest.raises(DataError, match="train/dog: a class folder without images"):
        load("folder", root=root)
    with pytest.warns(UserWarning, match=r"test: no images of 1 of the 4 classes \(dog\)"):
        dataset = load("folder", root=root, split="test")
    assert (dataset.num_classes, len(dataset.labels.unique())) == (4, 3)
    (root / "train/dog").rmdir()
    save(root / "test/eel/0.png", random_images(1, (10, 12, 3))[0])
    with pytest.raises(DataError, match="test/eel: a class that"):
        load("folder", root=root, split="test")
    with pytest.raises(DataError, match="found 3 classes, expected 10"):
        load("folder", root=root, num_classes=10)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"expected .*train or folders of classes in .*; give --data\.root$"):
        load("folder", root=tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        load("folder", root=tmp_path)


def test_the_test_folder_alone_can_be_read(root):
    import shutil

    shutil.rmtree(root / "train")
    assert load("folder", root=root, split="test").classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("image_size", [None, 8])
def test_damaged_images_are_named(root, image_size):
    path = root / "train/bee/1.png"
    content = path.read_bytes()
    for cut in [0, 1, 20, 40, len(content) // 2]:
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"bee/1\.png"):
            load("folder", root=root, image_size=image_size)


def test_images_damaged_while_streaming_are_named(root, streaming):
    (root / "train/bee/1.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"bee/1\.png"):
        streaming.read(torch.arange(6))
    save(root / "train/bee/1.png", random_images(1, (9, 12, 3))[0])
    with pytest.raises(DataError, match=r"bee/1\.png: 9×12 pixels, expected 10×12"):
        streaming.read(torch.arange(6))
    (root / "train/bee/1.png").unlink()
    with pytest.raises(DataError, match=r"bee/1\.png"):
        streaming.read(torch.arange(6))
    with pytest.raises(DataError, match=r"bee/1\.png"):
        _ = streaming.fingerprint


def test_pixels_of_16_bits_are_refused(root):
    save(root / "train/ant/deep.png", np.full((10, 12), 40000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"deep\.png: pixels of mode I;16, expected 8 bits"):
        load("folder", root=root)


def test_a_decompression_bomb_is_refused(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(DataError, match=r"0\.png"):
        load("folder", root=root)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "JPEG2000", "TGA", "PCX", "ICO"])
def test_other_formats_behind_a_known_suffix_are_refused(root, kind):
    file = root / "train" / "bee" / "1.png"
    Image.fromarray(random_images(1, (32, 32, 3), 0)[0]).save(file, format=kind)
    with pytest.raises(DataError, match=r"1.png: .*no image in the format PNG, JPEG, BMP, WEBP or PPM"):
        load("folder", root=root)


def test_no_program_is_started_for_postscript(root, monkeypatch):
    def started(*words, **options):
        raise AssertionError(f"started {words}")

    monkeypatch.setattr("subprocess.Popen.__init__", started)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "/bin/sh")
    file = root / "train" / "ant" / "0.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="no image in the format"):
        load("folder", root=root, image_size=8)
    with pytest.raises(DataError, match="no image in the format"):
        decode(file)


def test_what_systems_leave_behind_is_passed_over(root):
    before = load("folder", root=root)
    for folder in (".ipynb_checkpoints", "__MACOSX", ".hidden"):
        save(root / "train" / folder / "0.png", random_images(1, (10, 12, 3), 0)[0])
    (root / "train" / "ant" / "._0.png").write_bytes(b"\0\5\x16\7" + bytes(100))
    after = load("folder", root=root)
    assert after.classes == before.classes
    assert torch.equal(after.images, before.images)


def test_names_that_are_no_utf_8_are_read_and_spelled_out(root, monkeypatch):
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / os.fsdecode(b"\xe9.png"))
    for split in ("train", "test"):
        (root / split / "bee").rename(root / split / os.fsdecode(b"b\xe9\n"))
    memory = load("folder", root=root)
    assert memory.classes == ("ant", "b\\udce9\\n", "cat")
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    streaming = load("folder", root=root)
    assert len(streaming.fingerprint) == 64
    assert torch.equal(streaming.read(torch.arange(6)), memory.images)


@pytest.fixture
def plain(tmp_path):
    """A folder of three classes alone, of 2, 10 and 31 images."""
    for label, (name, count) in enumerate([("ant", 2), ("bee", 10), ("cát", 31)]):
        for number, pixels in enumerate(random_images(count, (4, 5, 3), label)):
            save(tmp_path / name / f"{number}.png", pixels)
    return tmp_path


def names_of(dataset, root):
    """The files behind the images of a data set in memory: no two images of these folders are the same."""
    known = {decode(path).numpy().tobytes(): str(path.relative_to(root)) for path in root.glob("*/*.png")}
    return [known[image.numpy().tobytes()] for image in dataset.images]


@pytest.mark.filterwarnings("ignore:.*has no folders train and test")
def test_a_folder_of_classes_is_split_by_the_hashes_of_the_names(plain):
    train, test = load("folder", root=plain), load("folder", root=plain, split="test")
    assert train.classes == test.classes == ("ant", "bee", "cát")
    expected = []
    for name, num_test in (("ant", 1), ("bee", 2), ("cát", 6)):
        files = [f"{name}/{path.name}" for path in (plain / name).iterdir()]
        expected += sorted(files, key=lambda file: hashlib.sha256(file.encode()).hexdigest())[:num_test]
    assert sorted(names_of(test, plain)) == sorted(expected)
    assert set(names_of(train, plain)) == {f"{path.parent.name}/{path.name}" for path in plain.glob("*/*.png")} - set(
        expected
    )
    assert torch.bincount(test.labels).tolist() == [1, 2, 6]
    assert train.split_rule == test.split_rule
    assert "SHA-256" in train.split_rule
    assert train.subset(torch.tensor([1, 2])).split_rule == train.split_rule


@pytest.mark.filterwarnings("ignore:.*has no folders train and test")
def test_the_split_is_the_same_on_another_machine(plain, tmp_path_factory, monkeypatch):
    before = names_of(load("folder", root=plain, split="test"), plain)
    # The folder elsewhere, with names in decomposed letters, in another order; other classes do not matter.
    copy = tmp_path_factory.mktemp("other") / "machine"
    copy.mkdir()
    for path in sorted(plain.glob("*/*.png"), reverse=True):
        folder = copy / unicodedata.normalize("NFD", path.parent.name)
        folder.mkdir(exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    for number, pixels in enumerate(random_images(5, (4, 5, 3), 7)):
        save(copy / "dog" / f"{number}.png", pixels)
    after = names_of(load("folder", root=copy, split="test"), copy)
    assert [unicodedata.normalize("NFC", name) for name in after if not name.startswith("dog")] == before
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    streaming = load("folder", root=copy, split="test")
    assert list(streaming.encoded.files) == after
    assert streaming.split_rule is not None


def test_a_split_that_the_user_did_not_make_is_said_in_training(plain):
    with pytest.warns(UserWarning, match="has no folders train and test: one image in five of each class is for"):
        load("folder", root=plain)
    # The conditions of an evaluation say it.
    load("folder", root=plain, split="test")


def test_what_is_no_folder_of_classes_is_not_split(plain):
    (plain / "dog").mkdir()
    save(plain / "dog" / "0.png", random_images(1, (4, 5, 3))[0])
    with pytest.raises(DataError, match=r"dog: one image, expected one to train on and one to test on"):
        load("folder", root=plain, split="test")
    (plain / "test").mkdir()
    with pytest.raises(DataError, match=r"expected .*train or folders of classes in"):
        load("folder", root=plain)
    # One folder alone is none of several classes.
    save(plain / "above" / "images" / "0.png", random_images(1, (4, 5, 3))[0])
    with pytest.raises(DataError, match=r"not found: expected .*above/train or folders of classes in .*above; give"):
        load("folder", root=plain / "above")
