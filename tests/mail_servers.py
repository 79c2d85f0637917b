"""Debian's Exim and OpenSMTPD as the mail server behind us. Need root and tests/debian.sh, else skip.

    async with MailServer(EXIM) as server: ... server.port, await server.delivered(1)

As packages they exclude Postfix and each other, so they are unpacked and never installed. Each runs in a mount
namespace of its own where its files and users lie over those of the system. It takes every recipient into one maildir.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import ROOT
from tests.foreign_server import LOOK, PATIENCE, ForeignServer, messages_in
from tests.missing import missing

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


class MailServer(ForeignServer):
    """``settings``: lines of its own configuration."""

    def __init__(self, kind: Kind, settings: str = "") -> None:
        if os.geteuid() != 0 or not (PACKAGES / ".ready").exists():
            missing("NOT TESTED: Exim and OpenSMTPD need root and their unpacked packages (Debian: make debian)")
        super().__init__(kind.name)
        self.kind = kind
        self._settings = settings

    @property
    def log(self) -> str:
        paths = [self._root / "printed", self._root / "spool" / "mainlog"]
        return "".join(path.read_text("utf-8", "replace") for path in paths if path.exists())

    @property
    def mailbox(self) -> list[bytes]:
        """What lies in it now, CR LF lines."""
        return messages_in(self._root / "mail" / "new")

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
        for name, owner in (("mail", "box"), ("spool", "Debian-exim")):
            (self._root / name).mkdir()
            os.chown(self._root / name, _USERS[owner], _USERS[owner])
        config = self._root / "etc" / self.kind.config
        config.parent.mkdir(parents=True)
        config.write_text(self.kind.text.format(root=self._root, port=self.port, settings=self._settings))
        for name, entry in (
            ("passwd", "{0}:x:{1}:{1}::/var/lib/opensmtpd/empty:/bin/false\n"),
            ("group", "{0}:x:{1}:\n"),
        ):
            own = "".join(entry.format(user, number) for user, number in _USERS.items())
            (self._root / "etc" / name).write_text(Path("/etc", name).read_text() + own)

    async def _start(self) -> asyncio.subprocess.Process:
        with (self._root / "printed").open("wb") as printed:
            return await asyncio.create_subprocess_exec(
                *["unshare", "--mount", "sh", "-c", _NAMESPACE.format(packages=PACKAGES, root=self._root), "sh"],
                *self.kind.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )

    def _excuse(self) -> str | None:
        if not self.log.startswith(("unshare:", "mount:")):
            return None
        return f"NOT TESTED: {self.name} needs a mount namespace with overlays: {self.log.strip()}"
