"""A mail server that we did not write, as a process: in a folder of its own, on loopback only.

The system's own and its settings are not touched. What we start is its master process, which ends its own children.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

#: Seconds for start, delivery and end. Reached only when a test fails.
PATIENCE = 30.0
#: Seconds between two looks at what announces nothing.
LOOK = 0.02


class ForeignServer(ABC):
    """``name`` is for the reader. It serves on ``port`` while the context is entered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._root = Path()
        self._master: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        # Not pytest's tmp_path: nobody but root may enter that, and mail servers work as users of their own.
        self._root = Path(tempfile.mkdtemp(prefix="visit-relay-mail-server-"))
        self._root.chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        try:
            self._configure()
            self._master = await self._start()
            await self._until_it_serves()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._master is not None:
            if self._master.returncode is None:
                self._master.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._master.wait()
            finally:
                if self._master.returncode is None:
                    os.killpg(self._master.pid, signal.SIGKILL)
        shutil.rmtree(self._root, ignore_errors=True)

    @property
    @abstractmethod
    def log(self) -> str:
        """What it has said so far."""

    @abstractmethod
    def _configure(self) -> None:
        """Write what it needs into ``_root``."""

    @abstractmethod
    async def _start(self) -> asyncio.subprocess.Process:
        """The master process, in a session of its own."""

    def _excuse(self) -> str | None:
        """What this machine lacks, when it ended before it served."""
        return None

    async def _until_it_serves(self) -> None:
        assert self._master is not None
        try:
            async with asyncio.timeout(PATIENCE):
                while self._master.returncode is None:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    except ConnectionRefusedError:
                        await asyncio.sleep(LOOK)
                        continue
                    writer.close()
                    await writer.wait_closed()
                    return
        except TimeoutError:
            pass
        if (excuse := self._excuse()) is not None:
            pytest.skip(excuse)
        raise AssertionError(f"{self.name} does not serve: {self.log}")


def messages_in(folder: Path) -> list[bytes]:
    """What lies in a maildir's ``new``, oldest name first, with CR LF lines."""
    paths = sorted(folder.iterdir()) if folder.exists() else []
    return [path.read_bytes().replace(b"\n", b"\r\n") for path in paths]
