import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.shards import IMAGE, encoded, encoded_images, table, write_parquet
from robustill.core.errors import DataError
from robustill.data import ImageDataset, load, parquet_pages
from robustill.data.encoded import StreamingDataset, decode

NAMES = ["ant", "bee", "cat"]
LABELS = [0, 1, 2, 0, 1, 2, 0]


@pytest.fixture
def root(tmp_path):
    """Seven training images in two files, three test images, 4×5 RGB."""
    images = encoded_images(10)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", table(images[:4], LABELS[:4], NAMES), row_group_size=3)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", table(images[4:7], LABELS[4:], NAMES))
    write_parquet(tmp_path / "test-00000-of-00001.parquet", table(images[7:], [0, 1, 2], NAMES))
    return tmp_path


@pytest.fixture
def streaming(root, monkeypatch):
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    return load("parquet", root=root)


def decoded(images):
    return torch.stack([decode(io.BytesIO(image)) for image in images])


def test_a_small_set_is_in_memory(root):
    train, test = load("parquet", root=root), load("parquet", root=root, split="test")
    assert isinstance(train, ImageDataset)
    assert torch.equal(torch.cat([train.images, test.images]), decoded(encoded_images(10)))
    assert train.labels.tolist() == LABELS
    assert test.labels.tolist() == [0, 1, 2]
    assert train.classes == test.classes == tuple(NAMES)
    assert train.split_rule is None


def test_a_large_set_streams_the_same_images(root, streaming, monkeypatch):
    assert isinstance(streaming, StreamingDataset)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 2**30)
    memory = load("parquet", root=root)
    ids = torch.tensor([6, 0, 3, 0, 5])
    assert torch.equal(streaming.read(ids), memory.images[ids])
    assert torch.equal(streaming.subset(ids).read(torch.arange(5)), memory.images[ids])
    assert streaming.subset(ids).subset(torch.tensor([1, 4])).labels.tolist() == [0, 2]
    assert streaming.read(ids[:0]).shape == (0, 3, 4, 5)
    assert streaming.encoded.path(5) == root / "train-00001-of-00002.parquet" / "row 1"


def test_the_fingerprint_follows_files_rows_and_labels(root, streaming):
    prints = {streaming.fingerprint, streaming.subset(torch.arange(6)).fingerprint}
    prints.add(streaming.subset(torch.tensor([6, 5, 4, 3, 2, 1, 0])).fingerprint)
    prints.add(streaming.subset(torch.arange(7), torch.tensor([1, *LABELS[1:]])).fingerprint)
    last = root / "train-00001-of-00002.parquet"
    # Another image of the same size.
    write_parquet(last, table([*encoded_images(6)[4:6], encoded_images(1, seed=5)[0]], LABELS[4:], NAMES))
    prints.add(load("parquet", root=root).fingerprint)
    write_parquet(last, table(encoded_images(7)[4:], [1, 2, 1], NAMES))
    prints.add(load("parquet", root=root).fingerprint)
    assert len(prints) == 6
    write_parquet(last, table(encoded_images(7)[4:], LABELS[4:], NAMES))
    assert load("parquet", root=root).fingerprint == streaming.fingerprint


def test_images_are_resized(root):
    write_parquet(
        root / "train-00001-of-00002.parquet",
        table([encoded(np.zeros((9, 7, 3), np.uint8)), *encoded_images(2)], [0, 1, 2]),
    )
    with pytest.raises(DataError, match="names other classes than"):
        load("parquet", root=root, image_size=4)
    (root / "train-00000-of-00002.parquet").unlink()
    (root / "train-00001-of-00002.parquet").rename(root / "train.parquet")
    with pytest.raises(
        DataError, match=r"parquet/row 1: 4×5 pixels while .*parquet/row 0 has 9×7; give --data\.image_size"
    ):
        load("parquet", root=root)
    assert load("parquet", root=root, image_size=4).image_shape == (3, 4, 4)


def test_a_column_of_bytes_and_other_names_will_do(tmp_path):
    images = encoded_images(4)
    made = pa.table(
        {"index": [9, 9, 9, 9], "img": images, "text": ["a"] * 4, "fine_label": pa.array([0, 1, 1, 0], "int8")}
    )
    write_parquet(tmp_path / "test.parquet", made)
    test = load("parquet", root=tmp_path, split="test")
    assert test.labels.tolist() == [0, 1, 1, 0]
    assert torch.equal(test.images, decoded(images))
    assert test.classes == ("0", "1")


