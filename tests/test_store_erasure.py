"""What webhooks, deals and threads have added to the database goes with what it is about."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from relay.core.model import OutcomeKind
from relay.store import blocked, deals, events, retention, search
from relay.store.attribution import Evidence
from relay.store.retention import Cut
from relay.store.schema import blocked_senders, messages, metadata, texts
from relay.store.schema import events as event_table
from relay.store.store import DATABASE
from tests.post_fixtures import asking, claim, finish
from tests.store_fixtures import DAY, NOW, OTHER, SHOP, TRACK, World, everything, extracted, world
from webapi import replays

#: A word that stands wherever something of the letter is kept.
SECRET = "zanzibar"
ANN = f"{SECRET}@example.org"
THEIRS = "other1@track.other.example"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    """Both sites ask for everything."""
    shop, other = replace(SHOP, webhooks=(asking(extras=True),)), replace(OTHER, webhooks=(asking(url="https://o/"),))
    async with world(tmp_path, shop, other) as found:
        yield found


async def whole_life(w: World, *addresses: str, **changes: Any) -> int:
    """A letter that failed, was attributed anew, posted, answered with a deal, indexed: SECRET in every column."""
    unique = {
        "sender": ANN,
        "mail_from": ANN,
        "message_id": f"{SECRET}1@x",
        "in_reply_to": "0@x",
        "references": (f"{SECRET}0@x",),
    }
    accepted = await w.accept(*(addresses or (f"help+4242@{TRACK}",)), **unique | changes)
    result = replace(extracted(SECRET, SECRET), html=f"<p>{SECRET}</p>")
    await w.store.write(lambda tx: events.extracted(tx, accepted.message_id, result, w.now, None))
    for job in accepted.jobs:
        await w.finish(job, OutcomeKind.PERMANENT)
    await w.bind("shop", "help@example.com", number="4242")
    await replays.reattribute(w.store, accepted.message_id, Evidence(DAY), w.now, None)
    for post in await claim(w):
        digest = hashlib.sha256(SECRET.encode()).digest()
        await finish(w, post, answer=SECRET, deal=(f"{SECRET}17", f"https://crm/{SECRET}"), digest=digest, size=8)
    await w.store.write(search.index)
    return accepted.message_id


async def where(w: World, word: str) -> set[str]:
    """The columns in which a word stands."""
    found = set()
    for name, rows in (await everything(w)).items():
        columns = metadata.tables[name].c.keys()
        found |= {
            f"{name}.{column}" for row in rows for column, value in zip(columns, row, strict=True) if word in str(value)
        }
    return found


async def index_is_sound(w: World) -> None:
    await w.store.write(
        lambda tx: tx.sql("INSERT INTO message_search(message_search, rank) VALUES ('integrity-check', 1)")
    )


NEW = {"events.deal_id", "events.deal_url", "texts.html", "posts.answer", "post_attempts.answer"}


async def test_an_erased_letter_leaves_nothing(w: World) -> None:
    message_id = await whole_life(w)
    assert await where(w, SECRET) >= NEW
    assert {row[0] for row in await w.rows(select(event_table.c.type))} == {
        "message.received",
        "message.failed",
        "attribution.changed",
    }
    await w.store.write(lambda tx: retention.erase_message(tx, message_id))
    assert await where(w, SECRET) == set()
    for table in ("events", "posts", "post_attempts", "texts", "messages"):
        assert (await everything(w))[table] == [], table
    await index_is_sound(w)


async def test_an_erased_letter_is_written_over_in_the_file(w: World, tmp_path: Path) -> None:
    file = tmp_path / DATABASE
    message_id = await whole_life(w)
    await whole_life(w)  # its pages are shared, and not freed as a whole
    (others,) = await w.rows(select(func.min(messages.c.id)).where(messages.c.id > message_id))
    await w.store.write(lambda tx: retention.erase_message(tx, message_id))
    await w.store.write(lambda tx: retention.erase_message(tx, others[0]))
    await w.store.write(lambda tx: tx.sql("INSERT INTO message_search(message_search) VALUES ('optimize')"))
    await w.store.close()  # what is in the log goes into the file
    assert SECRET.encode() not in file.read_bytes()


async def test_it_leaves_nothing_by_age_either(w: World) -> None:
    await whole_life(w)
    await w.store.write(lambda tx: tx.sql("UPDATE messages SET state = 'dropped'"))
    await w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'dropped'"))
    cut = Cut(raw=0.0, messages=NOW + 1, visits=0.0, routes=0.0, visitor_ip=0.0)
    await w.store.write(lambda tx: retention.sweep(tx, cut, w.now))
    assert await where(w, SECRET) == set()
    await index_is_sound(w)


async def test_when_the_bytes_go_text_and_html_stay(w: World) -> None:
    await whole_life(w)
    await w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
    cut = Cut(raw=NOW + 1, messages=0.0, visits=0.0, routes=0.0, visitor_ip=0.0)
    await w.store.write(lambda tx: retention.sweep(tx, cut, w.now))
    assert (await everything(w))["bodies"] == []
    assert await w.rows(select(texts.c.head, texts.c.html)) == [(SECRET, f"<p>{SECRET}</p>")]


async def test_a_sites_share_goes_with_its_deal_and_events(w: World) -> None:
    message_id = await whole_life(w, f"help+4242@{TRACK}", THEIRS)
    shop, other = w.site().id, w.site("other").id
    await w.store.write(lambda tx: deals.set_deal(tx, message_id, "theirs", None, [other]))
    await w.store.write(lambda tx: retention.erase_message(tx, message_id, [shop]))
    left = await w.rows(select(event_table.c.site_id, event_table.c.deal_id, event_table.c.data))
    assert {site for site, _, _ in left} == {other}
    assert f"{SECRET}17" not in str(await w.rows(select(event_table.c.deal_id)))
    assert "help+4242" not in str(left)
    assert "theirs" in str(left)
    assert await w.rows(select(texts.c.addresses)) == [(f"{ANN} {ANN} {THEIRS}",)]
    for word, found in (("4242", []), ("other1", [(message_id,)]), (SECRET, [(message_id,)])):
        query = "SELECT rowid FROM message_search WHERE message_search MATCH ?"
        assert await w.store.write(lambda tx: tx.sql(query, (word,))) == found  # noqa: B023
    await index_is_sound(w)


async def test_an_erased_sender_leaves_nothing_and_is_blocked_no_more(w: World) -> None:
    """The list of blocked senders has addresses of people, too; a domain is nobody's."""
    await whole_life(w)
    shop, other = w.site().id, w.site("other").id
    for site, sender in ((shop, ANN), (other, ANN), (shop, "@example.org")):
        await w.store.write(lambda tx: blocked.block(tx, site, sender, w.now))  # noqa: B023
    assert "blocked_senders.address" in await where(w, SECRET)
    result = await w.store.write(lambda tx: retention.erase_sender(tx, ANN))
    assert (result.deleted, result.unblocked) == (1, True)
    assert await where(w, SECRET) == set()
    assert await w.rows(select(blocked_senders.c.address)) == [("@example.org",)]
    await index_is_sound(w)


