import hashlib

import numpy as np
import torch
from sklearn.datasets import load_digits

from robustill.data import load


def test_the_two_parts_are_scikit_learns_images_scaled_to_bytes():
    bunch = load_digits()
    expected = {(np.floor(x.ravel() * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(y)) for x, y in
                zip(bunch.images, bunch.target, strict=True)}  # fmt: skip
    found = []
    for split, count in (("train", 1297), ("test", 500)):
        part = load("digits", split=split)
        assert (len(part), part.image_shape, part.num_classes) == (count, (1, 8, 8), 10)
        found += [(x.numpy().tobytes(), int(y)) for x, y in zip(part.images, part.labels, strict=True)]
    assert len(found) == 1797
    assert set(found) == expected
    assert load("digits").images.max() == 255


def test_the_split_is_stratified_and_never_changes():
    labels = load("digits", split="test").labels
    counts = torch.bincount(labels)
    assert counts.min() >= 48
    assert counts.max() <= 51
    # If this fails, numbers published for the old split no longer refer to anything.
    fingerprints = load("digits").fingerprint + load("digits", split="test").fingerprint
    assert hashlib.sha256(fingerprints.encode()).hexdigest()[:16] == "ef7ed32c47e2280a"
