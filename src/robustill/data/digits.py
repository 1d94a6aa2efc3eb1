"""The digits that come with the package: 1,797 grey images of 8×8 pixels.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, its test part; licence CC BY 4.0. The arrays are those of `sklearn.datasets.load_digits`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from robustill.core.errors import DataError
from robustill.core.files import reading
from robustill.data.images import ImageDataset, Request
from robustill.data.splits import holdout

FILE = Path(__file__).with_name("digits.npz")
_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""sha256 of the images, uint8 [1797,8,8] from 0 to 16, followed by the labels, uint8 [1797]."""
# Published numbers refer to this split of the digits: neither the count nor the seed may ever change.
_TEST_COUNT = 500
_SPLIT_SEED = 0


def read_digits(request: Request) -> ImageDataset:
    """Read the 1×8×8 digits, 1,297 for training and 500 for testing; a value v of 0..16 becomes round(255·v/16).

    Raises:
        DataError: the file of the package is missing or damaged.
    """
    with reading(FILE), np.load(FILE) as archive:
        images, digits = archive["images"], archive["labels"]
    if hashlib.sha256(images.tobytes() + digits.tobytes()).hexdigest() != _SHA256:
        raise DataError(f"{FILE} has other images than those published: install robustill again")
    labels = torch.from_numpy(digits).to(torch.int64)
    values = torch.from_numpy(images).to(torch.int64).unsqueeze(1)
    train_ids, test_ids = holdout(labels, _TEST_COUNT, seed=_SPLIT_SEED)
    ids = train_ids if request.split == "train" else test_ids
    return ImageDataset(
        name=request.name,
        split=request.split,
        images=((values[ids] * 255 + 8) // 16).to(torch.uint8),
        labels=labels[ids],
        classes=tuple(str(digit) for digit in range(10)),
    )
