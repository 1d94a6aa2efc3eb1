"""Small data sets in Parquet files and tar archives."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from helpers.official_layouts import random_images

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def encoded_images(count: int, seed: int = 0, size: tuple[int, int] = (4, 5)) -> list[bytes]:
    """PNG files of random pixels; no two are the same."""
    return [encoded(pixels) for pixels in random_images(count, (*size, 3), seed)]


def table(images: Sequence[bytes | None], labels: Sequence[Any], names: Iterable[str] | None = None) -> pa.Table:
    """A table as Hugging Face's `datasets` writes it, with the names of the classes in its metadata."""
    column = pa.array([{"bytes": image, "path": None} for image in images], IMAGE)
    made = pa.table({"image": column, "label": pa.array(labels)})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path: Path, made: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **options)
    return path


def tar(files: Iterable[tuple[str, bytes] | tarfile.TarInfo], kind: int = tarfile.GNU_FORMAT) -> bytes:
    """An archive of files and of members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for file in files:
            if isinstance(file, tarfile.TarInfo):
                archive.addfile(file)
                continue
            member = tarfile.TarInfo(file[0])
            member.size = len(file[1])
            archive.addfile(member, io.BytesIO(file[1]))
    return buffer.getvalue()


def samples(images: Sequence[bytes], labels: Sequence[int], first: int = 0) -> list[tuple[str, bytes]]:
    """The files of samples as WebDataset has them, KEY.cls and KEY.png."""
    files = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), first):
        files += [(f"{number:04d}.cls", str(label).encode()), (f"{number:04d}.png", image)]
    return files


def write_tar(path: Path, files: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(files))
    return path
