import gzip
import io
import tarfile

import pytest

from helpers.shards import tar
from robustill.data.tar_members import Member, members

FILES = [("a.txt", b"one"), ("folder/b.png", bytes(1000)), ("empty", b""), ("x" * 512, b"y" * 512)]


def read(content):
    file = io.BytesIO(content)
    return [(name, content[offset : offset + size]) for name, offset, size in members(file, len(content))]


def special(name, kind=tarfile.REGTYPE, **changes):
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in changes.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("extra", [[], [("é" * 99, b"2"), ("n" * 300 + "/" + "é" * 300, b"3")]])
def test_the_members_are_those_that_tarfile_finds(kind, extra):
    content = tar([special("folder", tarfile.DIRTYPE), *FILES, *extra], kind)
    assert read(content) == FILES + extra
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [Member(each.name, each.offset_data, each.size) for each in archive if each.isfile()]
    assert list(members(io.BytesIO(content), len(content))) == expected


def test_short_names_in_the_first_format_are_read():
    content = tar([*FILES[:3], ("deep/" * 30 + "c.png", b"4")], tarfile.USTAR_FORMAT)
    assert read(content) == [*FILES[:3], ("deep/" * 30 + "c.png", b"4")]


def test_other_records_of_a_header_change_nothing():
    member = special("é.png", size=3, pax_headers={"mtime": "1.5", "comment": "size=99\n7 path=x"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as archive:
        archive.addfile(member, io.BytesIO(b"abc"))
    assert read(buffer.getvalue()) == [("é.png", b"abc")]


HOSTILE = {
    "a link": (special("a", tarfile.SYMTYPE, linkname="/etc/passwd"), "the member a is a link"),
    "a hard link": (special("a", tarfile.LNKTYPE, linkname="b"), "the member a is a link"),
    "a device": (special("a", tarfile.CHRTYPE), "the member a is a device"),
    "a block device": (special("a", tarfile.BLKTYPE), "the member a is a device"),
    "a pipe": (special("a", tarfile.FIFOTYPE), "the member a is a pipe"),
    "an unknown type": (special("a", b"Z"), "the member a is of the unknown type b'Z'"),
    "holes": (special("a", tarfile.GNUTYPE_SPARSE), "the member a is a file with holes"),
    "an absolute name": (special("/etc/passwd"), "the member /etc/passwd is outside its folder"),
    "a name above": (special("a/../../b"), r"the member a/\.\./\.\./b is outside its folder"),
    "a folder above": (special("../b", tarfile.DIRTYPE), r"the member \.\./b is outside its folder"),
    "a terminal": (special("\x1b[2J/../b"), r"the member \\x1b\[2J/\.\./b is outside"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_no_archive_of_images_has_is_refused(name, kind):
    member, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message):
        read(tar([*FILES, member], kind))


def patched(content, position, field, value):
    """The archive with another number in a header, and the right checksum."""
    begin, length = {"size": (124, 12)}[field]
    header = bytearray(content[position : position + 512])
    header[begin : begin + length] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:position] + bytes(header) + content[position + 512 :]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"77777777777\0", "it ends within the member a, which is of 8,589,934,591 bytes"),
        (b"\x80" + b"\x7f" * 11, "it ends within the member a, which is of"),
        (b"\xff" * 12, "the member a is of -1 bytes"),
        (b"9" * 12, "invalid header"),
    ],
)
def test_sizes_that_lie_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read(patched(tar([("a", b"abc"), ("b", b"")]), 0, "size", value))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"9999 path=x\n", "a record that has no end"),
        (b"0 path=x\n", "a record that has no end"),
        (b"-5 path=x\n", "a record that has no end"),
        (b"x path=x\n", "invalid literal"),
        (b"11 size=-9\n", "the member a is of -9 bytes"),
        (b"18 size=999999999\n", "it ends within the member a, which is of 999,999,999 bytes"),
        (b"14 path=../..\n", r"the member \.\./\.\. is outside its folder"),
        (b"22 GNU.sparse.major=1\n", "a file with holes"),
        (b"x" * 2**17, "a name of 131,072 bytes"),
    ],
)
def test_records_that_lie_are_refused(records, message):
    header = special("pax", tarfile.XHDTYPE, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    padding = bytes(-len(records) % 512)
    with pytest.raises(ValueError, match=message):
        read(header + records + padding + tar([("a", b"abc")]))


def test_an_archive_that_ends_early_is_refused():
    content = tar(FILES)
    ends = [each.offset - 512 for each in members(io.BytesIO(content), len(content))]
    whole = content.rstrip(b"\0")
    for length in [0, 1, 511, 512, 513, *ends, len(whole)]:
        with pytest.raises(ValueError, match="it ends within"):
            read(content[:length])


def test_a_damaged_header_is_no_end():
    """As it is for tarfile, which gives the members before it and nothing else."""
    content = tar(FILES)
    second = list(members(io.BytesIO(content), len(content)))[1].offset - 512
    damaged = content[: second + 5] + b"\xff" + content[second + 6 :]
    with tarfile.open(fileobj=io.BytesIO(damaged)) as archive:
        assert archive.getnames() == ["a.txt"]
    with pytest.raises(ValueError, match=f"at {second}: bad checksum"):
        read(damaged)


def test_a_compressed_archive_says_so():
    with pytest.raises(ValueError, match="it is compressed: unpack it with gunzip"):
        read(gzip.compress(tar(FILES)) + bytes(600))
    with pytest.raises(ValueError, match="at 0: invalid header"):
        read(b"no archive" * 100)
