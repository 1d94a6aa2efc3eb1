"""Data: the images and labels that a model is trained and evaluated on, their splits, augmentation and batches."""

from __future__ import annotations

from robustill.data.augmentation import Augmentation
from robustill.data.datasets import DATASETS, dataset_entry, is_dataset, load
from robustill.data.images import Dataset, ImageDataset, check_dataset, pixel_warnings
from robustill.data.loader import Loader
from robustill.data.splits import holdout, stratified_subset

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "ImageDataset",
    "Loader",
    "check_dataset",
    "dataset_entry",
    "holdout",
    "is_dataset",
    "load",
    "pixel_warnings",
    "stratified_subset",
]