async def test_an_erased_sender_is_blocked_no_more_whichever_way_its_domain_is_written(w: World) -> None:
    shop = w.site().id
    for site_ids in (None, [shop]):
        await w.store.write(lambda tx: blocked.block(tx, shop, "ann@xn--bcher-kva.example", w.now))
        await w.store.write(lambda tx: retention.erase_sender(tx, "ann@bücher.example", site_ids))  # noqa: B023
        assert await w.rows(select(blocked_senders)) == []


@pytest.mark.parametrize("at_site", [False, True])
async def test_a_sender_of_whom_something_is_left_stays_blocked_until_it_is_gone(w: World, at_site: bool) -> None:
    shop = w.site().id
    sites = [shop] if at_site else None
    accepted = await w.accept(f"card@{TRACK}", sender=ANN, claim="forwarder")
    await w.store.write(lambda tx: blocked.block(tx, shop, ANN, w.now))
    result = await w.store.write(lambda tx: retention.erase_sender(tx, ANN, sites))
    assert (result.deleted, result.left, result.unblocked) == (0, 1, False)
    assert len(await w.rows(select(blocked_senders))) == 1
    await w.finish(accepted.jobs[0])
    result = await w.store.write(lambda tx: retention.erase_sender(tx, ANN, sites))
    assert (result.deleted, result.left, result.unblocked) == (1, 0, True)
    assert await w.rows(select(blocked_senders)) == []


async def test_a_site_that_erases_a_sender_unblocks_it_at_that_site_alone(w: World) -> None:
    shop, other = w.site().id, w.site("other").id
    for site in (shop, other):
        await w.store.write(lambda tx: blocked.block(tx, site, ANN, w.now))  # noqa: B023
    await w.store.write(lambda tx: retention.erase_sender(tx, ANN, [shop]))
    assert await w.rows(select(blocked_senders.c.site_id)) == [(other,)]


@pytest.mark.parametrize("how", ["erased", "by age"])
async def test_of_a_visit_that_is_forgotten_no_event_says_the_number(w: World, how: str) -> None:
    """A letter whose visit was a mistake is attributed to another: the mistaken one stays named in that event."""
    first, leased = await w.shown()
    second, _ = await w.shown()
    accepted = await w.accept(leased)
    await w.extract(accepted.message_id)
    await w.store.write(
        lambda tx: tx.sql("UPDATE bindings SET visit_id = (SELECT id FROM visits WHERE number = ?)", [second])
    )
    await replays.reattribute(w.store, accepted.message_id, Evidence(DAY), w.now, None)
    shop = w.site().id
    if how == "erased":
        assert await w.store.write(lambda tx: retention.erase_visit(tx, shop, first, w.now, browser=True)) == 1
    else:
        await w.store.write(lambda tx: tx.sql("DELETE FROM visits WHERE number = ?", [first]))
    assert await where(w, first) == set()
    changed = [job.extras.data for job in await claim(w) if job.extras and job.extras.data]
    assert changed == [{"previous": {"state": "exact", "method": "pool/2", "visit_id": None}}]


async def test_the_log_of_attempts_keeps_a_hash_and_a_size_of_what_was_sent(w: World) -> None:
    await whole_life(w)
    rows = await w.store.write(lambda tx: tx.sql("SELECT DISTINCT length(digest), size FROM post_attempts"))
    assert list(rows) == [(32, 8)]


async def test_a_removed_sites_blocked_senders_go_with_its_row(w: World) -> None:
    shop = w.site().id
    await w.store.write(lambda tx: blocked.block(tx, shop, ANN, w.now))
    await w.store.write(lambda tx: tx.sql("DELETE FROM sites WHERE id = ?", [shop]))
    assert await w.rows(select(blocked_senders)) == []
