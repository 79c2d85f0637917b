from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from relay.bodies import CHUNK, INLINE, Bodies


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    found = Bodies(tmp_path / "bodies")
    found.prepare()
    return found


async def receive(bodies: Bodies, data: bytes, piece: int = 10_000):
    writer = bodies.writer()
    for start in range(0, len(data), piece):
        if writer.write(data[start : start + piece]):
            await writer.flush()
    return writer, await writer.close()


async def test_a_small_body_stays_in_memory(bodies: Bodies, tmp_path: Path) -> None:
    data = os.urandom(INLINE)
    writer, body = await receive(bodies, data)
    assert (body.data, body.file, body.size, writer.head) == (data, None, INLINE, data)
    assert body.digest == hashlib.sha256(data).digest()
    assert list((tmp_path / "bodies").iterdir()) == []


async def test_a_large_body_is_a_private_file_with_its_head_kept(bodies: Bodies) -> None:
    data = os.urandom(3 * CHUNK + 17)
    writer, body = await receive(bodies, data)
    assert body.data is None
    assert body.file is not None
    assert (body.size, body.digest) == (len(data), hashlib.sha256(data).digest())
    assert data.startswith(writer.head)
    assert len(writer.head) >= INLINE
    assert bodies.path(body.file).stat().st_mode & 0o777 == 0o600
    assert b"".join([chunk async for chunk in bodies.chunks(body.file)]) == data
    assert b"".join([chunk async for chunk in bodies.chunks(body.file, INLINE)]) == data[INLINE:]
    assert bodies.read(body.file, 100) == data[:100]


async def test_a_body_file_that_is_gone_is_an_error_and_removing_it_again_is_none(bodies: Bodies) -> None:
    _, body = await receive(bodies, b"x" * (INLINE + 1))
    bodies.remove([body.file])
    bodies.remove([body.file])
    with pytest.raises(FileNotFoundError):
        [chunk async for chunk in bodies.chunks(body.file)]


def test_names_lists_what_was_left_alone_long_enough(bodies: Bodies) -> None:
    bodies.path("0123").write_bytes(b"left by a crash")
    written = bodies.path("0123").stat().st_mtime
    assert list(bodies.names(written - 1)) == []
    assert list(bodies.names(written + 1)) == ["0123"]
    bodies.path("lost+found").mkdir()
    assert list(bodies.names(written + 3600)) == ["0123"]


async def test_names_leaves_out_a_body_until_nobody_has_its_writer(bodies: Bodies) -> None:
    """Between its last octet and the row that names it, too."""
    writer = bodies.writer()
    writer.write(b"x" * (INLINE + 1))
    await writer.flush()
    await writer.flush()  # the one before it is done
    assert len(list(bodies.path("").iterdir())) == 1
    assert list(bodies.names(float("inf"))) == []
    body = await writer.close()
    assert list(bodies.names(float("inf"))) == []
    await asyncio.get_running_loop().shutdown_default_executor()  # its threads had the writer as well
    del writer
    assert list(bodies.names(float("inf"))) == [body.file]


async def test_a_writer_that_was_discarded_and_given_up_is_remembered_nowhere(bodies: Bodies) -> None:
    writer = bodies.writer()
    writer.write(b"x" * (INLINE + 1))
    await writer.flush()
    await writer.flush()
    assert len(bodies._writers) == 1
    await asyncio.get_running_loop().shutdown_default_executor()
    writer.discard()
    await asyncio.sleep(0)  # let its callback run
    del writer
    assert len(bodies._writers) == 0


async def test_a_body_whose_file_was_removed_while_it_came_in_is_an_os_error(bodies: Bodies, tmp_path: Path) -> None:
    writer = bodies.writer()
    for _ in range(2):  # the second waits for the first
        writer.write(b"x" * (INLINE + 1))
        await writer.flush()
    (file,) = (tmp_path / "bodies").iterdir()
    file.unlink()
    with pytest.raises(FileNotFoundError):
        await writer.close()
    writer.discard()
    assert list((tmp_path / "bodies").iterdir()) == []


async def test_a_full_disk_is_an_os_error(tmp_path: Path) -> None:
    writer = Bodies(Path("/dev/full/nowhere")).writer()
    writer.write(b"x" * (INLINE + 1))
    await writer.flush()
    with pytest.raises(OSError):
        await writer.close()
    writer.discard()


async def test_a_body_discarded_while_it_is_written_leaves_nothing(bodies: Bodies, tmp_path: Path) -> None:
    writer = bodies.writer()
    for _ in range(3):
        if writer.write(b"x" * (INLINE + 1)):
            await writer.flush()
    writing = writer._writing
    writer.discard()
    assert writing is not None
    await asyncio.wait([writing])
    await asyncio.sleep(0)  # let its callback run
    await asyncio.get_running_loop().shutdown_default_executor()
    assert list((tmp_path / "bodies").iterdir()) == []


async def test_the_file_of_a_body_discarded_is_removed_off_the_event_loop(
    bodies: Bodies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To free a large one takes the system its time, and a busy disk may take longer."""
    threads, unlink = list[int](), Path.unlink

    def noted(path: Path, missing_ok: bool = False) -> None:
        threads.append(threading.get_ident())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    writer = bodies.writer()
    for _ in range(2):  # the second waits for the first
        writer.write(b"x" * (INLINE + 1))
        await writer.flush()
    await writer.close()
    writer.discard()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert list(bodies.path("").iterdir()) == []
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


async def test_a_body_discarded_twice_keeps_its_file_open_for_the_write_under_way(
    bodies: Bodies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed under the writing thread, its number could be another file's, or a client's connection, by then."""
    begun, go, write = threading.Event(), threading.Event(), os.pwrite
    written: list[int] = []

    def slow(file: int, data: memoryview, offset: int) -> int:
        begun.set()
        go.wait(10)
        written.append(write(file, data, offset))
        return written[-1]

    monkeypatch.setattr(os, "pwrite", slow)
    writer = bodies.writer()
    writer.write(b"x" * (INLINE + 1))
    await writer.flush()
    writing = writer._writing
    assert writing is not None
    await asyncio.to_thread(begun.wait, 10)
    writer.discard()
    writer.discard()
    go.set()
    await asyncio.wait([writing])
    await asyncio.sleep(0)  # let its callback run
    await asyncio.get_running_loop().shutdown_default_executor()
    assert sum(written) == INLINE + 1
    assert list((tmp_path / "bodies").iterdir()) == []


@pytest.mark.parametrize(
    ("data", "head"),
    [
        (b"A: b\r\n\r\n" + b"x" * INLINE, b"A: b\r\n\r\n"),
        (b"A: " + b"x" * INLINE, b"A: " + b"x" * (INLINE - 3)),
        (b"A: b\r\n\r\nshort", b"A: b\r\n\r\nshort"),
    ],
    ids=["in a file", "in a file, no end within reach", "in memory"],
)
async def test_the_header_block_stays_in_memory_until_the_message_is_whole(
    bodies: Bodies, data: bytes, head: bytes
) -> None:
    writer = bodies.writer()
    if writer.write(data):
        await writer.flush()
    body = await writer.close()
    assert writer.head == head
    assert (body.file is None) is (len(data) <= INLINE)
