"""The 1,797 handwritten digits that come with scikit-learn: a data set that needs no file and no network."""

from __future__ import annotations

import torch

from robustill.data.images import ImageDataset, Request
from robustill.data.splits import holdout

TEST_COUNT = 500
# Published numbers refer to this split: neither the count nor the seed may ever change.
SPLIT_SEED = 0


def read_digits(request: Request) -> ImageDataset:
    """1×8×8 digits, 1,297 for training and 500 for testing; 0..16 becomes round(255·v/16)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    values = torch.from_numpy(bunch.images).to(torch.int64).unsqueeze(1)
    train_ids, test_ids = holdout(labels, TEST_COUNT, seed=SPLIT_SEED)
    ids = train_ids if request.split == "train" else test_ids
    return ImageDataset(
        name=request.name,
        split=request.split,
        images=((values[ids] * 255 + 8) // 16).to(torch.uint8),
        labels=labels[ids],
        classes=tuple(str(digit) for digit in range(10)),
    )
