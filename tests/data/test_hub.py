import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.hub_server import COMMIT, served
from helpers.shards import encoded_images, samples, table, tar, write_parquet, write_tar
from robustill.config.files import dump_config, load_config
from robustill.core.errors import DataError
from robustill.data import load
from robustill.data.hub import is_hub_root, root_text

ROOT = "hf://datasets/owner/name"


class FakeHub:
    """A module in the place of huggingface_hub, whose hub is a folder."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def snapshot_download(self, repository, *, repo_type, revision, allow_patterns):
        self.asked.append((repository, repo_type, revision, allow_patterns))
        if "gone" in repository:
            raise OSError("404\nnot found")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / "snapshot")
    write_parquet(hub.folder / "data" / "test-00000-of-00001.parquet", table(encoded_images(2), [0, 1]))
    write_tar(hub.folder / "tars" / "test.tar", samples(encoded_images(2), [0, 1]))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def read(root, name="parquet", **options):
    return load(name, root=root, split="test", **{"download": True, **options})


@pytest.mark.parametrize(
    ("address", "revision", "patterns"),
    [
        (ROOT, None, ["*.parquet"]),
        (f"{ROOT}@v1.0", "v1.0", ["*.parquet"]),
        (f"{ROOT}@refs/convert/parquet", "refs/convert/parquet", ["*.parquet"]),
        (f"{ROOT}/data", None, ["data/*.parquet"]),
        (f"{ROOT}@main/data", "main", ["data/*.parquet"]),
    ],
)
def test_what_an_address_says_is_downloaded(hub, address, revision, patterns):
    for root in (address, Path(address)):
        assert len(read(root)) == 2
    assert hub.asked == [("owner/name", "dataset", revision, patterns)] * 2


def test_archives_come_with_the_names_of_their_classes(hub):
    (hub.folder / "tars" / "classnames.txt").write_text("a\nb\n")
    assert read(f"{ROOT}/tars", "webdataset").classes == ("a", "b")
    assert hub.asked[0][3] == ["tars/*.tar", "tars/*classnames.txt"]


def test_nothing_is_downloaded_that_the_user_did_not_ask_for(hub, monkeypatch):
    with pytest.raises(
        DataError, match=rf"{ROOT} is on the Hugging Face hub: give --data\.download true to download it"
    ):
        read(ROOT, download=False)
    for other in (
        "hf://owner/name",
        "hf://datasets/owner",
        f"{ROOT}/../x",
        "hf://models/owner/name",
        "hf://datasets//",
    ):
        with pytest.raises(
            DataError, match="is no data set of the Hugging Face hub: expected hf://datasets/OWNER/NAME"
        ):
            read(other)
    for name in ("folder", "digits", "npz"):
        with pytest.raises(
            DataError, match=f"the data set {name} cannot come from there, expected parquet or webdataset"
        ):
            read(ROOT, name)
    assert not hub.asked
    with pytest.raises(DataError, match=r"hf://datasets/owner/gone cannot be downloaded \(404\): download it by hand"):
        read("hf://datasets/owner/gone")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"needs the extra `hub`: pip install 'robustill\[hub\]'"):
        read(ROOT)


def test_an_address_survives_a_configuration(tmp_path):
    assert is_hub_root(Path(ROOT))
    assert not is_hub_root(Path("hf/datasets/owner/name"))
    assert root_text(Path("some/folder")) == "some/folder"
    file = tmp_path / "a.yaml"
    file.write_text(f"data: {{name: parquet, root: '{ROOT}'}}\n")
    text = dump_config(load_config(file))
    assert f"root: {ROOT}\n" in text
    file.write_text(text)
    assert dump_config(load_config(file)) == text


# In a process of its own: the client reads the address of the hub when it is imported.
REAL = """
import sys
from robustill.data import load

for name, root in (("parquet", sys.argv[1]), ("webdataset", sys.argv[1] + "/tars")):
    found = load(name, root=root, split="test", download=True)
    print(found.name, len(found), found.classes, found.fingerprint)
"""


@pytest.mark.slow
def test_the_client_of_the_hub_downloads_what_is_needed(tmp_path):
    parquet = write_parquet(tmp_path / "made" / "test.parquet", table(encoded_images(3), [0, 1, 1], ["ant", "bee"]))
    with served() as server:
        server.files = {
            "README.md": b"not asked for",
            "data/test-00000-of-00001.parquet": parquet.read_bytes(),
            "tars/test.tar": tar(samples(encoded_images(3), [0, 1, 1])),
        }
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, "-c", REAL, ROOT]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert ended.returncode == 0, ended.stderr
        requests = [each for each in server.requests if "/resolve/" in each]
    local = load("parquet", root=parquet.parent, split="test")
    assert ended.stdout.splitlines() == [
        f"parquet 3 ('ant', 'bee') {local.fingerprint}",
        f"webdataset 3 ('0', '1') {local.fingerprint}",
    ]
    asked = {each.partition("/resolve/")[2] for each in requests}
    assert asked == {f"{COMMIT}/data/test-00000-of-00001.parquet", f"{COMMIT}/tars/test.tar"}
    assert all("/datasets/owner/name/" in each for each in requests)
