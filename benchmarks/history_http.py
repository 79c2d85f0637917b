"""The history of a running daemon: the API's list and the page, asked as by a program and by a browser.

One asks after the other over one kept connection, so what is measured is the answer and not a queue. What Chromium says
of its first paint is printed where it is installed.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from benchmarks.archive import Archive
from benchmarks.processes import Watch, pss
from benchmarks.relay import Relay
from benchmarks.report import Report
from relay.secrets import new_link, new_token, token_hash
from relay.store import tokens, users
from relay.store.connection import connect
from relay.store.engine import Tx
from relay.store.glance import COUNTED
from webapi.ui.session import COOKIE
from webapi.values import cursor_of, moment

#: Octets by which an export may lift the daemon's memory, by the goal.
EXPORT_GROWTH = 30 << 20
#: Days that are exported: so much that it takes a while, so little that one waits for it.
EXPORTED_DAYS = 3.0


#: Whose letters somebody sees: the numbers of sites, None for all.
Scope = frozenset[int] | None


@dataclass(frozen=True, slots=True)
class Key:
    """A program's token, and the cookie of somebody logged in."""

    token: str
    session: str


@dataclass(frozen=True, slots=True)
class Asker:
    """A program and somebody logged in, for each scope that is asked for."""

    port: int
    keys: Mapping[Scope, Key]

    def get(self, connection: http.client.HTTPConnection, path: str, scope: Scope = None) -> bytes:
        key = self.keys[scope]
        headers = {"Cookie": f"{COOKIE}={key.session}"} if path.startswith("/ui/") else {}
        connection.request("GET", path, headers=headers or {"Authorization": f"Bearer {key.token}"})
        with connection.getresponse() as response:
            body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {body[:300]!r}")
        return body

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)


def admit(place: Archive, *scopes: Scope) -> dict[Scope, Key]:
    """A key for each scope, put into the database while no daemon has it."""
    return {scope: _admit(place, scope) for scope in scopes or (None,)}


def _admit(place: Archive, scope: Scope) -> Key:
    token, session = new_token(), new_link()
    now = time.time()
    sites = None if scope is None else [f"site{number}" for number in sorted(scope)]
    who, role = "-".join(("bench", *(sites or ()))), "admin" if scope is None else "manager"
    with closing(connect(place.path)) as connection:
        tx = Tx(connection)
        connection.execute("BEGIN")
        for table in ("tokens", "users"):
            connection.execute(f"DELETE FROM {table} WHERE name = ?", (who,))
        tokens.create(tx, who, token_hash(token), role, sites, now)
        user = users.create(tx, who, role, sites, now)
        users.open_session(tx, user.id, token_hash(session), "127.0.0.1", "benchmark", now)
        connection.execute("COMMIT")
    return Key(token, session)


