"""A database with the mail of many sites, made quickly: ten million letters take some ten minutes.

Rows go straight into the tables, in the order of receipt, with the indexes made behind them; what a letter has besides
(bodies, paths, attempts, posts) is left out, since no list reads it. All of it is drawn from one seed:

    sites      20: the first has a third of all letters, the last a few hundred in a million
    senders    one address for five letters on average: most write once, a few ten thousand times
    visits     two letters of three come from one, two letters from each; a third of the visits have no source
    sources    60, from a fifth of the visits on, and RARE_SOURCE, which 20 letters have
    words      20,000, as rare or as common as in a language, and a number in each letter that no other has
    states     98 % forwarded, 1 % dropped, 0.5 % failed, 0.4 % quarantined, 0.1 % looped; 5 % have a deal
"""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.core.address import parse
from relay.core.model import Method
from relay.store.connection import connect
from relay.store.engine import Tx
from relay.store.migrate import migrate
from relay.store.sites import SiteDefinition, TargetDefinition, declare_all

DAY = 86_400.0
#: Seconds that the letters are spread over: nothing in the archive is older than what retention keeps.
PERIOD = 170 * DAY
SITES = 20
TRACK = "track.test"
#: Letters written in one go.
CHUNK = 20_000
RARE_SOURCE = "podcast_summer"
#: In a tenth of the letters each; the first two are never in one letter.
COMMON = ("harbour", "lantern", "invoice")
#: In five letters of all.
RARE = "zirconium"
#: In every letter.
EVERYWHERE = "regards"
STATES = (("forwarded", 980), ("dropped", 10), ("failed", 5), ("quarantined", 4), ("looped", 1))

_MESSAGE = (
    "id received_at written_at mail_from sender subject message_id size stored_size digest ip helo tls bounce state "
    "extraction raw_removed_at"
)
_DELIVERY = (
    "id message_id site_id target_id recipient forward_to destination state attempts next_at expires_at code answer "
    "host attribution attribution_method visit_id finished_at"
)
_VISIT = "id site_id number own started_at last_seen_at landing_page domain marker channel"
_EVENT = "uid message_id site_id delivery_id type state created_at deal_id deal_url"
_TEXT = "message_id subject addresses head indexed"
_SEARCH = "rowid subject addresses head"


@dataclass(frozen=True, slots=True)
class Archive:
    """A database of ``rows`` letters, the last received at ``end``."""

    path: Path
    rows: int
    end: float


def make(path: Path, rows: int, end: float, seed: int = 1, progress: Callable[[str], None] = print) -> Archive:
    """Make it at ``path``; raises sqlite3.Error, OSError. What was interrupted is no archive: make it anew."""
    migrate(path)
    with closing(connect(path)) as connection:
        connection.execute("BEGIN")
        declare_all(Tx(connection), [_site(number) for number in range(1, SITES + 1)], end - PERIOD)
        connection.execute("UPDATE sites SET declared = 0")  # a daemon removes what its relay.toml does not name
        connection.execute("COMMIT")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-400000"):
            connection.execute(f"PRAGMA {pragma}")
        indexes = _without_indexes(connection)
        letters = _Letters(rows, end, seed)
        for first in range(0, rows + 1, CHUNK):
            letters.write(connection, max(first, 1), min(first + CHUNK, rows + 1))
            if first // CHUNK % 50 == 49:
                progress(f"{first + CHUNK} of {rows} letters")
        for name, sql in indexes:
            progress(f"index {name}")
            connection.execute(sql)
        connection.execute("PRAGMA journal_mode=WAL")
    return Archive(path, rows, end)


def _site(number: int) -> SiteDefinition:
    return SiteDefinition(
        name=f"site{number}",
        key=f"pk_site{number}",
        origins=(f"https://www.site{number}.test",),
        tracking=True,
        send_to_crm=True,
        bots="none",
        visit_timeout=14 * DAY,
        targets=(TargetDefinition(parse(f"sales@site{number}.test"), Method.PLUS, f"s{number}.{TRACK}", (), 900.0),),
    )


