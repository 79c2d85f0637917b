"""The demo's page in Chromium: what a person sees who follows the README's first three lines."""

from __future__ import annotations

import asyncio
import re
import smtplib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, FilePayload, Locator, Page, expect

from relay.demo import Demo, demo_running
from relay.demo.letter import Letter, send
from relay.demo.settings import CARD

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CAMPAIGN = "?utm_source=google&utm_medium=cpc&utm_campaign=sash_windows"
#: Seconds from "send" to "in the CRM", reached only when a test fails: how soon it is, the benchmarks say.
PATIENCE = 10.0
SUBSTITUTE = re.compile(r"^info[1-5]@track\.example\.com$")


@pytest_asyncio.fixture(loop_scope="session")
async def demo(browser: Browser) -> AsyncIterator[Demo]:
    async with demo_running(page_port=29080, smtp_port=23525) as demo:
        yield demo


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def unwritten(browser: Browser) -> AsyncIterator[Demo]:
    """One for all tests that send no letter."""
    async with demo_running(page_port=29080, smtp_port=23525) as demo:
        yield demo


@asynccontextmanager
async def opened(browser: Browser, url: str, **context: Any) -> AsyncIterator[Page]:
    """A new visitor's page; whatever the browser complains about on its console fails the test."""
    complaints: list[str] = []
    async with await browser.new_context(**context) as visitor, await visitor.new_page() as page:
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(url)
        yield page
        assert complaints == []


def sales(page: Page) -> Locator:
    return page.locator("#contacts a").first


async def milliseconds(page: Page) -> int:
    """What the page says the letter took from "send" to "in the CRM"."""
    text = page.locator("#deals > details > summary").first
    await expect(text).to_contain_text("after Send")
    found = re.search(r"(\d+) ms after Send", await text.inner_text())
    assert found is not None
    return int(found[1])


async def test_a_letter_is_in_mailbox_history_and_crm_with_its_visit_and_the_page_says_how_soon(
    demo: Demo, browser: Browser
) -> None:
    async with opened(browser, demo.url + CAMPAIGN) as page:
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        address = await sales(page).inner_text()
        plus = await page.locator("#contacts a").nth(2).inner_text()
        visit = plus.removeprefix("hello+").partition("@")[0]
        await expect(page.locator("#to")).to_have_value(address)

        await page.get_by_role("button", name="Send the mail").click()

        row = page.locator("#history-rows tr")
        await expect(row).to_contain_text("forwarded")
        for said in ("ann@visitor.example", address, visit, "1001", "Windows for an old school", "exact"):
            await expect(row).to_contain_text(said)
        await expect(page.locator("#mails")).to_contain_text("we are restoring a school from 1911")
        await expect(page.locator("#mails")).to_contain_text("Delivered tosales@example.com")
        await expect(page.locator("#deals mark", has_text="visit_id")).to_have_text(f'"visit_id": "{visit}"')
        await expect(page.locator("#deals mark", has_text='"marker"')).to_contain_text("google_cpc_sash_windows")
        assert 0 < await milliseconds(page) < PATIENCE * 1000


async def test_the_addresses_are_replaced_in_links_and_in_the_text_and_nowhere_in_what_the_company_sees(
    demo: Demo, browser: Browser
) -> None:
    await asyncio.to_thread(send, Letter("ann@visitor.example", CARD, "About sales@example.com", "x"), demo.ports.smtp)
    async with opened(browser, demo.url) as page:
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        address = await sales(page).inner_text()
        await expect(sales(page)).to_have_attribute("href", f"mailto:{address}")
        await expect(page.locator(".imprint")).to_contain_text(address)
        await expect(page.locator("#site")).not_to_contain_text("@example.com")
        await expect(page.locator("#history-rows tr")).to_contain_text("About sales@example.com")
        await expect(page.locator("#mails summary strong")).to_have_text("About sales@example.com")


async def test_the_raw_header_fields_are_one_click_away_with_ours_marked(demo: Demo, browser: Browser) -> None:
    async with opened(browser, demo.url + "?rs=fb_new") as page:
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        await page.get_by_role("button", name="Send the mail").click()
        fields = page.locator("#mails .raw")
        await expect(fields).to_be_hidden()
        await page.get_by_text("Header fields").click()
        await expect(fields.locator("mark", has_text="X-Visit-Source")).to_have_text("X-Visit-Source: fb_new")
        await expect(fields).to_contain_text("From: Ann Visitor <ann@visitor.example>")


async def test_another_campaign_is_another_visit_and_the_source_changes(demo: Demo, browser: Browser) -> None:
    async with opened(browser, demo.url + CAMPAIGN) as page:
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        first = await sales(page).inner_text()
        await page.get_by_role("link", name="Facebook post").click()
        await expect(page.get_by_role("link", name="Facebook post")).to_have_attribute("aria-current", "page")
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        await expect(sales(page)).not_to_have_text(first)
        await page.get_by_role("button", name="Send the mail").click()
        await expect(page.locator("#deals mark", has_text='"marker"')).to_have_text('"marker": "fb_new"')
        await expect(page.locator("#deals mark", has_text="source_level_2")).to_contain_text("new")


