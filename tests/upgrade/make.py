"""Makes the database of the current schema revision, with rows in every table, for tests/test_migrations.py.

    python -m tests.upgrade.make           # tests/upgrade/<revision>.db.gz; an existing file is kept
    python -m tests.upgrade.make --again   # while the revision is not released yet, and its schema has changed

A file of a released revision is never made again: it stands for the databases that people have.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import sqlite3
import sys
import tempfile
from pathlib import Path

from relay.core.model import OutcomeKind
from relay.store import events, search, tokens
from relay.store.events import PostResult
from relay.store.migrate import HEAD
from relay.store.store import DATABASE
from tests.store_fixtures import OTHER, SHOP, TRACK, World, part, world

DIRECTORY = Path(__file__).parent


async def fill(w: World) -> None:
    """A little of everything: visits of each method, mail in each state, posts delivered, waiting and withheld."""
    await w.store.write(lambda tx: tokens.create(tx, "ci", "0" * 64, "viewer", ["shop"], w.now))
    bound = await w.bind(page="https://www.shop.example/?roistat=ads_1", google_client_id="GA1.2")
    for _ in range(2):
        await w.bind("shop", "sales@example.com")  # the second finds the pool exhausted, which is counted
    _, theirs = await w.shown(name="other")
    delivered = await w.accept(*bound.substitutes.values(), theirs, message_id="1@example.org", references=("0@x",))
    for job in delivered.jobs:
        await w.finish(job)
    for post in await w.extract(delivered.message_id, "poster", attachments=[part()]):
        result = PostResult(post, "delivered", w.now, 200, "", w.now, 0.1, deal=("17", "https://crm.example/17"))
        await w.store.write(lambda tx: events.finish_post(tx, result, w.now))  # noqa: B023
    await w.accept(*bound.substitutes.values(), theirs)  # sent again
    held = await w.accept(f"card@{TRACK}", body=b"held", data=None, file="0123456789abcdef")
    await w.finish(held.jobs[0], OutcomeKind.PERMANENT)
    await w.extract(held.message_id)
    await w.accept(f"help@{TRACK}", body=b"not read yet", claim=None)
    await w.store.write(search.index)


async def make(path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with world(Path(directory), SHOP, OTHER) as w:
            await fill(w)
        plain = Path(directory) / "plain.db"
        with contextlib.closing(sqlite3.connect(Path(directory) / DATABASE)) as database:
            database.execute("VACUUM INTO ?", [str(plain)])
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))


def main() -> None:
    path = DIRECTORY / f"{HEAD}.db.gz"
    if path.exists() and "--again" not in sys.argv[1:]:
        sys.exit(f"{path} is there already")
    asyncio.run(make(path))
    print(path, path.stat().st_size, "octets")


if __name__ == "__main__":
    main()