def test_columns_are_named_where_they_cannot_be_told(tmp_path):
    images, other = encoded_images(4), encoded_images(4, seed=1)
    columns = {
        "a": pa.array([{"bytes": image, "path": "x.png"} for image in images], IMAGE),
        "b": pa.array(other),
        "label": [0, 0, 1, 1],
        "fine_label": [0, 1, 2, 3],
        "coarse": [1, 1, 0, 0],
        "name": list("wxyz"),
    }
    path = write_parquet(tmp_path / "test.parquet", pa.table(columns))

    def test(**columns):
        return load("parquet", root=tmp_path, split="test", **columns)

    found = (
        r"found a \(struct\), b \(binary\), label \(int64\), fine_label \(int64\), coarse \(int64\), name \(string\): "
        r"name one with --data\."
    )
    with pytest.raises(DataError, match=rf"{path}: each of a, b could be the column of images; {found}image_column"):
        test(label_column="label")
    with pytest.raises(
        DataError, match=rf"each of label, fine_label could be the column of labels; {found}label_column"
    ):
        test(image_column="a")
    for name in ("name", "a", "nowhere", "\n"):
        with pytest.raises(DataError, match=r"is no column of whole numbers; found a \(struct\)"):
            test(image_column="a", label_column=name)
    for name in ("name", "label", "a.bytes"):
        with pytest.raises(
            DataError, match=rf"{name} is no column of encoded images: bytes, or a structure with bytes; f"
        ):
            test(image_column=name, label_column="label")
    assert test(image_column="b", label_column="fine_label").labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(test(image_column="a", label_column="coarse").images, decoded(images))
    assert torch.equal(test(image_column="b", label_column="coarse").images, decoded(other))
    write_parquet(path, pa.table({"pixels": [[1, 2], [3, 4]], "digit": [0, 1]}))
    with pytest.raises(
        DataError, match=r"no column of encoded images: .*; found pixels \(list.*\), digit \(int64\): name"
    ):
        test()
    write_parquet(path, pa.table({"image": images, "digit": [0, 1, 0, 1]}))
    with pytest.raises(DataError, match=r"no column of whole numbers named label, labels, fine_label, .*; found image"):
        test()
    assert test(label_column="digit").labels.tolist() == [0, 1, 0, 1]


def test_labels_that_are_none_are_refused(tmp_path):
    def test(labels, names=None):
        write_parquet(tmp_path / "test.parquet", table(encoded_images(len(labels)), labels, names))
        return load("parquet", root=tmp_path, split="test")

    with pytest.raises(DataError, match="1 labels in the column label are missing"):
        test([0, None])
    with pytest.raises(DataError, match=r"found labels up to 3, expected 3 classes"):
        test([0, 3], NAMES)
    with pytest.raises(DataError, match="found the label 18446744073709551615"):
        test(pa.array([0, 2**64 - 1], "uint64"))
    with pytest.raises(DataError, match="found the label -1, expected 0 or more"):
        test([-1, -1], NAMES)
    with pytest.raises(DataError, match="no images"):
        test(pa.array([], "int64"), NAMES)
    assert test(pa.array([1, 0], "uint64")).labels.tolist() == [1, 0]


def test_names_of_classes_come_from_the_metadata_alone_if_they_are_names(tmp_path):
    made = table(encoded_images(2), [0, 1])

    def classes(metadata):
        write_parquet(tmp_path / "test.parquet", made.replace_schema_metadata({"huggingface": metadata}))
        return load("parquet", root=tmp_path, split="test").classes

    described = {"info": {"features": {"label": {"names": ["a\nb", "é"], "_type": "ClassLabel"}}}}
    assert classes(json.dumps(described)) == ("a\\nb", "é")
    for other in ("null", "{}", '{"info": []}', '{"info": {"features": {"label": {"dtype": "int64"}}}}'):
        assert classes(other) == ("0", "1")
    for damaged in ("{", "[" * 100_000):
        with pytest.raises(DataError, match=r"test\.parquet: damaged or not of the expected format"):
            classes(damaged)


def test_an_image_without_bytes_is_refused(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "test.parquet", table([*encoded_images(2), None], [0, 1, 0]))
    with pytest.raises(DataError, match=rf"{path}: damaged .*an image is null"):
        load("parquet", root=tmp_path, split="test")


