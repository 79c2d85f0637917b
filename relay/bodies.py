"""Raw messages in wire form: dot-stuffed, CR LF lines, without the final dot (core/wire.py).

A small body stays in memory and rides in the accept transaction; a larger one goes to a file of its own while it
arrives, and the file and its directory entry are synced before the row that names it is committed. A crash in
between leaves a file that no row names; relay/sweep.py removes those.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from weakref import WeakValueDictionary

from relay.durable import sync_directory

#: Octets up to which a body is kept in memory and stored in the database.
INLINE = 256 * 1024
#: Octets of a larger one that wait to be written: what came off the socket at once is more as a rule.
PIECE = 64 * 1024
#: Octets written, and read back, at once.
CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Body:
    """A whole received body: ``size`` octets of wire form, in memory (``data``) or in a synced file (``file``)."""

    size: int
    digest: bytes
    data: bytes | None = None
    file: str | None = None


class Bodies:
    """The directory of large bodies. Names are random, so that none is ever used twice."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # By the names of their files. Weak: who gives a writer up, whatever has happened, need not say so.
        self._writers: WeakValueDictionary[str, BodyWriter] = WeakValueDictionary()

    def prepare(self) -> None:
        """Create the directory (0700); raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def writer(self) -> BodyWriter:
        return BodyWriter(self._directory, self._writers)

    def path(self, name: str) -> Path:
        return self._directory / name

    async def chunks(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """The octets of a stored body from ``start`` on, read off the event loop.

        ``size``: octets of the whole, where they are known. Raises OSError when it is gone or can't be read, and at
        its end when it is not of that size: a folder copied in part and a file system that was mended say nothing.
        """
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(None, os.open, self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset = start
            while chunk := await loop.run_in_executor(None, os.pread, file, CHUNK, offset):
                offset += len(chunk)
                yield chunk
            if size is not None and offset != size:
                raise OSError(f"the file is {'shorter' if offset < size else 'longer'} than it was")
        finally:
            os.close(file)

    def read(self, name: str, length: int = -1) -> bytes:
        """The first ``length`` octets of a stored body (all of it when negative). Blocks."""
        with (self._directory / name).open("rb") as file:
            return file.read(length)

    def remove(self, names: Iterable[str]) -> None:
        """Delete bodies whose rows are gone; a missing file is no error. Blocks."""
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    def names(self, older_than: float) -> Iterator[str]:
        """Names of the files last written before ``older_than``, without those of a message that is still on its way.

        Its sender may pause for longer than anybody would wait, and the clock may leap. Blocks.
        """
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name in self._writers:
                    continue
                try:
                    if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < older_than:
                        yield entry.name
                except FileNotFoundError:
                    continue  # removed by its transaction while we looked


class BodyWriter:
    """Takes one body as it arrives. Every writer ends in :meth:`close` or in :meth:`discard`.

    Whoever has closed it keeps it until a row names its file, or none will: so long it is in ``writers``.
    """

    def __init__(self, directory: Path, writers: WeakValueDictionary[str, BodyWriter]) -> None:
        self._directory = directory
        self._writers = writers
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._hash = hashlib.sha256()
        self._name: str | None = None
        self._file = -1
        self._stored = 0  # octets, in the file
        self._writing: asyncio.Future[None] | None = None
        self._discarded = False
        self.size = 0
        #: The header block with the empty line behind it, or the first INLINE octets; all of a body without a file.
        self.head = b""

    def write(self, chunk: bytes) -> bool:
        """Take ``chunk``. True when the caller must ``await flush()`` before it reads more."""
        self._waiting.append(chunk)
        self._waiting_size += len(chunk)
        self.size += len(chunk)
        return self._waiting_size > (INLINE if self._name is None else PIECE)

    async def flush(self) -> None:
        """Begin to write what waits to the file, off the event loop, once the write before it is done.

        So the disk sets the pace, and the next chunk arrives meanwhile. Raises OSError (disk full, I/O error).
        """
        await self._written()
        pieces = self._take()
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._append, pieces)

    async def close(self) -> Body:
        """The finished body. A body in a file is on disk, synced, and so is its name.

        Raises OSError, also where somebody has removed the file.
        """
        await self._written()
        pieces = self._take()
        if self._file < 0:
            data = b"".join(pieces)
            self._hash.update(data)
            self.head = data
            return Body(len(data), self._hash.digest(), data=data)
        await asyncio.get_running_loop().run_in_executor(None, self._finish, pieces)
        return Body(self.size, self._hash.digest(), file=self._name)

    def discard(self) -> None:
        """Forget everything; the file, if there is one, is removed soon, off the event loop, once nobody writes to it.

        Said again it does nothing: a second one would not know of the write that the first one waits for.
        """
        self._waiting.clear()
        if self._discarded:
            return
        self._discarded = True
        writing, self._writing = self._writing, None
        if writing is None:
            self._begin_removal()
        else:
            writing.add_done_callback(self._begin_removal)

    async def _written(self) -> None:
        writing = self._writing
        if writing is not None:
            # Shielded: whoever is cancelled here calls discard(), which waits for the thread in its own way.
            await asyncio.shield(writing)
            self._writing = None

    def _take(self) -> list[bytes]:
        pieces, self._waiting = self._waiting, []
        self._waiting_size = 0
        return pieces

    def _begin_removal(self, writing: asyncio.Future[None] | None = None) -> None:
        if writing is not None and not writing.cancelled():
            writing.exception()  # looked at: the body is discarded whatever it was
        if self._name is None:
            return
        try:
            asyncio.get_running_loop().run_in_executor(None, self._remove)  # it takes some 0.5 ms a megabyte
        except RuntimeError:  # the daemon ends, and the threads of its loop have ended before
            self._remove()

    def _remove(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._name is not None:
            with contextlib.suppress(OSError):  # the sweep finds it, and says what keeps it from being removed
                (self._directory / self._name).unlink(missing_ok=True)
            self._name = None

    def _append(self, pieces: list[bytes]) -> None:
        if self._file < 0:
            head = b"".join(pieces)[:INLINE]
            end = head.find(b"\r\n\r\n")
            self.head = head if end < 0 else head[: end + 4]  # it is kept until the message is whole
            name = secrets.token_hex(16)
            self._writers[name] = self  # before there is a file
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(self._directory / name, flags, 0o600)
            self._name = name
        for piece in pieces:
            self._hash.update(piece)
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._file, view, self._stored)
                view = view[written:]
                self._stored += written

    def _finish(self, pieces: list[bytes]) -> None:
        self._append(pieces)
        os.fsync(self._file)
        if not os.fstat(self._file).st_nlink:  # somebody has tidied up: it would be gone with this descriptor
            raise FileNotFoundError(ENOENT, "it was removed while the message came in", self._name)
        os.close(self._file)
        self._file = -1
        sync_directory(self._directory)
