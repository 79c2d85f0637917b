"""The real daemon, `python -m relay serve`, with everything on: history, search index, extraction, webhook.

One site, whose target's substitutes are plus addresses of visits that were bound before, so every message has its
visit and meets the default conditions for the CRM; a second target has a unique address for each visit. Page views come
by a proxy, as they do, so each has an address of its own; what one site may have in a minute is raised. Everything else
is default, the log (a file) included. Places are looked up where this checkout has GeoIP databases (GEOIP).
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.processes import wait_until

ROOT = Path(__file__).resolve().parent.parent
#: Seconds for start and stop.
PATIENCE = 60.0
SITE_KEY = "pk_bench"
ORIGIN = "https://www.crm.test"
ADDRESS = "sales@crm.test"
UNIQUE_ADDRESS = "offers@crm.test"
#: Number of the first visit that is bound; message n has the plus address of one of the visits from here on.
FIRST_VISIT = 1_000_000

#: What `relay geoip install` has brought to the repository's own data folder.
GEOIP = sorted((ROOT / "var" / "geoip").glob("*.mmdb"))

CONFIG = """\
hostname = "mx.track.test"
data_dir = "data"

[smtp]
listen = ["127.0.0.1:0"]
max_message_size = 60000000

[http]
listen = ["127.0.0.1:0"]
trusted_proxies = ["127.0.0.1"]

[geoip]
files = {geoip}

[limits]
{limits}

[forward]
next_hop = "smtp://127.0.0.1:{next_hop}"

[webhooks]
allow_private_addresses = true

[[site]]
name = "bench"
key = "{key}"
origins = ["{origin}"]

[[site.target]]
address = "{address}"
method = "plus"
domain = "track.test"

[[site.target]]
address = "{unique}"
method = "unique"
domain = "track.test"

"""
#: What a load needs that comes from one address, or is more than a site has.
LIMITS = """\
connections = 2000
binds_per_site_per_minute = 10000000
"""
DEAD_RECIPIENT = "gone+"
DEAD_TARGET = """
[[site.target]]
address = "gone@crm.test"
method = "plus"
domain = "track.test"
next_hop = "smtp://127.0.0.1:{port}"
"""
SECRET = "whsec_YmVuY2htYXJrcyBvZiB2aXNpdC1yZWxheSAwMDAxMjM="
WEBHOOK = """
[[site.webhook]]
url = "{url}"
secret = "{secret}"
"""


def dead_target(port: int) -> str:
    """Settings of one more target, whose substitutes begin with DEAD_RECIPIENT and whose next hop is there."""
    return DEAD_TARGET.format(port=port)


class RelayFailed(RuntimeError):
    """The daemon did not start or did not end as it should; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the store holds that is not done yet."""

    deliveries: int
    extraction: int
    index: int
    posts: int

    def __bool__(self) -> bool:
        return bool(self.deliveries or self.extraction or self.index or self.posts)


_BACKLOG = """\
SELECT (SELECT count(*) FROM deliveries WHERE state IN ('queued', 'deferred')),
       (SELECT count(*) FROM messages WHERE extraction = 'waiting'),
       (SELECT count(*) FROM texts WHERE indexed = 0),
       (SELECT count(*) FROM posts WHERE state = 'waiting')
"""
_TOTALS = """\
SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM messages WHERE extraction <> 'waiting'),
       (SELECT count(*) FROM texts WHERE indexed = 1), (SELECT count(*) FROM posts WHERE state = 'delivered'),
       (SELECT count(*) FROM visits)
"""


_DELAYS = """\
SELECT deliveries.finished_at - messages.received_at FROM messages
JOIN deliveries ON deliveries.message_id = messages.id AND deliveries.state = 'forwarded'
WHERE messages.id > :since
"""


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows in the store: messages, those that were read, found by search and posted; and visits."""

    messages: int
    extracted: int
    indexed: int
    posted: int
    visits: int

    def since(self, before: Totals) -> Totals:
        return Totals(
            self.messages - before.messages,
            self.extracted - before.extracted,
            self.indexed - before.indexed,
            self.posted - before.posted,
            self.visits - before.visits,
        )


class Relay:
    """The daemon with its own data folder in ``root``."""

    name = "visit-relay"
    recipient = "sales+"
    first_recipient = FIRST_VISIT

    def __init__(
        self, root: Path, next_hop: int, webhook: int | Sequence[str], more: str = "", limits: str = LIMITS
    ) -> None:
        """``webhook``: the port of the one there is, or the URLs of all. ``more``: further settings of the site.

        ``limits``: the settings that differ from the default.
        """
        urls = [f"http://127.0.0.1:{webhook}/hook"] if isinstance(webhook, int) else webhook
        root.mkdir(parents=True, exist_ok=True)
        self._config = root / "relay.toml"
        self._config.write_text(
            CONFIG.format(
                next_hop=next_hop,
                key=SITE_KEY,
                origin=ORIGIN,
                address=ADDRESS,
                unique=UNIQUE_ADDRESS,
                geoip=json.dumps([str(file) for file in GEOIP]),
                limits=limits,
            )
            + "".join(WEBHOOK.format(url=url, secret=SECRET) for url in urls)
            + more
        )
        self._database = root / "data" / "relay.db"
        self._log = root / "log"
        self._read_up_to = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.http_port = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it serves. Raises RelayFailed."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._read_up_to = 0
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "relay", "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._config.parent,
            )
        if not wait_until(self._is_ready, PATIENCE):
            self._process.kill()
            self._process.wait()
            raise RelayFailed(self._end_of_log())

    def stop(self) -> None:
        """SIGTERM; raises RelayFailed when it does not end with 0."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            raise RelayFailed(f"exit code {code}\n{self._end_of_log()}")

    def backlog(self) -> Backlog:
        return Backlog(*self._counts(_BACKLOG))

    def totals(self) -> Totals:
        return Totals(*self._counts(_TOTALS))

    def last_message(self) -> int:
        return self._counts("SELECT coalesce(max(id), 0) FROM messages")[0]

    def delays(self, since: int) -> list[float]:
        """Seconds from receipt until the next hop had them, of the messages behind ``since``."""
        with closing(sqlite3.connect(f"{self._database.as_uri()}?mode=ro", uri=True, timeout=10.0)) as connection:
            rows = connection.execute(_DELAYS, {"since": since}).fetchall()
        return [delay for (delay,) in rows]

    def drain(self, patience: float) -> float | None:
        """Wait until nothing is left to do; when that was (``time.monotonic``), None if it was not in time."""
        return time.monotonic() if wait_until(lambda: not self.backlog(), patience, step=0.1) else None

    def complaints(self) -> list[str]:
        """What the daemon has logged as a warning or an error since it was asked last, each kind once."""
        with self._log.open("rb") as log:
            log.seek(self._read_up_to)
            lines = log.read().splitlines()
            self._read_up_to = log.tell()
        entries = [json.loads(line) for line in lines if line.startswith(b'{"') and b'"level":"info"' not in line]
        return sorted({f"the daemon's log: {entry.get('event')}" for entry in entries if entry.get("level") != "info"})

    def _counts(self, query: str) -> tuple[int, ...]:
        with closing(sqlite3.connect(f"{self._database.as_uri()}?mode=ro", uri=True, timeout=10.0)) as connection:
            connection.execute("PRAGMA query_only=ON")
            row: tuple[int, ...] = connection.execute(query).fetchone()
            return row

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RelayFailed(self._end_of_log())
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith("{") and (entry := json.loads(line)).get("event") == "ready":
                self.port, self.http_port = entry["smtp"][0], entry["http"][0]
                return True
        return False

    def _end_of_log(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
