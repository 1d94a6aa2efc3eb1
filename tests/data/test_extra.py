"""Extra images against NumPy's own reader, and the mixture against a count."""

import io
import os
import threading
import zipfile

import numpy as np
import pytest
import torch

from robustill.core.errors import ConfigError, DataError
from robustill.data.augmentation import Augmentation
from robustill.data.extra import ExtraImages, MixedLoader, own_images
from robustill.data.images import ImageDataset
from robustill.data.loader import Loader

SHAPE = (3, 4, 6)


def arrays(count=40, layout=(4, 6, 3), dtype=np.int64):
    drawn = np.random.default_rng(0)
    return drawn.integers(0, 256, (count, *layout), dtype=np.uint8), drawn.integers(0, 7, count).astype(dtype)


def opened(path, shape=SHAPE, num_classes=7):
    return ExtraImages(path, shape, num_classes)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
@pytest.mark.parametrize(("layout", "order"), [((4, 6, 3), (0, 3, 1, 2)), ((3, 4, 6), (0, 1, 2, 3))])
@pytest.mark.parametrize("names", [("image", "label"), ("images", "labels"), ("x", "y")])
def test_rows_equal_those_that_numpy_reads(tmp_path, layout, order, dtype, names):
    images, labels = arrays(layout=layout, dtype=dtype)
    np.savez(tmp_path / "a.npz", other=np.zeros(3), **dict(zip(names, (images, labels), strict=True)))
    for name, array in zip(names, (images, labels), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    for path in (tmp_path / "a.npz", tmp_path):
        extra = opened(path)
        assert len(extra) == 40
        x, y = extra.read(torch.tensor([39, 0, 7, 7]))
        assert np.array_equal(x.numpy(), images[[39, 0, 7, 7]].transpose(order))
        assert np.array_equal(y.numpy(), labels[[39, 0, 7, 7]])
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        x.zero_()
        assert np.array_equal(np.asarray(extra._images), images)


def test_grey_images_and_columns_of_labels_are_read(tmp_path):
    images, labels = arrays(layout=(4, 6))
    np.savez(tmp_path / "a.npz", image=np.asfortranarray(images), label=labels[:, None])
    x, y = opened(tmp_path / "a.npz", (1, 4, 6)).read(torch.arange(40))
    assert np.array_equal(x[:, 0].numpy(), images)
    assert np.array_equal(y.numpy(), labels)


def test_only_the_requested_rows_are_loaded(tmp_path):
    # A file of 12 GB, of which the disk holds a few pages: loading it would fail or take minutes.
    file = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint8, (4_000_000, 32, 32, 3))
    file[3_999_999] = 7
    file.flush()
    del file
    np.lib.format.open_memmap(tmp_path / "label.npy", "w+", np.uint8, (4_000_000,)).flush()
    x, _ = opened(tmp_path, (3, 32, 32), 10).read(torch.tensor([3_999_999, 5]))
    assert x.flatten(1).unique(dim=1).tolist() == [[7], [0]]


def test_the_fingerprint_covers_images_and_labels(tmp_path):
    images, labels = arrays()
    found = set()
    changes = [(images, labels), (images[:-1], labels[:-1]), (255 - images, labels), (images, (labels + 1) % 7)]
    for number, (some, others) in enumerate(changes):
        np.savez(tmp_path / f"{number}.npz", image=some, label=others)
        assert opened(tmp_path / f"{number}.npz").fingerprint == opened(tmp_path / f"{number}.npz").fingerprint
        found.add(opened(tmp_path / f"{number}.npz").fingerprint)
    assert len(found) == 4


