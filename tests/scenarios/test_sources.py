"""Where visits come from, through the real daemon: the reference's own example, threads, known senders, hand-overs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.geoip_files import FLAT, write
from tests.scenarios.world import DOMAIN, World, letter, site, target, unique_letter, world

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

TEST = "https://test.com"
SHOP, BLOG = "https://shop.test", "https://blog.test"

#: The reference's example, key for key (its manual, "POST-request body contains"), but for the numbers that are ours.
REFERENCE = {
    "visit_id": "123456",
    "subject": "Re: Test",
    "text": "Test message",
    "email_from": "email_1@mail.com",
    "email_to": "email+123456@mail.com",
    "attachments": [],
    "referrer": "fb.com",
    "marker": "fb_new",
    "city": "New York",
    "country": "USA",
    "ip": "161.185.160.93",
    "first_visit": "1001",
    "domain": "test.com",
    "landing_page": "test.com/new",
    "utm_source": None,
    "utm_medium": None,
    "utm_campaign": None,
    "utm_term": None,
    "utm_content": None,
    "roistat_param_1": None,
    "roistat_param_2": None,
    "roistat_param_3": None,
    "roistat_param_4": None,
    "roistat_param_5": None,
    "google_client_id": None,
    "source_level_1": "fb",
    "source_level_2": "new",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("sources")
    database = write(directory / "places.mmdb", FLAT)
    settings = {"geoip": {"files": [str(database)]}, "http": {"trusted_proxies": ["127.0.0.0/8"]}}
    mail = target("email@inbox.test", "plus", domain="mail.com")
    shop = target("shop@inbox.test", "unique")
    sites = [
        site(mail, origins=[TEST], source=[{"marker": "fb_new", "referrer": "fb.com"}]),
        site(shop, name="shop", key="pk_shop", origins=[SHOP, BLOG]),
    ]
    async with world(directory, settings, sites=sites) as made:
        yield made


async def test_the_references_example_comes_out_key_for_key(relay: World) -> None:
    bound = await relay.bind(
        "email@inbox.test",
        origin=TEST,
        page=f"{TEST}/new",
        referrer="https://fb.com/",
        visit="123456",
        first_visit="1001",
        forwarded_for="161.185.160.93",
    )
    assert bound["addresses"] == {"email@inbox.test": "email+123456@mail.com"}
    content = letter("Re: Test", "Test message\r\n", sender="email_1@mail.com")
    message = await relay.mail("email+123456@mail.com", content)
    sent = (await relay.posted(message)).json
    assert (sent.pop("id"), sent.pop("email_id")) == (str(message), str(message))
    assert sent | {"text": sent["text"].rstrip()} == REFERENCE


async def test_an_answer_without_a_substitute_belongs_to_the_thread_and_a_new_letter_to_its_known_sender(
    relay: World,
) -> None:
    bound = await relay.bind("shop@inbox.test", site="pk_shop", origin=SHOP, page=f"{SHOP}/?utm_source=paper")
    first = unique_letter("Message-ID: <first@customer.test>", sender="kim@customer.test")
    await relay.mail(bound["addresses"]["shop@inbox.test"], first)
    base = f"shop@{DOMAIN}"  # the target's own address at our domain, which no page shows
    answer = unique_letter(
        "References: <first@customer.test> <our-answer@inbox.test>", sender="colleague@customer.test"
    )
    again = unique_letter(sender="kim@customer.test")
    for content, method in ((answer, "thread/1"), (again, "sender/1")):
        message = await relay.mail(base, content)
        item = await relay.call("GET", f"/v1/messages/{message}")
        assert (item["visit"], item["attribution"]["state"]) == (bound["visit"], "inferred")
        assert item["attribution"]["method"] == method
    stranger = await relay.mail(base, unique_letter(sender="stranger@customer.test"))
    assert (await relay.call("GET", f"/v1/messages/{stranger}"))["attribution"]["state"] == "none"


async def test_a_visit_goes_on_at_another_domain_of_the_site_by_a_link_and_is_not_shared_by_a_copied_one(
    relay: World,
) -> None:
    first = await relay.bind(site="pk_shop", origin=SHOP, page=f"{SHOP}/?utm_source=paper")
    link = f"{BLOG}/?roistat_visit={first['visit']}"
    crossed = await relay.bind(site="pk_shop", origin=BLOG, page=link, referrer=f"{SHOP}/")
    assert crossed["visit"] == first["visit"]
    copied = await relay.bind(site="pk_shop", origin=BLOG, page=link, referrer="https://forum.example.org/")
    assert copied["visit"] != first["visit"]


async def test_an_erased_visit_is_nowhere_and_its_mail_still_arrives(relay: World) -> None:
    bound = await relay.bind("shop@inbox.test", site="pk_shop", origin=SHOP, page=f"{SHOP}/?rs=secret_source")
    shown = bound["addresses"]["shop@inbox.test"]
    message = await relay.mail(shown, unique_letter(sender="forgotten@customer.test"))
    await relay.forwarded(message)
    await relay.cli("visit", "erase", "shop", bound["visit"])
    await relay.call("GET", f"/v1/visits/{bound['visit']}", expect=404)
    assert (await relay.call("GET", f"/v1/messages/{message}"))["visit"] is None
    assert await relay.rows("SELECT id FROM visits WHERE marker = 'secret_source' OR number = ?", bound["visit"]) == []
    content = unique_letter(sender="forgotten@customer.test")
    await relay.mail(shown, content)
    await relay.arrived(content)
