"""The History: what a row says, filters, paging, what is said where there is nothing, export, new mail."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
from collections.abc import AsyncIterator, Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from relay.core.model import OutcomeKind
from relay.store import deals, glance, history, history_pages, search, users
from relay.store.engine import StoreUnavailable, Tx
from relay.store.history_filter import Filter
from relay.store.messages import Accepted
from relay.store.reader import Reader
from tests.hostile_world import vectors
from tests.store_fixtures import DAY, TRACK, part
from tests.ui_fixtures import Pages, pages
from webapi import csv_file
from webapi.ui import export, history_csv, history_events, history_figures
from webapi.ui.history import ANSWERED
from webapi.ui.session import COOKIE


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Pages]:
    async with pages(tmp_path) as found:
        yield found


class Reading(HTMLParser):
    """Elements of a page with their attributes, and the text of the table's rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    @property
    def letters(self) -> list[list[str]]:
        return [[" ".join(cell.split()) for cell in row] for row in self.rows if len(row) > 1]

    def links(self) -> list[str]:
        return [attrs["href"] or "" for tag, attrs in self.elements if tag == "a"]


async def letter(p: Pages, *addresses: str, number: int = 0, text: str = "Hello", **changes: Any) -> Accepted:
    """A letter that was read, with another number another one."""
    extracted = {name: changes.pop(name) for name in ("subject", "attachments") if name in changes}
    accepted = await p.api.letter(*addresses, number=number, **changes)
    await p.world.extract(accepted.message_id, text=text, **extracted)
    await p.world.store.write(search.index)
    return accepted


async def rows(p: Pages, path: str = "/ui/history") -> list[list[str]]:
    answer = await p.get(path)
    assert answer.status == 200, answer.text
    return Reading(answer.text).letters


async def subjects(p: Pages, query: str) -> list[str]:
    return [row[2] for row in await rows(p, f"/ui/history?{query}")]


