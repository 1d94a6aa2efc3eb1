"""The batches of a loader, and the thread that decodes ahead."""

import sys
import threading
import time
import traceback

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.official_layouts import random_images
from robustill.core.errors import ConfigError, DataError
from robustill.data import Augmentation, ImageDataset, Loader, load
from robustill.data.loader import prefetch


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Let a thread take long to end, as it may on a busy machine."""
    monkeypatch.setattr("robustill.data.loader._JOIN_TIMEOUT", 600.0)


def make(count=23):
    return ImageDataset(
        name="made up",
        split="train",
        images=torch.from_numpy(random_images(count, (3, 8, 8))),
        labels=torch.arange(count) % 5,
        classes=tuple("abcde"),
    )


@pytest.fixture
def streaming(tmp_path, monkeypatch):
    for number, pixels in enumerate(random_images(23, (8, 8, 3))):
        path = tmp_path / "train" / "abcde"[number % 5] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    memory = load("folder", root=tmp_path)
    monkeypatch.setattr("robustill.data.encoded.MEMORY_BOUND", 0)
    return load("folder", root=tmp_path), memory, tmp_path


AUGMENTED = Augmentation(["shift", "flip"])


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("ids", [torch.arange(23), torch.tensor([20, 3, 4, 11, 7])])
def test_an_epoch_has_every_image_once(ids):
    dataset = make()
    loader = Loader(dataset, ids, batch_size=4, seed=1)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == -(-len(ids) // 4)
    x, y, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (x.dtype, y.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
    np.testing.assert_array_equal(x.numpy(), dataset.images[index].numpy() / np.float32(255))
    assert torch.equal(y, dataset.labels[index])
    assert sorted(index.tolist()) == sorted(ids.tolist())
    assert not torch.equal(index, ids)


def test_the_last_batch_may_be_smaller():
    loader = Loader(make(), torch.arange(23), batch_size=10, seed=0)
    assert [len(y) for _, y, _ in loader.epoch(0)] == [10, 10, 3]
    assert len(loader) == 3


def test_an_epoch_depends_on_seed_and_number_alone():
    def loader(seed):
        return Loader(make(), torch.arange(23), batch_size=5, seed=seed, augmentation=AUGMENTED)

    fresh = list(loader(1).epoch(3))
    used = loader(1)
    for earlier in range(3):
        list(used.epoch(earlier))
    assert all(equal(a, b) for a, b in zip(used.epoch(3), fresh, strict=True))
    order = torch.cat([index for _, _, index in fresh])
    for other in (loader(2).epoch(3), loader(1).epoch(4)):
        assert not torch.equal(torch.cat([index for _, _, index in other]), order)


def test_every_step_draws_another_augmentation():
    dataset = make(1).subset(torch.zeros(40, dtype=torch.int64))
    loader = Loader(dataset, torch.arange(40), batch_size=20, seed=0, augmentation=AUGMENTED)
    images = [x for epoch in range(3) for x, _, _ in loader.epoch(epoch)]
    assert len({x.numpy().tobytes() for x in images}) == 6


@pytest.mark.parametrize("world_size", [2, 4])
def test_shards_make_up_the_batches_of_one_process(world_size):
    settings = {"batch_size": 8, "seed": 3, "augmentation": AUGMENTED}
    alone = list(Loader(make(), torch.arange(23), **settings).epoch(1))
    shares = [
        list(Loader(make(), torch.arange(23), **settings).shard(rank, world_size).epoch(1))
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        assert equal([torch.cat(parts) for parts in zip(*(share[step] for share in shares), strict=True)], whole)
    assert {len(share[0][1]) for share in shares} == {8 // world_size}


def test_given_labels_replace_those_of_the_data_set():
    labels = torch.arange(23) + 100
    loader = Loader(make(), torch.tensor([4, 9]), batch_size=2, seed=0, labels=labels)
    ((_, y, index),) = loader.epoch(0)
    assert torch.equal(y, index + 100)


def test_a_streaming_data_set_gives_the_same_batches(streaming):
    stream, memory, _ = streaming
    settings = {"batch_size": 6, "seed": 0, "augmentation": AUGMENTED}
    ids = torch.arange(1, 22)
    pairs = zip(Loader(stream, ids, **settings).epoch(2), Loader(memory, ids, **settings).epoch(2), strict=True)
    assert all(equal(a, b) for a, b in pairs)


def test_threads_and_prefetching_change_no_batch(streaming, monkeypatch):
    stream, _, _ = streaming

    def batches(threads, depth):
        monkeypatch.setattr("os.cpu_count", lambda: threads)
        monkeypatch.setattr("robustill.data.loader.prefetch", lambda source: prefetch(source, depth))
        # A subset has a thread pool of its own.
        again = stream.subset(torch.arange(len(stream)))
        epoch = list(Loader(again, torch.arange(1, 22), batch_size=6, seed=0, augmentation=AUGMENTED).epoch(2))
        assert again._pool._max_workers == min(8, threads)
        return epoch

    expected = batches(1, 1)
    for threads, depth in ((1, 8), (8, 1), (8, 8)):
        assert all(equal(a, b) for a, b in zip(batches(threads, depth), expected, strict=True))


def test_leaving_a_streaming_epoch_ends_its_thread(streaming, monkeypatch):
    monkeypatch.setattr("robustill.data.loader._JOIN_TIMEOUT", 600.0)
    epoch = Loader(streaming[0], torch.arange(23), batch_size=2, seed=0).epoch(0)
    next(epoch)
    assert "prefetch" in {thread.name for thread in threading.enumerate()}
    epoch.close()
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_a_damaged_file_stops_a_streaming_epoch_with_its_name(streaming, monkeypatch):
    monkeypatch.setattr("robustill.data.loader._JOIN_TIMEOUT", 600.0)
    stream, _, root = streaming
    (root / "train/c/12.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"c/12\.png"):
        list(Loader(stream, torch.arange(23), batch_size=4, seed=0).epoch(0))
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_images_in_memory_are_not_changed():
    dataset = make()
    before = dataset.images.clone()
    for x, _, _ in Loader(dataset, torch.arange(23), batch_size=23, seed=0).epoch(0):
        x.zero_()
    assert torch.equal(dataset.images, before)


def test_another_device_holds_only_the_images_in_use():
    """The meta device stands for any device but the CPU: shapes and types, no numbers."""
    loader = Loader(make(), torch.tensor([5, 6, 7]), batch_size=2, seed=0, device="meta")
    assert loader._images.shape == (3, 3, 8, 8)
    x, y, index = next(loader.epoch(0))
    assert {x.device.type, y.device.type, index.device.type} == {"meta"}
    assert (x.shape, x.dtype) == ((2, 3, 8, 8), torch.float32)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"batch_size": 0}, ConfigError),
        ({"ids": torch.tensor([23])}, DataError),
        ({"ids": torch.tensor([-1])}, DataError),
        ({"ids": torch.tensor([], dtype=torch.int64)}, DataError),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, DataError),
    ],
)
def test_invalid_arguments_are_refused(change, error):
    settings = {"ids": torch.arange(23), "batch_size": 4, "seed": 0, **change}
    with pytest.raises(error):
        Loader(make(), **settings)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_gives_the_same_items_in_order():
    assert list(prefetch(iter(range(50)), depth=3)) == list(range(50))
    assert list(prefetch(iter([]))) == []
    assert list(prefetch(iter([None, ValueError]))) == [None, ValueError]
    assert threads() == []


def test_prefetch_raises_an_error_at_its_item():
    def source():
        yield 1
        yield 2
        raise OSError("no such image")

    items = prefetch(source())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="no such image"):
        next(items)
    assert threads() == []


def test_leaving_prefetch_early_ends_its_thread():
    items = prefetch(iter(range(10**9)), depth=2)
    assert next(items) == 0
    assert len(threads()) == 1
    items.close()
    assert threads() == []


def test_prefetch_works_ahead_by_its_depth():
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield number

    items = prefetch(source(), depth=2)
    next(items)
    deadline = time.monotonic() + 600
    while len(taken) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    # One item was consumed, two are ready, one waits for space.
    assert taken == [0, 1, 2, 3]
    items.close()
    assert taken == [0, 1, 2, 3]


def test_a_hanging_source_is_an_error_that_says_where(monkeypatch):
    released = threading.Event()

    def stalled():
        yield 1
        released.wait(600)

    items = prefetch(stalled())
    assert next(items) == 1
    # Patience is short only once the thread has come to where it hangs.
    (thread,) = threads()
    deadline = time.monotonic() + 600
    while traceback.extract_stack(sys._current_frames()[thread.ident])[-1].name != "wait":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setattr("robustill.data.loader.PATIENCE", 0.2)
    monkeypatch.setattr("robustill.data.loader._JOIN_TIMEOUT", 0.1)
    with pytest.raises(DataError, match=r"no images came for 0\.2 seconds: the thread prefetch, in wait of threading"):
        next(items)
    released.set()
    thread.join()
