"""What the form of the History asks for: its fields as they were typed, and the API's query that they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from urllib.parse import urlencode

from relay.core.model import DeliveryState
from relay.store.history_filter import Filter
from relay.store.messages import COLLECTED
from webapi.messages import MessageQuery, wanted_of
from webapi.operation import parameters
from webapi.problems import Problem
from webapi.ui.days import first_of
from webapi.ui.page import View
from webapi.values import moment

PATH = "/ui/history"
#: What can be chosen, by the value in the address.
PERIODS = {"today": "Today", "7d": "Last 7 days", "30d": "Last 30 days", "custom": "Between two days"}
DAYS = {"today": 1, "7d": 7, "30d": 30}
STATES = (*(state.value for state in DeliveryState), COLLECTED)
DEALS = {"yes": "With a deal", "no": "Without a deal"}
SORTS = {"newest": "Newest first", "oldest": "Oldest first"}
#: The fields of the form; all of them filter, but for the last.
FIELDS = ("q", "period", "since", "until", "site", "source", "sender", "visit", "state", "deal", "sort")
_WORDS = {"q": "Words", "site": "Site", "source": "Source", "sender": "Sender", "visit": "Visit", "state": "State"}


@dataclass(frozen=True, slots=True)
class Asked:
    """``values`` has every field as it was typed; ``problem`` says what is wrong with them, then ``wanted`` is None."""

    values: Mapping[str, str]
    wanted: Filter | None
    problem: Problem | None

    @property
    def is_filtered(self) -> bool:
        return any(self.values[name] for name in FIELDS if name != "sort")

    @property
    def is_live(self) -> bool:
        """Whether new mail belongs at the head of this list."""
        first = self.wanted is not None and self.wanted.cursor is None and not self.wanted.oldest
        return first and not (self.values["period"] == "custom" and self.values["until"])

    @property
    def narrows(self) -> bool:
        """Whether any field is set that the form does not show at once."""
        return any(self.values[name] for name in ("source", "sender", "visit", "state", "deal")) or bool(
            self.values["sort"] == "oldest"
        )

    @property
    def chips(self) -> list[tuple[str, str]]:
        """What filters, in words, each with the address without it."""
        found = []
        for name, word in _WORDS.items():
            if self.values[name]:
                found.append((f"{word}: {self.values[name]}", self.url(**{name: ""})))
        if self.values["deal"]:
            found.append((DEALS[self.values["deal"]], self.url(deal="")))
        if self.values["period"]:
            found.append((self._period(), self.url(period="", since="", until="")))
        return found

    def url(self, path: str = PATH, **changes: str) -> str:
        """The address of this list, with some fields changed."""
        given = {name: value for name, value in {**self.values, **changes}.items() if value}
        return path + (f"?{urlencode(given)}" if given else "")

    def _period(self) -> str:
        if self.values["period"] != "custom":
            return PERIODS[self.values["period"]]
        since, until = self.values["since"], self.values["until"]
        return " ".join(filter(None, (since and f"From {since}", until and f"until {until}"))) or "Any day"


def read(view: View) -> Asked:
    """What the request's address asks for. Fields that nobody knows are ignored: links outlive versions."""
    values = {name: view.query(name).strip() for name in FIELDS}
    for name, known in (("period", PERIODS), ("deal", DEALS), ("sort", SORTS)):
        values[name] = values[name] if values[name] in known else ""
    if values["period"] != "custom":
        values["since"] = values["until"] = ""
    try:
        query = parameters(_api_query(values, view.query("cursor"), view.context.clock()), MessageQuery)
        assert isinstance(query, MessageQuery)
        return Asked(values, wanted_of(view.context, view.caller, query), None)
    except Problem as problem:
        return Asked(values, None, problem)


def _api_query(values: Mapping[str, str], cursor: str, now: float) -> dict[str, str]:
    """The query of GET /v1/messages for the form's fields."""
    asked = {name: values[name] for name in ("q", "site", "source", "sender", "visit", "state", "sort")}
    asked["cursor"] = cursor
    asked["deal"] = {"yes": "true", "no": "false"}.get(values["deal"], "")
    if values["period"] in DAYS:
        asked["since"] = moment(first_of(DAYS[values["period"]], now))
    elif values["period"] == "custom":
        asked["since"], asked["until"] = values["since"], _day_after(values["until"])
    return {name: value for name, value in asked.items() if value}


def _day_after(day: str) -> str:
    """The day behind, so that the last one is whole; what is no day is left as it is, to be told so."""
    try:
        return (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    except (ValueError, OverflowError):
        return day
