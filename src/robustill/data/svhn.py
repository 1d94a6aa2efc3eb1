"""SVHN's cropped digits, in the official MATLAB files."""

from __future__ import annotations

import numpy as np
import torch

from robustill.data.images import ImageDataset, Request, reading
from robustill.errors import DataError


def read_svhn(request: Request) -> ImageDataset:
    """ROOT/train_32x32.mat and ROOT/test_32x32.mat; the files call the digit zero 10."""
    from scipy.io import loadmat

    path = request.root / f"{request.split}_32x32.mat"
    if not path.is_file():
        raise request.missing(path)
    with reading(path):
        content = loadmat(path, variable_names=["X", "y"])
    images, labels = content.get("X"), content.get("y")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        raise DataError(f"{path}: no uint8 array X of shape [H,W,3,N]; replace the file")
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iuf":
        raise DataError(f"{path}: no numeric array y; replace the file")
    with reading(path):
        digits = labels.ravel().astype(np.int64)
    return ImageDataset(
        name=request.name,
        split=request.split,
        images=torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
        labels=torch.from_numpy(np.where(digits == 10, 0, digits)),
        classes=tuple(str(digit) for digit in range(10)),
    )