class TestRow:
    async def test_says_when_who_what_to_whom_from_where_and_what_became_of_it(self, p: Pages) -> None:
        visit, substitute = await p.world.shown(page="https://www.shop.example/?utm_source=google&utm_medium=cpc")
        accepted = await letter(p, substitute, subject="Offer", attachments=[part()])
        await p.world.store.write(lambda tx: deals.set_deal(tx, accepted.message_id, "D-17", "https://crm.example/17"))
        (row,) = await rows(p)
        assert row == [
            "15 Jan 2027, 08:00:00",
            "ann@example.org",
            "Offer · 1 file",
            f"{substitute} shop",
            f"exact {visit} google_cpc",
            "D-17",
            "queued",
        ]
        links = Reading((await p.get("/ui/history")).text).links()
        for wanted in (
            f"/ui/messages/{accepted.message_id}",
            "https://crm.example/17",
            f"/ui/history?visit={visit}",
            "/ui/history?source=google_cpc",
            "/ui/history?sender=ann%40example.org",
        ):
            assert wanted in links

    async def test_is_looked_at_again_until_its_deal_may_have_come(self, p: Pages) -> None:
        async def moves() -> bool:
            return "data-moving" in (await p.get("/ui/history")).text

        accepted = await letter(p, f"card@{TRACK}")
        await p.world.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
        await p.world.store.write(lambda tx: tx.sql("UPDATE messages SET state = 'forwarded'"))
        assert await moves()
        p.world.pass_time(ANSWERED)
        assert not await moves()
        p.world.pass_time(-1)
        assert await moves()
        await p.world.store.write(lambda tx: deals.set_deal(tx, accepted.message_id, "D-17", None))
        assert not await moves()

    async def test_says_why_it_is_not_sent_to_the_crm(self, p: Pages) -> None:
        await letter(p, f"card@{TRACK}", automatic="mailing list")
        (row,) = await rows(p)
        assert row[4:6] == ["exact card", "not sent: automatic mail (mailing list)"]

    async def test_names_the_first_of_several_candidates(self, p: Pages) -> None:
        await p.world.shown()
        await p.world.shown(page="https://www.shop.example/?utm_source=b")
        p.world.pass_time(1000)
        third, again = await p.world.shown(page="https://www.shop.example/?utm_source=c")
        other, _ = await p.world.shown(page="https://www.shop.example/?utm_source=d")
        await letter(p, again)
        (row,) = await rows(p)
        assert row[4].startswith("likely 2 candidates, the first ")
        assert third in row[4]
        assert other not in row[4]

    async def test_what_is_nearly_certain_is_no_hundred_percent(self, p: Pages) -> None:
        _, leased = await p.world.shown()
        await p.world.shown()  # the other address of the pool
        p.world.pass_time(16 * 3600)
        second, again = await p.world.shown()
        assert again == leased
        await letter(p, leased)
        (row,) = await rows(p)
        assert row[4] == f"likely 2 candidates, the first {second} over 99 %"

    async def test_its_deal_is_that_of_the_site_it_names(self, p: Pages) -> None:
        _, to_other = await p.world.shown("sales@example.com", "other")
        accepted = await letter(p, f"help@{TRACK}", to_other)
        for name in ("shop", "other"):
            site, number = p.world.site(name).id, f"D-{name}"
            await p.world.store.write(lambda tx: deals.set_deal(tx, accepted.message_id, number, None, [site]))  # noqa: B023
        (row,) = await rows(p)
        assert (row[3], row[5]) == (f"help@{TRACK}, {to_other} other", "D-other")

    async def test_is_as_one_sees_it_who_sees_one_site(self, p: Pages) -> None:
        _, to_shop = await p.world.shown("help@example.com")
        _, to_other = await p.world.shown("sales@example.com", "other")
        await letter(p, to_shop, to_other)
        await letter(p, "postmaster@mx.example", number=2)
        assert len(await rows(p)) == 2
        viewer = await p.user("viewer", "other")
        (row,) = await rows(viewer)
        assert row[3] == to_other
        assert to_shop not in (await viewer.get("/ui/history")).text
        assert "All sites" not in (await viewer.get("/ui/history")).text

    async def test_a_link_of_a_deal_is_one_of_the_web(self, p: Pages) -> None:
        accepted = await letter(p, f"card@{TRACK}")
        await p.world.store.write(
            lambda tx: tx.sql("UPDATE events SET deal_id = '1', deal_url = 'javascript:alert(1)'") and None
        )
        assert accepted
        text = (await p.get("/ui/history")).text
        assert "javascript:" not in text


class TestFilters:
    async def test_each_filters_and_shows_itself(self, p: Pages) -> None:
        visit, substitute = await p.world.shown("jobs@example.com", page="https://www.shop.example/?utm_source=google")
        dealt = await letter(p, substitute, subject="one", text="brass lamp", sender="bob@example.org")
        await p.world.store.write(lambda tx: deals.set_deal(tx, dealt.message_id, "D-1", None))
        p.world.pass_time(7 * DAY - 3600)  # seven days are today and the six before, as on the page Sources
        _, to_other = await p.world.shown("sales@example.com", "other")
        held = await letter(p, to_other, number=2, subject="two", claim="forwarder")
        await p.world.finish(held.jobs[0], OutcomeKind.PERMANENT)
        for query, expected in (
            ("", ["two", "one"]),
            ("sort=oldest", ["one", "two"]),
            ("q=BRASS", ["one"]),
            ("q=one", ["one"]),
            ("q=bob%40example.org", ["one"]),
            ("site=other", ["two"]),
            ("source=google", ["one"]),
            ("sender=+Bob%40EXAMPLE.org+", ["one"]),
            (f"visit={visit}", ["one"]),
            ("state=failed", ["two"]),
            ("deal=yes", ["one"]),
            ("deal=no", ["two"]),
            ("period=today", ["two"]),
            ("period=7d", ["two"]),
            ("period=30d", ["two", "one"]),
            ("period=custom&since=2027-01-15&until=2027-01-15", ["one"]),
            ("period=custom&until=2027-01-14", []),
            ("period=custom&since=2027-01-16", ["two"]),
            ("period=&q=&nonsense=1&deal=maybe", ["two", "one"]),
        ):
            assert await subjects(p, query) == expected, query
        text = (await p.get("/ui/history?q=brass&site=shop&deal=yes&period=custom&since=2027-01-15")).text
        for chip in ("Words: brass", "Site: shop", "With a deal", "From 2027-01-15"):
            assert chip in text
        assert "<details open>" in text
        assert 'href="/ui/history?q=brass&amp;period=custom&amp;since=2027-01-15&amp;site=shop"' in text

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ("visit=abc", "visit:"),
            ("period=custom&since=2027-13-01", "since:"),
            ("site=nowhere", "no such site"),
            ("state=lost", "state:"),
            ("cursor=xyz", "cursor:"),
            (f"q={'a' * 501}", "q:"),
            ("sender=a%00b", "sender:"),
        ],
    )
    async def test_what_is_wrong_is_said_beside_the_form(self, p: Pages, query: str, said: str) -> None:
        answer = await p.get(f"/ui/history?{query}")
        assert answer.status == 400
        assert said in answer.text
        assert '<form method="get" action="/ui/history"' in answer.text
        assert (await p.get(f"/ui/history/export.csv?{query}")).status in (200, 400, 404)

    async def test_a_site_that_one_does_not_see_is_none(self, p: Pages) -> None:
        viewer = await p.user("viewer", "shop")
        assert (await viewer.get("/ui/history?site=other")).status == 400
        assert (await viewer.get("/ui/history/export.csv?site=other")).status == 404


