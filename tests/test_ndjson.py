"""Lines cut out of chunks, and what is said of those that cannot be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.ndjson import LineError, LineSplitter, LineTooLong, decode, is_blank

BOUND = 6
chunks = st.lists(st.text("ab\n\r", max_size=9).map(str.encode), max_size=9)


def split(parts: list[bytes], bound: int = 1_000) -> list[bytes | LineTooLong]:
    splitter = LineSplitter(bound)
    lines = [line for part in parts for line in splitter.feed(part)]
    return lines + splitter.finish()


@given(chunks)
def test_lines_do_not_depend_on_the_chunks(parts: list[bytes]) -> None:
    """However the bytes arrive, the lines are those of the whole; a last line needs no line feed."""
    whole = b"".join(parts)
    assert split(parts) == whole.removesuffix(b"\n").split(b"\n") * bool(whole)


@given(chunks)
def test_a_long_line_is_counted_and_not_kept(parts: list[bytes]) -> None:
    """Its neighbours and its number stay right, and its size is told."""
    whole = b"".join(parts)
    wanted = [
        line if len(line) <= BOUND else LineTooLong(len(line))
        for line in whole.removesuffix(b"\n").split(b"\n") * bool(whole)
    ]
    assert split(parts, BOUND) == wanted


def test_bytes_of_a_long_line_are_let_go() -> None:
    """What is held stays below the bound, however long the line grows."""
    splitter = LineSplitter(BOUND)
    for _ in range(1_000):
        assert splitter.feed(b"12345") == []
        assert sum(map(len, splitter._parts)) <= BOUND
    assert splitter.feed(b"\n1\n") == [LineTooLong(5_000), b"1"]


@given(st.integers(0, 12))
def test_only_the_first_line_loses_a_byte_order_mark(cut: int) -> None:
    """Also when a chunk ends within the mark."""
    whole = b"\xef\xbb\xbf{}\n\xef\xbb\xbf{}"
    assert split([whole[:cut], whole[cut:]]) == [b"{}", b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"a": 1', "not JSON: unexpected end of data at column 8"),
        (b'{"a": NaN}', "not JSON: "),
        (b"", "not JSON: "),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at byte 8 of the line"),
        (b'\xff\xfe{\x00"\x00', "it looks like UTF-16"),
        (b'{\x00"\x00a\x00"\x00', "if the file is UTF-16, convert it"),
        (b"[" * 100_000, "not JSON: "),
        (b'{"a": "\\ud800"}', "not JSON: "),
        (LineTooLong(1_234_567), "the line has 1,234,567 bytes, which is more than is read"),
    ],
)
def test_what_is_wrong_is_said(line: bytes | LineTooLong, text: str) -> None:
    """In words for whoever wrote the file."""
    with pytest.raises(LineError) as caught:
        decode(line)
    assert text in str(caught.value)


def test_an_error_never_shows_the_line() -> None:
    """A line holds bodies and tokens."""
    with pytest.raises(LineError) as caught:
        decode(b'{"Authorization": "s3cret" "x"}')
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("line", "blank"), [(b"", True), (b" \t\r", True), (b"{}", False)])
def test_blank_is_white_space_only(line: bytes, *, blank: bool) -> None:
    """A carriage return before the line feed is white space too."""
    assert is_blank(line) is blank
    assert not is_blank(LineTooLong(9))