class Arrivals:
    """Letters of a site that come in while the daemon runs, straight into its database; all of them go at the end.

    ``first`` come at once: so many that the figures of today have their full work with each further one.
    """

    def __init__(self, place: Archive, site: int, first: int = COUNTED) -> None:
        self._place = place
        self._site = site
        self._first = first
        self._last = place.rows
        self._connection = sqlite3.connect(place.path, timeout=30.0, isolation_level=None)

    def arrive(self, count: int = 1) -> None:
        """Write copies of the site's latest letter of the archive, received now."""
        self._connection.execute("BEGIN IMMEDIATE")
        for number in range(self._last + 1, self._last + count + 1):
            self._copy("messages", "id", {"id": number, "received_at": time.time()})
            self._copy("deliveries", "message_id", {"id": number, "message_id": number})
        self._connection.execute("COMMIT")
        self._last += count

    def _copy(self, table: str, key: str, changes: dict[str, float]) -> None:
        columns = [f'"{name}"' for _, name, *_ in self._connection.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(f":{name[1:-1]}" if name[1:-1] in changes else name for name in columns)
        latest = "SELECT max(message_id) FROM deliveries WHERE site_id = :site AND message_id <= :rows"
        self._connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} WHERE {key} = ({latest})",
            {"site": self._site, "rows": self._place.rows, **changes},
        )

    def _remove(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for table, key in (("deliveries", "message_id"), ("messages", "id")):
            self._connection.execute(f"DELETE FROM {table} WHERE {key} > ?", (self._place.rows,))
        self._connection.execute("COMMIT")

    def __enter__(self) -> Arrivals:
        self._remove()  # of a run that was broken off
        self.arrive(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        with closing(self._connection):
            self._remove()


def scope_of(wanted: dict[str, Any]) -> Scope:
    """Who asks for several sites at once: somebody who sees no other."""
    sites: frozenset[int] | None = wanted.get("sites")
    return sites if sites and len(sites) > 1 else None


def api_path(wanted: dict[str, Any]) -> str:
    """The path of the API's list for a filter, for who has its scope."""
    asked = _common(wanted)
    if "deal" in wanted:
        asked["deal"] = "true" if wanted["deal"] else "false"
    asked |= {name: moment(wanted[name]) for name in ("since", "until") if name in wanted}
    return f"/v1/messages?{urlencode(asked)}"


def page_path(wanted: dict[str, Any]) -> str:
    """The same of the page, whose periods are whole days."""
    asked = _common(wanted)
    if "deal" in wanted:
        asked["deal"] = "yes" if wanted["deal"] else "no"
    if "since" in wanted or "until" in wanted:
        asked["period"] = "custom"
    for name in ("since", "until"):
        if name in wanted:
            asked[name] = datetime.fromtimestamp(wanted[name], UTC).date().isoformat()
    return f"/ui/history?{urlencode(asked)}"


def _common(wanted: dict[str, Any]) -> dict[str, str]:
    asked: dict[str, str] = {}
    for name, value in wanted.items():
        if name == "sites":
            if scope_of(wanted) is None:
                asked["site"] = f"site{next(iter(value))}"
        elif name == "cursor":
            asked["cursor"] = cursor_of(value)
        elif name == "oldest":
            asked["sort"] = "oldest"
        elif name in ("visit", "sender", "state", "source", "query"):
            asked["q" if name == "query" else name] = value
    return asked


def export(report: Report, place: Archive, relay: Relay, asker: Asker) -> None:
    """Export some days as CSV; how fast, and what it costs in memory."""
    begin = datetime.fromtimestamp(place.end - EXPORTED_DAYS * 86_400.0, UTC).date().isoformat()
    before = pss(relay.pid)
    with closing(asker.connection()) as connection, Watch(relay.pid, step=0.2) as watch:
        started = time.monotonic()
        table = asker.get(connection, f"/ui/history/export.csv?period=custom&since={begin}")
        seconds = time.monotonic() - started
    lines = table.count(b"\r\n") - 1
    with closing(sqlite3.connect(f"{place.path.as_uri()}?mode=ro", uri=True)) as database:
        since = datetime.fromisoformat(begin).replace(tzinfo=UTC).timestamp()
        (letters,) = database.execute("SELECT count(*) FROM messages WHERE received_at >= ?", (since,)).fetchone()
    report.figures["history"]["export"] = {"lines": lines, "seconds": seconds, "octets": len(table)}
    report.line(f"  export: {lines} lines, {len(table) / 1e6:.0f} MB, {lines / seconds:.0f} lines/s")
    report.judge("history: an export has every letter", lines == letters, f"{lines} of {letters}")
    grown = watch.peak - before
    kept = grown <= EXPORT_GROWTH
    report.judge("history: an export takes no memory of its size", kept, f"{grown / 1e6:+.1f} MB at the peak")


def first_paint(report: Report, asker: Asker) -> None:
    """What Chromium says of the page: octets transferred and milliseconds until it paints, cold and warm."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        report.line("  first paint: not measured, there is no Chromium")
        return
    from playwright.sync_api import sync_playwright

    url = f"http://127.0.0.1:{asker.port}/ui/history"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--headless=new"])
        context = browser.new_context()
        context.add_cookies([{"name": COOKIE, "value": asker.keys[None].session, "domain": "127.0.0.1", "path": "/ui"}])
        page = context.new_page()
        found = []
        for _ in range(4):
            page.goto(url, wait_until="load")
            page.wait_for_function("() => performance.getEntriesByType('paint').length > 1")
            found.append(json.loads(page.evaluate(_PAINT)))
        browser.close()
    cold, warm = found[0], found[-1]
    report.figures["history"]["browser"] = {"cold": cold, "warm": warm}
    report.line(f"  Chromium, cold: {cold['octets'] / 1000:.0f} kB, first paint after {cold['paint']:.0f} ms")
    report.line(f"  Chromium, warm: {warm['octets'] / 1000:.0f} kB, first paint after {warm['paint']:.0f} ms")
    report.judge("history: at most 100 kB on the first visit", cold["octets"] <= 100_000, f"{cold['octets']} octets")
    report.judge("history: first paint within 0.5 s", cold["paint"] <= 500, f"{cold['paint']:.0f} ms")


_PAINT = """() => {
  const parts = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const paint = performance.getEntriesByType("paint").find((one) => one.name === "first-contentful-paint");
  const octets = parts.reduce((sum, one) => sum + one.transferSize, 0);
  return JSON.stringify({paint: paint.startTime, octets});
}"""
