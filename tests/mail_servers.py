"""Debian's Exim and OpenSMTPD as the mail server behind us. Need root and tests/debian.sh, else skip.

    async with MailServer(EXIM) as server: ... server.port, await server.delivered(1)

As packages they exclude Postfix and each other, so they are unpacked and never installed. Each runs in a mount
namespace of its own where its files and users lie over those of the system, which is not touched. It lives in a folder
of its own, listens on loopback only, and takes every recipient into one maildir. What we start is its master process.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

from tests.daemon import ROOT

#: Seconds for start, delivery and end. Reached only when a test fails.
PATIENCE = 30.0
#: Seconds between two looks at what announces nothing.
LOOK = 0.02
#: Where tests/debian.sh unpacks them.
PACKAGES = ROOT / "build" / "mail-servers"


@dataclass(frozen=True)
class Kind:
    """``config``: its file below /etc, and what stands there; ``settings``: where those of a test go in it."""

    name: str
    command: tuple[str, ...]
    config: str
    text: str
    few: str  # settings: three messages of 20,000 octets at most in a connection
    many: str = ""


EXIM = Kind(
    "exim",
    ("/usr/sbin/exim4", "-bdf"),
    "exim4/exim4.conf",
    """\
primary_hostname = exim.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
spool_directory = {root}/spool
log_file_path = {root}/spool/%slog
pid_file_path = {root}/spool/pid
tls_advertise_hosts =
keep_environment =
acl_smtp_rcpt = accept
{settings}
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  directory = {root}/mail
  maildir_format
  user = box
  message_prefix =
  message_suffix =
""",
    "smtp_accept_max_per_connection = 3\nmessage_size_limit = 20000",
)
OPENSMTPD = Kind(
    "opensmtpd",
    ("/usr/sbin/smtpd", "-d"),
    "smtpd.conf",
    """\
{settings}
table users {{ "@" = "box" }}
listen on 127.0.0.1 port {port} hostname opensmtpd.test
action "box" maildir "{root}/mail" virtual <users>
match from any for any action "box"
""",
    "smtp limit max-mails 3\nsmtp max-message-size 20000",
    "smtp limit max-mails 1000",
)

#: The first is who owns the maildir. The numbers only have to be nobody else's.
_USERS = {"box": 64901, "Debian-exim": 64902, "opensmtpd": 64903, "opensmtpq": 64904}

_NAMESPACE = """\
set -e
mount -t overlay overlay -o lowerdir={packages}/usr:/usr /usr
mount -t overlay overlay -o lowerdir={root}/etc:/etc /etc
for folder in /run /var/spool /var/lib; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir -p /var/lib/opensmtpd/empty
mkdir -m 711 /var/spool/smtpd
exec "$@"
"""


class MailServer:
    """``settings``: lines of its own configuration."""

    def __init__(self, kind: Kind, settings: str = "") -> None:
        if os.geteuid() != 0 or not (PACKAGES / ".ready").exists():
            pytest.skip("NOT TESTED: Exim and OpenSMTPD need root and their unpacked packages (Debian: make debian)")
        self.kind = kind
        self._settings = settings
        self._root = Path()
        self._master: asyncio.subprocess.Process | None = None
        self.port = 0

    async def __aenter__(self) -> MailServer:
        # Not pytest's tmp_path: nobody but root may enter that, and they work as users of their own.
        self._root = Path(tempfile.mkdtemp(prefix="visit-relay-mail-server-"))
        try:
            self._configure()
            with (self._root / "printed").open("wb") as printed:
                self._master = await asyncio.create_subprocess_exec(
                    *["unshare", "--mount", "sh", "-c", _NAMESPACE.format(packages=PACKAGES, root=self._root), "sh"],
                    *self.kind.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    start_new_session=True,
                )
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
    def log(self) -> str:
        paths = [self._root / "printed", self._root / "spool" / "mainlog"]
        return "".join(path.read_text("utf-8", "replace") for path in paths if path.exists())

    @property
    def mailbox(self) -> list[bytes]:
        """What lies in it now, CR LF lines."""
        folder = self._root / "mail" / "new"
        return [path.read_bytes().replace(b"\n", b"\r\n") for path in folder.iterdir()] if folder.exists() else []

    async def delivered(self, *ends: bytes) -> list[bytes]:
        """What lies in the mailbox, as soon as there is a message with each of these ends."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not all(any(message.endswith(end) for message in self.mailbox) for end in ends):
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            raise AssertionError(f"of {len(ends)} messages {len(self.mailbox)} came; {self.log[-4000:]}") from None
        return self.mailbox

    def _configure(self) -> None:
        self._root.chmod(0o755)
        for name, owner in (("mail", "box"), ("spool", "Debian-exim")):
            (self._root / name).mkdir()
            os.chown(self._root / name, _USERS[owner], _USERS[owner])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = self._root / "etc" / self.kind.config
        config.parent.mkdir(parents=True)
        config.write_text(self.kind.text.format(root=self._root, port=self.port, settings=self._settings))
        for name, entry in (
            ("passwd", "{0}:x:{1}:{1}::/var/lib/opensmtpd/empty:/bin/false\n"),
            ("group", "{0}:x:{1}:\n"),
        ):
            own = "".join(entry.format(user, number) for user, number in _USERS.items())
            (self._root / "etc" / name).write_text(Path("/etc", name).read_text() + own)

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
        if self.log.startswith(("unshare:", "mount:")):
            pytest.skip(f"NOT TESTED: {self.kind.name} needs a mount namespace with overlays: {self.log.strip()}")
        raise AssertionError(f"{self.kind.name} does not serve: {self.log}")
