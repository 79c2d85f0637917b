"""Sources: what each source brought, with the plot of a period, and the same as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from aiohttp import web

from relay.core.site import Touch
from relay.core.source import levels
from relay.store.reports import DELAYS, By, Figures
from webapi.problems import Problem
from webapi.reports import counted, seen_whole
from webapi.ui import export as downloads
from webapi.ui import sources_choice, sources_plot
from webapi.ui.days import day_of
from webapi.ui.page import Page, View
from webapi.ui.render import duration, number, percent, render
from webapi.ui.sources_choice import MOST_COLUMNS, PATH, Choice, read

#: Rows of an export at most, and rows that are written at once.
EXPORTED, BITE = 50_000, 500
DELAY_WORDS = ("within 10 minutes", "within an hour", "within a day", "within a week", "later")
#: What a row is called that has no key: of what is known, it has none.
_NAMELESS = {
    By.SOURCE: "Direct or without a mark",
    By.MARKER: "Direct or without a mark",
    By.CAMPAIGN: "Without a campaign",
    By.LANDING_PAGE: "Without a landing page",
    By.TARGET: "Of no address",
}
COLUMNS = (
    *("visits", "letters", "enquiries", "unknown_source", "likely_enquiries", "deals", "likely_deals"),
    *("conversion", "delay_median_seconds", "delays_known", *(f"written_within_{step}_s" for step in DELAYS)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table. ``url`` is where its name leads, ``share`` its bar from 0 to 100."""

    name: str
    figures: Figures
    url: str | None
    history: str | None
    share: float


async def show(view: View) -> web.Response:
    chosen = await read(view)
    store, interval = view.context.store, chosen.interval
    found = await seen_whole(store, chosen.wanted(chosen.by, interval, limit=2 * MOST_COLUMNS + chosen.rows))
    before = await _before(view, chosen)
    filled = sources_plot.filled(found.series, chosen.since, chosen.until, interval)
    return render(
        view,
        "sources.html",
        chosen=chosen,
        total=found.total,
        plot=sources_plot.plot(filled, chosen["plot"], interval),
        rows=table(chosen, found.rows[: chosen.rows]),
        more=len(found.rows) > chosen.rows,
        delays=delays(found.total),
        changes=None if before is None else changes(chosen, found.total, before),
        choices=sources_choice,
        amount=sources_plot.amount,
        soon=soon,
        parts_of=sources_plot.PARTS,
    )


async def _before(view: View, chosen: Choice) -> Figures | None:
    """The total of the same days before; None where there are none."""
    if chosen.before is None:
        return None
    since, until = chosen.before
    found = await counted(view.context.store, replace(chosen.wanted(By.TOTAL), since=since, until=until))
    return found[0] if found else sources_plot.empty(None)


def table(chosen: Choice, found: Sequence[Figures]) -> list[Row]:
    """The rows with their names and where they lead."""
    weights = [_weight(chosen, figures) for figures in found]
    most = max(weights, default=0) or 1
    return [
        Row(name(figures, chosen.by), figures, *_links(chosen, figures), share=round(100 * weight / most, 1))
        for figures, weight in zip(found, weights, strict=True)
    ]


def _weight(chosen: Choice, figures: Figures) -> float:
    return sum(sources_plot.values(chosen["sort"], figures))


def _links(chosen: Choice, figures: Figures) -> tuple[str | None, str | None]:
    """(one source taken apart, its letters in the History); a source only, and one that has a name."""
    if figures.key is None or not figures.known or chosen.by not in (By.SOURCE, By.MARKER):
        return None, None
    # The History filters by the visit's own source: under another touch it would show other letters. A marker that is
    # a first level alone stands there for all that begin with it.
    is_more_there = chosen.by is By.MARKER and "_" not in figures.key
    history = chosen.history_url(figures.key) if chosen.touch is Touch.LAST and not is_more_there else None
    return (chosen.url(source=figures.key) if chosen.by is By.SOURCE else None), history


