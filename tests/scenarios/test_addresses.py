"""Every kind of substitute, and whose visit a mail to it is said to come from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.daemon import merged, toml
from tests.scenarios.world import DOMAIN, ORIGIN, SECRET, World, letter, site, target, unique_letter, world
from tests.smtp_sink import SinkSession

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

OTHER_ORIGIN = "https://www.other.test"
SITE = site(
    target("sales@example.test", "unique"),
    target("plus@example.test", "plus"),
    target("brief@example.test", "pool", pool=[f"brief@{DOMAIN}"], lease="1s"),
    target("narrow@example.test", "pool", pool=[f"narrow@{DOMAIN}"]),
    target("wide@example.test", "pool", pool=[f"wide@{DOMAIN}"], domain=DOMAIN),
    target("moved@example.test", "unique", forward_to="new.desk@example.test"),
    static=[{"address": f"card@{DOMAIN}", "target": "sales@example.test", "label": "business card"}],
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    other = site(
        target("info@other.test", "unique", domain="mail.other.test"),
        target("sales@example.test", "unique", domain="mail.other.test"),
        name="other",
        key="pk_other",
        origins=[OTHER_ORIGIN],
    )
    async with world(tmp_path_factory.mktemp("addresses"), sites=[SITE, other]) as made:
        yield made


async def told(relay: World, message: int) -> dict[str, Any]:
    """What the management API tells about a message."""
    found: dict[str, Any] = await relay.call("GET", f"/v1/messages/{message}")
    return found


async def attribution(relay: World, message: int) -> tuple[str, str | None]:
    found = await told(relay, message)
    return found["attribution"]["state"], found["visit"]


async def test_a_unique_address_is_the_visits_own_and_stays_so(relay: World) -> None:
    bound = await relay.bind("sales@example.test")
    again = await relay.bind("sales@example.test", visit=bound["visit"])
    assert again["addresses"] == bound["addresses"]
    another = await relay.bind("sales@example.test")
    assert another["addresses"] != bound["addresses"]
    message = await relay.mail(bound["addresses"]["sales@example.test"], unique_letter())
    assert await attribution(relay, message) == ("exact", bound["visit"])


async def test_a_unique_address_that_was_misheard_on_the_telephone_still_finds_its_visit(relay: World) -> None:
    bound = await relay.bind("sales@example.test")
    local, _, domain = bound["addresses"]["sales@example.test"].partition("@")
    heard = local.replace("-", "").replace("0", "O").replace("1", "l").upper()
    message = await relay.mail(f"{heard}@{domain}", unique_letter())
    assert await attribution(relay, message) == ("exact", bound["visit"])


async def test_a_plus_address_with_an_issued_number_is_exact(relay: World) -> None:
    bound = await relay.bind("plus@example.test")
    substitute = bound["addresses"]["plus@example.test"]
    assert substitute == f"plus+{bound['visit']}@{DOMAIN}"
    content = unique_letter()
    message = await relay.mail(substitute, content)
    assert await attribution(relay, message) == ("exact", bound["visit"])
    (received,) = await relay.arrived(content)
    assert received.recipients == ["plus@example.test"]


async def test_a_plus_number_that_nobody_issued_is_only_claimed(relay: World) -> None:
    message = await relay.mail(f"plus+98765432@{DOMAIN}", unique_letter())
    assert await attribution(relay, message) == ("claimed", "98765432")
    post = (await relay.posted(message)).json
    assert post["visit_id"] == "98765432"
    assert post["landing_page"] is None


async def test_a_number_from_another_counter_is_the_sites_visit(relay: World) -> None:
    bound = await relay.bind("plus@example.test", visit="5551234", first_visit="5550000")
    assert bound["visit"] == "5551234"
    message = await relay.mail(f"plus+5551234@{DOMAIN}", unique_letter())
    assert await attribution(relay, message) == ("exact", "5551234")
    assert (await relay.posted(message)).json["first_visit"] == "5550000"


async def test_a_static_substitute_carries_its_label_and_becomes_a_deal_without_a_visit(relay: World) -> None:
    content = unique_letter()
    message = await relay.mail(f"Card@{DOMAIN}", content)
    (received,) = await relay.arrived(content)
    assert b"X-Visit-Source: business%20card\r\n" in received.content
    assert b"X-Visit-Id" not in received.content
    assert await attribution(relay, message) == ("exact", None)
    assert (await relay.posted(message)).json["visit_id"] is None


async def test_mail_to_a_target_that_forwards_elsewhere_goes_there(relay: World) -> None:
    content = unique_letter()
    await relay.mail(await relay.shown("moved@example.test"), content)
    (received,) = await relay.arrived(content)
    assert received.recipients == ["new.desk@example.test"]


async def test_a_pool_address_is_leased_again_only_when_its_lease_is_over(relay: World) -> None:
    first = await relay.bind("narrow@example.test")
    assert first["addresses"] == {"narrow@example.test": f"narrow@{DOMAIN}"}
    assert first["lease"] == 900
    second = await relay.bind("narrow@example.test")
    assert second["addresses"] == {}  # exhausted, and there is no domain to mint at: the real address stays
    renewed = await relay.bind("narrow@example.test", visit=first["visit"])
    assert renewed["addresses"] == first["addresses"]
    (count,) = await relay.row("SELECT sum(count) FROM counters WHERE name = 'pool_exhausted'")
    assert count >= 1


async def test_an_exhausted_pool_with_a_domain_mints_a_unique_address(relay: World) -> None:
    first, second = await relay.bind("wide@example.test"), await relay.bind("wide@example.test")
    assert first["addresses"] == {"wide@example.test": f"wide@{DOMAIN}"}
    minted = second["addresses"]["wide@example.test"]
    assert minted != f"wide@{DOMAIN}"
    message = await relay.mail(minted, unique_letter())
    assert await attribution(relay, message) == ("exact", second["visit"])


async def test_mail_to_a_pool_address_is_attributed_by_the_time_it_was_written(relay: World) -> None:
    first = await relay.bind("brief@example.test")
    began = time.time()
    address = first["addresses"]["brief@example.test"]
    alone = await relay.mail(address, unique_letter())
    assert await attribution(relay, alone) == ("exact", first["visit"])
    second = await relay.until(lambda: relay.bind("brief@example.test"), lambda found: bool(found["addresses"]))
    assert second["addresses"] == first["addresses"]

    early = letter("written before", "x\r\n", f"Date: {formatdate(int(began) + 1)}")
    others = "bob@customer.test"  # whose first letter here was nobody's yet, as Ann's was the first visit's
    late = letter("written now", "x\r\n", sender=others)
    forged = letter("from the future", "x\r\n", f"Date: {formatdate(time.time() + 86400 * 365)}", sender=others)
    for content, holder in [(early, first), (late, second), (forged, second)]:
        found = await told(relay, await relay.mail(address, content))
        assert found["attribution"]["state"] == "likely"
        assert found["visit"] is None  # a guess is never stated as the fact
        candidates = found["attribution"]["candidates"]
        assert candidates[0]["visit"] == holder["visit"]
        assert sum(candidate["probability"] for candidate in candidates) == pytest.approx(1, abs=0.001)
        assert {candidate["visit"] for candidate in candidates} >= {first["visit"], second["visit"]}


async def test_the_same_mail_sent_again_is_forwarded_and_posted_once(relay: World) -> None:
    content = unique_letter()
    substitute = await relay.shown("sales@example.test")
    first = await relay.mail(substitute, content)
    assert await relay.mail(substitute, content) == first
    assert await relay.mail(substitute, content) == first
    await relay.posted(first)
    await relay.forwarded(first)
    after = unique_letter()
    await relay.mail(substitute, after)
    await relay.arrived(after)
    assert len(await relay.arrived(content)) == 1
    kinds = await relay.rows("SELECT kind FROM paths WHERE message_id = ? ORDER BY id", first)
    assert kinds == [("first",), ("repeat",), ("repeat",)]
    uid = await relay.event(first)
    assert [post.headers["webhook-id"] for post in relay.crm.posts].count(uid) == 1


async def test_the_same_mail_to_another_substitute_is_another_delivery(relay: World) -> None:
    content = unique_letter()
    one, two = await relay.shown("sales@example.test"), await relay.shown("plus@example.test")
    assert await relay.mail(one, content) != await relay.mail(two, content)
    arrived = await relay.arrived(content, 2)
    assert sorted(message.recipients[0] for message in arrived) == ["plus@example.test", "sales@example.test"]


async def test_each_site_has_an_event_of_its_own_and_sees_only_its_own_recipients(relay: World) -> None:
    ours = await relay.shown("sales@example.test")
    bound = await relay.bind("info@other.test", site="pk_other", origin=OTHER_ORIGIN)
    theirs = bound["addresses"]["info@other.test"]
    content = unique_letter()
    message = await relay.mail(ours, content, theirs)
    arrived = await relay.arrived(content, 2)
    assert {received.recipients[0] for received in arrived} == {"sales@example.test", "info@other.test"}
    assert not any(theirs.encode() in received.content for received in arrived if ours.encode() in received.content)
    events = await relay.rows(
        "SELECT sites.name, deliveries.recipient FROM events JOIN sites ON sites.id = events.site_id "
        "JOIN deliveries ON deliveries.id = events.delivery_id WHERE events.message_id = ? ORDER BY 1",
        message,
    )
    assert events == [("example", ours), ("other", theirs)]
    assert (await relay.call("GET", f"/v1/messages/{message}"))["receivers"] == [ours, theirs]
    token = await relay.token("other-only", sites=["other"], role="viewer")
    headers = {"Authorization": f"Bearer {token}"}
    async with relay.http.get(f"{relay.daemon.url}/v1/messages/{message}", headers=headers) as response:
        assert (await response.json())["receivers"] == [theirs]


async def test_one_real_address_behind_two_sites_gets_the_mail_once(relay: World) -> None:
    ours = await relay.shown("sales@example.test")
    bound = await relay.bind("sales@example.test", site="pk_other", origin=OTHER_ORIGIN)
    content = unique_letter()
    message = await relay.mail(ours, content, bound["addresses"]["sales@example.test"])
    await relay.forwarded(message)
    states = await relay.rows("SELECT state FROM deliveries WHERE message_id = ?", message)
    assert states == [("forwarded",)] * 2
    after = unique_letter()
    await relay.mail(ours, after)
    await relay.arrived(after)
    assert len(await relay.arrived(content)) == 1


async def test_what_the_real_address_forwards_back_to_a_substitute_goes_round_once(relay: World) -> None:
    substitute = await relay.shown("sales@example.test")
    returned: list[asyncio.Task[int]] = []

    def forwards_back(session: SinkSession, line: str) -> None:
        trace = b"Received: from mx.track.test by desk.example.test; Mon, 23 Nov 2026 12:00:00 +0000\r\n"
        content = trace + relay.sink.messages[-1].content
        returned.append(asyncio.create_task(relay.mail(substitute, content, sender="sales@example.test")))

    content = unique_letter()
    relay.sink.script["dot"] = forwards_back
    try:
        first = await relay.mail(substitute, content)
        await relay.arrived(content)
        await relay.forwarded(first)
        came_back = await returned[0]
        await relay.daemon.logged("message looped", id=came_back)
    finally:
        del relay.sink.script["dot"]
    assert len(returned) == 1
    assert (await told(relay, came_back))["state"] == "looped"
    assert await relay.rows("SELECT state, reason FROM events WHERE message_id = ?", came_back) == [
        ("withheld", "loop")
    ]
    await relay.posted(first)
    uids = [post.headers["webhook-id"] for post in relay.crm.posts]
    assert uids.count(await relay.event(first)) == 1
    assert await relay.event(came_back) not in uids


async def test_a_substitute_that_is_configured_no_longer_goes_on_forwarding_without_attribution(tmp_path: Path) -> None:
    async with world(tmp_path, sites=[SITE]) as relay:
        bound = await relay.bind("sales@example.test", "narrow@example.test")
        assert await asyncio.to_thread(relay.daemon.stop) == 0
        left = site(target("plus@example.test", "plus"), webhook=[{"url": relay.crm.url, "secret": SECRET}])
        relay.daemon.config.write_text(toml(merged(relay.settings, {"site": [left]})))
        await asyncio.to_thread(relay.daemon.start)
        for real, substitute in bound["addresses"].items():
            content = unique_letter()
            message = await relay.mail(substitute, content)
            (received,) = await relay.arrived(content)
            assert received.recipients == [real]
            assert await attribution(relay, message) == ("none", None)
        assert (await relay.bind("sales@example.test"))["addresses"] == {}


async def test_a_page_that_sends_a_substitute_from_its_cache_is_answered_like_the_real_address(relay: World) -> None:
    old = await relay.shown("sales@example.test")
    bound = await relay.bind(old, page=f"{ORIGIN}/cached")
    assert bound["addresses"][old] != old
    message = await relay.mail(bound["addresses"][old], unique_letter())
    assert await attribution(relay, message) == ("exact", bound["visit"])