def written(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def broken(path, how):
    images, labels = arrays()
    if how == "compressed":
        np.savez_compressed(path, image=images, label=labels)
    elif how == "float":
        np.savez(path, image=images.astype(np.float32), label=labels)
    elif how == "objects":
        np.savez(path, image=images, label=np.array([Payload()] * 40, dtype=object))
    elif how == "size":
        np.savez(path, image=images[:, :3], label=labels)
    elif how == "count":
        np.savez(path, image=images, label=labels[:-1])
    elif how == "high":
        np.savez(path, image=images, label=labels + 1)
    elif how == "low":
        np.savez(path, image=images, label=labels - 1)
    elif how == "float labels":
        np.savez(path, image=images, label=labels.astype(float))
    elif how == "empty":
        np.savez(path, image=images[:0], label=labels[:0])
    elif how == "names":
        np.savez(path, picture=images, label=labels)
    elif how == "text":
        path.write_text("no archive")
    elif how == "cut":
        np.savez(path, image=images, label=labels)
        path.write_bytes(path.read_bytes()[:1000])
    elif how in LIES:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("image.npy", claiming(images, LIES[how]))
            archive.writestr("label.npy", written(labels))


# More than there is: the bytes of the array that follows, or more than the whole file; and code for a careless reader.
LIES = {"lies": "(99, 4, 6, 3)", "lies much": "(99999999, 4, 6, 3)", "code": "(__import__('os').mkdir('ran'),)"}


def claiming(array, shape):
    """Return the .npy content of an array with another shape in its header, of the same length."""
    true, false = f"{array.shape}, }}".encode(), f"{shape}, }}".encode()
    content = written(array)
    changed = content.replace(true + b" " * (len(false) - len(true)), false, 1)
    assert len(changed) == len(content)
    assert changed != content
    return changed


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("compressed", "image.npy is compressed, so its rows cannot be read one by one: unpack the file (python -m"),
        ("float", "images are float32 of shape (40, 4, 6, 3), expected uint8 of shape [N,4,6,3] or [N,3,4,6]"),
        ("objects", "label.npy holds Python objects, which are never read: store numbers"),
        ("size", "images are uint8 of shape (40, 3, 6, 3), expected uint8 of shape [N,4,6,3]"),
        ("count", "labels are int64 of shape (39,), expected integers of shape (40,)"),
        ("high", "found labels from 1 to 7, expected 0 to 6"),
        ("low", "found labels from -1 to 5, expected 0 to 6"),
        ("float labels", "labels are float64"),
        ("empty", "no images; give a file with images"),
        ("names", "no array named images|x|image, found picture, label"),
        ("text", "damaged"),
        ("cut", "damaged"),
        ("lies", "image.npy has 2880 bytes, expected 7128 for shape (99, 4, 6, 3): replace the file"),
        ("lies much", "image.npy has 2880 bytes, expected 7199999928 for shape"),
        ("code", "damaged"),
        ("missing", "not found: expected an .npz file, or a folder with image.npy and label.npy"),
    ],
)
def test_unsuitable_files_are_refused_in_one_line(tmp_path, monkeypatch, how, says):
    monkeypatch.chdir(tmp_path)
    broken(tmp_path / "a.npz", how)
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_the_advice_for_a_compressed_file_works(tmp_path):
    images, labels = arrays()
    np.savez_compressed(tmp_path / "a.npz", image=images, label=labels)
    with pytest.raises(DataError, match=r"python -m zipfile -e a\.npz FOLDER") as caught:
        opened(tmp_path / "a.npz")
    assert "give the folder" in str(caught.value)
    zipfile.main(["-e", str(tmp_path / "a.npz"), str(tmp_path / "folder")])
    x, y = opened(tmp_path / "folder").read(torch.arange(40))
    assert np.array_equal(x.numpy(), images.transpose(0, 3, 1, 2))
    assert np.array_equal(y.numpy(), labels)


@pytest.mark.parametrize("name", ["image", "label"])
def test_an_incomplete_folder_is_refused(tmp_path, name):
    for each, array in zip(("image", "label"), arrays(), strict=True):
        np.save(tmp_path / f"{each}.npy", array)
    file = tmp_path / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name}\.npy has \d+ bytes, expected \d+ for shape"):
        opened(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=rf"no file named {name}s\|.\|{name}\.npy"):
        opened(tmp_path)


class OnDisk:
    """A data set that is not in memory."""

    def __init__(self, dataset):
        self.name, self.labels, self._images = dataset.name, dataset.labels, dataset.images

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        return self._images[indices]


def mixture(tmp_path, *, share=0.7, batch_size=10, count=47, augmentation=None, streaming=False):
    images, labels = arrays(30)
    np.savez(tmp_path / "a.npz", image=images, label=labels)
    own = ImageDataset(
        name="own",
        split="train",
        images=torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous(),
        labels=torch.arange(count) % 7,
        classes=tuple("abcdefg"),
    )
    loader = Loader(
        OnDisk(own) if streaming else own,
        torch.arange(count),
        batch_size=own_images(batch_size, share),
        seed=3,
        augmentation=augmentation,
    )
    return MixedLoader(loader, opened(tmp_path / "a.npz"), batch_size=batch_size)


