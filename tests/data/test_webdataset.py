import io
import json
import tarfile

import pytest
import torch

from helpers.official_layouts import random_images
from helpers.shards import encoded, encoded_images, samples, write_tar
from robustill.core.errors import DataError
from robustill.data import ImageDataset, load
from robustill.data.encoded import StreamingDataset, decode

LABELS = [0, 1, 2, 0, 1, 2, 0]


@pytest.fixture
def root(tmp_path):
    """Seven training images in two archives, three test images, 4×5 RGB."""
    images = encoded_images(10)
    write_tar(tmp_path / "train-0000.tar", samples(images[:4], LABELS[:4]))
    write_tar(tmp_path / "train-0001.tar", samples(images[4:7], LABELS[4:], 4))
    write_tar(tmp_path / "test-0000.tar", samples(images[7:], [0, 1, 2], 7))
    return tmp_path


@pytest.fixture
def streaming(root, monkeypatch):
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    return load("webdataset", root=root)


def decoded(images):
    return torch.stack([decode(io.BytesIO(image)) for image in images])


def test_a_small_set_is_in_memory(root):
    train, test = load("webdataset", root=root), load("webdataset", root=root, split="test")
    assert isinstance(train, ImageDataset)
    assert torch.equal(torch.cat([train.images, test.images]), decoded(encoded_images(10)))
    assert train.labels.tolist() == LABELS
    assert train.classes == test.classes == ("0", "1", "2")


def test_a_large_set_streams_the_same_images(root, streaming, monkeypatch):
    assert isinstance(streaming, StreamingDataset)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 2**30)
    memory = load("webdataset", root=root)
    ids = torch.tensor([6, 0, 3, 0, 5])
    assert torch.equal(streaming.read(ids), memory.images[ids])
    assert torch.equal(streaming.subset(ids).read(torch.arange(5)), memory.images[ids])
    assert streaming.subset(ids).subset(torch.tensor([1, 4])).labels.tolist() == [0, 2]
    assert streaming.read(ids[:0]).shape == (0, 3, 4, 5)
    assert streaming.encoded.path(5) == root / "train-0001.tar" / "0005"


def test_the_fingerprint_follows_names_sizes_and_labels(root, streaming):
    images = encoded_images(7)
    prints = {streaming.fingerprint, streaming.subset(torch.arange(6)).fingerprint}
    prints.add(streaming.subset(torch.tensor([6, 5, 4, 3, 2, 1, 0])).fingerprint)
    prints.add(streaming.subset(torch.arange(7), torch.tensor([1, *LABELS[1:]])).fingerprint)
    for last in (
        samples(images[4:7], [1, 2, 1], 4),
        samples(images[4:7], LABELS[4:], 5),
        samples([*images[4:6], images[6] + b"\0"], LABELS[4:], 4),
    ):
        write_tar(root / "train-0001.tar", last)
        prints.add(load("webdataset", root=root).fingerprint)
    assert len(prints) == 7
    # Texts between the images change nothing.
    write_tar(root / "train-0001.tar", [("notes.txt", b"a"), *samples(images[4:7], LABELS[4:], 4)])
    assert load("webdataset", root=root).fingerprint == streaming.fingerprint


def test_labels_may_be_in_json(tmp_path):
    images = encoded_images(4)
    pages = [{"label": 1, "kind": 0, "caption": "label"}, {"label": 0, "kind": 1}, {"kind": 0}, {"label": 1, "kind": 0}]
    files = []
    for number, (image, page) in enumerate(zip(images, pages, strict=True)):
        files += [
            (f"a/{number}.png", image),
            (f"a/{number}.json", json.dumps(page).encode()),
            (f"a/{number}.txt", b"x"),
        ]
    files[7:7] = [("a/2.cls", b" 1\n")]
    write_tar(tmp_path / "test.tar", files)
    test = load("webdataset", root=tmp_path, split="test")
    assert test.labels.tolist() == [1, 0, 1, 1]
    assert torch.equal(test.images, decoded(images))
    named = load("webdataset", root=tmp_path, split="test", label_column="kind")
    assert named.labels.tolist() == [0, 1, 0, 0]
    with pytest.raises(
        DataError, match=r"test\.tar: a/0 has no label: expected KEY\.json with a whole number as 'size'"
    ):
        load("webdataset", root=tmp_path, split="test", label_column="size")


@pytest.mark.parametrize("kind", ["jpg", "JPEG", "webp", "bmp", "ppm"])
def test_other_image_formats_are_read(tmp_path, kind):
    image = encoded(random_images(1, (4, 5, 3))[0], {"jpg": "JPEG"}.get(kind, kind.upper()))
    other = encoded_images(1, seed=1)[0]
    write_tar(tmp_path / "test.tar", [("0.cls", b"0"), (f"0.{kind}", image), ("1.cls", b"1"), ("1.png", other)])
    assert torch.equal(load("webdataset", root=tmp_path, split="test").images, decoded([image, other]))


