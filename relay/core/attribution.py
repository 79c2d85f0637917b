"""Whose visit a mail came from (PRODUCT.md, "attribution").

A pool address is leased to one visit after another, and a mail may come long after its page was seen. All that is
known are the holdings of the address, the time the mail says it was written (clamped, see ``written_at``) and the
time it came.

    holders of the address                                     answer
    -------------------------------------------------------    ------------------------------------------------
    nobody ever, or only after the mail came                   none
    one visit V (the last that began before writing), and      exact V
      no other from ``window`` before writing until receipt;
      where V's lease had ended more than an hour before
      writing, no other in the five days before writing,
      or, where it had for longer, in those before its end
    nobody began before writing, one visit V until receipt     exact V: the Date is wrong, but nobody else saw it
    a holding begins later than now: the clock was wrong       likely, with its visit among them, even alone
    anything else                                              likely: V and all the others, with probabilities

    weight of a candidate, before the weights are scaled to the sum 1
    -----------------------------------------------------------------------------------------------------------
    held it when the mail was written                          1
    its lease ended a seconds before writing                   2 ** -(a / 3600)
    … as soon as 200 exact mails have shown how late           the density of those mails at that distance from the
      people write: all of them, held or not                   end of the lease
    began only after writing: it wrote the mail only if        0.01, and by its age as above, counted back from
      the Date is wrong, and then it wrote it before receipt   receipt
    began later than now: nobody knows when                    1, as if it had held it at writing
    several holdings of one visit                              the greatest of them

Late mail is why a holder that is alone within the window is not enough: who writes a day after seeing an address writes
to its last holder's, too. In a simulated site of 1,000 visits a day (benchmarks/day.py) one exact match in eight was
somebody else's without that condition.

What the recipients of one letter say is seen together (``agreed``): addresses that different people were shown make
nobody certain. Nor does a pool address whose sender wrote to it before, as somebody else's visit (``attribute_again``).

The method names the rule and its version; a stored attribution is never computed again. pool/1 was exact without the
condition for late mail; pool/2 weighs by the half-life, pool/3 by the delays that were learned.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from relay.core.model import Attribution, AttributionState, Candidate, Holding

POOL_METHOD = "pool/2"
#: The same, but the holders weigh by the delays that this server's own exact mail had.
LEARNED_METHOD = "pool/3"
THREAD_METHOD = "thread/1"
SENDER_METHOD = "sender/1"
PLUS_METHOD = "plus/1"
UNIQUE_METHOD = "unique/1"
#: A letter to the addresses of visits of different people.
SEVERAL_METHOD = "several/1"
STATIC_METHOD = "static/1"
#: A letter to a pool address by somebody who wrote to it before, as another visit.
AGAIN_METHOD = "again/1"

#: Seconds before receipt that a Date is believed; senders retry for up to five days (RFC 5321 §4.5.4.1).
DATE_REACH = 5 * 86400.0
#: Seconds after which an ended lease weighs half.
HALF_LIFE = 3600.0
#: Seconds after the end of a lease within which a mail is prompt. Later ones are exact only if nobody else held the
#: address for as long as senders' servers retry: people who write late write to any of its holders.
PROMPT = 3600.0
LATE_WINDOW = DATE_REACH
#: Exact mails from which on their delays say more than the half-life.
ENOUGH_DELAYS = 200
#: Seconds that delays are told apart by: dates are in seconds, clocks differ by more.
NARROWEST = 60.0
#: log2 of the chance that a sender's Date is wrong by more than the gap between two leases: one in a hundred.
LATER_LOG2 = math.log2(0.01)
#: Candidates that a letter to the addresses of several visits has at most, the likeliest.
SEVERAL_MOST = 20
#: Probability of the visit that wrote to a pool address before when its letter is answered, or its sender writes again.
#: Hardly anybody else has that letter; the rest is for senders' addresses that several people share.
EARLIER_SHARE = 0.9
#: A visit number has at most this many digits (20 hold any unsigned 64-bit number of another counter).
NUMBER_DIGITS = 20

Fill = Literal["exact", "inferred", "likely"]

_RANK = {
    AttributionState.EXACT: 0,
    AttributionState.INFERRED: 1,
    AttributionState.LIKELY: 2,
    AttributionState.CLAIMED: 3,
    AttributionState.NONE: 4,
}


def written_at(date: float | None, received: float) -> float:
    """When the mail was written: its Date, no later than receipt and no earlier than five days before it."""
    if date is None:
        return received
    return min(max(date, received - DATE_REACH), received)


@dataclass(frozen=True, slots=True)
class Delays:
    """How long after the end of its lease mail to an address is still written: the ages in seconds of exact mails,
    sorted; 0 and less is mail that was written while the address was held."""

    ages: tuple[float, ...] = ()

    @classmethod
    def of(cls, ages: Iterable[float]) -> Delays:
        return cls(tuple(sorted(ages)))

    @property
    def learned(self) -> bool:
        return len(self.ages) >= ENOUGH_DELAYS

    def log2_weight(self, age: float) -> float:
        """log2 of the weight of a holder whose lease ended ``age`` seconds before writing (negative: afterwards).

        Learned, it is the density of the delays there, by the distance to the nearest of them (a share of mail for a
        second): how much of its mail a visit sends at this time, which is what a mail at this time says of it.
        """
        if not self.learned:
            return -max(0.0, age) / HALF_LIFE
        total = len(self.ages)
        near = math.isqrt(total) // 2
        place = bisect_right(self.ages, age)
        if place == total and age > self.ages[-1]:  # nobody ever wrote so late: half a mail, thinned out
            return math.log2(0.5 / (total + 1) / max(age, HALF_LIFE))
        low, high = max(0, place - near), min(total - 1, place + near)
        width = max(self.ages[high] - self.ages[low], NARROWEST)
        return math.log2((high - low) / (total + 1) / width)


#: Nothing is known of delays yet: the half-life counts.
NO_DELAYS = Delays()


def attribute_pool(
    holdings: Sequence[Holding],
    written: float,
    received: float,
    window: float = 86400.0,
    delays: Delays = NO_DELAYS,
    astray: Collection[int] = (),
    known_since: float = -math.inf,
) -> Attribution:
    """Attribute a mail to a pool address. ``holdings`` are all that is known of that address, in any order.

    ``written`` comes from ``written_at``, ``window`` is the time in seconds before writing within which no other
    visit may have held the address. ``astray`` are the visits of holdings that begin later than now. Before
    ``known_since`` there may have been others that retention has removed, so nobody is certain whose match hangs on
    what was then. Linear in the holdings, but for the sorting of the candidates.
    """
    method = LEARNED_METHOD if delays.learned else POOL_METHOD
    window = reach(holdings, written, window)
    logs = _who_may_have(holdings, written, received, window, delays)
    for visit in astray:
        logs[visit] = max(delays.log2_weight(0.0), logs.get(visit, -1e300))
    if not logs:
        return Attribution(AttributionState.NONE, method)
    if len(logs) == 1 and not astray and written - window >= known_since:
        return Attribution(AttributionState.EXACT, method, visit=next(iter(logs)))
    return Attribution(AttributionState.LIKELY, method, candidates=_candidates(logs))


def reach(holdings: Iterable[Holding], written: float, window: float) -> float:
    """Seconds before writing within which who held the address counts: for late mail more than ``window``."""
    last = _last_before(holdings, written)
    late = 0.0 if last is None else written - last.end
    if late <= PROMPT:
        return window
    return max(window, LATE_WINDOW if late <= LATE_WINDOW else late + LATE_WINDOW)


def _last_before(holdings: Iterable[Holding], written: float) -> Holding | None:
    """The newest that began before the mail was written."""
    began = (holding for holding in holdings if holding.start <= written)
    return max(began, key=lambda holding: (holding.start, holding.end), default=None)


def _who_may_have(
    holdings: Sequence[Holding], written: float, received: float, window: float, delays: Delays
) -> dict[int, float]:
    """Visit: log2 of its weight; logarithms, so that no weight underflows to nothing."""
    last = _last_before(holdings, written)
    logs: dict[int, float] = {}
    for holding in holdings:
        if holding is last or (holding.start <= received and holding.end >= written - window):
            logs[holding.visit] = max(_log_weight(holding, written, received, delays), logs.get(holding.visit, -1e300))
    return logs


def _log_weight(holding: Holding, written: float, received: float, delays: Delays) -> float:
    if holding.start <= written:
        return delays.log2_weight(written - holding.end)
    return LATER_LOG2 + delays.log2_weight(received - holding.end)


def _candidates(logs: dict[int, float]) -> tuple[Candidate, ...]:
    most = max(logs.values())
    return _ranked({visit: 2.0 ** (log - most) for visit, log in logs.items()})


def _ranked(weights: Mapping[int, float], most: int | None = None) -> tuple[Candidate, ...]:
    """The likeliest of them, ``most`` at most, scaled to the sum 1."""
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:most]
    total = sum(weight for _, weight in ranked)
    return tuple(Candidate(visit, weight / total) for visit, weight in ranked)


def attribute_again(said: Attribution, earlier: int, people: Mapping[int, str]) -> Attribution:
    """What a pool address has ``said`` of a letter that answers one to the same address, exactly of the visit
    ``earlier``, or has its sender.

    Who takes the address from a sent letter or an address book writes to it when it is somebody else's by now. So
    nobody is certain, unless that is the same person's later visit (``people`` as for ``agreed``); the likeliest is the
    earlier visit, or that later one.
    """
    shares = _claim(said)
    own = [visit for visit in shares if people.get(visit, visit) == people.get(earlier, earlier)]
    if own and said.state is AttributionState.EXACT:
        return said
    weights = {visit: (1.0 - EARLIER_SHARE) * share for visit, share in shares.items()}
    likeliest = max(own, key=lambda visit: shares[visit], default=earlier)
    weights[likeliest] = weights.get(likeliest, 0.0) + EARLIER_SHARE
    return Attribution(AttributionState.LIKELY, AGAIN_METHOD, candidates=_ranked(weights))


def attribute_plus(tag: str, visit: int | None) -> Attribution:
    """Attribute a mail to ``local+tag@…``. ``visit`` is the row id of the site's visit with that number, if known.

    A number of no known visit is only claimed by the sender; a tag that is no number (1 to 20 digits) says nothing.
    """
    if not (tag.isascii() and tag.isdigit() and len(tag) <= NUMBER_DIGITS):
        return Attribution(AttributionState.NONE, PLUS_METHOD)
    if visit is None:
        return Attribution(AttributionState.CLAIMED, PLUS_METHOD, number=tag)
    return Attribution(AttributionState.EXACT, PLUS_METHOD, visit=visit)


def attribute_unique(visit: int | None) -> Attribution:
    """Attribute a mail to an address minted for one visit; ``visit`` is None when that visit has been erased."""
    if visit is None:
        return Attribution(AttributionState.NONE, UNIQUE_METHOD)
    return Attribution(AttributionState.EXACT, UNIQUE_METHOD, visit=visit)


def attribute_static(label: str | None) -> Attribution:
    """Attribute a mail to a static substitute: its label is certain, and there is no visit behind it."""
    return Attribution(AttributionState.EXACT, STATIC_METHOD, label=label)


def attribute_thread(visit: int) -> Attribution:
    """Attribute a mail that no binding explains, but that answers a message of this visit (RFC 5322 §3.6.4)."""
    return Attribution(AttributionState.INFERRED, THREAD_METHOD, visit=visit)


def attribute_sender(visit: int) -> Attribution:
    """Attribute a mail that no binding explains to the visit that its sender's last attributed mail came from."""
    return Attribution(AttributionState.INFERRED, SENDER_METHOD, visit=visit)