def _without_indexes(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Drop the indexes of the large tables; their names and how to make them again."""
    large = ("messages", "deliveries", "visits", "events", "texts")
    rows: list[tuple[str, str]] = connection.execute(
        f"SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN {large}"
    ).fetchall()
    for name, _ in rows:
        connection.execute(f"DROP INDEX {name}")
    return rows


class _Letters:
    """Letters by number, from 1 on. They are written in order, since two share a visit and its site."""

    def __init__(self, rows: int, end: float, seed: int) -> None:
        self._rows = rows
        self._begin, self._step = end - PERIOD, PERIOD / rows
        self._random = random.Random(seed)
        words = [_word(number) for number in range(20_000)]
        weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))
        self._texts = [self._text(words, weights, number) for number in range(5000)]
        self._subjects = [" ".join(self._random.choices(words, cum_weights=weights, k=4)) for _ in range(5000)]
        self._markers = [None, *(f"{kind}_{number}" for number in range(20) for kind in ("google", "ads", "mail"))]
        self._marker_weights = [30.0, *(60 / (rank + 1) for rank in range(60))]
        self._site_weights = [1 / (rank + 1) ** 1.5 for rank in range(SITES - 1)] + [0.0005]
        rare = range(rows // 10, rows // 2, max(1, rows // 50))
        self._rare_visits = {letter // 2 for letter in rare[:10]}
        self._rare_words = set(range(rows // 7, rows, max(1, rows // 5)))

    def _text(self, words: list[str], weights: list[float], number: int) -> str:
        said = self._random.choices(words, cum_weights=weights, k=self._random.randint(15, 60))
        common = COMMON[number % 10] if number % 10 < len(COMMON) else ""
        return " ".join((*said[:8], common, *said[8:], EVERYWHERE))

    def write(self, connection: sqlite3.Connection, first: int, end: int) -> None:
        columns = [list(column) for column in zip(*self._rows_of(first, end), strict=True)]
        connection.execute("BEGIN")
        tables = ("messages", "deliveries", "visits", "events", "texts", "message_search")
        for table, names, rows in zip(
            tables, (_MESSAGE, _DELIVERY, _VISIT, _EVENT, _TEXT, _SEARCH), columns, strict=True
        ):
            into = ", ".join(names.split())
            marks = ", ".join("?" * len(names.split()))
            found = [row for row in rows if row is not None]
            connection.executemany(f"INSERT INTO {table} ({into}) VALUES ({marks})", found)
        connection.execute("COMMIT")

    def _rows_of(self, first: int, end: int) -> Iterator[tuple[Any, ...]]:
        base = first - first % 2  # letters 2n and 2n + 1 share a visit, and so its site
        count = end - base + 1
        chance = self._random
        sites = chance.choices(range(1, SITES + 1), self._site_weights, k=count)
        markers = chance.choices(self._markers, self._marker_weights, k=count)
        states = chance.choices([name for name, _ in STATES], [weight for _, weight in STATES], k=count)
        for number in range(first, end):
            pair = number - number % 2 - base
            yield self._rows_of_one(number, sites[pair], markers[pair], states[number - base])

    def _rows_of_one(self, number: int, site: int, marker: str | None, state: str) -> tuple[Any, ...]:
        chance = self._random
        at = self._begin + number * self._step
        sender = sender_of(int(self._rows / 5 * chance.random() ** 4))
        visit = number // 2 + 1 if number // 2 % 3 else None
        if number // 2 in self._rare_visits:
            visit, marker = number // 2 + 1, RARE_SOURCE
        recipient = f"sales+{visit_number(visit)}@s{site}.{TRACK}" if visit else f"sales@s{site}.{TRACK}"
        subject = f"{chance.choice(self._subjects)} {number}"
        text = f"{chance.choice(self._texts)} n{number:x}{' ' + RARE if number in self._rare_words else ''}"
        deal = f"D-{number}" if chance.random() < 0.05 else None
        url = deal and f"https://crm.test/{number}"
        addresses = f"{sender} {recipient}"
        row_digest = number.to_bytes(8, "big") * 4
        message = (
            *(number, at, at, sender, sender, subject, f"{number}@mail.test", 4000, 4100, row_digest, "192.0.2.1"),
            *("mail.test", "TLSv1.3", 0, state, "done", at),
        )
        delivery = (
            *(
                number,
                number,
                site,
                site,
                recipient,
                f"sales@site{site}.test",
                f"site{site}.test",
                state,
                1,
                at,
                at,
                250,
            ),
            *(
                "250 2.0.0 Ok: queued",
                "mail.site.test[192.0.2.2]:25",
                "exact" if visit else "none",
                "plus/1",
                visit,
                at,
            ),
        )
        seen = (
            *(visit, site, visit_number(visit), 1, at - 600, at, f"www.site{site}.test/prices", f"www.site{site}.test"),
            *(marker, "direct" if marker is None else "campaign"),
        )  # fmt: skip
        event = (f"evt_{number}", number, site, number, "message.received", "posted", at, deal, url)
        shown = seen if visit and number % 2 == 0 else None
        return (
            message,
            delivery,
            shown,
            event,
            (number, subject, addresses, text, 1),
            (number, subject, addresses, text),
        )


def sender_of(number: int) -> str:
    """The address of a sender; the lower the number, the more it writes."""
    return f"{_word(number % 20_000)}{number // 20_000 or ''}@company{number % 997}.test"


def visit_number(visit: int | None) -> str:
    return str(10**14 + (visit or 0))


def _word(number: int) -> str:
    """A word that looks like one, another for each number."""
    syllables = ("ba", "ke", "li", "mo", "nu", "pra", "sto", "tri", "va", "zen")
    return "".join(syllables[int(digit)] for digit in str(number + 10))
