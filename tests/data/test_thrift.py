import pytest

from robustill.data.thrift import read_struct, varint

# Written by hand by the specification: a byte of the field's distance and its type, then the value.
VALUES = {
    "numbers": (bytes([0x15, 0x0E, 0x16, 0x0D, 0x14, 0x02, 0x13, 0xFF, 0]), {1: 7, 2: -7, 3: 1, 4: 255}),
    "a large number": (bytes([0x15, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0]), {1: 2**31 - 1}),
    "truth": (bytes([0x11, 0x12, 0]), {1: True, 2: False}),
    "a distance": (bytes([0x75, 0x02, 0]), {7: 1}),
    "a far field": (bytes([0x05, 0x50, 0x02, 0]), {40: 1}),
    "bytes": (bytes([0x18, 0x02, 0x61, 0x62, 0]), {1: b"ab"}),
    "a double": (bytes([0x17, *range(8), 0]), {1: bytes(range(8))}),
    "a structure": (bytes([0x1C, 0x15, 0x02, 0, 0x15, 0x04, 0]), {1: {1: 1}, 2: 2}),
    "a list": (bytes([0x19, 0x35, 2, 4, 6, 0]), {1: [1, 2, 3]}),
    "a long list": (bytes([0x19, 0xF5, 16, *[2] * 16, 0]), {1: [1] * 16}),
    "a list of truth": (bytes([0x19, 0x21, 1, 2, 0]), {1: [1, 2]}),
    "a list of structures": (bytes([0x19, 0x1C, 0x15, 0x02, 0, 0]), {1: [{1: 1}]}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_the_specification(name):
    content, fields = VALUES[name]
    assert read_struct(content) == (fields, len(content))
    assert read_struct(b"\xff" + content + b"\xff", 1) == (fields, 1 + len(content))
    for length in range(len(content)):
        with pytest.raises(IndexError):
            read_struct(content[:length])


def test_what_is_no_structure_is_refused():
    with pytest.raises(ValueError, match="a value of the kind 14"):
        read_struct(bytes([0x1E, 0]))
    with pytest.raises(ValueError, match="has no end"):
        varint(b"\xff" * 20, 0)
    with pytest.raises(ValueError, match="nested too deep"):
        read_struct(b"\x1c" * 1000)
    with pytest.raises(ValueError, match="nested too deep"):
        read_struct(b"\x19" + b"\x19" * 1000)