async def test_a_new_browser_is_a_new_visitor(unwritten: Demo, browser: Browser) -> None:
    async with opened(browser, unwritten.url) as page:
        plus = page.locator("#contacts a").nth(2)
        await expect(plus).to_have_text(re.compile(r"^hello\+\d+@"))
        first = await plus.inner_text()
        await page.reload()
        await expect(plus).to_have_text(first)
        await page.get_by_role("link", name="a new browser").click()
        await expect(plus).to_have_text(re.compile(r"^hello\+\d+@"))
        await expect(plus).not_to_have_text(first)


async def test_a_visit_of_another_demo_is_not_carried_on(unwritten: Demo, browser: Browser) -> None:
    """Else it would be a visit of a foreign counter, and no campaign could ever begin a new one."""
    async with opened(browser, "about:blank") as page:
        await page.context.add_cookies([{"name": "mailtrack_visit", "value": "123456", "url": unwritten.url}])
        await page.goto(unwritten.url)
        plus = page.locator("#contacts a").nth(2)
        await expect(plus).to_have_text(re.compile(r"^hello\+\d{15}@"))


async def test_a_mail_from_a_terminal_appears_by_itself_and_the_command_for_it_is_there(
    demo: Demo, browser: Browser
) -> None:
    async with opened(browser, demo.url) as page:
        await expect(page.locator("#link")).to_have_text("live")
        await expect(page.locator("#deals")).to_be_hidden()
        await page.get_by_text("From a terminal instead").click()
        await expect(page.locator("#swaks")).to_contain_text(f"swaks --server 127.0.0.1:{demo.ports.smtp}")
        await asyncio.to_thread(send, Letter("bob@visitor.example", CARD, "From a shell", ""), demo.ports.smtp)
        await expect(page.locator("#history-rows tr")).to_contain_text("From a shell")
        await expect(page.locator("#mails > details > summary")).to_contain_text("From a shell")
        await expect(page.locator("#deals mark", has_text='"marker"')).to_have_text('"marker": "business card"')


async def test_history_says_why_a_letter_was_not_sent_to_the_crm(demo: Demo, browser: Browser) -> None:
    def out_of_office() -> None:
        with smtplib.SMTP("127.0.0.1", demo.ports.smtp, timeout=10) as client:
            client.sendmail("bob@visitor.example", [CARD], "Subject: Away\r\nAuto-Submitted: auto-replied\r\n\r\nx\r\n")

    await asyncio.to_thread(out_of_office)
    async with opened(browser, demo.url) as page:
        row = page.locator("#history-rows tr")
        await expect(row).to_contain_text("not sent: automatic mail (auto-submitted)")
        await expect(row).to_contain_text("forwarded")
        await expect(page.locator("#deals")).not_to_contain_text("Deal")


async def test_an_attachment_is_in_the_mail_and_its_link_in_the_crm_leads_to_it(demo: Demo, browser: Browser) -> None:
    async with opened(browser, demo.url) as page:
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        plan = FilePayload(name="plan of the school.pdf", mimeType="application/pdf", buffer=b"%PDF-1.4 plan")
        await page.set_input_files("#file", plan)
        await page.get_by_role("button", name="Send the mail").click()
        await expect(page.locator("#mails .files")).to_have_text("plan of the school.pdf, 13 B")
        link = await page.locator("#deals .json a").get_attribute("href")
        assert link is not None
        answer = await page.context.request.get(link)
        assert await answer.body() == b"%PDF-1.4 plan"


async def test_it_works_by_keyboard_and_says_what_is_wrong_beside_the_field(demo: Demo, browser: Browser) -> None:
    async with opened(browser, demo.url) as page:
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        await page.locator("#subject").press("Enter")
        await expect(page.locator("#outcome")).to_contain_text(re.compile(r"accepted.*mailbox.*CRM \d+ ms"))
        subject = page.locator("#history-rows button")
        await page.locator("#deals > details > summary").press("Enter")
        await expect(page.locator("#deals .json")).to_be_hidden()
        await subject.press("Enter")
        await expect(page.locator("#deals .json")).to_be_visible()


async def test_a_refused_letter_says_why_and_marks_the_field(unwritten: Demo, browser: Browser) -> None:
    async with await browser.new_context() as visitor, await visitor.new_page() as page:  # a 400 is a console error
        await page.goto(unwritten.url)
        await page.locator("#from").fill("nobody")
        await page.get_by_role("button", name="Send the mail").click()
        await expect(page.locator("#outcome")).to_have_text("From: not an address: no @")
        await expect(page.locator("#from")).to_have_attribute("aria-invalid", "true")
        await expect(page.locator("#from")).to_be_focused()


async def test_no_width_needs_scrolling_to_the_side_and_text_has_enough_contrast_in_light_and_dark(
    demo: Demo, browser: Browser
) -> None:
    """Contrast of every text against what is behind it, at least 4.5 (WCAG 2.2, 1.4.3)."""
    async with opened(browser, demo.url + CAMPAIGN, reduced_motion="reduce") as page:
        await expect(sales(page)).to_have_text(SUBSTITUTE)
        await page.get_by_role("button", name="Send the mail").click()
        await expect(page.locator("#history-rows tr")).to_contain_text("forwarded")
        await expect(page.locator("#deals .json")).to_be_visible()
        for width in (320, 390, 768, 1024, 1280, 1920):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("() => document.documentElement.scrollWidth") <= width
        await page.set_viewport_size({"width": 1280, "height": 720})
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert await page.evaluate(_LOW_CONTRAST) == [], scheme


_LOW_CONTRAST = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = channels(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const [text, ground] = [channels(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim()}`);
  }
  return low;
}"""
