"""What is tried with a letter, as entries of its time line: forwarding, and posting to the CRM. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from relay.core.hook import EventType
from relay.core.model import OutcomeKind
from relay.store.history import DeliveryRow
from relay.store.life import Life
from relay.store.messages import NEVER

#: Attempts at one thing that are shown one by one; of more those in the middle are folded away.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened. ``kind`` chooses the sign before it, ``tone`` its colour: good, bad, wait, plain or
    unsure.

    ``subject``: whom or what it is about; ``answer``: what the other side said, in its words; ``took``, ``gap``:
    seconds that it took, and since the entry before; ``due``: when it is to come. ``more``: entries folded into it.
    A fact that is a number is a time.
    """

    kind: str
    title: str
    tone: str = "plain"
    at: float | None = None
    subject: str = ""
    link: str = ""
    facts: tuple[tuple[str, str | float], ...] = ()
    answer: str = ""
    took: float | None = None
    gap: float | None = None
    due: float | None = None
    more: tuple[Entry, ...] = ()

    @property
    def distance(self) -> int:
        """How far the line runs from the entry before: 0 for less than a second, up to 4 for days."""
        gap = self.gap or 0.0
        return sum(gap >= seconds for seconds in (1, 60, 3600, 86_400))


# ---- forwarding

_OUTCOMES = {
    OutcomeKind.DELIVERED.value: ("Forwarded", "good"),
    OutcomeKind.TEMPORARY.value: ("Not taken for now", "wait"),
    OutcomeKind.PERMANENT.value: ("Refused", "bad"),
    OutcomeKind.AMBIGUOUS.value: ("Sent, but the answer was lost", "wait"),
}
_ENDS = {
    "failed": ("held", "Held: nothing more is tried by itself", "bad"),
    "looped": ("held", "Stopped: it had been here before", "bad"),
    "quarantined": ("held", "Quarantined: not forwarded", "bad"),
    "dropped": ("dropped", "Given up by hand", "plain"),
}


def forwarding(delivery: DeliveryRow, attempts: Sequence[Mapping[str, Any]]) -> list[Entry]:
    tries = [_attempt(delivery, attempt) for attempt in attempts]
    if not tries and delivery.state == "forwarded":  # with another site's copy: its attempts are that delivery's
        tries = [
            Entry(
                "forward",
                "Forwarded",
                "good",
                delivery.finished_at,
                delivery.forward_to,
                facts=(("host", delivery.host),) if delivery.host else (),
                answer=delivery.answer or "",
            )
        ]
    if tries and delivery.possibly_repeated:
        tries[-1] = replace(tries[-1], facts=(*tries[-1].facts, ("note", "may have arrived more than once")))
    return [*folded(tries), *_to_come(delivery, bool(tries))]


def _attempt(delivery: DeliveryRow, attempt: Mapping[str, Any]) -> Entry:
    title, tone = _OUTCOMES.get(attempt["outcome"], (str(attempt["outcome"]), "plain"))
    code, answer = str(attempt["code"] or ""), attempt["answer"]
    if code not in answer:
        answer = f"{code} {answer}"
    return Entry(
        "forward",
        title,
        tone,
        attempt["started_at"],
        delivery.forward_to,
        facts=(("host", attempt["host"]),) if attempt["host"] else (),
        answer=answer,
        took=max(0.0, attempt["finished_at"] - attempt["started_at"]),
    )


def _to_come(delivery: DeliveryRow, tried: bool) -> list[Entry]:
    if delivery.state in ("queued", "deferred"):
        due = delivery.next_at if delivery.next_at < NEVER else None
        title = "Next attempt to forward" if tried else "Waits to be forwarded"
        return [Entry("next", title, "wait", subject=delivery.forward_to, due=due)]
    if delivery.state in _ENDS:
        kind, title, tone = _ENDS[delivery.state]
        at = delivery.finished_at if delivery.state == "dropped" else None
        return [Entry(kind, title, tone, at, delivery.forward_to)]
    return []


# ---- posting


def posting(life: Life) -> list[Entry]:
    entries: list[Entry] = []
    for event in life.events:
        if event["state"] == "waiting":
            entries.append(Entry("reading", "Text and files are being read", "wait", subject=event["site"]))
        own = [post for post in life.posts if post["uid"] == event["uid"]]
        if event["state"] == "withheld" and not own:
            entries.append(Entry("kept", "Not sent to the CRM", subject=event["site"], answer=event["reason"] or ""))
        for post in own:
            tries = [
                _post(event, attempt)
                for attempt in life.post_attempts
                if (attempt["uid"], attempt["webhook_id"]) == (event["uid"], post["webhook_id"])
            ]
            entries += [*folded(tries), *_post_to_come(event, post, bool(tries))]
    return entries


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or url
    except ValueError:
        return url


def _about(event: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return () if event["type"] == EventType.RECEIVED.value else (("event", event["type"]),)


def _post(event: Mapping[str, Any], attempt: Mapping[str, Any]) -> Entry:
    status = attempt["status"]
    taken = status is not None and 200 <= status < 300
    if taken:
        title, tone = "Posted to the CRM", "good"
    else:
        title, tone = ("Not taken by the CRM" if status else "The CRM did not answer"), "wait"
    return Entry(
        "post",
        title,
        tone,
        attempt["started_at"],
        _host(attempt["url"]),
        f"/ui/webhooks/{attempt['webhook_id']}",
        _about(event),
        " ".join(filter(None, (str(status or ""), attempt["answer"]))),
        attempt["duration"],
    )


def _post_to_come(event: Mapping[str, Any], post: Mapping[str, Any], tried: bool) -> list[Entry]:
    where, link = _host(post["url"]), f"/ui/webhooks/{post['webhook_id']}"
    if post["state"] == "waiting":
        title = "Next attempt to post" if tried else "Waits to be posted to the CRM"
        return [Entry("next", title, "wait", None, where, link, _about(event), due=post["next_at"])]
    if post["state"] == "failed":
        return [Entry("held", "Given up: the CRM has not taken it", "bad", None, where, link, _about(event))]
    if post["state"] == "withheld":
        return [Entry("kept", "Not sent to the CRM", "plain", None, where, link, _about(event), post["answer"] or "")]
    return []


def folded(entries: Sequence[Entry]) -> list[Entry]:
    """Of many attempts the first and the last ones; what is between them becomes one entry."""
    if len(entries) <= SHOWN:
        return list(entries)
    middle = tuple(entries[2:-2])
    fold = Entry(middle[0].kind, f"{len(middle)} more attempts", "wait", middle[0].at, middle[0].subject, more=middle)
    return [*entries[:2], fold, *entries[-2:]]