def agreed(attributions: Sequence[Attribution], people: Mapping[int, str]) -> list[Attribution]:
    """What a letter's recipients of one site say of its visit, with regard to each other.

    Who sees a page is shown one visit's addresses, so of recipients that name different people one at most is right,
    and all of them may have been harvested: none is certain then, and all that name a visit have the same candidates.
    ``people``: who a visit was, where that is known; two visits of one browser contradict each other in nothing.
    """
    claims = [claim for attribution in attributions if (claim := _claim(attribution))]
    certain = any(_names_one(attribution) for attribution in attributions)
    named = [{people.get(visit, visit) for visit in claim} for claim in claims]
    if not certain or set[int | str].intersection(*named):
        return list(attributions)
    weights: dict[int, float] = {}
    for claim in claims:
        for visit, weight in claim.items():
            weights[visit] = weights.get(visit, 0.0) + weight
    several = Attribution(AttributionState.LIKELY, SEVERAL_METHOD, candidates=_ranked(weights, SEVERAL_MOST))
    return [several if one.visit is not None or one.candidates else one for one in attributions]


def _names_one(attribution: Attribution) -> bool:
    return attribution.state is AttributionState.EXACT and attribution.visit is not None


def _claim(attribution: Attribution) -> dict[int, float]:
    """The visits that an address itself names, with their probabilities."""
    if attribution.state is AttributionState.EXACT and attribution.visit is not None:
        return {attribution.visit: 1.0}
    return {candidate.visit: candidate.probability for candidate in attribution.candidates}


def best(attributions: Sequence[Attribution]) -> int:
    """Index of the best-attributed, the first on a tie. ValueError when there is none to choose from."""
    return min(range(len(attributions)), key=lambda index: _RANK[attributions[index].state])


def stated_visit(attribution: Attribution, fill: Fill) -> int | None:
    """Row id of the visit whose fields a webhook with this ``fill`` states, or None (PRODUCT.md, ``fill``).

    A claimed number never fills anything: it goes out as ``visit_id`` with every other visit field null.
    """
    state = attribution.state
    if state is AttributionState.EXACT:
        return attribution.visit
    if state is AttributionState.INFERRED and fill in ("inferred", "likely"):
        return attribution.visit
    if state is AttributionState.LIKELY and fill == "likely" and attribution.candidates:
        return attribution.candidates[0].visit
    return None
