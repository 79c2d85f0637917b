"""The demo's ports and its relay.toml: an ordinary configuration, as anyone could write it."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from string import Template

#: What the demo site is called in its configuration; the domains are example.com's (RFC 2606 §3).
SITE = "demo"
SITE_KEY = "pk_demo"
HOSTNAME = "mx.track.example.com"
MAIL_DOMAIN = "example.com"
#: The static substitute: good without any visit, so also for the first mail from a terminal.
CARD = "card@track.example.com"

#: Where the search for a free port begins, and how far it goes; beyond that the kernel chooses.
PAGE_PORT = 8080
SMTP_PORT = 2525
SEARCHED = 100

_TOML = Template("""\
hostname = "mx.track.example.com"
operator = "postmaster@example.com"
data_dir = "."

[log]
level = "warning"                          # the terminal says where everything is

[smtp]
listen = ["127.0.0.1:$smtp"]

[http]
listen = ["127.0.0.1:$http"]
public_url = "http://127.0.0.1:$http"

[forward]
next_hop = "smtp://127.0.0.1:$mailbox"       # the mailbox on the page

[webhooks]
allow_private_addresses = true             # the CRM on the page is on loopback

[extract]
workers = 1

[[site]]
name = "demo"
key = "pk_demo"
origins = ["http://127.0.0.1:$page"]
bots = "lease"                             # automated browsers may try it, too

[[site.target]]
address = "sales@example.com"
method = "pool"
domain = "track.example.com"
pool = [
  "info1@track.example.com",
  "info2@track.example.com",
  "info3@track.example.com",
  "info4@track.example.com",
  "info5@track.example.com",
]
lease = "15m"

[[site.target]]
address = "support@example.com"
method = "unique"
domain = "track.example.com"

[[site.target]]
address = "hello@example.com"
method = "plus"
domain = "track.example.com"

[[site.static]]
address = "card@track.example.com"
target = "sales@example.com"
label = "business card"

[[site.webhook]]
url = "http://127.0.0.1:$page/crm"
secret = "$secret"
""")


@dataclass(frozen=True, slots=True)
class Ports:
    """``page``: the demo's page and CRM; ``http`` and ``smtp``: the daemon; ``mailbox``: the demo's mail server."""

    page: int
    http: int
    smtp: int
    mailbox: int

    @property
    def page_url(self) -> str:
        return f"http://127.0.0.1:{self.page}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http}"


def toml(ports: Ports, secret: str) -> str:
    """The demo's relay.toml; its data_dir is the directory that the file would lie in."""
    return _TOML.substitute(page=ports.page, http=ports.http, smtp=ports.smtp, mailbox=ports.mailbox, secret=secret)


def listening(first: int) -> socket.socket:
    """A socket that listens on the first free loopback port from ``first`` on. Raises OSError when there is none."""
    for port in (*range(first, min(first + SEARCHED, 65536)), 0):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen()  # a port that is only bound does not stop others from binding it
            sock.setblocking(False)
        except OSError:
            sock.close()
            if port == 0:
                raise
            continue
        return sock
    raise AssertionError("port 0 either listens or raises")


def free_port(first: int, taken: Collection[int]) -> int:
    """A loopback port from ``first`` on that nothing listens on now; somebody else may be quicker to use it."""
    while first in taken:
        first += 1
    with listening(first) as sock:
        port: int = sock.getsockname()[1]
    return port
