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
from dataclasses import replace
from pathlib import Path

from relay.core.channel import Channel, SourceRule
from relay.core.hook import HookSettings
from relay.core.model import Method, OutcomeKind
from relay.core.site import SiteSettings, Touch
from relay.store import blocked, changes, clock, retention, search, tokens, users
from relay.store import posts as post_verbs
from relay.store.changes import Change
from relay.store.migrate import HEAD
from relay.store.post import PostResult
from relay.store.store import DATABASE
from relay.store.visits import Visitor
from tests.store_fixtures import DAY, OTHER, SHOP, TRACK, World, hook, part, target_of, world

DIRECTORY = Path(__file__).parent


#: The two sites of the tests with what they may be told besides.
SITES = (
    replace(
        SHOP,
        settings=SiteSettings(
            touch=Touch.LAST_NON_DIRECT,
            cookie_domain="shop.example",
            metrica=17,
            rules=(SourceRule("partner_acme", Channel.REFERRAL, referrer="acme.example"),),
        ),
        targets=(*SHOP.targets, target_of(Method.PLUS, "press@example.com", additional=True)),
        webhooks=(
            hook(
                settings=HookSettings(extras=True, template="ga4", conditions={"first_letter": DAY}),
                access="sealed headers",
                previous_secret="sealed too",
            ),
        ),
    ),
    OTHER,
)
VISITOR = Visitor("192.0.2.8", "New York", "USA", "Mozilla/5.0", "mobile", "Firefox", "Android")


async def fill(w: World) -> None:
    """A little of everything: visits of each method, mail in each state, posts delivered, waiting and withheld."""
    await w.store.write(lambda tx: tokens.create(tx, "ci", "0" * 64, "viewer", ["shop"], w.now))
    await people(w)
    await w.store.write(lambda tx: clock.note(tx, w.now))
    await w.store.write(lambda tx: blocked.block(tx, w.site().id, "@spam.example", w.now))
    bound = await w.bind(page="https://www.shop.example/?roistat=ads_1", google_client_id="GA1.2")
    for _ in range(2):
        await w.bind("shop", "sales@example.com")  # the second finds the pool exhausted, which is counted
    _, theirs = await w.shown(name="other")
    delivered = await w.accept(*bound.substitutes.values(), theirs, message_id="1@example.org", references=("0@x",))
    for job in delivered.jobs:
        await w.finish(job)
    for post in await w.extract(delivered.message_id, "poster", attachments=[part()]):
        result = PostResult(post, "delivered", w.now, 200, "", w.now, 0.1, deal=("17", "https://crm.example/17"))
        await w.store.write(lambda tx: post_verbs.finish_post(tx, result, w.now))  # noqa: B023
    await w.accept(*bound.substitutes.values(), theirs)  # sent again
    held = await w.accept(f"card@{TRACK}", body=b"held", data=None, file="0123456789abcdef")
    await w.finish(held.jobs[0], OutcomeKind.PERMANENT)
    await w.extract(held.message_id)
    await w.accept(f"help@{TRACK}", body=b"not read yet", claim=None)
    await returned(w)
    await w.store.write(search.index)


async def people(w: World) -> None:
    """An administrator who is logged in, somebody invited who sees one site, and a change that was noted."""
    ann = await w.store.write(lambda tx: users.create(tx, "ann", "admin", None, w.now, "$argon2id$"))
    await w.store.write(lambda tx: users.open_session(tx, ann.id, "1" * 64, "192.0.2.8", "Mozilla/5.0", w.now))
    await w.store.write(lambda tx: users.create(tx, "bob", "viewer", ["shop"], w.now))
    await w.store.write(lambda tx: users.invite(tx, "bob", "2" * 64, w.now))
    noted = Change(w.now, "user", "ann", "PATCH /v1/sites/{name}", w.site().id, "shop", {"tracking": True})
    await w.store.write(lambda tx: changes.note(tx, noted))


async def returned(w: World) -> None:
    """Three visits of one browser, a letter that is inferred, and a visit that was erased but held an address."""
    marks = "&".join(f"utm_{name}={name}" for name in ("source", "medium", "campaign", "term", "content"))
    page = f"https://www.shop.example/?rs=mail_1&{marks}&roistat_param_1=one"
    bound = await w.bind(asked=(), page=page, referrer="https://news.example/", visitor=VISITOR, ym_uid="17")
    first = bound.visit
    w.pass_time(15 * DAY)
    second, plus = await w.shown("help@example.com", number=first)
    third, _ = await w.shown(number=second, page="https://www.shop.example/?rs=mail_2")
    for address, answered in ((plus, None), (f"help@{TRACK}", "2@example.net")):
        await w.accept(
            address,
            body=address.encode(),
            claim=None,
            in_reply_to=answered,
            sender="bob@example.net",
            mail_from="bob@example.net",
            message_id="2@example.net",
        )
    shop = w.site().id
    await w.store.write(lambda tx: retention.erase_visit(tx, shop, third, w.now, browser=False))


async def make(path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with world(Path(directory), *SITES) as w:
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