def test_damaged_files_are_named(root, streaming):
    path = root / "train-00001-of-00002.parquet"
    content = path.read_bytes()
    for cut in (0, 5, 11, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=path.name):
            load("parquet", root=root)
    # A description that is longer, and pages that are not where it says.
    path.write_bytes(content[:-8] + b"\xff\xff\xff\x00PAR1")
    with pytest.raises(DataError, match=path.name):
        load("parquet", root=root)
    path.write_bytes(b"PAR1" + b"\xff" * 1000 + content[1004:])
    with pytest.raises(DataError, match=path.name):
        load("parquet", root=root)


def test_a_damaged_image_is_named_by_its_row(root):
    write_parquet(root / "train-00001-of-00002.parquet", table([*encoded_images(2), b"no image"], [0, 1, 2], NAMES))
    with pytest.raises(DataError, match=r"00001-of-00002\.parquet/row 2: .*no image in the format PNG, JPEG"):
        load("parquet", root=root)


def test_a_decompression_bomb_is_refused(root, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 9)
    with pytest.raises(DataError, match="row 0"):
        load("parquet", root=root)


def test_more_rows_than_bytes_are_refused(tmp_path):
    # Runs of one image and one label: the file has some hundred bytes.
    made = pa.table({"image": pa.array([b"x"] * 100_000), "label": [0] * 100_000})
    write_parquet(tmp_path / "test.parquet", made)
    with pytest.raises(DataError, match=r"100,000 rows in [\d,]+ bytes"):
        load("parquet", root=tmp_path, split="test")


def test_other_encodings_say_how_to_write_the_file(tmp_path):
    options = {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}
    write_parquet(tmp_path / "test.parquet", pa.table({"image": encoded_images(2), "label": [0, 1]}), **options)
    message = r"images are encoded as DELTA_LENGTH_BYTE_ARRAY, which is not read: write the file again with pyarr"
    with pytest.raises(DataError, match=message):
        load("parquet", root=tmp_path, split="test")


def test_a_damaged_description_does_not_end_the_process(tmp_path):
    """pyarrow ends it where histograms of levels have another size: a C++ exception that nothing catches."""
    path = write_parquet(tmp_path / "test.parquet", table(encoded_images(3), [0, 1, 2]))
    program = """
import sys, warnings
from pathlib import Path
from robustill.core.errors import DataError
from robustill.data import load
path = Path(sys.argv[1])
content = path.read_bytes()
warnings.simplefilter("ignore")
begin = len(content) - int.from_bytes(content[-8:-4], "little") - 8
for position, bit in [(begin + number, bit) for number in range(40) for bit in (1, 16)]:
    path.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1:])
    try:
        load("parquet", root=path.parent, split="test")
    except DataError as error:
        assert "\\n" not in str(error)
print("alive")
"""
    ended = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("alive\n", 0), ended.stderr


def test_without_pyarrow_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"parquet needs the extra `data`: pip install 'robustill\[data\]'"):
        load("parquet", root=root)


def test_only_the_pages_that_are_needed_are_read(tmp_path, monkeypatch):
    """The file has one row group of 200 pages, all of which pyarrow would read."""
    images = encoded_images(200, size=(20, 20))
    options = {"data_page_size": 1000, "write_batch_size": 1, "use_dictionary": False}
    path = write_parquet(tmp_path / "test.parquet", table(images, [0, 1] * 100), **options)
    assert pq.ParquetFile(path).num_row_groups == 1
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    dataset = load("parquet", root=tmp_path, split="test")
    assert len(dataset.encoded.pages) == 200
    read = []
    content = parquet_pages._content
    monkeypatch.setattr("robustill.data.parquet_pages._content", lambda *words: read.append(words) or content(*words))
    assert torch.equal(dataset.read(torch.tensor([7, 150, 7])), decoded([images[7], images[150], images[7]]))
    assert len(read) == 2


def test_large_pages_are_said_where_single_images_are_read(root, monkeypatch):
    monkeypatch.setattr("robustill.data.parquet.LARGE_PAGE", 300)
    load("parquet", root=root)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    with pytest.warns(
        UserWarning, match=r"to read one image takes up to 0 MiB, because there are many in a page: write"
    ):
        load("parquet", root=root)
    load("parquet", root=root, split="test")
    monkeypatch.setattr("robustill.data.parquet_pages.LARGEST_PAGE", 300)
    with pytest.raises(DataError, match=r"images are in a page of \d+ bytes, which is not read: write the file again"):
        load("parquet", root=root)
