"""A stored body through a window: the same octets at the same places as un-stuffed in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import wire_file
from relay.core import mime
from relay.core.wire import unstuff
from relay.wire_file import TooManyDots, WireFile

_PIECES = (b".", b"..", b"\r\n", b"\r", b"\n", b"\r\n.", b"\r\n..", b"x", b"--b", b"long enough for two windows")


@given(
    st.lists(st.sampled_from(_PIECES), max_size=30).map(b"".join),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90), st.sampled_from(_PIECES)), max_size=12),
)
def test_what_is_read_and_found_is_that_of_the_message(
    wire: bytes, window: int, asked: list[tuple[int, int, bytes]]
) -> None:
    message = unstuff(wire)
    with tempfile.TemporaryFile() as file:
        file.write(wire)
        file.flush()
        stored = WireFile(file.fileno(), window)
        assert len(stored) == len(message)
        for start, end, sub in asked:
            assert stored[start:end] == message[start:end]
            assert stored.find(sub, start, end) == message.find(sub, start, end)
        assert stored[0 : len(stored)] == message


@given(st.binary(max_size=200))
def test_the_walk_of_a_file_is_that_of_the_message(rest: bytes) -> None:
    wire = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n..one\r\n--b\r\n\r\n" + rest + b"\r\n--b--\r\n"
    with tempfile.TemporaryFile() as file:
        file.write(wire)
        file.flush()
        assert mime.walk(WireFile(file.fileno(), 16)) == mime.walk(unstuff(wire))


def test_more_dots_than_are_kept_are_not_told_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_file, "MOST_DOTS", 3)
    path = tmp_path / "body"
    path.write_bytes(b"..\r\n" * 3)
    with path.open("rb") as file:
        assert WireFile(file.fileno())[0:99] == b".\r\n" * 3
    path.write_bytes(b"..\r\n" * 4)
    with path.open("rb") as file, pytest.raises(TooManyDots):
        WireFile(file.fileno())


def test_a_file_that_was_cut_off_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"x" * 100)
    with path.open("r+b") as file:
        stored = WireFile(file.fileno(), 8)
        file.truncate(50)
        with pytest.raises(OSError, match="shorter"):
            stored.find(b"y", 0, 100)
