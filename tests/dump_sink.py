"""Postfix's smtp-sink as a next hop that is none of ours: it takes every message, and writes each to a file.

async with DumpSink() as sink: ...  sink.port, sink.messages()
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from pathlib import Path
from types import TracebackType

from relay.core.wire import stuff
from tests.missing import missing
from tests.smtp_sink import Received

#: Seconds for its start. Reached only when a test fails.
PATIENCE = 20.0
#: Seconds between two looks at what announces nothing.
LOOK = 0.02
_PROGRAM = "/usr/sbin/smtp-sink"
#: What it writes before the fields of the message ends with its own Received.
_OWN = b"(UTC)\n"


class DumpSink:
    def __init__(self) -> None:
        if not Path(_PROGRAM).exists():
            missing("NOT TESTED: no smtp-sink (Debian: apt-get install postfix)")
        self.port = 0
        self._folder = Path()
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> DumpSink:
        # Not pytest's tmp_path: nobody but root may enter that, and started by root it works as another user.
        self._folder = Path(tempfile.mkdtemp(prefix="visit-relay-sink-"))
        self._folder.chmod(0o777)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = await asyncio.create_subprocess_exec(
            *[_PROGRAM, *user, "-d", "mail.", f"127.0.0.1:{self.port}", "100"],
            stdin=asyncio.subprocess.DEVNULL,
            cwd=self._folder,
        )
        async with asyncio.timeout(PATIENCE):
            while not await self._is_up():
                await asyncio.sleep(LOOK)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def messages(self) -> list[Received]:
        """What has come to its final dot."""
        return [_received(path.read_bytes()) for path in sorted(self._folder.iterdir())]

    async def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, "smtp-sink has ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True


def _received(dump: bytes) -> Received:
    own, _, message = dump.partition(_OWN)
    fields = dict(line.split(b": ", 1) for line in own.splitlines() if line.startswith(b"X-"))
    content = message.removesuffix(b"\n").replace(b"\n", b"\r\n")
    return Received(
        mail_from=_path(fields[b"X-Mail-Args"]),
        recipients=[_path(fields[b"X-Rcpt-Args"])],
        mail_parameters=[],
        wire=stuff(content),
        session=0,
        tls=False,
        user=None,
        answer="250 2.0.0 Ok",
    )


def _path(arguments: bytes) -> str:
    return arguments.decode().partition(">")[0].removeprefix("<")