class TestPaging:
    async def test_pages_go_on_and_back_to_the_beginning(self, p: Pages) -> None:
        for number in range(53):
            await p.api.letter(f"card@{TRACK}", number=number)
        first = Reading((await p.get("/ui/history?deal=no")).text)
        assert len(first.letters) == 50
        (older,) = [link for link in first.links() if "cursor=" in link]
        assert "deal=no" in older
        second = Reading((await p.get(older)).text)
        assert len(second.letters) == 3
        assert "/ui/history?deal=no" in second.links()
        assert not [link for link in second.links() if "cursor=" in link]

    async def test_a_search_that_ends_early_offers_to_go_on(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_pages, "MOST", 2)
        monkeypatch.setattr(history_pages, "STEP", 1)
        for number in range(60):
            await p.api.letter(f"card@{TRACK}", number=number)
        text = (await p.get("/ui/history?source=nowhere")).text
        assert "Search further" in text
        assert "Nothing yet" in text

    async def test_where_there_is_nothing_it_says_what_to_do(self, p: Pages) -> None:
        text = (await p.get("/ui/history")).text
        assert "No mail yet" in text
        assert 'href="/ui/checks"' in text
        assert "Export" not in text
        await letter(p, f"card@{TRACK}")
        assert "No letter passes these filters" in (await p.get("/ui/history?q=nothing")).text
        assert "Nothing more" in (await p.get("/ui/history?cursor=AAAAAAAAAAE")).text

    async def test_a_search_of_a_whole_word_only_says_so(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        await letter(p, f"card@{TRACK}", text="lamplight")
        assert len(await rows(p, "/ui/history?q=lamp")) == 1
        monkeypatch.setattr(search, "MERGED", -1)
        text = (await p.get("/ui/history?q=brass+lamp")).text
        assert "Only the whole word “lamp” was searched" in text


class TestGlance:
    async def test_today_is_counted_as_far_as_one_sees_it(self, p: Pages) -> None:
        await letter(p, f"card@{TRACK}")
        p.world.pass_time(DAY)
        _, substitute = await p.world.shown("help@example.com")
        first = await letter(p, substitute, number=1, claim="forwarder")
        await p.world.finish(first.jobs[0], OutcomeKind.PERMANENT)
        await letter(p, f"card@{TRACK}", number=2)
        await p.world.store.write(lambda tx: deals.set_deal(tx, first.message_id, "D-1", None))

        assert figures((await p.get("/ui/history")).text) == ["2", "1 50 %", "1", "1"]
        assert figures((await (await p.user("viewer", "shop")).get("/ui/history")).text) == ["2", "1 50 %", "1", "1"]
        assert figures((await (await p.user("viewer", "other")).get("/ui/history")).text) == ["0", "0", "0", "0"]

    async def test_they_count_and_lead_to_all_whatever_is_filtered(self, p: Pages) -> None:
        await letter(p, f"card@{TRACK}")
        text = (await p.get("/ui/history?sender=nobody@example.org")).text
        assert figures(text)[0] == "1"
        assert "/ui/history?period=today" in Reading(text).links()

    async def test_is_counted_anew_when_something_has_come(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_figures, "WORTH", 1e9)
        first = await letter(p, f"card@{TRACK}")
        assert figures((await p.get("/ui/history")).text) == ["1", "0 0 %", "0", "0"]
        await p.world.store.write(lambda tx: deals.set_deal(tx, first.message_id, "D-1", None))
        assert figures((await p.get("/ui/history")).text) == ["1", "0 0 %", "0", "0"]
        await letter(p, f"card@{TRACK}", number=2)
        assert figures((await p.get("/ui/history")).text) == ["2", "0 0 %", "1", "0"]
        monkeypatch.setattr(glance, "COUNTED", 1)
        await letter(p, f"card@{TRACK}", number=3)
        assert figures((await p.get("/ui/history")).text)[0] == "1+"


def figures(text: str) -> list[str]:
    part = text.partition('<dl class="figures"')[2].partition("</dl>")[0]
    return [" ".join(cell.split()) for cell in Text(part).cells]


class Text(HTMLParser):
    """The text of each definition."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "dd":
            self._inside = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "dd"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


class TestManyParts:
    async def test_no_list_reads_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stranger's letter has up to a thousand; while they are read, nobody's mail is taken."""
        async with pages(tmp_path) as p:
            _, substitute = await p.world.shown()
            await letter(p, substitute, subject="Parts", attachments=[part(number) for number in range(1000)])

            def read(**_: object) -> None:
                raise AssertionError("a part was read")

            monkeypatch.setattr("relay.store.history.Part", read)
            page = await p.get("/ui/history")
            assert (page.status, "Parts" in page.text) == (200, True)
            assert "1000" in (await p.get("/ui/history/export.csv")).text


class TestExport:
    async def table(self, p: Pages, query: str = "") -> list[dict[str, str]]:
        answer = await p.get(f"/ui/history/export.csv{query}")
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert answer.headers["Content-Disposition"].startswith('attachment; filename="history-')
        assert answer.text.startswith(csv_file.BOM)
        return list(csv.DictReader(io.StringIO(answer.text.removeprefix(csv_file.BOM), newline="")))

    async def test_has_what_the_page_has_with_the_same_filters(self, p: Pages) -> None:
        visit, substitute = await p.world.shown(page="https://www.shop.example/?utm_source=google")
        accepted = await letter(p, substitute, subject='Offer, "brass"\r\nlamp', attachments=[part()])
        await p.world.store.write(lambda tx: deals.set_deal(tx, accepted.message_id, "D-17", "https://crm.example/17"))
        await letter(p, f"card@{TRACK}", number=2, automatic="mailing list")
        first, second = await self.table(p)
        assert (first["reason"], first["posting"]) == ("automatic mail (mailing list)", "withheld")
        assert second == {
            "received_at": "2027-01-15 08:00:00",
            "site": "shop",
            "sender": "ann@example.org",
            "receivers": substitute,
            "visit": visit,
            "source": "google",
            "attribution": "exact",
            "deal": "D-17",
            "deal_url": "https://crm.example/17",
            "subject": 'Offer, "brass"\r\nlamp',
            "state": "queued",
            "posting": "posted",
            "reason": "",
            "size": "28",
            "files": "1",
            "id": str(accepted.message_id),
        }
        assert [row["id"] for row in await self.table(p, "?source=google&cursor=AAAAAAAAAAE")] == [second["id"]]
        assert await self.table(p, "?q=nothing") == []

    async def test_goes_on_over_pages(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_csv, "PAGE", 3)
        ids = [str((await p.api.letter(f"card@{TRACK}", number=number)).message_id) for number in range(10)]
        assert [row["id"] for row in await self.table(p)] == ids[::-1]
        assert [row["id"] for row in await self.table(p, "?sort=oldest")] == ids

    async def test_breaks_off_when_the_session_ends_or_the_daemon_stops(
        self, p: Pages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history_csv, "PAGE", 1)
        for number in range(5):
            await p.api.letter(f"card@{TRACK}", number=number)

        looks = iter([users.session])

        async def once(*asked: Any) -> Any:
            """The page finds the session, and then it is gone."""
            return await look(*asked) if (look := next(looks, None)) else None

        with monkeypatch.context() as patched:
            patched.setattr("relay.store.users.session", once)
            with pytest.raises(aiohttp.ClientError):
                await p.get("/ui/history/export.csv")
        p.api.draining.append(True)
        with pytest.raises(aiohttp.ClientError):
            await p.get("/ui/history/export.csv")

    @pytest.mark.parametrize("before", [[], ["shop", "other"]])
    async def test_breaks_off_when_its_user_may_see_less(
        self, p: Pages, monkeypatch: pytest.MonkeyPatch, before: list[str]
    ) -> None:
        monkeypatch.setattr(history_csv, "PAGE", 1)
        for number in range(3):
            await p.api.letter(f"card@{TRACK}", number=number)
        viewer = await p.user("viewer", *before)
        assert (await viewer.get("/ui/history/export.csv")).status == 200
        write = export.write

        async def then_less(*page: Any) -> None:
            """The first letters have been read when the rights change."""
            await p.world.store.write(
                lambda tx: tx.sql("UPDATE users SET sites = '[\"other\"]' WHERE role = 'viewer'") and None
            )
            await write(*page)

        with monkeypatch.context() as patched:
            patched.setattr(export, "write", then_less)
            with pytest.raises(aiohttp.ClientError):
                await viewer.get("/ui/history/export.csv")
        assert (await viewer.get("/ui/history/export.csv")).status == 200

    async def test_neither_pages_nor_mail_wait_for_one(self, p: Pages) -> None:
        await p.api.letter(f"card@{TRACK}")
        async with p.world.store.exports._lent():
            table = asyncio.create_task(p.get("/ui/history/export.csv"))
            assert len(await rows(p)) == 1
            assert not table.done()
        assert (await table).status == 200
        async with p.world.store.reader._lent(), p.world.store.reader._lent():  # all that these have
            found = await history.browse(p.world.store.exports, Filter(), 10)
        assert len(found.rows) == 1

    async def test_few_run_at_once(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_csv, "EXPORTS", 0)
        answer = await p.get("/ui/history/export.csv")
        assert (answer.status, answer.headers["Retry-After"]) == (429, "60")


class Stream:
    """Server-sent events as they come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def event(self) -> dict[str, str]:
        """The next event; empty at the end of the stream."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            while line := (await self._response.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(": ")
                if line != "\n":
                    fields[name] = value
                elif "event" in fields:
                    return fields
        return {}


class TestNewMail:
    @pytest.fixture(autouse=True)
    def quickly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_events, "STEP", 0.005)

    @contextlib.asynccontextmanager
    async def listening(self, p: Pages, after: int = 0, **headers: str) -> AsyncIterator[Stream]:
        url = f"{p.api.url}/ui/history/events?after={after}"
        sent = {"Cookie": f"{COOKIE}={p.cookie}", **headers}
        async with p.api.session.get(url, headers=sent, allow_redirects=False) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"] == "text/event-stream"
            yield Stream(response)

    async def test_is_told_to_whom_it_concerns(self, p: Pages) -> None:
        other = await p.user("viewer", "other")
        async with self.listening(p) as all_sites, self.listening(other) as one_site:
            first = (await p.api.letter(f"card@{TRACK}")).message_id
            assert await all_sites.event() == {"retry": "3000", "id": str(first), "event": "mail", "data": str(first)}
            _, to_other = await p.world.shown("sales@example.com", "other")
            second = (await p.api.letter(to_other, number=2)).message_id
            assert (await all_sites.event())["data"] == str(second)
            assert (await one_site.event())["data"] == str(second)

    async def test_what_came_while_the_connection_was_broken_is_told_at_once(self, p: Pages) -> None:
        ids = [(await p.api.letter(f"card@{TRACK}", number=number)).message_id for number in range(3)]
        async with self.listening(p, after=ids[0]) as stream:
            assert (await stream.event())["data"] == str(ids[2])
        async with self.listening(p, after=ids[0], **{"Last-Event-ID": str(ids[2])}) as stream:
            newer = (await p.api.letter(f"card@{TRACK}", number=9)).message_id
            assert (await stream.event())["data"] == str(newer)

    async def test_the_stream_ends_with_the_session(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_events, "SIGN", 0.01)
        async with self.listening(p) as stream:
            await p.world.store.write(lambda tx: tx.sql("DELETE FROM sessions") and None)
            assert (await stream.event())["event"] == "end"
            assert await stream.event() == {}

    async def test_mail_that_keeps_coming_keeps_no_stream_open(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_events, "SIGN", 0.5)
        told: list[str] = []
        async with self.listening(p) as stream:
            await p.world.store.write(lambda tx: tx.sql("DELETE FROM sessions") and None)
            while len(told) < 1000 and "end" not in told:
                await p.api.letter(f"card@{TRACK}", number=len(told))
                told.append((await stream.event())["event"])
        assert told[-1] == "end"

    async def test_the_stream_ends_with_the_daemon(self, p: Pages) -> None:
        async with self.listening(p) as stream:
            p.api.draining.append(True)
            assert await stream.event() == {}

    async def test_listeners_are_few_and_leave_no_trace(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_events, "OF_ONE", 1)
        bell = history_events._BELLS
        async with self.listening(p):
            answer = await p.get("/ui/history/events")
            assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
            (own,) = [one for one in bell.values() if one.listeners.total()]
            async with self.listening(await p.user("viewer", "other")):
                assert own.listeners.total() == 2
        async with asyncio.timeout(20):
            while own.listeners:  # and not its ring: there is none behind the last one's leaving
                await asyncio.sleep(0.01)
        assert own._looking is None

    async def test_whatever_a_look_for_newer_mail_ends_with_there_is_another(
        self, p: Pages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = iter([RuntimeError("once"), StoreUnavailable("twice")])
        look = glance.newest

        async def newest(reader: Reader, sites: frozenset[int] | None) -> int:
            if sites is None and (failure := next(looks, None)):
                raise failure
            return await look(reader, sites)

        first = (await p.api.letter(f"card@{TRACK}")).message_id
        monkeypatch.setattr(glance, "newest", newest)
        async with self.listening(p) as stream:
            assert (await stream.event())["data"] == str(first)
        assert next(looks, None) is None

    async def test_a_head_request_has_no_stream(self, p: Pages) -> None:
        for path in ("/ui/history/events", "/ui/history/export.csv"):
            answer = await p.send("HEAD", path, headers={})
            assert (answer.status, answer.text) == (200, "")

    async def test_the_list_alone_is_what_a_script_asks_for(self, p: Pages) -> None:
        await letter(p, f"card@{TRACK}")
        answer = await p.get("/ui/history", **{"HX-Request": "true"})
        assert answer.text.lstrip().startswith('<dl class="figures"')
        assert "<html" not in answer.text
        assert 'id="letters"' in answer.text
        assert answer.headers["Vary"] == "HX-Request"

    async def test_a_list_that_new_mail_does_not_belong_to_is_not_live(self, p: Pages) -> None:
        for query, live in (("", True), ("q=x", True), ("sort=oldest", False), ("cursor=AAAAAAAAAAE", False),
                            ("period=custom&until=2027-01-01", False), ("visit=x", False)):  # fmt: skip
            assert ("data-events" in (await p.get(f"/ui/history?{query}")).text) is live, query


def _put(tx: Tx, table: str, **values: object) -> None:
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    tx.sql(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))


