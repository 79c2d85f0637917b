"""Queue: what waits and why, held apart, page by page; retry and drop by who may; hostile text stays text."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest
from sqlalchemy import select

from relay.core.model import Outcome, OutcomeKind
from relay.core.outcome import Stage
from relay.store import queue
from relay.store.messages import Job
from relay.store.schema import deliveries, messages
from tests.corpora import corpus
from tests.store_fixtures import OTHER, SHOP, TRACK
from tests.ui_fixtures import Pages, pages
from webapi.ui import queue as page
from webapi.ui import reasons

CARD, HELP, OPERATOR = f"card@{TRACK}", f"help@{TRACK}", "postmaster@mx.example"


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Pages]:
    async with pages(tmp_path, SHOP, OTHER) as found:
        yield found


async def letter(
    p: Pages, to: str = CARD, kind: OutcomeKind | None = OutcomeKind.TEMPORARY, text: str = "", **changes: str
) -> Job:
    """A letter with its last answer; None: nobody has tried it yet."""
    number = len(await p.world.rows(select(messages.c.id)))
    (job,) = (await p.world.accept(to, body=b"%d" % number, **{"subject": f"Letter {number}"} | changes)).jobs
    if kind is None:
        await p.world.store.write(lambda tx: queue.release(tx, [job]))
    else:
        code = {OutcomeKind.TEMPORARY: 450, OutcomeKind.PERMANENT: 550}[kind]
        outcome = Outcome(kind, code, text or f"RCPT: {code} {code // 100}.1.1 because", "mx.example.com[192.0.2.1]:25")
        await p.world.finish(job, kind, outcome=outcome)
    return job


async def state(p: Pages, job: Job) -> str:
    ((found,),) = await p.world.rows(select(deliveries.c.state).where(deliveries.c.id == job.delivery_id))
    return str(found)


class TestWhatWaits:
    async def test_nothing_waits(self, p: Pages) -> None:
        assert "All mail was forwarded" in (await p.get("/ui/queue")).text
        assert "fits this filter" in (await p.get("/ui/queue?show=held")).text

    async def test_where_none_was_tried_before_it_says_that_it_is_the_filter(self, p: Pages) -> None:
        await letter(p, kind=None)
        text = (await p.get("/ui/queue?show=deferred")).text
        assert "None of them fits this filter." in text
        assert "behind this page" not in text

    async def test_it_says_why_and_until_when_and_keeps_what_is_held_apart(self, p: Pages) -> None:
        await letter(p, text="RCPT: 450 4.7.1 Greylisted, come again")
        held = await letter(p, HELP, OutcomeKind.PERMANENT, sender="bob@example.org")
        await letter(p, kind=None)
        text = (await p.get("/ui/queue")).text
        waiting, of_held = text.index('id="waiting-title"'), text.index('id="held-title"')
        assert of_held < waiting
        assert of_held < text.index("bob@example.org") < waiting < text.index("RCPT: 450 4.7.1 Greylisted, come again")
        for words in (
            "the mailbox does not exist there",
            "<code>RCPT: 550 5.1.1 because</code>",
            "mx.example.com[192.0.2.1]:25",
            "(greylisting): this passes by itself",
            "not tried yet",
            "in 1 min",
            "in 5 d",
            f'href="/ui/messages/{held.message_id}"',
        ):
            assert words in text, words

    async def test_an_attempt_under_way_is_told(self, p: Pages) -> None:
        await p.world.accept(CARD)
        assert "Being forwarded just now." in (await p.get("/ui/queue")).text

    async def test_filters(self, p: Pages) -> None:
        await letter(p)
        await letter(p, OPERATOR, sender="bob@example.org")
        await letter(p, HELP, OutcomeKind.PERMANENT)
        for query, expected in (
            ("", {0, 1, 2}),
            ("show=held", {2}),
            ("show=waiting", {0, 1}),
            ("show=deferred&sender=bob%40example.org", {1}),
            ("site=shop", {0, 2}),
            ("site=other", set()),
            ("destination=example.net", {1}),
            ("show=nonsense&unknown=1", {0, 1, 2}),
        ):
            text = (await p.get(f"/ui/queue?{query}")).text
            assert {int(number) for number in re.findall(r">Letter (\d+)</a>", text)} == expected, query
        assert (await p.get("/ui/queue?site=nobody")).status == 404
        assert (await p.get("/ui/queue?show=held&cursor=x")).status == 400

    async def test_pages_of_what_is_held_and_of_what_waits(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(page, "PAGE", 2)
        monkeypatch.setattr(page, "FIRST", 1)
        for kind in (OutcomeKind.TEMPORARY, OutcomeKind.PERMANENT):
            for _ in range(3):
                await letter(p, kind=kind)
                p.world.pass_time(1)
        seen = []
        for first in ("/ui/queue?show=waiting", "/ui/queue?show=held"):
            url = first
            while url:
                text = (await p.get(url)).text
                seen += re.findall(r">Letter (\d+)</a>", text)
                found = re.search(r'href="([^"]+)">Next page', text)
                url = found[1].replace("&amp;", "&") if found else ""
        assert seen == ["0", "1", "2", "5", "4", "3"]  # soonest first; held last first
        text = (await p.get("/ui/queue")).text
        assert len(re.findall(r">Letter (\d+)</a>", text)) == 2
        assert 'href="/ui/queue?show=held&amp;cursor=' in text

    async def test_many_are_counted_by_destination(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(page, "MANY", 1)
        for to in (CARD, CARD, OPERATOR):
            await letter(p, to)
        text = (await p.get("/ui/queue")).text
        assert 'href="/ui/queue?show=waiting&amp;destination=example.com">example.com</a>' in text
        assert "By destination" not in (await p.get("/ui/queue?destination=example.com")).text

    async def test_posts_that_wait_for_webhooks_are_summarised(self, p: Pages) -> None:
        assert "crm.example" not in (await p.get("/ui/queue")).text
        accepted = await p.world.accept(CARD)
        await p.world.extract(accepted.message_id)
        hook = p.world.site().webhooks[0].id
        assert f'<a href="/ui/webhooks/{hook}">crm.example</a>' in (await p.get("/ui/queue")).text
        other = await p.user("viewer", "other")
        assert "crm.example<" not in (await other.get("/ui/queue")).text

    async def test_everybody_sees_their_own_sites_only(self, p: Pages) -> None:
        await letter(p)
        _, theirs = await p.world.shown(name="other")
        await letter(p, theirs)
        await letter(p, OPERATOR)
        for sites, expected in (((), ["0", "1", "2"]), (("shop",), ["0"]), (("other",), ["1"])):
            user = await p.user("viewer", *sites)
            text = (await user.get("/ui/queue")).text
            assert sorted(re.findall(r">Letter (\d+)</a>", text)) == expected
        assert (await user.get("/ui/queue?site=shop")).status == 404
        assert "All mail was forwarded" in (await (await p.user("viewer", "gone")).get("/ui/queue")).text


class TestByHand:
    async def test_one_some_or_all_are_tried_again(self, p: Pages) -> None:
        jobs = [await letter(p, kind=kind) for kind in (OutcomeKind.PERMANENT, OutcomeKind.TEMPORARY) * 2]
        held = jobs[::2]
        back = "/ui/queue?show=held"
        answer = await p.post("/ui/queue/retry", {"only": str(held[0].delivery_id), "back": back})
        assert (answer.status, answer.location) == (303, "/ui/queue?show=held&done=retried")
        assert [await state(p, job) for job in jobs] == ["queued", "deferred", "failed", "deferred"]
        assert p.api.woken == ["deliveries"]
        assert "Tried again now" in (await p.get(answer.location)).text
        ticked = [str(job.delivery_id) for job in jobs[:2]]
        assert (await p.post("/ui/queue/retry", {"delivery": [*ticked, "999"]})).location.endswith("done=retried_some")
        assert [await state(p, job) for job in jobs] == ["queued", "queued", "failed", "deferred"]
        for given, expected in (({"state": "failed"}, ["queued", "deferred"]), ({"state": "deferred"}, ["queued"] * 2)):
            answer = await p.post("/ui/queue/retry", {"all": "1", "site": "shop", **given})
            assert answer.location == "/ui/queue?done=retried"
            assert [await state(p, job) for job in jobs[2:]] == expected
        assert (await p.post("/ui/queue/retry", {"all": "1"})).location == "/ui/queue?done=retried_none"
        assert (await p.post("/ui/queue/retry")).location == "/ui/queue?done=none_selected"

    async def test_a_drop_is_asked_about_first(self, p: Pages) -> None:
        first, second = await letter(p), await letter(p, HELP, OutcomeKind.PERMANENT)
        named = {"delivery": [str(first.delivery_id), str(second.delivery_id)], "back": "/ui/queue?site=shop"}
        question = await p.post("/ui/queue/drop", named)
        assert (question.status, "Drop 2 deliveries?" in question.text) == (200, True)
        assert 'href="/ui/queue?site=shop">Keep them' in question.text
        assert (await state(p, first), await state(p, second)) == ("deferred", "failed")
        question = await p.post("/ui/queue/drop", {"only": str(first.delivery_id)} | named)
        assert "Drop this delivery?" in question.text
        assert "Letter 1" not in question.text
        answer = await p.post("/ui/queue/drop", {**named, "confirmed": "1"})
        assert answer.location == "/ui/queue?site=shop&done=dropped"
        assert (await state(p, first), await state(p, second)) == ("dropped", "dropped")
        assert (await p.post("/ui/queue/drop", named)).location == "/ui/queue?site=shop&done=gone"
        assert (await p.post("/ui/queue/drop", {"delivery": "x"})).location == "/ui/queue?done=gone"

    async def test_what_is_in_flight_is_not_dropped(self, p: Pages) -> None:
        (job,) = (await p.world.accept(CARD)).jobs
        answer = await p.post("/ui/queue/drop", {"delivery": str(job.delivery_id), "confirmed": "1"})
        assert answer.location == "/ui/queue?done=dropped_some"
        assert await state(p, job) == "queued"

    async def test_only_administrators_act_and_only_for_their_sites(self, p: Pages) -> None:
        job = await letter(p, kind=OutcomeKind.PERMANENT)
        named = {"delivery": str(job.delivery_id), "confirmed": "1"}
        for role in ("viewer", "manager"):
            user = await p.user(role)
            assert '<button class="small' not in (await user.get("/ui/queue")).text
            assert 'type="checkbox"' not in (await user.get("/ui/queue")).text
            for verb in ("retry", "drop"):
                assert (await user.post(f"/ui/queue/{verb}", named)).status == 403
        stranger = await p.user("admin", "other")
        assert (await stranger.post("/ui/queue/retry", named)).location == "/ui/queue?done=retried_some"
        assert (await stranger.post("/ui/queue/drop", named)).location == "/ui/queue?done=dropped_some"
        assert (await stranger.post("/ui/queue/drop", {"delivery": str(job.delivery_id)})).location.endswith("=gone")
        assert (await stranger.post("/ui/queue/retry", {"all": "1"})).location.endswith("=retried_none")
        assert await state(p, job) == "failed"
        own = await p.user("admin", "shop")
        assert (await own.post("/ui/queue/drop", named)).location == "/ui/queue?done=dropped"

    async def test_of_a_letter_to_two_sites_everybody_acts_for_their_own(self, p: Pages) -> None:
        mine, theirs = (await p.world.shown())[1], (await p.world.shown(name="other"))[1]
        (job,) = (await p.world.accept(mine, theirs)).jobs
        await p.world.finish(job, OutcomeKind.TEMPORARY)
        own, stranger = await p.user("admin", "shop"), await p.user("admin", "other")
        dropped = await own.post("/ui/queue/drop", {"only": str(job.delivery_id), "confirmed": "1"})
        assert dropped.location == "/ui/queue?done=dropped"
        states = select(deliveries.c.state).order_by(deliveries.c.id)
        assert await p.world.rows(states) == [("dropped",), ("deferred",)]
        assert "All mail was forwarded" in (await own.get("/ui/queue")).text
        assert theirs in (await stranger.get("/ui/queue")).text

    async def test_an_administrator_sends_again_for_their_sites_alone(self, p: Pages) -> None:
        mine, theirs = (await p.world.shown())[1], (await p.world.shown(name="other"))[1]
        (job,) = (await p.world.accept(mine, theirs)).jobs
        await p.world.finish(job, OutcomeKind.PERMANENT)
        theirs_alone = await p.user("admin", "shop")
        form = {"delivery": str(job.delivery_id), "attempts": "1"}
        assert (await theirs_alone.post(f"/ui/messages/{job.message_id}/resend", form)).location.endswith("done=resent")
        states = select(deliveries.c.state).order_by(deliveries.c.id)
        assert await p.world.rows(states) == [("queued",), ("failed",)]

    @pytest.mark.parametrize(
        "back", ["https://evil.example/", "//evil.example/?show=held", "javascript:alert(1)", "\r\nX: y"]
    )
    async def test_the_way_back_leads_nowhere_else(self, p: Pages, back: str) -> None:
        location = (await p.post("/ui/queue/retry", {"back": back})).location
        assert re.fullmatch(r"/ui/queue\?(show=held&)?done=none_selected", location)


class Tags(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.words += [value for _, value in attrs if value]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def hostile() -> list[str]:
    blns = json.loads((corpus("strings-blns") / "blns.json").read_text("utf-8"))
    h5sc = [
        line
        for path in sorted(corpus("xss-h5sc").rglob("*"))
        if path.suffix in (".txt", ".json", ".html")
        for line in path.read_text("utf-8", "replace").splitlines()
        if "<" in line
    ]
    return [text.replace("\0", "") for text in (*blns, *h5sc) if text.strip()]


async def test_hostile_text_in_every_field_is_text(p: Pages) -> None:
    """One row at a time with the same page around it: the elements and their attributes are always the same."""
    held, waiting = await letter(p, kind=OutcomeKind.PERMANENT), await letter(p)
    names = "answer", "host", "recipient", "forward_to", "destination"

    async def filled(text: str) -> None:
        def fill(tx: object) -> None:
            tx.sql("UPDATE messages SET subject = ?, sender = ?", (text, text))  # type: ignore[attr-defined]
            for name in names:
                tx.sql(f"UPDATE deliveries SET {name} = ?", (text,))  # type: ignore[attr-defined]

        await p.world.store.write(fill)

    await filled("plain")
    form = {"delivery": [str(held.delivery_id), str(waiting.delivery_id)]}
    expected = (
        Tags((await p.get("/ui/queue")).text).elements,
        Tags((await p.post("/ui/queue/drop", form)).text).elements,
    )
    texts = hostile()
    assert len(texts) > 500
    for start in range(0, len(texts), 40):  # many in one value: each is still there, and nothing else is
        text = " ".join(texts[start : start + 40])
        await filled(text)
        listed, asked = (await p.get("/ui/queue")).text, (await p.post("/ui/queue/drop", form)).text
        assert (Tags(listed).elements, Tags(asked).elements) == expected
        assert listed.count("<script") == 3
        shown = await p.get("/ui/queue?" + urlencode({"destination": text[:300], "sender": text[:300]}))
        assert shown.status == 200
        assert shown.text.count("<script") == 3


class TestReasons:
    @pytest.mark.parametrize(
        ("code", "answer", "words"),
        [
            (None, None, "not tried yet"),
            (None, "DNS: MX of x: SERVFAIL", "could not be looked up"),
            (None, "connect: Connection refused", "could not be reached"),
            (None, "end of data: the connection was lost", "may have arrived"),
            (None, "not sent: LookupError", "could not be sent from here"),
            (None, "something else", "there was no answer"),
            (421, "greeting: 421 busy", "not available just now"),
            (450, "RCPT: 450 4.2.0 Greylisted", "passes by itself"),
            (452, "RCPT: 452 4.2.2 quota", "mailbox is full"),
            (499, "RCPT: 499 what", "try again later"),
            (535, "AUTH: 535 5.7.8 bad login", "login is not accepted"),
            (550, "RCPT: 550 5.1.1 no such user", "does not exist"),
            (550, "RCPT: 550 no", "the mailbox is not there, or a rule forbids it"),
            (550, "end of data: 550 5.7.26 DMARC", "SPF, DKIM or DMARC"),
            (599, "RCPT: 599 5.9.9 what", "refused"),
        ],
    )
    def test_every_answer_has_words(self, code: int | None, answer: str | None, words: str) -> None:
        assert words in reasons.reason(code, answer)

    def test_every_stage_has_words_of_its_own_where_nothing_was_said(self) -> None:
        assert all(reasons.reason(None, f"{stage.value}: gone") != "there was no answer" for stage in Stage)

    def test_what_is_held_was_refused_or_its_time_is_over(self) -> None:
        assert not reasons.held(550, "RCPT: 550 5.1.1 no").startswith("its time")
        assert reasons.held(450, "RCPT: 450 4.2.1 no").startswith("its time was over; at last")
        assert reasons.held(535, "AUTH: 535 5.7.8 no").startswith("its time was over; at last")
        assert reasons.held(None, "connect: refused").startswith("its time was over; at last")
