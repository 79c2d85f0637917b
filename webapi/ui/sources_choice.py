"""What the page Sources was asked for: its fields as they were typed, the period and the report they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlencode

from relay.core.site import Touch
from relay.store import reports
from relay.store.reports import By, Interval, Order, Wanted
from webapi.auth import visible_site
from webapi.ui.days import DAY, day_of, first_of, midnight
from webapi.ui.page import View

PATH = "/ui/sources"
#: Choices by their value in the address; the first of each is what an address without it means.
PERIODS = {
    "30d": "Last 30 days",
    "today": "Today",
    "7d": "Last 7 days",
    "90d": "Last 90 days",
    "month": "This month",
    "last_month": "Last month",
    "12m": "Last 12 months",
    "all": "All time",
    "custom": "Between two days",
}
INTERVALS = {"": "As fits", "day": "Day", "week": "Week", "month": "Month"}
TOUCHES = {
    "last": "the visit that wrote",
    "first": "the browser's first visit",
    "last_non_direct": "its last visit that was not direct",
}
TABS = {"source": "Sources", "campaign": "Campaigns", "landing_page": "Landing pages", "target": "Addresses"}
PLOTS = {"enquiries": "Enquiries", "visits": "Visits", "deals": "Deals"}
FIELDS = ("period", "since", "until", "site", "source", "touch", "interval", "by", "sort", "plot", "rows")
#: Columns of the plot at most; more are shown by the next longer interval.
MOST_COLUMNS = 400
#: Years that may be between two days: of longer ones there are more months than columns.
MOST_YEARS = MOST_COLUMNS // 12
#: Days up to which a plot is by day or by week if nobody chose.
DAYS_BY_DAY, DAYS_BY_WEEK = 92, 400
#: Rows of the table, and of all of them.
ROWS, ALL_ROWS = 25, 1000


@dataclass(frozen=True, slots=True)
class Choice:
    """``values`` has every field that was typed. ``since`` and ``until`` are seconds since the epoch, ``problem`` says
    what was wrong with the days. ``sites`` are ids. ``kept`` is where the first day begins of which all visits are kept
    (retention.visits): older ones are deleted, and their letters stay."""

    values: Mapping[str, str]
    sites: frozenset[int]
    since: float
    until: float
    kept: float
    touch: Touch
    problem: str | None = None

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    @property
    def source(self) -> str | None:
        return self.values["source"] or None

    @property
    def interval(self) -> Interval:
        """The chosen one, or the next longer one of which a plot has room for all."""
        days = (self.until - self.since) / DAY
        chosen = self.values["interval"]
        if chosen == "month" or (not chosen and days > DAYS_BY_WEEK) or days / 7 > MOST_COLUMNS:
            return Interval.MONTH
        if chosen == "week" or (not chosen and days > DAYS_BY_DAY) or days > MOST_COLUMNS:
            return Interval.WEEK
        return Interval.DAY

    @property
    def by(self) -> By:
        """A source alone is taken apart by its second level."""
        if self.values["by"] == "source":
            return By.SOURCE if self.source is None else By.MARKER
        return By(self.values["by"])

    @property
    def order(self) -> Order:
        return Order(self.values["sort"])

    @property
    def rows(self) -> int:
        return ALL_ROWS if self.values["rows"] == "all" else ROWS

    @property
    def before(self) -> tuple[float, float] | None:
        """The same days before these, to compare with; None of all time."""
        if self.values["period"] == "all":
            return None
        days = -(-(self.until - self.since) // DAY) * DAY
        return self.since - days, self.until - days

    @property
    def knows_visits(self) -> bool:
        """Whether none of its days is one whose visits are deleted: only then are enquiries divided by visits."""
        return self.since >= self.kept

    @property
    def knew_visits(self) -> bool:
        """The same of the days before these."""
        return self.before is not None and self.before[0] >= self.kept

    def url(self, path: str = PATH, **changes: str) -> str:
        """The address of this report, with some fields changed."""
        given = {name: value for name, value in {**self.values, **changes}.items() if value != _defaults(name)}
        if given.get("period") != "custom":
            given.pop("since", None)
            given.pop("until", None)
        return path + (f"?{urlencode(given)}" if given else "")

    def history_url(self, source: str) -> str:
        """The letters of a source in this period."""
        days = {"period": "custom", "since": day_of(self.since), "until": day_of(self.until - 1)}
        asked = {"site": self.values["site"], "source": source} | ({} if self.values["period"] == "all" else days)
        return "/ui/history?" + urlencode({name: value for name, value in asked.items() if value})

    def wanted(self, by: By, interval: Interval | None = None, limit: int = MOST_COLUMNS) -> Wanted:
        return Wanted(
            self.sites, self.since, self.until, by, self.touch, interval, self.source, order=self.order, limit=limit
        )


def _defaults(name: str) -> str:
    return {"period": "30d", "by": "source", "sort": "enquiries", "plot": "enquiries"}.get(name, "")


async def read(view: View) -> Choice:
    """What the request's address asks for. What nobody knows is ignored, since links outlive versions; raises
    Problem 404 for a site that the caller does not see."""
    values = {name: view.query(name).strip() or _defaults(name) for name in FIELDS}
    known = {"period": PERIODS, "touch": TOUCHES, "interval": INTERVALS, "by": TABS, "sort": PLOTS, "plot": PLOTS}
    for name, choices in known.items():
        values[name] = values[name] if values[name] in choices else _defaults(name)
    site = visible_site(view.context.store, view.caller, values["site"], "site") if values["site"] else None
    sites = [site] if site else view.sites
    touch = values["touch"] or (sites[0].settings.touch.value if len(sites) == 1 else Touch.LAST.value)
    now = view.context.clock()
    ids, problem = frozenset(each.id for each in sites), None
    since, until = _period(values["period"], now)
    if values["period"] == "custom":
        since, until, problem = _custom(values, since, until)
    if values["period"] == "all":
        since = midnight(await reports.begin(view.context.store.reader, ids) or now)
    kept = midnight(now - view.context.retention.visits) + DAY
    return Choice(values, ids, since, until, kept, Touch(touch), problem)


def _period(name: str, now: float) -> tuple[float, float]:
    days = {"today": 1, "7d": 7, "90d": 90, "12m": 365}.get(name, 30)
    month = datetime.fromtimestamp(midnight(now), UTC).replace(day=1)
    if name == "month":
        return month.timestamp(), now
    if name == "last_month":
        return (month - timedelta(days=1)).replace(day=1).timestamp(), month.timestamp()
    return first_of(days, now), now


def _custom(values: Mapping[str, str], since: float, until: float) -> tuple[float, float, str | None]:
    """The period between two days, both included; the given one and what is wrong, where they are no days."""
    try:
        first = _day(values["since"]) if values["since"] else since
        end = _day(values["until"]) + DAY if values["until"] else until
    except (ValueError, OverflowError):
        return since, until, "The days are not understood: write them as 2026-01-31. Shown are the last 30 days."
    if first >= end:
        return since, until, "The first day is behind the last one. Shown are the last 30 days."
    if end - first > MOST_YEARS * 366 * DAY:
        return since, until, f"{MOST_YEARS} years fit at most; All time has everything. Shown are the last 30 days."
    return first, end, None


def _day(text: str) -> float:
    day = date.fromisoformat(text)
    if not 1970 <= day.year <= 2200:
        raise ValueError
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
