"""The message page in Chromium: one letter's whole life through the daemon, the letter in its frame, every action."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Request, expect

from relay.core.model import OutcomeKind
from tests.browser.test_files import Elsewhere, canary, elsewhere
from tests.browser.ui_browser import WIDE, daemon_url, looked_at, pictured, signed_in
from tests.corpora import corpus
from tests.scenarios.world import DOMAIN, World, world
from tests.smtp_sink import SmtpSink
from tests.store_fixtures import OTHER, SHOP, TRACK
from tests.ui_fixtures import pages
from tests.webhook_receiver import deal
from webapi.ui.session import COOKIE

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PAGE = "https://www.example.test/prices?utm_source=google&utm_medium=cpc&utm_campaign=spring"
SENDER = "ann@customer.test"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def letter(html: str, subject: str = "Offer for 40 chairs") -> bytes:
    """A letter of plain text and HTML, with a picture in the text and a file."""
    message = EmailMessage(policy=SMTP)
    message["From"], message["Subject"], message["Message-ID"] = f"Ann <{SENDER}>", subject, f"<{subject[:5]}@x.test>"
    message.set_content("Dear team,\n\nan offer for 40 chairs, please.\n\n> You wrote:\n> Hello\n")
    message.add_alternative(html, subtype="html")
    body = message.get_payload()[1]  # type: ignore[index]
    body.add_related(PIXEL, "image", "png", cid="<dot@x>", filename="dot.png")  # type: ignore[union-attr]
    message.add_attachment(b"%PDF-1.4 plan", maintype="application", subtype="pdf", filename="plan of the room.pdf")
    return message.as_bytes()


def hostile(sink: str) -> str:
    script = canary(sink)
    return (
        f"<html><head><style>@import '{sink}/ran?by=style';</style></head><body onload=\"{script}\">"
        f'<script>{script}</script><img src=x onerror="{script}"><svg onload="{script}"></svg>'
        f'<iframe src="{sink}/ran?by=frame"></iframe><link rel="prefetch" href="{sink}/ran?by=link">'
        f'<p style="background:url({sink}/ran?by=background)">Dear <b>team</b>, see '
        f'<a href="{sink}/ran?by=click">this</a></p><img src="{sink}/ran?by=open.gif" alt="Our shop">'
        f'<img src="cid:dot@x" alt="dot"><video src="{sink}/ran?by=video" autoplay></video>'
        f'<form action="{sink}/ran?by=form"><input name=q autofocus onfocus="{script}"><button>Go</button></form>'
        f'<meta http-equiv="refresh" content="0; url={sink}/ran?by=refresh"></body></html>'
    )


@asynccontextmanager
async def life(directory: Path) -> AsyncIterator[tuple[World, Elsewhere]]:
    sink = SmtpSink(script={"rcpt": ["450 4.2.1 <b>later</b>, please"]})
    settings = {"http": {"public_url": "http://127.0.0.1:1"}}  # as behind a proxy: the pages do not go by it
    crm = deal("4711", "https://crm.example.test/deals/4711")
    async with elsewhere() as site, world(directory, settings, sink=sink, crm=crm) as relay:
        yield relay, site


async def test_a_letter_is_shown_from_the_page_view_to_the_deal(browser: Browser, tmp_path: Path) -> None:
    async with life(tmp_path) as (relay, site):
        address = await relay.shown(page=PAGE, referrer="https://www.google.com/")
        content = letter(hostile(site.url))
        number = await relay.mail(address, content, sender=SENDER)
        await relay.forwarded(number, "deferred")
        await relay.posted(number)
        async with signed_in(browser, relay.daemon, "anna") as page:
            asked = requests_of(page)
            await page.goto(f"{daemon_url(relay.daemon)}/ui/messages/{number}")
            line = page.locator("ol.line > li")
            told = [text.partition("\n")[0] for text in await line.locator(".title").all_inner_texts()]
            assert told[:3] == [
                f"Page view visit {await visit(page)}",
                f"Address shown {address}",
                f"Letter received {SENDER}",
            ]
            assert sorted(told[3:5]) == [
                "Not taken for now sales@example.test",
                f"Posted to the CRM {crm_host(relay)}",
            ]
            assert told[5:] == ["Next attempt to forward sales@example.test"]
            await expect(page.locator(".answer").filter(has_text="450 4.2.1 <b>later</b>, please")).to_be_visible()
            await relay.retry_all()
            await relay.forwarded(number)
            await page.reload()
            await expect(line.last.locator(".title")).to_have_text("Forwarded sales@example.test")
            await expect(page.locator("#glance")).to_contain_text("google_cpc_spring")
            await expect(page.get_by_role("link", name="4711", exact=True)).to_have_attribute(
                "href", re.compile("deals/4711$")
            )
            await expect(page.locator(".quoted")).to_have_text("> You wrote:\n> Hello")
            await looked_at(page, "message")

            await in_the_frame(page, site)
            await the_source(page, content)
            await the_actions(page, relay, number, content)
            await no_vector_does_anything(page, relay)
            assert {url for url in asked if not url.startswith((daemon_url(relay.daemon), "data:"))} == set()
        assert site.ran == []
        await without_script(browser, relay, number)


async def visit(page: Page) -> str:
    return await page.locator(".visit .number a").inner_text()


def crm_host(relay: World) -> str:
    return relay.crm.url.split("/")[2]


def requests_of(page: Page) -> list[str]:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.context.on("request", note)
    return asked


async def in_the_frame(page: Page, site: Elsewhere) -> None:
    """The letter as written, by the keyboard: nothing runs, nothing is fetched, what came along is seen."""
    await page.locator("#tab-letter").focus()
    await page.keyboard.press("Enter")
    frame = page.frame_locator("iframe")
    await expect(frame.locator("b")).to_have_text("team")
    await expect(frame.locator(".note")).to_contain_text("1 picture from the internet is not loaded")
    dot = frame.get_by_alt_text("dot")
    await expect(dot).to_have_js_property("naturalWidth", 1)
    await expect(frame.get_by_alt_text("Our shop")).not_to_have_attribute("src", re.compile("."))
    await expect(frame.locator("script, style, iframe, form, input, meta[http-equiv], svg")).to_have_count(0)
    await expect(frame.get_by_role("link")).to_have_attribute("href", f"{site.url}/ran?by=click")
    assert not (await page.title()).startswith("ran")
    await expect(page.locator("#letter")).to_have_count(1)
    await pictured(page, "message-letter")


async def the_source(page: Page, content: bytes) -> None:
    await page.locator("#tab-source").click()
    await expect(page.locator("pre.source")).to_contain_text("Subject: Offer for 40 chairs")
    async with page.expect_download() as started:
        await page.get_by_role("button", name="Download the message").click()
    saved = await (await started.value).path()
    assert saved.read_bytes() == content
    async with page.expect_download() as started:
        await page.get_by_role("link", name="plan of the room.pdf").click()
    assert (await (await started.value).path()).read_bytes() == b"%PDF-1.4 plan"


async def the_actions(page: Page, relay: World, number: int, content: bytes) -> None:
    notice = page.get_by_role("status")
    await page.get_by_label("Look again first").check()
    await page.get_by_role("button", name="Post again").click()
    await expect(notice).to_have_text("It is posted to the CRM again.")
    first, second = (await relay.crm.wait_for(2))[:2]
    assert first.headers["webhook-id"] == second.headers["webhook-id"]

    await page.get_by_role("button", name="Send again").click()
    await expect(notice).to_have_text("It is on its way to the mailbox again.")
    await relay.arrived(content.rpartition(b"\r\n\r\n")[2], 2)
    await expect(page.locator("ol.line > li").last).to_contain_text("may have arrived more than once", timeout=15_000)

    await page.get_by_label("Number in the CRM").fill("4712")
    await page.get_by_label("Its address there").fill("https://crm.example.test/deals/4712")
    await page.get_by_role("button", name="Save the deal").click()
    await expect(page.get_by_role("link", name="4712")).to_have_attribute("href", re.compile("deals/4712$"))

    await page.get_by_label("Whom to block").select_option("@customer.test")
    await page.get_by_role("button", name="Block at example").click()
    await expect(page.locator(".blocks")).to_contain_text("@customer.test is blocked at example.")
    await page.get_by_role("button", name="Unblock").click()
    await expect(notice).to_have_text("The sender is blocked no more.")
    await expect(page.get_by_role("button", name="Block at example")).to_be_visible()


async def without_script(browser: Browser, relay: World, number: int) -> None:
    """Tabs, and erasing with its confirmation, in a browser that runs no script."""
    async with signed_in(browser, relay.daemon, "berta", java_script_enabled=False) as page:
        await page.goto(f"{daemon_url(relay.daemon)}/ui/messages/{number}")
        await page.locator("#tab-source").click()
        await expect(page.locator("pre.source")).to_be_visible()
        await page.locator("summary", has_text="Erase").click()
        await page.get_by_label("I am sure").check()
        await page.get_by_role("button", name="Erase this letter").click()
        await expect(page.get_by_role("status")).to_have_text("Erased, with everything about it.")
        assert await relay.rows("SELECT id FROM messages WHERE id = ?", number) == []


async def no_vector_does_anything(page: Page, relay: World) -> None:
    """Letters made of all of h5sc, as they are and torn: shown in the frame, they leave nothing that runs."""
    vectors = (corpus("xss-h5sc") / "vectors.txt").read_text("utf-8", "replace")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    for subject, html in (("whole", vectors), ("torn", vectors.replace("<div id=", "</p></b>\n<x id="))):
        number = await relay.mail(f"card@{DOMAIN}", letter(html, subject))
        await page.goto(f"{daemon_url(relay.daemon)}/ui/messages/{number}?show=letter")
        await expect(page.frame_locator("iframe").locator("#letter")).to_contain_text(">>> vectors()")
        foreign = await page.frames[1].evaluate(
            """() => [...document.querySelectorAll("#letter *")].filter((element) =>
              element.namespaceURI !== document.body.namespaceURI ||
              [...element.attributes].some(({ name }) => name.startsWith("on"))).map((one) => one.outerHTML)"""
        )
        assert foreign == []


async def test_candidates_look_like_what_they_are(browser: Browser, tmp_path: Path) -> None:
    async with pages(tmp_path, SHOP, OTHER) as p:
        await p.world.shown(page="https://www.shop.example/?utm_source=newsletter")
        await p.world.shown(page="https://www.shop.example/")
        p.world.pass_time(1000)
        _, address = await p.world.shown(page="https://www.shop.example/?utm_source=fb&utm_medium=cpc")
        accepted = await p.world.accept(address, f"help+4711@{TRACK}")
        await p.world.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
        async with await browser.new_context(viewport=WIDE) as context, await context.new_page() as page:
            await context.add_cookies([{"name": COOKIE, "value": p.cookie, "domain": "127.0.0.1", "path": "/ui"}])
            await page.goto(f"{p.api.url}/ui/messages/{accepted.message_id}")
            await expect(page.locator(".candidates meter")).to_have_count(2)
            await looked_at(page, "message-likely")
