import io
import os
import pickle
import struct

import numpy as np
import pytest

from helpers.official_layouts import python2_pickle, random_images
from robustill.core.errors import DataError
from robustill.data.pickles import read_pickle

CONTENT = {"name": "a batch", "labels": [1, 255, 256, 70000, -3], "data": random_images(5, (7,)), "empty": []}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_current_pickles_are_read(protocol):
    read = read_pickle(pickle.dumps(CONTENT, protocol=protocol))
    assert read["labels"] == CONTENT["labels"]
    assert (read["name"], read["empty"]) == ("a batch", [])
    np.testing.assert_array_equal(read["data"], CONTENT["data"])


def test_pickles_of_python_2_are_read():
    content = {"labels": [1, 300], "data": random_images(2, (300,))}
    written = python2_pickle(content)
    # The oracle: Python's own reader agrees that this is the file.
    np.testing.assert_array_equal(pickle.loads(written, encoding="latin-1")["data"], content["data"])
    read = read_pickle(written)
    assert read["labels"] == [1, 300]
    np.testing.assert_array_equal(read["data"], content["data"])


def test_arrays_in_fortran_order_are_read():
    array = np.asfortranarray(random_images(5, (7,)))
    np.testing.assert_array_equal(read_pickle(pickle.dumps({"data": array}, protocol=2))["data"], array)


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, exec, open, os.mkdir])
def test_a_payload_is_named_and_never_runs(tmp_path, protocol, function):
    mark = tmp_path / "mark"
    argument = {os.system: f"touch {mark}", open: str(mark), os.mkdir: str(mark)}.get(
        function, f"open({str(mark)!r}, 'w')"
    )
    arguments = (argument, "w") if function is open else (argument,)
    hostile = pickle.dumps({**CONTENT, "labels": Call(function, *arguments)}, protocol=protocol)
    with pytest.raises(DataError, match=f"asks for .*{function.__name__}"):
        read_pickle(hostile)
    assert not mark.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x80\x02(S'touch mark'\nios\nsystem\n.",
        b"\x80\x02(cos\nsystem\nS'touch mark'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch mark\x85R.",
        b"\x80\x02cnumpy\ndtype\n}b.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02P0\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02cnumpy\nndarray\nK\x01\x85R.",
    ],
    ids=["INST", "OBJ", "STACK_GLOBAL", "BUILD", "NEWOBJ", "PERSID", "EXT1", "call of a class"],
)
def test_other_ways_to_call_are_refused(tmp_path, monkeypatch, hostile):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="refused"):
        read_pickle(hostile)
    assert list(tmp_path.iterdir()) == []


def test_a_small_pickle_cannot_use_much_memory(monkeypatch):
    """One string of the file, used by many arrays."""
    monkeypatch.setattr("robustill.data.pickles.LARGEST_PICKLE", 100_000)
    text = b"T" + struct.pack("<i", 50_000) + b"x" * 50_000
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01M\x50\xc3\x85cnumpy\ndtype\nU\x02u1\x85R\x89h\x00tb"
    file = io.BytesIO()
    file.write(b"\x80\x02}(U\x01a" + text + b"q\x00")
    for number in range(3):
        file.write(b"U\x01" + str(number).encode() + array)
    with pytest.raises(DataError, match="more than 100000 bytes together"):
        read_pickle(file.getvalue() + b"u.")
    with pytest.raises(DataError, match="expected at most"):
        read_pickle(b"\x80\x02" + b"N" * 100_001 + b".")


def test_keys_that_are_slow_to_hash_are_refused():
    doubling = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    with pytest.raises(DataError, match="keys"):
        read_pickle(b"\x80\x02})" + doubling + b"K\x01s.")


def test_other_arrays_and_objects_are_refused():
    with pytest.raises(DataError, match="another type than uint8"):
        read_pickle(pickle.dumps({"data": np.zeros(3)}, protocol=2))
    with pytest.raises(DataError, match="expected a dictionary"):
        read_pickle(pickle.dumps([1, 2], protocol=2))
