"""The time line as a function of what is stored (webapi/ui/message_line.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from relay.core.model import RouteKind
from relay.store.history import DeliveryRow, MessageRow
from relay.store.journey import Journey, Seen
from relay.store.life import Life
from relay.store.messages import NEVER
from webapi.ui.message_attempts import Entry, folded
from webapi.ui.message_line import Pace, crm_state, line, look_again, pace

T = 1_800_000_000.0


def delivery(**changes: Any) -> DeliveryRow:
    made = DeliveryRow(
        id=1,
        message_id=1,
        site="shop",
        recipient="info1@track.example",
        forward_to="sales@example.com",
        state="forwarded",
        attempts=1,
        next_at=T,
        code=250,
        answer="250 taken",
        host="mx.example.com",
        possibly_repeated=False,
        attribution="exact",
        method="pool/2",
        visit="7",
        source=None,
        candidates=(),
        all_known=False,
        finished_at=T + 0.4,
        site_id=1,
    )
    return replace(made, **changes)


def message(*deliveries: DeliveryRow, **changes: Any) -> MessageRow:
    made = MessageRow(
        id=1,
        received_at=T,
        written_at=T,
        mail_from="ann@example.org",
        sender="ann@example.org",
        subject="Hi",
        message_id=None,
        size=10,
        state="forwarded",
        extraction="done",
        parts=None,
        files=0,
        ip="192.0.2.9",
        helo="mail.example.org",
        tls=None,
        automatic=None,
        bounce=False,
        raw_removed_at=None,
        deliveries=deliveries or (delivery(),),
        receipts=(),
    )
    return replace(made, **changes)


def lived(**changes: Any) -> Life:
    return replace(Life(None, (), (), (), (), ()), **changes)


def attempt(at: float, outcome: str = "delivered", code: int | None = 250, answer: str = "250 taken") -> dict[str, Any]:
    return {
        "delivery_id": 1,
        "started_at": at,
        "finished_at": at + 0.2,
        "outcome": outcome,
        "code": code,
        "answer": answer,
        "host": "mx.example.com",
    }


def event(state: str = "posted", reason: str | None = None, kind: str = "message.received") -> dict[str, Any]:
    return {"uid": "e1", "site": "shop", "type": kind, "state": state, "reason": reason, "created_at": T}


def post(state: str, answer: str | None = None) -> dict[str, Any]:
    return {
        "id": 1,
        "uid": "e1",
        "webhook_id": 3,
        "url": "https://user:pw@crm.example/hook",
        "state": state,
        "attempts": 1,
        "next_at": T + 300,
        "status": None,
        "answer": answer,
        "finished_at": None,
    }


def post_attempt(at: float, status: int | None, answer: str = "") -> dict[str, Any]:
    return {
        "uid": "e1",
        "webhook_id": 3,
        "url": "https://user:pw@crm.example/hook",
        "state": "delivered",
        "started_at": at,
        "duration": 0.1,
        "status": status,
        "answer": answer,
    }


def visit(started_at: float) -> dict[str, Any]:
    empty = dict.fromkeys(("marker", "landing_page", "referrer", "city", "country", "device", "browser", "os"))
    return {"row_id": 9, "number": "7", "started_at": started_at, **empty, "marker": "google_cpc", "city": "Graz"}


def journey(shown_at: float | None, started_at: float = T - 100) -> dict[int, Journey]:
    seen = Seen(visit(started_at), shown_at, None if shown_at is None else shown_at + 900, None)
    return {1: Journey(1, RouteKind.POOL, seen, (), 0.0)}


def titles(entries: list[Entry]) -> list[str]:
    return [entry.title for entry in entries]


def test_a_life_is_told_in_order_with_the_times_between() -> None:
    life = lived(
        attempts=(attempt(T + 0.2),),
        events=(event(),),
        posts=(post("delivered"),),
        post_attempts=(post_attempt(T + 0.1, 200, "ok"),),
    )
    entries = line(message(), life, journey(T - 60))
    assert titles(entries) == ["Page view", "Address shown", "Letter received", "Posted to the CRM", "Forwarded"]
    assert [None if entry.gap is None else round(entry.gap, 3) for entry in entries] == [None, 40, 60, 0.1, 0.0]
    assert [round(entry.took or 0, 3) for entry in entries] == [0, 0, 0, 0.1, 0.2]
    assert [entry.tone for entry in entries] == ["plain", "plain", "good", "good", "good"]
    assert (entries[3].subject, entries[3].link, entries[3].answer) == ("crm.example", "/ui/webhooks/3", "200 ok")
    assert ("from", "mail.example.org [192.0.2.9]") in entries[2].facts
    assert ("connection", "not encrypted") in entries[2].facts
    assert pace(message(), life, journey(T - 60)) == Pace(60.0, pytest.approx(0.4), pytest.approx(0.2))


def test_what_is_no_fact_is_not_on_the_line() -> None:
    candidate = Seen(visit(T - 100), T - 100, T, 0.6)
    entries = line(message(), lived(), {1: Journey(1, RouteKind.POOL, None, (candidate,), 0.4)})
    assert titles(entries) == ["Letter received", "Forwarded"]


def test_a_visit_that_no_binding_explains_has_no_address_shown() -> None:
    assert titles(line(message(), lived(), journey(None)))[:2] == ["Page view", "Letter received"]


@pytest.mark.parametrize(
    ("method", "title"),
    [
        ("sender/1", "Earlier visit of this sender"),
        ("thread/1", "Visit of the thread"),
        ("of a later version/1", "Visit that it is put down to"),
    ],
)
def test_an_inferred_visit_is_not_where_the_letter_began(method: str, title: str) -> None:
    row = message(delivery(attribution="inferred", method=method))
    entries = line(row, lived(), journey(T - 60, T - 80 * 86_400.0))
    assert titles(entries)[:3] == [title, "Address shown to that visit", "Letter received"]
    assert [entry.tone for entry in entries[:3]] == ["unsure", "unsure", "good"]
    assert pace(row, lived(), journey(T - 60)).thought is None


@pytest.mark.parametrize("inferred_first", [False, True])
def test_a_visit_that_is_certain_by_another_address_is_told_as_certain(inferred_first: bool) -> None:
    certain, inferred = delivery(), delivery(id=2, attribution="inferred", method="sender/1")
    both = journey(T - 60) | {2: replace(journey(T - 60)[1], delivery=2)}
    row = message(*((inferred, certain) if inferred_first else (certain, inferred)))
    assert titles(line(row, lived(), both))[:3] == ["Page view", "Address shown", "Letter received"]
    assert pace(row, lived(), both).thought == 60.0


def test_two_addresses_of_one_visit_are_one_page_view() -> None:
    second = delivery(id=2, recipient="info2@track.example")
    both = journey(T - 60) | {2: journey(T - 60)[1]}
    assert titles(line(message(delivery(), second), lived(), both))[:4] == [
        *("Page view", "Address shown", "Address shown", "Letter received"),
    ]


def test_a_letter_written_long_before_says_so() -> None:
    assert ("written", T - 300) in line(message(written_at=T - 300), lived(), {})[0].facts
    assert "written" not in dict(line(message(written_at=T - 30), lived(), {})[0].facts)


def test_a_bounce_and_automatic_mail_are_named() -> None:
    assert ("kind", "bounce") in line(message(bounce=True, mail_from=""), lived(), {})[0].facts
    assert ("kind", "automatic mail (list)") in line(message(automatic="list"), lived(), {})[0].facts


@pytest.mark.parametrize(
    ("outcome", "title", "tone"),
    [
        ("delivered", "Forwarded", "good"),
        ("temporary", "Not taken for now", "wait"),
        ("permanent", "Refused", "bad"),
        ("ambiguous", "Sent, but the answer was lost", "wait"),
        ("of a later version", "of a later version", "plain"),
    ],
)
def test_every_outcome_has_its_words(outcome: str, title: str, tone: str) -> None:
    entry = line(message(), lived(attempts=(attempt(T, outcome, 450, "4.2.1 later"),)), {})[-1]
    assert (entry.title, entry.tone, entry.answer) == (title, tone, "450 4.2.1 later")


@pytest.mark.parametrize(
    ("state", "title", "due"),
    [
        ("queued", "Waits to be forwarded", T),
        ("deferred", "Waits to be forwarded", T),
        ("failed", "Held: nothing more is tried by itself", None),
        ("looped", "Stopped: it had been here before", None),
        ("quarantined", "Quarantined: not forwarded", None),
        ("dropped", "Given up by hand", None),
    ],
)
def test_every_state_has_its_end(state: str, title: str, due: float | None) -> None:
    entry = line(message(delivery(state=state)), lived(), {})[-1]
    assert (entry.title, entry.due) == (title, due)


def test_a_delivery_carried_by_another_sites_tells_what_became_of_that() -> None:
    entry = line(message(), lived(), {})[-1]
    assert (entry.title, entry.at, entry.answer) == ("Forwarded", T + 0.4, "250 taken")
    assert line(message(delivery(state="queued", next_at=NEVER)), lived(), {})[-1].due is None


def test_a_second_copy_is_told() -> None:
    entry = line(message(delivery(possibly_repeated=True)), lived(attempts=(attempt(T),)), {})[-1]
    assert ("note", "may have arrived more than once") in entry.facts


def test_further_paths_are_told_and_the_first_is_not_told_twice() -> None:
    path = {"recipient": "info1@track.example", "received_at": T + 5, "ip": "192.0.2.9"}
    paths = tuple(path | {"kind": kind} for kind in ("first", "repeat", "loop"))
    found = [entry for entry in line(message(), lived(paths=paths), {}) if entry.kind == "again"]
    assert titles(found) == ["Came once more, not forwarded again", "Came back to us"]


def test_many_attempts_are_folded_in_the_middle() -> None:
    entries = [Entry("forward", str(n), at=T + n) for n in range(9)]
    found = folded(entries)
    assert titles(found) == ["0", "1", "5 more attempts", "7", "8"]
    assert titles(list(found[2].more)) == ["2", "3", "4", "5", "6"]
    assert folded(entries[:5]) == entries[:5]
    tries = tuple(attempt(T + 60 * n, "temporary") for n in range(9))
    after = line(message(delivery(state="deferred")), lived(attempts=tries), {})[-3]
    assert after.gap == pytest.approx(60 - 0.2)  # from the end of the last that is folded away


@pytest.mark.parametrize(
    ("life", "title", "answer", "state"),
    [
        (lived(events=(event("waiting"),)), "Text and files are being read", "", "waits"),
        (lived(events=(event("withheld", "no visit"),)), "Not sent to the CRM", "no visit", "not sent"),
        (lived(events=(event(),), posts=(post("waiting"),)), "Waits to be posted to the CRM", "", "waits"),
        (lived(events=(event(),), posts=(post("failed"),)), "Given up: the CRM has not taken it", "", "failed"),
        (lived(events=(event(),), posts=(post("withheld", "bounce"),)), "Not sent to the CRM", "bounce", "not sent"),
    ],
)
def test_what_became_of_a_post_is_told(life: Life, title: str, answer: str, state: str) -> None:
    entry = line(message(), life, {})[-1]
    assert (entry.title, entry.answer, entry.at) == (title, answer, None)
    assert crm_state(life) == state


@pytest.mark.parametrize(("status", "title"), [(500, "Not taken by the CRM"), (None, "The CRM did not answer")])
def test_a_post_that_failed_says_what_was_answered(status: int | None, title: str) -> None:
    life = lived(
        events=(event(kind="delivery.failed"),), posts=(post("waiting"),), post_attempts=(post_attempt(T + 1, status),)
    )
    entries = line(message(), life, {})
    assert titles(entries)[-2:] == [title, "Next attempt to post"]
    assert entries[-2].facts == (("event", "delivery.failed"),)
    assert pace(message(), life, {}).posted is None


def test_the_page_looks_again_while_something_is_to_come_soon() -> None:
    def again(row: MessageRow, life: Life, now: float = T) -> int | None:
        return look_again(row, line(row, life, {}), now)

    assert again(message(delivery(state="queued")), lived()) == 2
    assert again(message(delivery(state="queued")), lived(), T + 3600) == 5
    assert again(message(), lived(events=(event("waiting"),))) == 2
    assert again(message(delivery(state="deferred", next_at=T + 300)), lived()) is None
    assert again(message(), lived(attempts=(attempt(T),))) is None
