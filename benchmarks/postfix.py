"""Debian's Postfix doing the same job: look an alias up among 100,000, rewrite the recipient, relay to the next hop.

Its settings are the packaged defaults. What is set here keeps it to itself (own directories, loopback, no DNS), gives
it the job (virtual aliases, relayhost, the size limit), and leaves TLS out, as it is on our side. It syncs before 250.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from benchmarks.processes import wait_until

ALIASES = 100_000
#: Domain of the aliases u0, u1, … and of the real addresses real0, real1, … behind them.
DOMAIN = "track.test"
REAL_DOMAIN = "crm.test"
#: Seconds for start and stop.
PATIENCE = 30.0

MAIN = """\
compatibility_level = 3.6
queue_directory = {root}/spool
data_directory = {root}/data
mail_owner = postfix
setgid_group = postdrop
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
maillog_file = {root}/maillog
maillog_file_prefixes = {root}
myhostname = postfix.bench.test
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
smtp_host_lookup = native
smtp_tls_security_level = none
smtpd_tls_security_level = none
virtual_alias_domains = {domain}
virtual_alias_maps = $default_database_type:{config}/virtual
relayhost = [127.0.0.1]:{next_hop}
message_size_limit = 60000000
mailbox_size_limit = 0
"""

# Debian's master.cf, without chroot and with the SMTP service on our port.
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n  -  n  60     1  pickup
cleanup   unix  n  -  n  -      0  cleanup
qmgr      unix  n  -  n  300    1  qmgr
tlsmgr    unix  -  -  n  1000?  1  tlsmgr
rewrite   unix  -  -  n  -      -  trivial-rewrite
bounce    unix  -  -  n  -      0  bounce
defer     unix  -  -  n  -      0  bounce
trace     unix  -  -  n  -      0  bounce
verify    unix  -  -  n  -      1  verify
flush     unix  n  -  n  1000?  0  flush
proxymap  unix  -  -  n  -      -  proxymap
smtp      unix  -  -  n  -      -  smtp
relay     unix  -  -  n  -      -  smtp
showq     unix  n  -  n  -      -  showq
error     unix  -  -  n  -      -  error
retry     unix  -  -  n  -      -  error
discard   unix  -  -  n  -      -  discard
anvil     unix  -  -  n  -      1  anvil
scache    unix  -  -  n  -      1  scache
postlog   unix-dgram n - n -    1  postlogd
"""


class PostfixFailed(RuntimeError):
    """Postfix is not there, or did not start; the message says why."""


class Postfix:
    """A Postfix of our own under ``root``, which it must be able to reach as user postfix. Needs root."""

    name = "Postfix"
    recipient = "u"
    first_recipient = 0

    def __init__(self, root: Path, next_hop: int) -> None:
        if shutil.which("postfix") is None:
            raise PostfixFailed("Postfix is not installed (apt-get install postfix)")
        self._root = root
        self._config = root / "etc"
        self._next_hop = next_hop
        self.port = _free_port()
        self.pid = 0

    def start(self) -> None:
        for name in ("etc", "spool", "data"):
            (self._root / name).mkdir(parents=True)
        shutil.chown(self._root / "data", "postfix")
        main = MAIN.format(root=self._root, config=self._config, domain=DOMAIN, next_hop=self._next_hop)
        (self._config / "main.cf").write_text(main)
        (self._config / "master.cf").write_text(MASTER.format(port=self.port))
        with (self._config / "virtual").open("w") as aliases:
            aliases.writelines(f"u{i}@{DOMAIN} real{i}@{REAL_DOMAIN}\n" for i in range(ALIASES))
        self._run("postmap", str(self._config / "virtual"))
        self._run("postfix", "start")
        if not wait_until(self._serves, PATIENCE):
            raise PostfixFailed((self._root / "maillog").read_text())
        self.pid = int((self._root / "spool" / "pid" / "master.pid").read_text())

    def stop(self) -> None:
        if self.pid:
            self._run("postfix", "stop")
            self.pid = 0

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [program, "-c", str(self._config), *arguments], capture_output=True, text=True, timeout=PATIENCE
        )
        if done.returncode:
            raise PostfixFailed(f"{program} {' '.join(arguments)}: {done.stderr or done.stdout}")

    def _serves(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> Postfix:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
