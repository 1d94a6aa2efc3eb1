import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers.official_layouts import write_cifar10, write_mnist
from robustill.core.errors import DataError
from robustill.data import load
from robustill.data.download import ADDRESSES, Source


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, and the address of a local server that offers its files."""
    monkeypatch.setattr("robustill.data.download.TIMEOUT", 600.0)
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def offer(monkeypatch, name, *sources):
    monkeypatch.setitem(ADDRESSES, name, sources)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def offer_mnist(monkeypatch, site, **change):
    folder, address = site
    write_mnist(folder, gzipped=True)
    sources = [
        Source(urls=(f"{address}/{path.name}",), md5=change.get(path.name[:8], md5(path)), folder="MNIST/raw")
        for path in sorted(folder.iterdir())
    ]
    offer(monkeypatch, "mnist", *sources)


def offer_archive(monkeypatch, site, members):
    folder, address = site
    with tarfile.open(folder / "set.tar.gz", "w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    offer(monkeypatch, "cifar10", Source(urls=(f"{address}/set.tar.gz",), md5=md5(folder / "set.tar.gz"), unpack=True))


def member(name, content=b"", **change):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in change.items():
        setattr(info, key, value)
    return info, content


def test_files_are_downloaded_once_and_on_request(tmp_path, site, monkeypatch):
    offer_mnist(monkeypatch, site)
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"--data\.download"):
        load("mnist", root=root)
    assert not root.exists()
    fetched = load("mnist", root=root, download=True)
    assert fetched.fingerprint == load("mnist", root=site[0]).fingerprint
    assert files(root) == [f"MNIST/raw/{name}" for name in files(site[0])]
    for path in site[0].iterdir():
        path.unlink()
    assert load("mnist", root=root, download=True).fingerprint == fetched.fingerprint


def test_only_missing_files_are_downloaded(tmp_path, site, monkeypatch):
    offer_mnist(monkeypatch, site)
    load("mnist", root=tmp_path, download=True)
    kept = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    before = kept.stat().st_mtime_ns
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    assert len(load("mnist", root=tmp_path, split="test", download=True)) == 20
    assert kept.stat().st_mtime_ns == before


def test_an_archive_is_unpacked_into_the_official_layout(tmp_path, site, monkeypatch):
    images, _ = write_cifar10(tmp_path / "made")
    made = tmp_path / "made/cifar-10-batches-py"
    offer_archive(monkeypatch, site, [member(f"{made.name}/{p.name}", p.read_bytes()) for p in made.iterdir()])
    root = tmp_path / "data"
    assert load("cifar10", root=root, download=True).images.numpy().tobytes() == images.tobytes()
    assert files(root) == [f"{made.name}/{name}" for name in files(made)]
    assert [path.name for path in root.iterdir()] == [made.name]


def test_a_bad_checksum_leaves_nothing_behind(tmp_path, site, monkeypatch):
    offer_mnist(monkeypatch, site, **{"t10k-ima": "0" * 32})
    root = tmp_path / "data"
    with pytest.raises(DataError, match=r"expected 0{32}") as caught:
        load("mnist", root=root, download=True)
    assert "\n" not in str(caught.value)
    assert list((root / "MNIST/raw").iterdir()) == []


def test_the_next_address_is_used_after_a_failure(tmp_path, site, monkeypatch):
    offer_mnist(monkeypatch, site)
    folder, address = site
    (folder / "bad").mkdir()
    (folder / "bad/train-labels-idx1-ubyte.gz").write_bytes(b"something else")
    sources = []
    for source in ADDRESSES["mnist"]:
        name = source.urls[0].rsplit("/", 1)[-1]
        bad = (f"{address}/nowhere/{name}", f"{address}/bad/{name}")
        sources.append(Source(urls=(*bad, *source.urls), md5=source.md5, folder=source.folder))
    offer(monkeypatch, "mnist", *sources)
    assert len(load("mnist", root=tmp_path / "data", download=True)) == 20


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/file", "nonsense", "http://[", "file:///nowhere/at/all"])
def test_a_failed_download_is_one_line(tmp_path, monkeypatch, address):
    offer(monkeypatch, "mnist", Source(urls=(address,), md5="0" * 32))
    with pytest.raises(DataError, match="could not download") as caught:
        load("mnist", root=tmp_path / "data", download=True)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside", b"x"),
        member("a/../../outside", b"x"),
        member("/tmp/outside-of-robustill", b"x"),
        member("link", type=tarfile.SYMTYPE, linkname="/etc"),
        member("link", type=tarfile.LNKTYPE, linkname="../outside"),
        member("pipe", type=tarfile.FIFOTYPE),
    ],
    ids=["parent", "through", "absolute", "symlink", "hard link", "pipe"],
)
def test_an_archive_with_outside_paths_is_refused(tmp_path, site, monkeypatch, hostile):
    offer_archive(monkeypatch, site, [member("good", b"y"), hostile])
    root = tmp_path / "data"
    before = files(tmp_path)
    with pytest.raises(DataError, match="refused"):
        load("cifar10", root=root, download=True)
    assert files(tmp_path) == before
    assert list(root.iterdir()) == []


def test_an_invalid_archive_is_refused(tmp_path, site, monkeypatch):
    folder, address = site
    (folder / "set.tar.gz").write_bytes(b"no archive")
    source = Source(urls=(f"{address}/set.tar.gz",), md5=md5(folder / "set.tar.gz"), unpack=True)
    offer(monkeypatch, "cifar10", source)
    with pytest.raises(DataError, match="cifar10: could not download"):
        load("cifar10", root=tmp_path / "data", download=True)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_root_that_cannot_be_created_is_one_line(tmp_path, site, monkeypatch):
    offer_mnist(monkeypatch, site)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="could not download"):
        load("mnist", root=tmp_path / "file", download=True)


def test_a_data_set_without_address_is_not_downloaded(tmp_path):
    with pytest.raises(DataError, match=r"give --data\.root$"):
        load("svhn", root=tmp_path, download=True)


def test_the_table_has_the_official_file_names():
    names = {source.urls[0].rsplit("/", 1)[-1] for sources in ADDRESSES.values() for source in sources}
    idx = {f"{stem}-{kind}-ubyte.gz" for stem in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")}
    assert names == {"cifar-10-python.tar.gz", "cifar-100-python.tar.gz"} | idx
    assert len({source.md5 for sources in ADDRESSES.values() for source in sources}) == 10
    assert all(len(bytes.fromhex(source.md5)) == 16 for sources in ADDRESSES.values() for source in sources)
