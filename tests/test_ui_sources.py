"""The page Sources: its figures, its choices, its plot, its export; and whatever a browser may have written."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from sqlalchemy import select

from relay.core.model import AttributionState
from relay.core.site import Touch
from relay.store import deals
from relay.store.engine import Tx
from relay.store.reports import Interval
from relay.store.schema import messages
from tests.hostile_world import vectors
from tests.store_fixtures import DAY, NOW, TRACK
from tests.ui_fixtures import Answer, Pages, pages
from webapi.csv_file import DANGEROUS
from webapi.ui import sources, sources_plot
from webapi.ui.sources_choice import Choice

PATH = "/ui/sources"
_ANY = select(messages.c.id)


@pytest.fixture
async def p(tmp_path: Path) -> AsyncIterator[Pages]:
    async with pages(tmp_path) as found:
        yield found


async def write(p: Pages, marker: str, letters: int = 1, campaign: str = "", site: str = "shop") -> None:
    """A visit with this marker that writes so many letters, at once."""
    w = p.world
    number = len(await w.rows(_ANY))
    query = f"rs={marker}" + (f"&utm_source=x&utm_campaign={campaign}" if campaign else "")
    target = "help@example.com" if site == "shop" else "sales@example.com"
    _, address = await w.shown(target, site, page=f"https://www.{site}.example/new?{query}", number=str(number + 100))
    for _ in range(letters):
        number += 1
        accepted = await w.accept(address, body=b"%d" % number, sender=f"{number}@x.example", message_id=f"{number}@x")
        if number % 2:
            await w.store.write(lambda tx: deals.set_deal(tx, accepted.message_id, f"D{number}", None))  # noqa: B023
    w.pass_time(1)  # until now is before it


def table(answer: Answer) -> list[list[str]]:
    """The cells of the ranked table as a person reads them."""
    assert answer.status == 200, answer.text
    (found,) = re.findall(r'<table class="ranked">.*?</table>', answer.text, re.DOTALL) or [""]
    rows = re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)[1:]
    return [[_text(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def _text(markup: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", markup))).strip()


def _tiles(answer: Answer) -> str:
    """The figures at the top, as a person reads them."""
    return _text(re.findall(r'<nav class="tiles".*?</nav>', answer.text, re.DOTALL)[0])


def _letters(answer: Answer) -> int:
    """How many letters the History lists."""
    return len(set(re.findall(r'href="/ui/messages/(\d+)"', answer.text)))


def export_of(answer: Answer) -> list[dict[str, str]]:
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"), newline="")))


class TestTable:
    async def test_it_ranks_sources_and_takes_one_apart(self, p: Pages) -> None:
        await write(p, "fb_new", 1)
        await write(p, "vk_a", 2)
        await write(p, "fb_old", 2)
        answer = await p.get(PATH)
        names = [(row[0], row[1], row[2]) for row in table(answer)]
        assert names == [("fb", "2", "3"), ("vk", "1", "2")]
        apart = await p.get(f"{PATH}?source=fb")
        assert [row[0] for row in table(apart)] == ["fb_old", "fb_new"]
        assert "Source: fb" in _text(apart.text)

    async def test_a_source_leads_to_its_letters_of_that_period(self, p: Pages) -> None:
        await write(p, "fb_new")
        answer = await p.get(f"{PATH}?site=shop&period=7d")
        (link,) = re.findall(r'href="(/ui/history\?[^"]*)"', answer.text)
        asked = {name: value[0] for name, value in parse_qs(urlsplit(html.unescape(link)).query).items()}
        assert asked == {
            "source": "fb",
            "site": "shop",
            "period": "custom",
            "since": "2027-01-09",
            "until": "2027-01-15",
        }
        assert "/ui/history?" not in (await p.get(f"{PATH}?touch=first")).text

    @pytest.mark.parametrize(
        ("by", "name"),
        [("campaign", "spring"), ("landing_page", "www.shop.example/new"), ("target", "help@example.com")],
    )
    async def test_tabs(self, p: Pages, by: str, name: str) -> None:
        await write(p, "fb_new", campaign="spring")
        assert table(await p.get(f"{PATH}?by={by}"))[0][0] == name

    async def test_what_is_likely_is_in_its_own_column(self, p: Pages) -> None:
        await write(p, "fb_new", 2)
        likely = AttributionState.LIKELY.value
        await p.world.store.write(
            lambda tx: tx.sql(
                "UPDATE deliveries SET attribution = ?, candidates = '[[1, 0.6], [1, 0.4]]', visit_id = NULL "
                "WHERE id = 1",
                (likely,),
            )
        )
        ((name, visits, enquiries, shares, conversion, dealt, likely_deals, *_),) = table(await p.get(PATH))
        assert (name, visits, enquiries, shares, conversion) == ("fb", "1", "1", "1", "100 %")
        assert (dealt, likely_deals) == ("0", "1")
        tiles = _tiles(await p.get(PATH))
        assert tiles == (
            "Visits 1 Enquiries 1 beside them 1 only likely Deals 0 beside them 1 only likely "
            "Conversion 100 % enquiries by visits 200 % with those only likely Half write within a minute "
            "of the beginning of their visit"
        )
        assert "0 deals, and 1 likely" in (await p.get(f"{PATH}?plot=deals")).text
        (line,) = export_of(await p.get(f"{PATH}/csv"))
        assert (line["conversion"], line["deals"], line["likely_deals"]) == ("1.0", "0", "1.0")

    async def test_a_marker_leads_to_its_own_letters_only(self, p: Pages) -> None:
        for marker in ("fb_cpc", "fb_cpc_x", "fb"):
            await write(p, marker)
        links = [html.unescape(link) for link in re.findall(r'href="(/ui/history\?[^"]*)"', (await p.get(PATH)).text)]
        assert [parse_qs(urlsplit(link).query)["source"] for link in links] == [["fb"]]
        assert _letters(await p.get(links[0])) == 3
        apart = (await p.get(f"{PATH}?source=fb")).text  # "fb" alone would stand for all of them
        links = [html.unescape(link) for link in re.findall(r'href="(/ui/history\?[^"]*)"', apart)]
        assert [parse_qs(urlsplit(link).query)["source"] for link in links] == [["fb_cpc"], ["fb_cpc_x"]]
        assert [_letters(await p.get(link)) for link in links] == [1, 1]

    async def test_what_is_unknown_is_said(self, p: Pages) -> None:
        await p.world.accept(f"help@{TRACK}")
        p.world.pass_time(1)
        assert table(await p.get(PATH))[0][:3] == ["Unknown", "–", "1"]

    async def test_more_rows(self, p: Pages) -> None:
        for number in range(27):
            await write(p, f"s{number:02d}", 1)
        assert len(table(await p.get(PATH))) == 25
        assert "Show more" in (await p.get(PATH)).text
        assert len(table(await p.get(f"{PATH}?rows=all"))) == 27

    async def test_order(self, p: Pages) -> None:
        await write(p, "a", 1)
        await write(p, "b", 2)
        await write(p, "a", 0)
        assert [row[0] for row in table(await p.get(PATH))] == ["b", "a"]
        assert [row[0] for row in table(await p.get(f"{PATH}?sort=visits"))] == ["a", "b"]

    async def test_nothing_says_what_to_do(self, p: Pages) -> None:
        assert "Nothing came in this period" in (await p.get(PATH)).text


class TestChoices:
    @pytest.mark.parametrize(
        ("query", "first", "last"),
        [
            ("", "2026-12-17", "2027-01-15"),
            ("period=today", "2027-01-15", "2027-01-15"),
            ("period=7d", "2027-01-09", "2027-01-15"),
            ("period=month", "2027-01-01", "2027-01-15"),
            ("period=last_month", "2026-12-01", "2026-12-31"),
            ("period=12m", "2026-01-16", "2027-01-15"),
            ("period=custom&since=2026-02-01&until=2026-02-28", "2026-02-01", "2026-02-28"),
            ("period=custom&since=2026-12-31", "2026-12-31", "2027-01-15"),
            ("period=nonsense", "2026-12-17", "2027-01-15"),
        ],
    )
    async def test_periods(self, p: Pages, query: str, first: str, last: str) -> None:
        p.world.pass_time(3600)
        assert f"{first} to {last}, days in UTC" in _text((await p.get(f"{PATH}?{query}")).text)

    @pytest.mark.parametrize(
        "days",
        ["since=x", "until=2027-13-01", "since=2027-01-02&until=2027-01-01", "since=0001-01-01", "until=9999-12-31"],
    )
    async def test_days_that_are_none_are_told(self, p: Pages, days: str) -> None:
        answer = await p.get(f"{PATH}?period=custom&{days}")
        assert answer.status == 200
        assert 'id="wrong-days" role="alert"' in answer.text

    @pytest.mark.parametrize(
        ("days", "fit"),
        [("since=1970-01-01&until=2200-12-31", False), ("since=1970-01-01", False), ("since=1994-02-01", True)],
    )
    async def test_a_plot_has_room_for_all_months_between_two_days(self, p: Pages, days: str, fit: bool) -> None:
        answer = await p.get(f"{PATH}?period=custom&{days}")
        assert (answer.status, "33 years fit at most" in answer.text) == (200, not fit)
        assert answer.text.count("<g><title>") == (396 if fit else 30)

    async def test_all_time_begins_with_the_first_visit(self, p: Pages) -> None:
        await write(p, "fb")
        p.world.pass_time(800 * DAY)
        answer = await (await p.user("viewer")).get(f"{PATH}?period=all&interval=day")
        assert "2027-01-15 to 2029-03-25" in _text(answer.text)
        assert "Enquiries by week" in answer.text  # 800 days are more than there is room for
        assert "before" not in re.findall(r'<nav class="tiles".*?</nav>', answer.text, re.DOTALL)[0]

    async def test_the_sites_own_touch_is_the_first_choice(self, p: Pages) -> None:
        await p.world.store.write(lambda tx: tx.sql("""UPDATE sites SET settings = '{"touch": "first"}'"""))
        await p.world.store.sites.load()
        assert '<option value="first" selected>' in (await p.get(f"{PATH}?site=shop")).text
        assert '<option value="last" selected>' in (await p.get(PATH)).text  # of several sites, each visit's own
        assert '<option value="last" selected>' in (await p.get(f"{PATH}?site=shop&touch=last")).text

    async def test_visits_that_are_deleted_are_neither_compared_with_nor_divided_by(self, p: Pages) -> None:
        await write(p, "fb")
        p.world.pass_time(30 * DAY)
        await write(p, "fb")
        p.world.pass_time(380 * DAY)
        await write(p, "fb", 2)
        await write(p, "fb")
        p.world.pass_time(60)
        await p.world.sweep(visits=p.world.now - 400 * DAY)  # the first one; its letter stays
        viewer = await p.user("viewer")
        year = _tiles(await viewer.get(f"{PATH}?period=12m"))
        assert "Visits 2 Enquiries 3 50 % more than before" in year
        assert "Conversion 150 %" in year
        every = await viewer.get(f"{PATH}?period=all")
        assert "Visits 3 only those since 2027-01-26 are kept Enquiries 5" in _tiles(every)
        assert "Conversion – enquiries by visits" in _tiles(every)
        assert [row[4] for row in table(every)] == ["–", "–"]
        exported = export_of(await viewer.get(f"{PATH}/csv?period=all"))
        assert [row["conversion"] for row in exported] == ["", ""]

    async def test_the_days_before_are_compared_with(self, p: Pages) -> None:
        await write(p, "fb", 2)
        p.world.pass_time(7 * DAY)
        await write(p, "fb", 3)
        p.world.pass_time(60)
        text = _text((await (await p.user("viewer")).get(f"{PATH}?period=7d")).text)
        assert "Visits 1 as many as before" in text
        assert "Enquiries 3 50 % more than before" in text


def test_hardly_more_is_not_as_many() -> None:
    chosen = Choice({"period": "7d"}, frozenset(), 8 * DAY, 15 * DAY, 0.0, Touch.LAST)
    before = replace(sources_plot.empty(None), visits=1000, enquiries=1000, deals=1000)
    total = replace(before, visits=1001, enquiries=999)
    assert sources.changes(chosen, total, before) == {
        "enquiries": "0.1 % fewer than before",
        "visits": "0.1 % more than before",
        "deals": "as many as before",
    }


class TestPlot:
    async def test_it_has_a_name_a_description_and_a_table(self, p: Pages) -> None:
        await write(p, "fb", 3)
        p.world.pass_time(60)
        answer = await p.get(f"{PATH}?period=7d")
        assert '<title id="plot-title">Enquiries by day</title>' in answer.text
        assert "From 9 Jan 2027 to 15 Jan 2027; the most on 15 Jan 2027: 3 enquiries." in answer.text
        assert answer.text.count("<g><title>") == 7
        assert "style=" not in answer.text

    def test_every_interval_of_a_period_is_there(self) -> None:
        def days(since: str, until: str, interval: Interval) -> list[str]:
            ends = (datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() for text in (since, until))
            return [f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}" for at in sources_plot.starts(*ends, interval)]

        assert days("2027-01-31", "2027-02-02", Interval.DAY) == ["2027-01-31", "2027-02-01"]
        assert days("2026-12-31T12:00", "2027-01-05", Interval.WEEK) == ["2026-12-28", "2027-01-04"]
        assert days("2026-11-30", "2027-02-01", Interval.MONTH) == ["2026-11-01", "2026-12-01", "2027-01-01"]

    def test_columns_are_stacked_to_their_height(self) -> None:
        row = sources_plot.empty(int(NOW // DAY * DAY))
        row = type(row)(row.start, True, None, 9, 9, 9, 1, 1.0, 2, 0.5, 0, (0, 0, 0, 0), None)
        (column,) = sources_plot.plot([row], "enquiries", Interval.DAY).columns
        assert [(part.kind, part.y, part.height) for part in column.parts] == [
            ("known", 20.0, 80.0),
            ("unknown", 10.0, 10.0),
            ("likely", 0.0, 10.0),
        ]
        assert column.title == "15 Jan 2027: 9 enquiries, and 1 likely"

    def test_nothing_is_a_plot_too(self) -> None:
        assert sources_plot.plot([], "visits", Interval.DAY).summary == "Nothing to show."
        assert sources_plot.plot([sources_plot.empty(0)], "deals", Interval.MONTH).top == 1


class TestExport:
    async def test_it_has_the_table_or_the_table_by_interval(self, p: Pages) -> None:
        await write(p, "fb_new", 2)
        p.world.pass_time(DAY)
        await write(p, "fb_new", 1)
        p.world.pass_time(60)
        (row,) = export_of(await p.get(f"{PATH}/csv?source=fb"))
        assert (row["marker"], row["source_level_2"], row["visits"], row["enquiries"]) == ("fb_new", "new", "2", "3")
        assert (row["known"], row["conversion"], row["delays_known"]) == ("yes", "1.5", "3")
        rows = export_of(await p.get(f"{PATH}/csv?interval=day"))
        assert [(row["day_begins"], row["source_level_1"], row["enquiries"]) for row in rows] == [
            ("2027-01-15", "fb", "2"),
            ("2027-01-16", "fb", "1"),
        ]

    async def test_it_is_a_file_with_a_name(self, p: Pages) -> None:
        answer = await p.get(f"{PATH}/csv")
        assert answer.headers["Content-Disposition"] == 'attachment; filename="sources-2026-12-17-2027-01-15.csv"'

    async def test_many_rows_come_in_pieces(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("webapi.ui.sources.BITE", 2)
        for number in range(5):
            await write(p, f"s{number}")
        assert len(export_of(await p.get(f"{PATH}/csv"))) == 5

    async def test_it_is_whole_or_none(self, p: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("webapi.ui.sources.EXPORTED", 3)
        for number in range(3):
            await write(p, f"s{number}")
        assert len(export_of(await p.get(f"{PATH}/csv"))) == 3
        await write(p, "s3")
        answer = await p.get(f"{PATH}/csv")
        assert (answer.status, "Content-Disposition" in answer.headers) == (400, False)
        assert "more than 3 rows: ask for a shorter period or a longer interval" in answer.text


class TestRights:
    async def test_of_its_sites_only(self, p: Pages) -> None:
        await write(p, "secret_a", 2)
        await write(p, "own_b", 1, site="other")
        viewer = await p.user("viewer", "other")
        for path in (PATH, f"{PATH}/csv"):
            answer = await viewer.get(path)
            assert "own" in answer.text
            assert "secret" not in answer.text
            assert (await viewer.get(f"{path}?site=shop")).status == 404
        assert [row[0] for row in table(await p.get(PATH))] == ["secret", "own"]
        assert [row[0] for row in table(await p.get(f"{PATH}?site=other"))] == ["own"]

    async def test_of_no_site_it_shows_nothing(self, p: Pages) -> None:
        await write(p, "secret_a")
        viewer = await p.user("viewer", "gone")
        answer = await viewer.get(PATH)
        assert answer.status == 200
        assert "secret" not in answer.text


async def test_whatever_is_in_marker_campaign_or_landing_page_is_text(p: Pages) -> None:
    texts = vectors()
    assert len(texts) > 500

    def spoil(tx: Tx) -> None:
        tx.sql("DELETE FROM visits")
        for number, text in enumerate(texts):
            tx.sql(
                "INSERT INTO visits (site_id, number, started_at, last_seen_at, marker, utm_campaign, landing_page) "
                "VALUES (1, ?, ?, ?, ?, ?, ?)",
                (str(number), NOW - 1, NOW - 1, text, text, text),
            )

    await p.world.store.write(spoil)
    own = {name.lower() for name in re.findall(r"<([a-z0-9]+)", (await p.get(PATH)).text)}
    for by in ("source", "campaign", "landing_page"):
        answer = await p.get(f"{PATH}?by={by}&rows=all")
        assert answer.status == 200
        assert {name.lower() for name in re.findall(r"<([A-Za-z0-9]+)", answer.text)} <= own | {"em", "p"}
        assert not re.search(r"<[^>]*\son[a-z]+\s*=", answer.text)
        export = await p.get(f"{PATH}/csv?by={by}")
        cells = [
            cell for line in csv.reader(io.StringIO(export.text.removeprefix("\ufeff"), newline="")) for cell in line
        ]
        assert not [cell for cell in cells if cell.startswith(DANGEROUS)]
    answer = await p.get(f"{PATH}?source={quote('<script>alert(1)</script>')}&since={quote('<img>')}&period=custom")
    assert "Source: &lt;script&gt;" in answer.text
    assert {"<script>", "<img>"}.isdisjoint(re.findall(r"<[^>]*>", answer.text))
