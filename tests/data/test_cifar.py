import pickle

import numpy as np
import pytest
import torch

from helpers.official_layouts import python2_pickle, random_images, write_cifar10
from robustill.core.errors import DataError
from robustill.data import load


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_batches_are_read_in_order(tmp_path, protocol):
    images, labels = write_cifar10(tmp_path, protocol=protocol)
    train = load("cifar10", root=tmp_path)
    np.testing.assert_array_equal(train.images.numpy(), images)
    np.testing.assert_array_equal(train.labels.numpy(), labels)
    assert train.classes[3] == "cat"
    assert len(load("cifar10", root=tmp_path, split="test")) == 6


def test_the_files_may_be_in_the_root_itself(tmp_path):
    write_cifar10(tmp_path)
    direct = load("cifar10", root=tmp_path / "cifar-10-batches-py")
    assert direct.fingerprint == load("cifar10", root=tmp_path).fingerprint


def test_cifar10_is_read_from_its_binary_layout(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = random_images(10, (3073,))
    records[:, 0] %= 10
    for number in range(5):
        (folder / f"data_batch_{number + 1}.bin").write_bytes(records[2 * number : 2 * number + 2].tobytes())
    train = load("cifar10", root=tmp_path)
    assert train.labels.tolist() == records[:, 0].tolist()
    np.testing.assert_array_equal(train.images.flatten(1).numpy(), records[:, 1:])


def test_cifar100_has_fine_labels_in_both_layouts(tmp_path):
    pixels, coarse, fine = random_images(4, (3072,)), [0, 19, 3, 4], [99, 0, 17, 50]
    for folder, name in (("cifar-100-python", "train"), ("cifar-100-binary", "train.bin")):
        (tmp_path / folder).mkdir()
        python = python2_pickle({"fine_labels": fine, "coarse_labels": coarse, "data": pixels})
        binary = b"".join(bytes([c, f]) + x.tobytes() for c, f, x in zip(coarse, fine, pixels, strict=True))
        (tmp_path / folder / name).write_bytes(binary if name.endswith("bin") else python)
        dataset = load("cifar100", root=tmp_path / folder)
        assert dataset.labels.tolist() == fine
        np.testing.assert_array_equal(dataset.images.flatten(1).numpy(), pixels)
    assert len(set(dataset.classes)) == 100
    assert (dataset.classes[0], dataset.classes[99]) == ("apple", "worm")


def test_missing_files_are_named_with_advice(tmp_path):
    with pytest.raises(DataError, match=r"cifar-10-batches-py or .*cifar-10-batches-bin; give --data\.root, or --data"):
        load("cifar10", root=tmp_path)
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4"):
        load("cifar10", root=tmp_path)
    assert len(load("cifar10", root=tmp_path, split="test")) == 6


def batch(**change):
    return {"labels": [1, 2], "data": random_images(2, (3072,)), **change}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (batch(labels=[1]), "1 labels for 2 images"),
        (batch(labels=[1, 12]), "found labels up to 12, expected 10 classes"),
        (batch(labels=[1, -2]), "found the label -2"),
        (batch(labels=[1, 2**70]), "damaged"),
        (batch(labels=[1, "x"]), "no list of integers"),
        (batch(labels=None), "no list of integers"),
        (batch(data=random_images(2, (3071,))), "no array `data`"),
        (batch(data=[1, 2]), "no array `data`"),
        (batch(data=random_images(0, (3072,)), labels=[]), "no images"),
    ],
)
def test_wrong_content_is_refused_with_the_batch(tmp_path, content, line):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(DataError, match=f"test_batch: .*{line}"):
        load("cifar10", root=tmp_path, split="test")


def test_damaged_pickles_are_refused_with_the_file(tmp_path):
    content = python2_pickle(batch())
    path = tmp_path / "test_batch"
    header = 60
    damaged = [content[:cut] for cut in [*range(header), *range(header, len(content), 211), len(content) - 1]]
    certain = len(damaged)
    for place in [*range(200), *range(len(content) - 60, len(content))]:
        damaged += [content[:place] + bytes([byte]) + content[place + 1 :] for byte in (0, 0x28, 0x52, 0x62, 0xFF)]
    lines = []
    for changed in damaged:
        path.write_bytes(changed)
        try:
            load("cifar10", root=tmp_path, split="test")
        except DataError as error:
            lines.append(str(error))
    assert len(lines) > certain
    assert all("test_batch" in line and "\n" not in line for line in lines)


def test_a_truncated_binary_file_is_refused(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073 * 2 - 1))
    with pytest.raises(DataError, match=r"test_batch\.bin: 6145 bytes, expected a multiple of 3073"):
        load("cifar10", root=tmp_path, split="test")


def test_a_payload_in_a_batch_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    payload = b"\x80\x02}U\x04datacos\nmkdir\nU" + bytes([len(str(mark))]) + str(mark).encode() + b"\x85Rs."
    (tmp_path / "test_batch").write_bytes(payload)
    with pytest.raises(DataError, match=r"test_batch: refused: the pickle asks for 'os\.mkdir'"):
        load("cifar10", root=tmp_path, split="test")
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the payload must be one that runs"


def test_images_are_writable_and_own_their_memory(tmp_path):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch(), protocol=2))
    images = load("cifar10", root=tmp_path, split="test").images
    images.zero_()
    assert torch.count_nonzero(images) == 0
