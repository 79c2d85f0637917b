"""Reports over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, Field

from relay.core.site import Touch
from relay.core.source import levels
from relay.store import reports
from relay.store.engine import TooLong
from relay.store.reports import By, Figures, Interval, Order, Overview, Wanted
from relay.store.store import Store
from webapi.auth import Role, visible_site
from webapi.operation import Call, Operation, Parameters
from webapi.problems import Problem
from webapi.values import Moment, Text, moment

#: Seconds that a report looks back where it is not told.
MONTH = 30 * 86_400.0
#: Rows of one answer at most.
ROWS = 10_000
#: Seconds until who asked for too much should ask again, if for less.
RETRY = 10


class SourcesQuery(Parameters):
    site: Annotated[str, Field(description="Name of a site.")]
    since: Moment | None = None
    until: Moment | None = None
    by: Annotated[
        By | None,
        Field(
            description="What to count by. `source_level_1` is the marker up to its first underscore, `marker` both "
            "levels; a landing page is without its query, a target the real address, and `total` all in one. Without "
            "it: by marker, and only what a visit is stated for."
        ),
    ] = None
    touch: Annotated[
        Touch,
        Field(
            description="Whose source counts, of the visits of the same browser: the one that wrote, its first, or "
            "its last that was not direct."
        ),
    ] = Touch.LAST
    interval: Annotated[
        Interval | None, Field(description="Rows for each day, week (from Monday) or month, in UTC.")
    ] = None
    source: Annotated[Text | None, Field(description="Only what came from this source, a first level.")] = None
    limit: Annotated[int, Field(ge=1, le=ROWS, description="Rows at most.")] = ROWS


class Delay(BaseModel):
    """How long after the visit began its enquiry was written, of those whose visit is certain (`exact`)."""

    enquiries: int = Field(description="Whose delay is known.")
    median: float | None = Field(description="In seconds.")
    within_10_minutes: int
    within_1_hour: int
    within_1_day: int
    within_7_days: int


class SourceShown(BaseModel):
    """What one source brought. ``messages``, ``enquiries`` and ``deals`` are those of visits that are stated, not only
    likely; without a visit they are where ``known`` is false."""

    start: str | None = Field(default=None, description="When the interval begins.")
    known: bool = Field(default=True, description="False: no visit is known of these letters.")
    marker: str | None
    source_level_1: str | None
    source_level_2: str | None
    campaign: str | None = Field(default=None, description="utm_campaign.")
    landing_page: str | None = Field(default=None, description="Host and path.")
    target: str | None = Field(default=None, description="The real address.")
    visits: int | None = Field(description="Of people, begun in the period; null by target.")
    messages: int = Field(description="Letters of any kind.")
    enquiries: int = Field(
        description="Letters by which people begin something: no further letters of a thread, automatic mail, bounces."
    )
    unknown: int = Field(description="Enquiries of which no source is known.")
    likely: float = Field(description="Enquiries that likely came from it, by their probabilities.")
    deals: int = Field(description="Each counts once, with the first letter that has it: a thread is one deal.")
    likely_deals: float = Field(
        description="Deals whose first letter likely came from it, by their probabilities; none of them is in `deals`."
    )
    delay: Delay


class Sources(BaseModel):
    """``more``: there are further rows."""

    items: list[SourceShown]
    more: bool = False


async def sources(call: Call) -> Sources:
    query: SourcesQuery = call.query
    site = visible_site(call.context.store, call.caller, query.site, "site")
    until = call.context.clock() if query.until is None else query.until
    wanted = Wanted(
        sites=frozenset({site.id}),
        since=until - MONTH if query.since is None else query.since,
        until=until,
        by=query.by or By.MARKER,
        touch=query.touch,
        interval=query.interval,
        source=query.source,
        order=Order.MESSAGES if query.by is None else Order.ENQUIRIES,
        unknown=query.by is not None,
        limit=query.limit + 1,
    )
    found = await counted(call.context.store, wanted)
    shown = [source_shown(figures, wanted.by) for figures in found[: query.limit]]
    return Sources(items=shown, more=len(found) > query.limit)


async def counted(store: Store, wanted: Wanted) -> list[Figures]:
    """The rows of a report; raises Problem 503 where they take too long."""
    with _bounded():
        return await reports.sources(store.reports, wanted)


async def seen_whole(store: Store, wanted: Wanted) -> Overview:
    """A report with its total and by interval; raises Problem 503 where they take too long."""
    with _bounded():
        return await reports.overview(store.reports, wanted)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    try:
        yield
    except TooLong:
        detail = "the report takes too long: ask for a shorter period"
        raise Problem(503, detail, field="since", headers={"Retry-After": str(RETRY)}) from None


def source_shown(figures: Figures, by: By) -> SourceShown:
    marker = figures.key if by is By.MARKER else None
    first, second = (figures.key, None) if by is By.SOURCE else levels(marker)
    ten_minutes, hour, day, week = figures.within
    return SourceShown(
        start=None if figures.start is None else moment(figures.start),
        known=figures.known,
        marker=marker,
        source_level_1=first,
        source_level_2=second,
        campaign=figures.key if by is By.CAMPAIGN else None,
        landing_page=figures.key if by is By.LANDING_PAGE else None,
        target=figures.key if by is By.TARGET else None,
        visits=figures.visits,
        messages=figures.messages,
        enquiries=figures.enquiries,
        unknown=figures.unknown,
        likely=round(figures.likely, 2),
        deals=figures.deals,
        likely_deals=round(figures.likely_deals, 2),
        delay=Delay(
            enquiries=figures.timed,
            median=figures.median,
            within_10_minutes=ten_minutes,
            within_1_hour=hour,
            within_1_day=day,
            within_7_days=week,
        ),
    )


OPERATIONS = (
    Operation(
        "GET",
        "/v1/reports/sources",
        "Visits, messages, enquiries and deals by source, for the last 30 days unless told otherwise.",
        sources,
        Role.VIEWER,
        Sources,
        query=SourcesQuery,
        problems=(404,),
    ),
)