class TestHostile:
    async def test_nothing_that_a_letter_or_a_crm_says_is_markup_or_a_formula(self, p: Pages) -> None:
        strings = vectors()
        plain = await p.get("/ui/history")
        await letter(p, f"card@{TRACK}", subject="plain", sender="plain")
        await p.world.store.write(
            lambda tx: tx.sql("UPDATE events SET state = 'withheld', reason = 'plain', deal_id = NULL") and None
        )
        shape = sorted({tag for tag, _ in Reading((await p.get("/ui/history")).text).elements})
        assert plain.status == 200

        def fill(tx: Tx) -> None:
            tx.sql("DELETE FROM messages")
            for number, text in enumerate(strings, 1):
                _put(tx, "messages", id=number, received_at=1.8e9, written_at=1, mail_from=text, sender=text,
                     subject=text, size=1, stored_size=1, digest=b"", ip="", helo="", state="failed",
                     extraction="done")  # fmt: skip
                _put(tx, "deliveries", id=number, message_id=number, site_id=1, recipient=text, forward_to="",
                     destination="", state="failed", attempts=1, next_at=1, expires_at=1, answer=text,
                     attribution="claimed", attribution_method=text, claimed_number=text)  # fmt: skip
                _put(tx, "events", uid=f"evt_{number}", message_id=number, site_id=1, delivery_id=number,
                     type="message.received", state="withheld", reason=text, created_at=1,
                     deal_id=text if number % 2 else None, deal_url=text)  # fmt: skip

        await p.world.store.write(fill)
        path, seen = "/ui/history", 0
        while path:
            answer = await p.get(path)
            assert answer.status == 200
            found = Reading(answer.text)
            seen += len(found.letters)
            assert {tag for tag, _ in found.elements} <= {*shape, "a", "small", "nav"}
            for tag, attrs in found.elements:
                assert not any(name.startswith("on") or name == "style" for name in attrs), (tag, attrs)
                for name in ("href", "src", "action"):
                    assert (attrs.get(name) or "/ui/").startswith(("/ui/", "#main", "http://", "https://")), attrs
            path = next((link for link in found.links() if "cursor=" in link), "")
        assert seen == len(strings)
        table = (await p.get("/ui/history/export.csv")).text.removeprefix(csv_file.BOM)
        lines = list(csv.reader(io.StringIO(table, newline="")))
        assert [len(line) for line in lines] == [len(history_csv.COLUMNS)] * (len(strings) + 1)
        assert [cell for line in lines for cell in line if cell.startswith(csv_file.DANGEROUS)] == []

    async def test_nothing_that_is_asked_for_is_markup(self, p: Pages) -> None:
        await letter(p, f"card@{TRACK}")
        for text in vectors()[::50]:
            for name in ("q", "source", "sender", "site", "visit", "state", "since", "period", "cursor", "sort"):
                query = f"{name}={quote(text)}" + ("&period=custom" if name == "since" else "")
                answer = await p.get(f"/ui/history?{query}")
                assert answer.status in (200, 400), query
                found = Reading(answer.text)
                assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
                scripts = [attrs for tag, attrs in found.elements if tag == "script"]
                assert all((attrs.get("src") or "").startswith("/ui/static/") for attrs in scripts)


