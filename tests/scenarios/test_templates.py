"""Letters posted in the shapes of other systems: presets and a template of the operator's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.scenarios.world import SECRET, World, letter, world
from tests.webhook_receiver import Answer, Post, Receiver, Step

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

CODE = "abcdefgh12345678"
OWN = """
url = "{{ url }}/{{ visit_id|urlencode }}"
method = "PUT"
content_type = "application/x-www-form-urlencoded"
deal_id = ""
deal_url = ""
variables = ["key"]
headers = { X-Key = "{{ variables.key }}" }
body = "subject={{ subject|urlencode }}&site={{ site|urlencode }}"
"""


def answered(post: Post) -> Step:
    return Answer(200, b'{"result": {"item": {"id": 4711}}}') if post.path.startswith("/rest/") else 204


def hooks(crm: Receiver) -> list[dict[str, Any]]:
    google = {"measurement_id": "G-TEST", "api_secret": "hush hush"}
    bitrix = {"code": CODE}
    return [
        {"url": crm.at("/rest/1/"), "secret": SECRET, "template": "bitrix24", "variables": bitrix},
        {"url": crm.at("/mp/collect"), "secret": SECRET, "template": "ga4", "variables": google},
        {"url": crm.at("/own"), "secret": SECRET, "template": "own.toml", "variables": {"key": "k-123456"}},
    ]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("templates")
    (directory / "own.toml").write_text(OWN)
    async with world(directory, crm=answered, hook=hooks) as made:
        yield made


async def posts_of(relay: World, message: int, count: int) -> dict[str, Post]:
    """What was posted of a message, by the first step of the path, once ``count`` of its posts are through."""
    uid = await relay.event(message)
    await relay.until(
        lambda: relay.rows(
            "SELECT p.id FROM posts p JOIN events e ON e.id = p.event_id WHERE e.uid = ? AND p.state != 'waiting'", uid
        ),
        lambda rows: len(rows) == count,
    )
    return {post.path.split("/")[1]: post for post in relay.crm.posts if post.headers["webhook-id"] == uid}


async def test_a_letter_reaches_every_system_in_its_own_shape(relay: World) -> None:
    bound = await relay.bind(
        "sales@example.test",
        page="https://www.example.test/?utm_source=fb&utm_medium=cpc",
        google_client_id="1234567890.1600000000",
    )
    subject = 'Is "it" {{ 7*7 }} & still to be had?'
    message = await relay.mail(bound["addresses"]["sales@example.test"], letter(subject))
    posts = await posts_of(relay, message, 3)
    assert set(posts) == {"rest", "mp", "own"}
    for name in ("rest", "mp"):  # the library wants JSON
        posts[name].verify(SECRET)
    lead = posts["rest"].json["fields"]
    assert posts["rest"].path == f"/rest/1/{CODE}/crm.item.add"
    assert (lead["title"], lead["originId"]) == (subject, str(message))
    assert (lead["utmSource"], lead["utmMedium"]) == ("fb", "cpc")
    assert lead["fm"] == [{"typeId": "EMAIL", "valueType": "WORK", "value": "ann@customer.test"}]
    assert "is it still to be had?" in lead["comments"]
    event = posts["mp"].json
    assert event["client_id"] == "1234567890.1600000000"
    assert [each["name"] for each in event["events"]] == ["generate_lead"]
    assert b"ann@customer.test" not in posts["mp"].body
    own = posts["own"]
    assert (own.method, own.path, own.headers["x-key"]) == ("PUT", f"/own/{bound['visit']}", "k-123456")
    assert own.body == b"subject=Is%20%22it%22%20%7B%7B%207%2A7%20%7D%7D%20%26%20still%20to%20be%20had%3F&site=example"
    item = await relay.call("GET", f"/v1/messages/{message}")
    origin = relay.crm.at("")
    assert item["deal"] == {"id": "4711", "url": f"{origin}/crm/lead/details/4711/"}
    assert CODE not in str(item)


async def test_an_event_that_a_template_has_no_use_for_is_not_posted_and_history_says_why(relay: World) -> None:
    message = await relay.mail(await relay.shown(), letter("from a visitor whom Google does not know"))
    assert set(await posts_of(relay, message, 3)) == {"rest", "own"}
    item = await relay.call("GET", f"/v1/messages/{message}")
    said = [(post["state"], post["status"], post["answer"]) for post in item["posts"] if "/mp/" in post["url"]]
    assert said == [("withheld", None, "no google_client_id")]
    assert item["deal"]["id"] == "4711"
