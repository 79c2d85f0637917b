"""Every page as it looks on an ordinary day: in the light, in the dark and on a phone, judged by axe.

The pages are served over a filled store, without a daemon; how they come to what they show is the journeys' matter, of
which each has a test of its own here. What no link leads to, the answer to a form, is looked at as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import Browser, Page, expect

from relay.core.channel import SourceRule
from relay.core.check import WARN, Finding
from relay.core.model import OutcomeKind
from relay.store import blocked, tokens
from relay.store.post import PostJob, PostResult
from relay.store.posts import finish_post
from tests.browser.ui_browser import looked_at, visiting
from tests.store_fixtures import DAY, SHOP, TRACK, World, part, pool_target, site
from tests.test_ui_checks import FAILED, Checker
from tests.test_ui_login import invitation
from tests.ui_fixtures import Pages, pages
from webapi.ui.pages import PAGES

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

#: Defined in relay.toml, as the shop is not here: its pages say so and have no forms.
BRANCH = site("branch", pool_target("hello@example.org", "post1@provider.example", domain=""))
#: No pages: a stream, downloads, what htmx puts into a page, and the letter of a stranger in its frame, which lets no
#: script judge it (the journey of a message has its picture).
NONE = re.compile(r"/(events|raw|csv|export\.csv|seen|log|progress|letter)$")
RULES = (SourceRule("partner_spring", referrer="partner.example"), SourceRule("fair", page="/fair/*"))
DELIVERED, PERMANENT, TEMPORARY = OutcomeKind.DELIVERED, OutcomeKind.PERMANENT, OutcomeKind.TEMPORARY
#: Query of the page that was seen, subject of the letter, and what became of it.
LETTERS = (
    (
        "utm_source=google&utm_medium=cpc&utm_campaign=spring",
        "Sash windows for a school of 1911",
        OutcomeKind.DELIVERED,
    ),
    ("utm_source=newsletter&utm_campaign=november", "Two oak doors", PERMANENT),
    ("rs=fb_new", "When do you open on Saturdays?", TEMPORARY),
    ("utm_source=google&utm_medium=organic", "Re: Your offer of 12 November", DELIVERED),
    (
        "",
        "A bookcase, 3.20 m wide and of cherry wood, with doors of old glass in the lower half",
        OutcomeKind.DELIVERED,
    ),
)


def letter(subject: str) -> bytes:
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = "Ann Visitor <ann@visitor.example>", "sales", subject
    message.set_content("Dear team,\n\nwhat would it cost?\n\nAnn\n\n> You wrote:\n> How can we help?\n")
    message.add_alternative("<p>Dear <b>team</b>,</p><p>what would it cost?</p><p>Ann</p>", subtype="html")
    return message.as_bytes()


async def fill(p: Pages) -> None:
    """Letters of several sources over some days: forwarded, held and waiting; posted, failed and not yet."""
    w = p.world
    given = (json.dumps([asdict(rule) for rule in RULES]), w.site().id)
    await w.store.redefine(
        lambda tx: [
            tx.sql("UPDATE sites SET settings = json_set(settings, '$.rules', json(?)) WHERE id = ?", given),
            tx.sql("UPDATE sites SET declared = 0 WHERE id = ?", given[1:]),
            tx.sql("UPDATE webhooks SET declared = 0"),
        ]
    )
    for number, (query, subject, kind) in enumerate(LETTERS):
        shown = await w.bind(page=f"https://www.shop.example/offers/{number % 2}?{query}")
        address = next(iter(shown.substitutes.values()), f"card@{TRACK}")
        w.pass_time(240)
        accepted = await w.accept(
            address, subject=subject, body=letter(subject), message_id=f"{number}@visitor.example"
        )
        for job in accepted.jobs:
            await w.finish(job, kind)
        posts = await w.extract(accepted.message_id, "poster", subject=subject, attachments=[part()] * (number % 2))
        await posted(w, posts, number)
        w.pass_time(DAY / 3)
    await w.store.write(lambda tx: tokens.create(tx, "reports", "0" * 64, "viewer", ["shop"], w.now))
    for sender in ("@spam.example", "robot@bulk.example"):
        await w.store.write(lambda tx, sender=sender: blocked.block(tx, w.site().id, sender, w.now))
    await p.user("manager", "shop")
    await p.user("viewer")
    for path, form in (
        ("/ui/sites/shop/switch", {"tracking": "on"}),
        ("/ui/messages/1/deal", {"id": "D-17", "url": "https://crm.example/deals/17"}),
        ("/ui/addresses/retire", {"address": f"info2@{TRACK}", "site": "shop", "target": "sales@example.com"}),
    ):
        assert (await p.post(path, form)).status == 303, path


async def posted(w: World, posts: list[PostJob], number: int) -> None:
    state, status, answer = [("delivered", 200, '{"id": "D-1"}'), ("failed", 503, "down"), ("waiting", 503, "busy")][
        number % 3
    ]
    for post in posts:
        result = PostResult(post, state, w.now + 600, status, answer, w.now, 0.21)
        await w.store.write(lambda tx, result=result: finish_post(tx, result, w.now))


def paths(p: Pages) -> dict[str, str]:
    """Every page by the name of its picture."""
    shop = p.world.site()
    values = {"id": "1", "address": quote(str(shop.targets[0].address)), "name": shop.name}
    found = {}
    for page in PAGES:
        if page.method == "GET" and not NONE.search(page.path):
            name = page.path.removeprefix("/ui/").replace("/{name}", "-one").replace("/{id}", "-one")
            given = values | ({"name": "manager-shop"} if "/users/" in page.path else {})
            path = re.sub(r"\{(\w+)\}", lambda found: given[found[1]], page.path)  # noqa: B023
            found[name.replace("/{address}", "-one").replace("/", "-")] = path
    return found | {
        "sites-declared": "/ui/sites/branch",
        "message-source": "/ui/messages/1?show=source",
        "message-held": "/ui/messages/2",
        "webhook-post": "/ui/webhooks/1?post=1",
        "sources-campaigns": "/ui/sources?by=campaign&source=google",
        "rules-change": "/ui/sites/shop/sources?rule=1",
        "history-nothing": "/ui/history?q=nobody",
    }


async def judged(page: Page, name: str, wrong: list[str]) -> None:
    try:
        await looked_at(page, f"page-{name}")
    except AssertionError as error:
        wrong.append(f"{name}: {error}")


async def test_every_page(browser: Browser, tmp_path: Path) -> None:
    checker = Checker()
    checker.found |= {"next_hops": [FAILED], "dns": [Finding(WARN, "track.example.com", "no MX", "publish one")]}
    async with pages(tmp_path, SHOP, BRANCH, run_checks=checker) as p, visiting(browser, p) as page:
        await fill(p)
        wrong: list[str] = []
        await page.goto(f"{p.api.url}/ui/checks")
        await expect(page.get_by_role("status")).to_contain_text("failed")
        for name, path in paths(p).items():
            answer = await page.goto(p.api.url + path)
            assert answer is not None
            assert (answer.status, page.url) == (200, p.api.url + path)
            await judged(page, name, wrong)
        for name, step in ANSWERS.items():
            await step(page, p.api.url)
            await judged(page, name, wrong)
        assert wrong == []


async def made_token(page: Page, url: str) -> None:
    await page.goto(f"{url}/ui/settings/tokens")
    await page.get_by_label("Name").fill("spreadsheet")
    await page.get_by_role("button", name="Make it").click()
    await expect(page.locator("#token")).to_be_visible()


async def invited(page: Page, url: str) -> None:
    await page.goto(f"{url}/ui/settings/users")
    await page.get_by_label("Name").fill("vera")
    await page.get_by_role("button", name="Invite").click()
    await expect(page.locator("#link")).to_be_visible()


async def asked_to_erase(page: Page, url: str) -> None:
    await page.goto(f"{url}/ui/settings/senders")
    await page.get_by_label("Address").fill("ann@example.org")
    await page.get_by_role("button", name="See what there is").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Erase a sender")


async def new_secret(page: Page, url: str) -> None:
    await page.goto(f"{url}/ui/webhooks/1/rotate")
    await page.get_by_role("button", name="Make it").click()
    await expect(page.locator("#secret")).to_be_visible()


async def asked_to_drop(page: Page, url: str) -> None:
    await page.goto(f"{url}/ui/queue")
    await page.get_by_role("button", name="Drop…").first.click()
    await expect(page.get_by_role("heading", name="Drop this delivery?")).to_be_visible()


ANSWERS: dict[str, Callable[[Page, str], Awaitable[None]]] = {
    "settings-token": made_token,
    "settings-link": invited,
    "settings-erase": asked_to_erase,
    "webhook-secret": new_secret,
    "queue-drop": asked_to_drop,
}


async def test_what_strangers_see(browser: Browser, tmp_path: Path) -> None:
    async with pages(tmp_path, SHOP) as p, visiting(browser, p, known=False) as page:
        wrong: list[str] = []
        link = await invitation(p, (await p.user("viewer")).name)
        for name, path in {"login": "/ui/login", "welcome": link}.items():
            await page.goto(p.api.url + path)
            await judged(page, name, wrong)
        assert wrong == []


async def test_an_instance_in_which_nothing_has_come_yet(browser: Browser, tmp_path: Path) -> None:
    async with pages(tmp_path, SHOP) as p, visiting(browser, p) as page:
        wrong: list[str] = []
        for name in ("history", "sources", "queue"):
            await page.goto(f"{p.api.url}/ui/{name}")
            await judged(page, f"{name}-empty", wrong)
        assert wrong == []