def _dealt(message_id: int, number: int) -> Callable[[Tx], int]:
    return lambda tx: deals.set_deal(tx, message_id, f"D-{number}", f"https://crm.example/deals/{number}")


async def test_a_page_of_50_letters_is_at_most_100_kb_with_all_its_files(p: Pages) -> None:
    for number in range(50):
        _, substitute = await p.world.shown(
            "jobs@example.com", page=f"https://www.shop.example/?utm_source=google&utm_campaign=spring{number}"
        )
        subject = f"Offer for {number} brass lamps, delivery to Leipzig, second floor"
        accepted = await p.api.letter(
            substitute, number=number, sender=f"a.long.name{number}@customer-{number}.example"
        )
        await p.world.extract(accepted.message_id, subject=subject)
        await p.world.store.write(_dealt(accepted.message_id, number))
    answer = await p.get("/ui/history")
    total = len(answer.text.encode())
    assert len(Reading(answer.text).letters) == 50
    loaded = [attrs.get("src") or attrs.get("href") or "" for tag, attrs in Reading(answer.text).elements
              if tag in ("script", "link", "img")]  # fmt: skip
    for path in set(loaded):
        async with p.api.session.get(p.api.url + path, auto_decompress=False) as response:
            assert response.status == 200
            total += len(await response.read())
    assert total <= 100_000, total