def soon(seconds: float | None) -> str:
    """A delay as people say it; clocks of senders and servers do not agree to the second.

    >>> soon(None), soon(26), soon(600), soon(7200)
    ('–', 'a minute', '10 min', '2 h')
    """
    return "–" if seconds is None else "a minute" if seconds < 90 else duration(seconds)


def name(figures: Figures, by: By) -> str:
    if not figures.known:
        return "Unknown"
    return _NAMELESS.get(by, "") if figures.key is None else figures.key


def delays(total: Figures) -> list[tuple[str, int, float]]:
    """(words, enquiries, percent) of those written within each step and after all others; empty without any."""
    if not total.timed:
        return []
    steps = (*total.within, total.timed)
    parts = [now - before for now, before in zip(steps, (0, *steps), strict=False)]
    return [(word, part, round(100 * part / total.timed, 1)) for word, part in zip(DELAY_WORDS, parts, strict=True)]


def changes(chosen: Choice, total: Figures, before: Figures) -> dict[str, str]:
    """How what is stated of each metric differs from the same days before, in words; nothing where there was none, or
    where visits of those days are deleted."""
    found = {}
    for metric in sources_plot.PARTS:
        if metric == "visits" and not chosen.knew_visits:
            continue
        now, then = sources_plot.stated(metric, total), sources_plot.stated(metric, before)
        if then:
            differs = f"{percent(abs(now - then) / then)} {'more' if now > then else 'fewer'} than"
            found[metric] = f"{'as many as' if now == then else differs} before"
    return found


async def export(view: View) -> web.StreamResponse:
    """The table as CSV, by interval where that is asked for. It is read at once, since the clients of a database that
    is read wait for no slow line; then sent piece by piece. Raises Problem 400 for more than :data:`EXPORTED` rows,
    since a part of them would look like all."""
    chosen = await read(view)
    interval = chosen.interval if chosen["interval"] else None
    found = await counted(view.context.store, chosen.wanted(chosen.by, interval, limit=EXPORTED + 1))
    if len(found) > EXPORTED:
        detail = f"more than {number(EXPORTED)} rows: ask for a shorter period or a longer interval"
        raise Problem(400, detail, field="since")
    file = f"sources-{day_of(chosen.since)}-{day_of(chosen.until - 1)}.csv"
    response = await downloads.begin(view.request, file)
    if view.request.method == "HEAD":
        return response
    await downloads.write_header(response, header(chosen))
    for start in range(0, len(found), BITE):
        await downloads.write(response, lines(chosen, found[start : start + BITE]))
    await response.write_eof()
    return response


def header(chosen: Choice) -> tuple[str, ...]:
    keys = {By.SOURCE: ("source_level_1",), By.MARKER: ("marker", "source_level_1", "source_level_2")}
    start = (f"{chosen.interval.value}_begins",) if chosen["interval"] else ()
    return (*start, *keys.get(chosen.by, (chosen.by.value,)), "known", *COLUMNS)


def lines(chosen: Choice, found: Sequence[Figures]) -> Iterator[tuple[object, ...]]:
    for row in found:
        start = () if row.start is None else (f"{datetime.fromtimestamp(row.start, UTC):%Y-%m-%d}",)
        keys = (row.key, *levels(row.key)) if chosen.by is By.MARKER else (row.key,)
        conversion = round(row.enquiries / row.visits, 6) if row.visits and chosen.knows_visits else None
        yield (
            *(*start, *keys, "yes" if row.known else "no", row.visits, row.messages, row.enquiries, row.unknown),
            *(round(row.likely, 4), row.deals, round(row.likely_deals, 4), conversion),
            *(None if row.median is None else round(row.median), row.timed, *row.within),
        )


PAGES = (Page("GET", PATH, show), Page("GET", f"{PATH}/csv", export))
