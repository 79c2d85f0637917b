"""From the page to the mailbox, the history and the CRM."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests import swaks
from tests.scenarios.world import PUBLIC_URL, SECRET, World, letter, world
from tests.webhook_receiver import deal

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

PICTURE = bytes(range(256)) * 40


def enquiry() -> bytes:
    encoded = base64.encodebytes(PICTURE).decode().replace("\n", "\r\n")
    text = (
        "--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nHow much is it, naïvely?\r\n.hidden dot\r\n"
        '--b\r\nContent-Type: image/png; name="plan.png"\r\nContent-Disposition: attachment; filename="plan.png"\r\n'
        f"Content-Transfer-Encoding: base64\r\n\r\n{encoded}--b--\r\n"
    )
    fields = ["MIME-Version: 1.0", 'Content-Type: multipart/mixed; boundary="b"', "Message-ID: <enquiry@customer.test>"]
    return letter("How much is it?", text, *fields)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("whole")) as made:
        yield made


async def test_a_letter_to_the_shown_address_reaches_mailbox_history_and_crm_with_its_visit(
    relay: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    swaks.require()
    page = "https://www.example.test/offers?utm_source=paper&utm_campaign=spring"
    bound = await relay.bind(
        "sales@example.test",
        page=page,
        referrer="https://news.example.org/today",
        params={"1": "green"},
        google_client_id="GA1.2.3",
    )
    substitute, visit = bound["addresses"]["sales@example.test"], bound["visit"]
    content = enquiry()
    data = swaks.message_file(tmp_path_factory.mktemp("mail"), content)
    session = await swaks.swaks(relay.daemon.smtp_port, "--to", substitute, "--data", data)
    assert session.code == 0, session.transcript

    (received,) = await relay.arrived(content)
    assert received.recipients == ["sales@example.test"]
    prepended = received.content.removesuffix(content).decode()
    assert [line.partition(":")[0] for line in prepended.split("\r\n") if line[:1].strip()] == [
        "Received",
        "X-Visit-Relay",
        "X-Visit-Id",
        "X-Visit-Source",
    ]
    assert f"X-Visit-Id: {visit}\r\n" in prepended
    assert "X-Visit-Source: paper_spring\r\n" in prepended
    assert received.mail_from.endswith("@track.test")
    assert received.mail_from.startswith("SRS0=")

    message = next(int(reply.rpartition(" ")[2]) for reply in session.replies if "Queued as" in reply)
    post = await relay.posted(message)
    post.verify(SECRET)
    assert post.json["visit_id"] == visit
    assert post.json["subject"] == "How much is it?"
    assert post.json["text"].startswith("How much is it, naïvely?")
    assert post.json["email_from"] == "ann@customer.test"
    assert post.json["email_to"] == substitute
    assert post.json["utm_source"] == "paper"
    assert post.json["utm_campaign"] == "spring"
    assert post.json["landing_page"] == "www.example.test/offers?utm_source=paper&utm_campaign=spring"
    assert post.json["referrer"] == "news.example.org/today"
    assert post.json["roistat_param_1"] == "green"
    assert post.json["google_client_id"] == "GA1.2.3"
    (attachment,) = post.json["attachments"]
    assert attachment["name"] == "plan.png"
    assert await relay.download(attachment["url"]) == PICTURE

    (item,) = (await relay.call("GET", "/v1/messages", visit=visit))["items"]
    assert item["subject"] == "How much is it?"
    assert item["visit"] == visit
    assert item["attribution"]["state"] == "exact"
    assert item["sender"] == "ann@customer.test"
    assert item["receivers"] == [substitute]
    assert [(part["name"], part["size"]) for part in item["attachments"]] == [("plan.png", len(PICTURE))]
    assert item["id"] == str(message)


async def test_history_has_the_bytes_as_they_were_sent(relay: World) -> None:
    before = len(relay.crm.posts)
    content = letter("raw", "one\r\n.two\r\n..three\r\n", "X-Odd:   kept  ")
    message = await relay.mail(await relay.shown(), content)
    assert await relay.octets("GET", f"/v1/messages/{message}/raw") == content
    await relay.crm.wait_for(before + 1)  # so that it is not taken for the next test's


async def test_a_tampered_attachment_link_opens_nothing(relay: World) -> None:
    message = await relay.mail(await relay.shown(), enquiry() + b"-- \r\nanother\r\n")
    link = (await relay.posted(message)).json["attachments"][0]["url"]
    token = link.removeprefix(f"{PUBLIC_URL}/a/").partition("/")[0]
    forged = token[:-2] + ("AA" if not token.endswith("AA") else "BB")
    await relay.download(link.replace(token, forged), expect=404)


async def test_the_deal_that_the_crm_answers_stands_in_history(relay: World) -> None:
    relay.crm.script = lambda post: (
        deal("4711", "https://crm.example.org/4711") if post.json["subject"] == "deal" else 200
    )
    message = await relay.mail(await relay.shown(), letter("deal"))
    item = await relay.until(
        lambda: relay.call("GET", f"/v1/messages/{message}"), lambda found: found["deal"]["id"] is not None
    )
    assert item["deal"] == {"id": "4711", "url": "https://crm.example.org/4711"}


async def test_a_page_of_another_origin_gets_no_address(relay: World) -> None:
    problem = await relay.bind("sales@example.test", expect=403, origin="https://elsewhere.example")
    assert "Origin" in str(problem)


async def test_a_letter_without_a_visit_is_forwarded_but_not_posted(relay: World) -> None:
    content = letter("straight to the base address", sender="stranger@customer.test")
    message = await relay.mail("sales@track.test", content)
    await relay.forwarded(message)
    state, reason = await relay.until(
        lambda: relay.row("SELECT state, reason FROM events WHERE message_id = ?", message),
        lambda row: row[0] != "waiting",
    )
    assert (state, reason) == ("withheld", "no visit")
    of_message = "SELECT posts.state FROM posts JOIN events ON events.id = event_id WHERE message_id = ?"
    assert await relay.rows(of_message, message) == [("withheld",)]
