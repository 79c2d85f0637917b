"""swaks (Debian), the SMTP tester that operators have at hand, as a sender."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.missing import missing

_REPLY = re.compile(r"<[-~*]\*?\*? +(\d{3})[ -](.*)")
#: Seconds for one session. Reached only when a test fails.
PATIENCE = 60


@dataclass(frozen=True)
class Session:
    """``code``: 0 when swaks was content (22 no MAIL, 24 no RCPT, 26 not taken, 29 no TLS). ``replies``: one a line."""

    code: int
    replies: tuple[str, ...]
    transcript: str


def require(*, tls: bool = False) -> None:
    """Skip, loudly, where swaks is not there; ``tls``: or what it needs for TLS."""
    if shutil.which("swaks") is None:
        missing("NOT TESTED: swaks is not installed (Debian: apt-get install swaks)")
    if tls and subprocess.run(["perl", "-MNet::SSLeay", "-e1"], capture_output=True, check=False).returncode:
        missing("NOT TESTED: swaks has no TLS here (Debian: apt-get install libnet-ssleay-perl)")


async def swaks(port: int, *arguments: str) -> Session:
    """Run swaks against 127.0.0.1:``port``."""
    process = await asyncio.create_subprocess_exec(
        *["swaks", "--server", f"127.0.0.1:{port}", "--helo", "swaks.test", "--from", "ann@customer.test"],
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    transcript = output.decode("utf-8", "replace")
    replies = tuple(f"{code} {text}" for code, text in _REPLY.findall(transcript))
    return Session(process.returncode, replies, transcript)


def message_file(directory: Path, content: bytes) -> str:
    """What ``--data`` takes to send exactly ``content``: swaks makes LF CR LF, and adds the last one itself."""
    path = directory / "message.eml"
    path.write_bytes(content.removesuffix(b"\r\n").replace(b"\r\n", b"\n"))
    return f"@{path}"