@pytest.mark.parametrize("streaming", [False, True])
def test_every_batch_has_the_share_of_extra_images(tmp_path, streaming):
    loader = mixture(tmp_path, streaming=streaming)
    images, labels = loader.extra.read(torch.arange(30))
    seen, places, epochs = [], [], []
    for e in (0, 1):
        batches = list(loader.epoch(e))
        assert [len(y) for _, y, _ in batches] == [10, 10, 10, 10, 7]
        assert [int((index >= 47).sum()) for _, _, index in batches] == [7, 7, 7, 7, 5]
        for x, y, index in batches:
            own, rows = index < 47, index[index >= 47] - 47
            assert torch.equal((255 * x[own][:, 0, 0, 0]).round().long(), index[own])
            assert torch.equal(y[own], index[own] % 7)
            assert torch.equal((255 * x[~own]).round().byte(), images[rows])
            assert torch.equal(y[~own], labels[rows])
            places.append(own.nonzero().flatten())
        seen = torch.cat([index[index < 47] for _, _, index in batches]).tolist()
        assert len(set(seen)) == len(seen) == 4 * 3 + 2
        epochs.append(torch.cat([index for _, _, index in batches]))
    assert not torch.equal(*epochs)
    # Own images are anywhere in a batch.
    assert set(torch.cat(places).tolist()) == set(range(10))


def test_an_epoch_is_a_function_of_seed_and_epoch(tmp_path):
    one, two = (mixture(tmp_path, augmentation=Augmentation(["shift", "flip"])) for _ in range(2))
    list(two.epoch(0))
    for a, b in zip(one.epoch(4), two.epoch(4), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_extra_images_are_augmented_too(tmp_path):
    plain, flipped = (mixture(tmp_path, augmentation=each) for each in (None, Augmentation(["flip"])))
    (x, _, index), (z, _, same) = next(iter(plain.epoch(0))), next(iter(flipped.epoch(0)))
    assert torch.equal(index, same)
    extra = index >= 47
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(x[extra], z[extra], strict=True)]
    equal = [torch.equal(a, b) for a, b in zip(x[extra], z[extra], strict=True)]
    assert all(a != b for a, b in zip(mirrored, equal, strict=True))
    assert any(mirrored)
    assert any(equal)


@pytest.mark.parametrize("streaming", [False, True])
def test_leaving_an_epoch_ends_its_threads(tmp_path, streaming):
    before = threading.active_count()
    for _ in mixture(tmp_path, streaming=streaming).epoch(0):
        break
    assert threading.active_count() == before
    assert len(list(mixture(tmp_path, streaming=streaming).epoch(0))) == 5
    assert threading.active_count() == before


@pytest.mark.parametrize("batch_size", [2, 3, 7, 10, 47, 60])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_every_batch_size_has_enough_images(tmp_path, batch_size, share):
    loader = mixture(tmp_path, share=share, batch_size=batch_size)
    sizes = [len(y) for _, y, _ in loader.epoch(0)]
    assert sum(sizes) == 47
    assert set(sizes[:-1]) <= {batch_size}
    assert len(sizes) == len(loader)


@pytest.mark.parametrize(("share", "batch_size"), [(0.01, 20), (0.99, 20), (0.5, 1)])
def test_a_share_without_images_of_one_kind_is_refused(share, batch_size):
    with pytest.raises(ConfigError, match="give a share that leaves at least one image of each kind"):
        own_images(batch_size, share)


@pytest.mark.parametrize("name", ["a.npz", "image.npy", "label.npy"])
def test_a_file_that_is_truncated_while_it_is_read_is_one_line(tmp_path, name):
    images, labels = arrays(count=9000)
    np.savez(tmp_path / "a.npz", label=labels, image=images)
    np.save(tmp_path / "image.npy", images)
    np.save(tmp_path / "label.npy", labels)
    extra = opened(tmp_path / "a.npz" if name == "a.npz" else tmp_path)
    last = torch.tensor([8999])
    assert torch.equal(extra.read(last)[1], torch.from_numpy(labels[-1:]))
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - 9000)
    with pytest.raises(DataError, match="was truncated while it was in use") as caught:
        extra.read(last)
    assert "\n" not in str(caught.value)
