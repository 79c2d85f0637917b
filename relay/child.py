"""A process of our own, with one socket to us. It sees nothing of our environment but what it is given."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

#: Seconds that a process may take to import what it needs.
START = 30.0
#: Parts in which patience is counted.
_PARTS = 10


@contextlib.asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """As asyncio.timeout, for what another process is to say: time in which we stood still ourselves does not count.

    After a SIGSTOP, a suspended machine or a while of swapping the clock has gone on, and what the other one has said
    meanwhile is still to be read. However long that was, it counts as a tenth of ``seconds`` at most.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def count(left: int) -> None:
        nonlocal timer
        if left:
            timer = loop.call_later(seconds / _PARTS, count, left - 1)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds / _PARTS, count, _PARTS - 1)
        try:
            yield
        finally:
            timer.cancel()


class Child:
    """A process and our end of the socket that is its standard input."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer

    @classmethod
    async def spawn(cls, start: Callable[[int], subprocess.Popen[bytes]], ready: bytes, buffer: int) -> Child:
        """``start`` makes the process of a descriptor; wait until it says ``ready``. Raises OSError.

        ``buffer``: octets that the socket and its stream hold.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            try:
                process = start(theirs.fileno())
            except OSError:
                ours.close()
                raise
        closing: Callable[[], None] = ours.close
        try:
            async with patience(START):
                reader, writer = await asyncio.open_connection(sock=ours, limit=buffer)
                closing = writer.transport.abort
                await reader.readexactly(len(ready))
        except BaseException as error:
            process.kill()
            process.wait()
            closing()
            if isinstance(error, EOFError):
                raise OSError(f"the process ended at its start with exit code {process.returncode}") from error
            raise
        return cls(process, reader, writer)

    def write(self, octets: bytes) -> None:
        """Send ``octets``; nothing happens when the process is gone, the next read says so."""
        if not self.writer.is_closing():
            self.writer.write(octets)

    async def end(self) -> None:
        """Kill the process, wait for it and close the socket."""
        self.process.kill()
        self.writer.transport.abort()
        await asyncio.to_thread(self.process.wait)
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def popen(
    module: str,
    channel: int,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Run a module of ours; of our environment it sees where Python finds its modules, and ``environment``.

    ``descriptors`` are open there, too, by the same numbers.
    """
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(  # noqa: S603  # our own module, in our own interpreter
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=channel,
        pass_fds=tuple(descriptors),
        stdout=subprocess.DEVNULL,
        env={**(environment or {}), "PYTHONPATH": path},
        # The terminal's Ctrl-C is for the daemon. In a session of its own its niceness would count for nothing
        # (sched(7), autogroup).
        process_group=0,
    )