def test_names_of_classes_are_the_lines_of_a_file_inside_the_root(root):
    inside = root / "cifar" / "train"
    inside.mkdir(parents=True)
    for number in range(2):
        (root / f"train-000{number}.tar").rename(inside / f"{number}.tar")
    (root / "test-0000.tar").rename(root / "cifar" / "test.tar")
    (root / "classnames.txt").write_text("ant\nbée\nc\x1bat\n", encoding="utf-8")
    assert load("webdataset", root=root).classes == ("ant", "bée", "c\\x1bat")
    assert load("webdataset", root=root / "cifar").classes == ("0", "1", "2")
    (root / "cifar" / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="found labels up to 2, expected 2 classes"):
        load("webdataset", root=root)
    (root / "cifar" / "classnames.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"cifar/classnames\.txt: damaged"):
        load("webdataset", root=root)


IMAGE = encoded_images(1)[0]
WRONG = {
    "no label": (
        [("a.png", IMAGE)],
        r"a has no label: expected KEY\.cls with a whole number, or KEY\.json with one as",
    ),
    "a text as the label": ([("a.png", IMAGE), ("a.json", b'{"label": "cat"}')], "a has no label"),
    "a truth as the label": ([("a.png", IMAGE), ("a.json", b'{"label": true}')], "a has no label"),
    "a huge label": ([("a.png", IMAGE), ("a.json", b'{"label": 1000000000000}')], "a has no label"),
    "a list": ([("a.png", IMAGE), ("a.json", b"[1]")], "a has no label"),
    "no image": ([("a.cls", b"1")], r"a has a label and no image \(\.bmp, \.jpeg"),
    "two images": ([("a.png", IMAGE), ("a.jpg", IMAGE), ("a.cls", b"1")], "a has two images, expected one"),
    "parts of a sample apart": ([("a.png", IMAGE), ("b.cls", b"1"), ("a.cls", b"1")], "a has no label"),
    "no number": ([("a.png", IMAGE), ("a.cls", b"cat")], r"a\.cls is no whole number"),
    "a float": ([("a.png", IMAGE), ("a.cls", b"1.0")], r"a\.cls is no whole number"),
    "a long number": ([("a.png", IMAGE), ("a.cls", b"1" * 70)], r"a\.cls has 70 bytes, expected at most 64"),
    "damaged JSON": ([("a.png", IMAGE), ("a.json", b"{")], r"test\.tar: damaged"),
    "deep JSON": ([("a.png", IMAGE), ("a.json", b"[" * 100_000)], r"test\.tar: damaged"),
    "much JSON": ([("a.png", IMAGE), ("a.json", bytes(2**20 + 1))], "1,048,577 bytes, expected at most 1,048,576"),
    "a link": ([("a.png", IMAGE), ("a.cls", b"1"), tarfile.TarInfo("b")], "the member b is a link"),
    "texts alone": ([("a.txt", IMAGE), ("README", b"1"), (".png", IMAGE)], "no images"),
    "a damaged image": ([("a.png", IMAGE[:50]), ("a.cls", b"0")], r"test\.tar/a: damaged"),
    "no such image": ([("a.png", b"GIF89a"), ("a.cls", b"0")], r"test\.tar/a: .*no image in the format PNG"),
}
WRONG["a link"][0][-1].type = tarfile.SYMTYPE


@pytest.mark.parametrize("name", WRONG)
def test_wrong_samples_are_named_in_one_line(tmp_path, name):
    files, message = WRONG[name]
    write_tar(tmp_path / "test.tar", files)
    with pytest.raises(DataError, match=message) as raised:
        load("webdataset", root=tmp_path, split="test")
    assert "\n" not in str(raised.value)


def test_an_image_that_is_too_large_is_refused(tmp_path, monkeypatch):
    write_tar(tmp_path / "test.tar", samples([IMAGE], [0]))
    monkeypatch.setattr("robustill.data.webdataset.LARGEST_ENCODED", 50)
    with pytest.raises(DataError, match=r"0000\.png has \d+ bytes, expected an image of at most 50"):
        load("webdataset", root=tmp_path, split="test")


def test_what_systems_leave_behind_is_passed_over(root):
    images = encoded_images(7)
    left = [("._0004.png", b"\0"), ("__MACOSX/._0004.png", b"\0"), ("a/._0004.cls", b"\0"), ("__index__.json", b"{}")]
    write_tar(root / "train-0001.tar", [*left, *samples(images[4:7], LABELS[4:], 4)])
    assert torch.equal(load("webdataset", root=root).images, decoded(images))


def test_a_damaged_archive_is_named(root):
    path = root / "train-0001.tar"
    content = path.read_bytes()
    for cut in (0, 100, 512, 700, 1536):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"train-0001\.tar: damaged or not of the expected format"):
            load("webdataset", root=root)


def test_only_the_settings_of_a_reader_are_taken(root):
    for name, setting in (("webdataset", "image_column"), ("folder", "label_column"), ("digits", "image_column")):
        with pytest.raises(
            DataError, match=rf"{setting} is 'x', but the data set {name} has no such setting: leave it out"
        ):
            load(name, root=root, **{setting: "x"})
    with pytest.raises(DataError, match="label_column is 3, expected a name"):
        load("webdataset", root=root, label_column=3)
