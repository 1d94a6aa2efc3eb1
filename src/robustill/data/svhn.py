"""SVHN's cropped digits, in the official MATLAB files."""

from __future__ import annotations

import numpy as np
import torch

from robustill.data.images import ImageDataset, Request, check_labels, reading
from robustill.data.matlab import read_matlab
from robustill.errors import DataError


def read_svhn(request: Request) -> ImageDataset:
    """ROOT/train_32x32.mat and ROOT/test_32x32.mat; the files call the digit zero 10."""
    path = request.root / f"{request.split}_32x32.mat"
    if not path.is_file():
        raise request.missing(path)
    with reading(path):
        try:
            content = read_matlab(path.read_bytes())
        except DataError as error:
            raise DataError(f"{path}: {error}; replace the file") from error
    images, labels = content.get("X"), content.get("y")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise DataError(f"{path}: no uint8 array X of shape [H,W,3,N]; replace the file")
    if labels is None or not np.array_equal(labels, np.rint(labels)):
        raise DataError(f"{path}: no array y of whole numbers; replace the file")
    digits = torch.from_numpy(labels.ravel().astype(np.int64))
    digits[digits == 10] = 0
    check_labels(digits, images.shape[3], 10, path)
    return ImageDataset(
        name=request.name,
        split=request.split,
        images=torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
        labels=digits,
        classes=tuple(str(digit) for digit in range(10)),
    )
