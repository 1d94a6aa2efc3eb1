"""Download of the official files of a data set; the checksum of each is verified before it gets its name."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustill.core.errors import DataError

TIMEOUT = 30.0
"""Seconds to wait for an answer."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file on the network.

    Args:
        urls: its addresses, tried in this order.
        md5: the published checksum of the file. It detects damage, and forging a file for a given md5 is not feasible.
        folder: the folder of the file, relative to the root of the data set.
        unpack: whether it is a tar archive to be unpacked; the archive itself is not stored.
    """

    urls: tuple[str, ...]
    md5: str
    folder: str = "."
    unpack: bool = False


def _toronto(file: str, md5: str) -> Source:
    hosts = ("https://cave.cs.toronto.edu/kriz", "https://www.cs.toronto.edu/~kriz")
    return Source(urls=tuple(f"{host}/{file}" for host in hosts), md5=md5, unpack=True)


def _idx(base: str, folder: str, **md5: str) -> tuple[Source, ...]:
    return tuple(
        Source(urls=(f"{base}/{name.replace('_', '-')}-ubyte.gz",), md5=digest, folder=f"{folder}/raw")
        for name, digest in md5.items()
    )


ADDRESSES: dict[str, tuple[Source, ...]] = {
    "cifar10": (_toronto("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
    "cifar100": (_toronto("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
    "mnist": _idx(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "MNIST",
        train_images_idx3="f68b3c2dcbeaaa9fbdd348bbdeb94873",
        train_labels_idx1="d53e105ee54ea40749a09fcbcd1e9432",
        t10k_images_idx3="9fb629c4189551a2d022fa330f9573f3",
        t10k_labels_idx1="ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion_mnist": _idx(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "FashionMNIST",
        train_images_idx3="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        train_labels_idx1="25c81989df183df01b3e8a0aad5dffbe",
        t10k_images_idx3="bef4ecab320f06d8554ea6380940ec79",
        t10k_labels_idx1="bb300cfdad3c16e7a12a480ee83cd310",
    ),
}


def download_files(name: str, root: Path) -> None:
    """Download the files of a data set to `root`; existing files are kept, or replaced by those of an archive.

    Args:
        name: a key of ADDRESSES.
        root: the folder, created if it does not exist.

    Raises:
        DataError: there is no answer, the checksum is not the published one, or the archive has a path outside its
            folder. Nothing of that file is left behind.
    """
    for source in ADDRESSES[name]:
        target = root / source.folder
        file = target / _file_name(source)
        if not source.unpack and file.is_file():
            continue
        try:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target) as scratch:
                downloaded = Path(scratch) / file.name
                _download(source, downloaded)
                if source.unpack:
                    _unpack(downloaded, Path(scratch) / "unpacked", target)
                else:
                    downloaded.replace(file)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{name}: could not download {source.urls[0]} to {target} ({error})") from error


def _file_name(source: Source) -> str:
    return source.urls[0].rsplit("/", 1)[-1]


def _download(source: Source, path: Path) -> None:
    """Download a file from the first of its addresses that gives the right checksum."""
    failures: list[str] = []
    for url in source.urls:
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
                while block := answer.read(2**20):
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        # urllib raises errors of several unrelated families: sockets, HTTP, TLS.
        except Exception as error:
            failures.append(f"{url}: {error}")
            continue
        if digest.hexdigest() == source.md5:
            return
        failures.append(f"{url}: md5 {digest.hexdigest()}, expected {source.md5}")
    raise DataError(f"could not download {path.name} ({'; '.join(failures)}); download it by hand and give --data.root")


def _unpack(archive: Path, scratch: Path, target: Path) -> None:
    """Unpack to `scratch`, then move the files to `target`, so that a bad archive leaves no files behind."""
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise DataError(
                    f"{archive.name}: refused, the archive has the entry {member.name!r}, which is outside its folder"
                )
            content = members.extractfile(member)
            if content is None:
                continue
            file = scratch / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with content, file.open("wb") as unpacked:
                shutil.copyfileobj(content, unpacked)
    for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
        destination = target / file.relative_to(scratch)
        destination.parent.mkdir(parents=True, exist_ok=True)
        file.replace(destination)
