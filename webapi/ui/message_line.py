"""The life of a message as a time line: what happened, in order, and what is still to come. Pure.

    page view ▸ address shown ▸ letter received ▸ forwarded (each attempt) ▸ posted to the CRM (each attempt)

A visit that is only inferred is told as what it is, the sender's or the thread's, and not as where this letter began.
Entries with a time come first, by that time; then what is under way or has come to its end without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from relay.core.model import AttributionState, OutcomeKind, RouteKind
from relay.store.history import DeliveryRow, MessageRow
from relay.store.journey import Journey
from relay.store.life import Life
from webapi.ui.message_attempts import Entry, forwarding, posting

#: Seconds between writing and receipt from which on the letter's own Date is worth telling.
WORTH_TELLING = 60.0
#: Seconds until something that is to come, up to which the page looks again by itself.
SOON = 60.0


def line(row: MessageRow, life: Life, journeys: Mapping[int, Journey]) -> list[Entry]:
    """The time line of a message, as far as ``row`` and ``life`` show it."""
    entries = [*_before(row, journeys), *_received(row, life)]
    for delivery in row.deliveries:
        entries += forwarding(delivery, [one for one in life.attempts if one["delivery_id"] == delivery.id])
    entries += posting(life)
    timed = sorted((entry for entry in entries if entry.at is not None), key=lambda entry: entry.at or 0.0)
    return [*_with_gaps(timed), *(entry for entry in entries if entry.at is None)]


def look_again(row: MessageRow, entries: Iterable[Entry], now: float) -> int | None:
    """Seconds after which the page should look again by itself; None where nothing is to come soon."""
    if any(entry.kind == "reading" or (entry.due is not None and entry.due < now + SOON) for entry in entries):
        return 2 if now < row.received_at + SOON else 5
    return None


def _with_gaps(entries: Sequence[Entry]) -> list[Entry]:
    ends: list[Entry] = []
    last: float | None = None
    for entry in entries:
        assert entry.at is not None
        ends.append(entry if last is None else replace(entry, gap=max(0.0, entry.at - last)))
        end = entry.more[-1] if entry.more else entry
        last = (end.at or 0.0) + (end.took or 0.0)
    return ends


def _before(row: MessageRow, journeys: Mapping[int, Journey]) -> list[Entry]:
    """Page views and addresses shown, where the visit is stated; candidates are no facts, so not on the line."""
    entries: dict[tuple[str, int, str], Entry] = {}
    for delivery in sorted(row.deliveries, key=_is_inferred):  # what is certain of a visit by one goes for it
        journey = journeys.get(delivery.id)
        if journey is None or journey.visit is None:
            continue
        seen, visit = journey.visit, journey.visit.visit
        if visit["started_at"] <= row.received_at:
            entries.setdefault(("view", visit["row_id"], ""), _view(visit, delivery))
        if seen.shown_at is not None:
            shown = Entry(
                "shown",
                "Address shown to that visit" if _is_inferred(delivery) else "Address shown",
                "unsure" if _is_inferred(delivery) else "plain",
                at=seen.shown_at,
                subject=delivery.recipient,
                facts=_lease(journey),
            )
            entries.setdefault(("shown", visit["row_id"], delivery.recipient), shown)
    return list(entries.values())


def _is_inferred(delivery: DeliveryRow) -> bool:
    return delivery.attribution == AttributionState.INFERRED.value


def _lease(journey: Journey) -> tuple[tuple[str, float], ...]:
    """Until when a pool address was this visit's; others are never given to another."""
    if journey.kind is not RouteKind.POOL or journey.visit is None or journey.visit.held_until is None:
        return ()
    return (("held until", journey.visit.held_until),)


def device(visit: Mapping[str, Any]) -> str:
    """With what the visitor came, as far as it is known."""
    known = (visit["device"], visit["browser"], visit["os"])
    return " · ".join(name for name in known if name and name != "unknown")


_INFERRED = {"thread": "Visit of the thread", "sender": "Earlier visit of this sender"}


def _view(visit: Mapping[str, Any], delivery: DeliveryRow) -> Entry:
    title, tone = "Page view", "plain"
    if _is_inferred(delivery):
        title, tone = _INFERRED.get(delivery.method.partition("/")[0], "Visit that it is put down to"), "unsure"
    facts = [
        ("source", visit["marker"]),
        ("landing page", visit["landing_page"]),
        ("came from", visit["referrer"]),
        ("place", ", ".join(filter(None, (visit["city"], visit["country"])))),
        ("device", device(visit)),
    ]
    return Entry(
        "view",
        title,
        tone,
        at=visit["started_at"],
        subject=f"visit {visit['number']}",
        facts=tuple((name, value) for name, value in facts if value),
    )


def _received(row: MessageRow, life: Life) -> list[Entry]:
    facts: list[tuple[str, str | float]] = [
        ("from", f"{row.helo} [{row.ip}]"),
        ("connection", row.tls or "not encrypted"),
        ("envelope sender", row.mail_from or "<> (none: a bounce or an automatic message)"),
        ("to", ", ".join(dict.fromkeys(delivery.recipient for delivery in row.deliveries))),
    ]
    if row.received_at - row.written_at >= WORTH_TELLING:
        facts.append(("written", row.written_at))
    if row.bounce or row.automatic:
        facts.append(("kind", "bounce" if row.bounce else f"automatic mail ({row.automatic})"))
    kept = tuple((name, value) for name, value in facts if value)
    first = Entry("received", "Letter received", "good", row.received_at, row.sender, facts=kept)
    return [first, *(_path(path) for path in life.paths if path["kind"] != "first")]


def _path(path: Mapping[str, Any]) -> Entry:
    facts = (("from", f"[{path['ip']}]"),)
    if path["kind"] == "loop":
        return Entry("again", "Came back to us", "bad", path["received_at"], path["recipient"], facts=facts)
    return Entry(
        "again",
        "Came once more, not forwarded again",
        at=path["received_at"],
        subject=path["recipient"],
        facts=facts,
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """How quick it was, in seconds; None where that is not known or has not happened.

    ``thought``: from the address being shown to writing, by certain visits; ``forwarded`` and ``posted``: from receipt
    to the first 2xx.
    """

    thought: float | None
    forwarded: float | None
    posted: float | None


def pace(row: MessageRow, life: Life, journeys: Mapping[int, Journey]) -> Pace:
    certain = {one.id for one in row.deliveries if not _is_inferred(one)}
    shown = [one.visit.shown_at for one in journeys.values() if one.visit is not None and one.delivery in certain]
    known = [at for at in shown if at is not None and at <= row.written_at]
    sent = [one["finished_at"] for one in life.attempts if one["outcome"] == OutcomeKind.DELIVERED.value]
    sent += [one.finished_at for one in row.deliveries if one.state == "forwarded" and one.finished_at is not None]
    posted = [
        one["started_at"] + one["duration"]
        for one in life.post_attempts
        if one["status"] is not None and 200 <= one["status"] < 300
    ]
    return Pace(
        thought=row.written_at - min(known) if known else None,
        forwarded=max(0.0, min(sent) - row.received_at) if sent else None,
        posted=max(0.0, min(posted) - row.received_at) if posted else None,
    )


def crm_state(life: Life) -> str:
    """What became of it in the CRM, in a word, where nothing was taken there yet."""
    states = {post["state"] for post in life.posts}
    if "waiting" in states or any(event["state"] == "waiting" for event in life.events):
        return "waits"
    return "failed" if "failed" in states else "not sent"
