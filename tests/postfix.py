"""Debian's Postfix as the MTA of a sender, or as the mail server behind us. Needs root and the package, else skips.

    async with Postfix({"relayhost": f"[127.0.0.1]:{port}"}) as sender: ... sender.port
    async with Postfix(mailboxes("example.test")) as server: await server.delivered(1)

It looks nothing up.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.certificates import Certificate
from tests.foreign_server import LOOK, PATIENCE, ForeignServer, messages_in
from tests.missing import missing

_DAEMONS = Path("/usr/lib/postfix/sbin")

_MAIN = {
    "compatibility_level": "3.6",
    "mail_owner": "postfix",
    "setgid_group": "postdrop",
    "command_directory": "/usr/sbin",
    "daemon_directory": str(_DAEMONS),
    "myhostname": "postfix.test",
    "mydestination": "",
    "local_recipient_maps": "",
    "alias_maps": "",
    "alias_database": "",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "mynetworks": "127.0.0.0/8",
    "smtpd_peername_lookup": "no",
    "smtp_dns_support_level": "disabled",
    "smtp_host_lookup": "native",
    "message_size_limit": "60000000",
    "virtual_mailbox_limit": "0",
    # It is to change nothing, so that octets can be compared: no header made up, no long line folded.
    "local_header_rewrite_clients": "",
    "smtp_line_length_limit": "0",
    "in_flow_delay": "0",
    "maximal_backoff_time": "2s",
    "minimal_backoff_time": "1s",
    "queue_run_delay": "1s",
}

_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup   unix  n  -  n  -      0  cleanup
qmgr      unix  n  -  n  300    1  qmgr
tlsmgr    unix  -  -  n  1000?  1  tlsmgr
rewrite   unix  -  -  n  -      -  trivial-rewrite
bounce    unix  -  -  n  -      0  bounce
defer     unix  -  -  n  -      0  bounce
trace     unix  -  -  n  -      0  bounce
proxymap  unix  -  -  n  -      -  proxymap
smtp      unix  -  -  n  -      -  smtp
showq     unix  n  -  n  -      -  showq
error     unix  -  -  n  -      -  error
retry     unix  -  -  n  -      -  error
discard   unix  -  -  n  -      -  discard
virtual   unix  -  n  n  -      -  virtual
anvil     unix  -  -  n  -      1  anvil
scache    unix  -  -  n  -      1  scache
postlog   unix-dgram n - n -    1  postlogd
"""

#: Directories of the queue; "postfix check" makes them too, and takes seconds over it.
_QUEUES = ("active", "bounce", "corrupt", "defer", "deferred", "hold", "incoming", "private", "public", "trace")


def mailboxes(domain: str) -> dict[str, str]:
    """Settings of a server that takes mail for every address of ``domain`` into one maildir."""
    return {
        "virtual_mailbox_domains": domain,
        "virtual_mailbox_base": "{root}/mail",
        "virtual_mailbox_maps": "static:all/",
        "virtual_uid_maps": "static:{uid}",
        "virtual_gid_maps": "static:{gid}",
        "virtual_minimum_uid": "1",
        "virtual_transport": "virtual",
    }


def offers_tls(certificate: Certificate, *, required: bool = False) -> dict[str, str]:
    """Settings of a server that offers STARTTLS."""
    return {
        "smtpd_tls_cert_file": str(certificate.cert),
        "smtpd_tls_key_file": str(certificate.key),
        "smtpd_tls_security_level": "encrypt" if required else "may",
    }


class Postfix(ForeignServer):
    """``settings`` go over main.cf; "{root}", "{uid}" and "{gid}" in them are its folder and its user's numbers."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        if os.geteuid() != 0 or not (_DAEMONS / "master").exists():
            missing("NOT TESTED: Postfix needs root and the package (Debian: apt-get install postfix)")
        super().__init__("Postfix")
        self._settings = settings

    @property
    def log(self) -> str:
        path = self._root / "maillog"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    async def delivered(self, count: int) -> list[bytes]:
        """What lies in the mailbox, CR LF lines, as soon as it is ``count`` messages."""
        found: list[bytes] = []
        try:
            async with asyncio.timeout(PATIENCE):
                while len(found) < count:
                    await asyncio.sleep(LOOK)
                    found = messages_in(self._root / "mail" / "all" / "new")
        except TimeoutError:
            raise AssertionError(f"{len(found)} of {count} messages came; {self.log[-4000:]}") from None
        return found

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *[str(_DAEMONS / "master"), "-c", str(self._root / "etc")],
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    def _configure(self) -> None:
        for name in ("etc", "spool", "spool/pid", "data", "mail", *(f"spool/{queue}" for queue in _QUEUES)):
            (self._root / name).mkdir()
            if name not in ("etc", "spool", "spool/pid"):
                shutil.chown(self._root / name, "postfix", "postfix")
        status = (self._root / "mail").stat()
        values = {"root": self._root, "uid": status.st_uid, "gid": status.st_gid}
        own = {
            "queue_directory": "{root}/spool",
            "data_directory": "{root}/data",
            "maillog_file": "{root}/maillog",
            "maillog_file_prefixes": "{root}",
        }
        merged = {**_MAIN, **own, **self._settings}
        lines = [f"{name} = {value.format(**values)}\n" for name, value in merged.items()]
        (self._root / "etc" / "main.cf").write_text("".join(lines))
        (self._root / "etc" / "master.cf").write_text(_MASTER.format(port=self.port))
        for path in (self._root / "etc").iterdir():
            os.utime(path, (0, 0))  # what has just been written it waits to see settled, for two seconds

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "MAIL_CONFIG": str(self._root / "etc"),
            "MAIL_LOGTAG": "postfix",
            "LANG": "C",
        }
