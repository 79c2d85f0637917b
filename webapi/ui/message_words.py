"""What an attribution means, in words, and a visit as facts to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.core.attribution import AGAIN_METHOD, LEARNED_METHOD, SEVERAL_METHOD, STATIC_METHOD
from relay.core.model import AttributionState
from relay.store.history import DeliveryRow
from relay.store.journey import Journey
from webapi.ui.message_line import device


@dataclass(frozen=True, slots=True)
class Explained:
    """``title`` says how sure it is, ``text`` why."""

    title: str
    text: str


def explained(delivery: DeliveryRow, journey: Journey | None) -> Explained:
    """Why a delivery is attributed as it is; new states and methods are told as they are."""
    state = delivery.attribution
    if state == AttributionState.EXACT.value:
        return _exact(delivery, journey)
    if state == AttributionState.LIKELY.value:
        return _likely(delivery)
    if state == AttributionState.CLAIMED.value:
        return Explained(
            "Only claimed",
            f"The letter names the visit {delivery.visit} behind the plus, but no visit of that number is known: "
            "either nobody was ever given it, or the visit has been deleted since. Whoever wrote the address may have "
            "made it up, so nothing of a visit is stated.",
        )
    if state == AttributionState.INFERRED.value:
        return _inferred(delivery, journey)
    return Explained(
        "No visit", _NONE.get(_rule(delivery), f"Nothing tells which visit it came from ({_rule(delivery)}).")
    )


def _rule(delivery: DeliveryRow) -> str:
    return delivery.method.partition("/")[0]


def _exact(delivery: DeliveryRow, journey: Journey | None) -> Explained:
    address = delivery.recipient
    if delivery.method == STATIC_METHOD:  # the route may be gone by now, or have become another kind
        label = f", labelled “{delivery.source}”" if delivery.source else ""
        return Explained(
            "Certain, without a visit",
            f"{address} is a fixed address{label}. It is printed or listed somewhere, so no visit belongs to it.",
        )
    if delivery.visit is None:
        return Explained("The visit was erased", "It was certain once; the visit has been erased since.")
    why = {
        "plus": _plus(address, journey),
        "unique": f"{address} was made for this visit alone and is never given to another.",
        "pool": f"{address} was shown to this visit, and to no other that could have written this letter.",
    }
    return Explained("Certain", why.get(_rule(delivery), f"By the rule {delivery.method}."))


def _plus(address: str, journey: Journey | None) -> str:
    if journey is not None and journey.visit is not None and not journey.visit.visit["own"]:
        return (
            f"The number behind the plus of {address} is this visit’s. It was given by another counter on the site’s "
            "pages, and that it is nobody else’s is that counter’s promise."
        )
    return f"The number behind the plus of {address} is this visit’s, and we gave it to nobody else."


def _likely(delivery: DeliveryRow) -> Explained:
    if delivery.method == SEVERAL_METHOD:
        return Explained(
            "Not certain",
            "The letter went to addresses that visits of different people were shown. One of them at most wrote it, "
            "and whoever collects addresses may have, so none is stated as fact.",
        )
    if delivery.method == AGAIN_METHOD:
        return Explained(
            "Not certain",
            f"An earlier letter to {delivery.recipient}, which this one answers or which has the same sender, came "
            "from a visit that had the address before; others had it around the time this letter was written. Most "
            "likely it is that visit’s, or a later one’s of the same person, but none is stated as fact.",
        )
    how = (
        "They are weighed by how late people write, as learned from this server’s own certain mail."
        if delivery.method == LEARNED_METHOD
        else "They are weighed by how long before the letter each of them had last been on the page."
    )
    return Explained(
        "Not certain",
        f"More than one may have had {delivery.recipient} around the time the letter was written: visits that are "
        f"known, or somebody who is not. Which of them wrote it is not known, so none is stated as fact. {how}",
    )


def ground(delivery: DeliveryRow) -> str:
    """What an inferred visit is inferred from, beside figures that would otherwise read as facts."""
    grounds = {"thread": "inferred from the thread", "sender": "inferred from an earlier letter of the sender"}
    return grounds.get(_rule(delivery), "inferred")


def _inferred(delivery: DeliveryRow, journey: Journey | None) -> Explained:
    if journey is not None and journey.visit is None:
        return Explained("The visit was erased", "It was inferred once; the visit has been erased since.")
    why = {
        "thread": "but the letter answers an earlier one, and that came from this visit.",
        "sender": "but the same sender’s last certain letter came from this visit.",
    }
    rest = why.get(_rule(delivery), f"but the rule {delivery.method} names this visit.")
    return Explained("Inferred", f"No page view explains {delivery.recipient}, {rest}")


_NONE = {
    "pool": "Nobody had this address on a page before the letter came in.",
    "plus": "There is no number behind the plus, so the address says nothing of a visit.",
    "unique": "The address was made for one visit, and that visit has been erased.",
    "retired": "The address is in use no more: its mail is forwarded, but no visit is looked up for it.",
    "off": "Track e-mails was off for this site: its mail was forwarded, but no visit was looked up for it.",
    "unknown": "Nobody that is known had this address on a page lately. It was printed or listed somewhere before, was "
    "another site’s, or visits had it that were lost when a backup was restored.",
    "operator": "It is mail to the operator of this server, not an enquiry.",
    "erased": "The visit it came from has been erased.",
}


def visit_facts(visit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of a visit, in the order in which a marketer reads it; what is not known is left out."""
    params = visit.get("params") or {}
    facts = [
        ("Source", visit["marker"]),
        ("Channel", visit["channel"]),
        ("First touch", _other(visit["first_touch"], visit["marker"]) if visit["known_first_id"] else None),
        ("Last non-direct touch", _other(visit["last_non_direct_touch"], visit["marker"])),
        ("Landing page", visit["landing_page"]),
        ("Came from", visit["referrer"]),
        ("utm_source", visit["utm_source"]),
        ("utm_medium", visit["utm_medium"]),
        ("utm_campaign", visit["utm_campaign"]),
        ("utm_term", visit["utm_term"]),
        ("utm_content", visit["utm_content"]),
        *((f"Parameter {name}", params[name]) for name in sorted(params)),
        ("Place", ", ".join(filter(None, (visit["city"], visit["country"])))),
        ("Device", device(visit)),
        ("IP address", visit["ip"]),
        ("Site", visit["domain"] or visit["site"]),
        ("First visit", "this one" if visit["first_visit"] == visit["number"] else visit["first_visit"]),
        ("Google client id", visit["google_client_id"]),
        ("Yandex Metrica id", visit["ym_uid"]),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _other(touch: str | None, own: str | None) -> str | None:
    """A touch where it says more than the visit's own source."""
    return None if touch == own else touch or "direct"
