"""Which letters become deals (PRODUCT.md, "The POST to the CRM"): one function, :func:`verdict`.

A letter that fails a condition is not posted, and History shows the reason given here. A site says what its webhooks
ask for, a webhook may say otherwise for itself (:func:`overlaid`). Whether the site sends anything at all
(*Send to CRM*) is the caller's question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import re2

from relay.core.model import AttributionState

BOUNCE = "bounce"
AUTOMATIC = "automatic mail"
BLOCKED = "blocked sender"
NO_VISIT = "no visit"

Least = Literal["exact", "inferred", "likely"]
_RANK = {"exact": 0, "inferred": 1, "likely": 2}

#: Characters of a pattern, and octets that its compiled form may take; characters of a subject that are searched (a
#: line of RFC 5322 §2.1.1). RE2 never backtracks: its time is the product of the two at worst, so these are the time
#: limit, a few milliseconds for the largest pattern: the writer, which all mail waits for, judges up to twenty for
#: a letter.
PATTERN = 500
SUBJECT = 998
_PROGRAM = 1 << 15
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a letter once it was read.

    ``auto`` is the scanner's reason for automatic mail, or None. ``null_sender``: the reverse-path was ``<>``.
    ``size`` is in octets. ``recipients`` are all that it was sent to here, ``addresses`` the site's substitutes and
    real addresses among them. ``previous``: seconds since the letter before it of the same sender, None for the first.
    """

    attribution: AttributionState
    bounce: bool = False
    null_sender: bool = False
    auto: str | None = None
    blocked: bool = False
    size: int = 0
    recipients: int = 1
    addresses: frozenset[str] = frozenset()
    subject: str = ""
    previous: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is asked of a letter before it becomes a deal. The defaults are the product's; None and 0 ask nothing.

    ``attribution``: at least this certain. ``first_letter``: seconds within which the sender has not written before.
    ``addresses``: sent to one of these, folded. ``subject``: a regular expression (RE2) that matches somewhere in it,
    whatever the case, in its first SUBJECT characters.
    """

    require_visit: bool = True
    refuse_bounces: bool = True
    refuse_automatic: bool = True
    refuse_blocked: bool = True
    attribution: Least | None = None
    first_letter: float = 0.0
    min_size: int = 0
    max_size: int = 0
    max_recipients: int = 0
    addresses: tuple[str, ...] = ()
    subject: str | None = None


_NAMES = frozenset(each.name for each in fields(Conditions))


def overlaid(of_site: Mapping[str, Any], of_webhook: Mapping[str, Any]) -> Conditions:
    """The site's conditions, and over them what the webhook says for itself. Unknown names count for nothing."""
    values = {name: value for name, value in {**of_site, **of_webhook}.items() if name in _NAMES}
    if "addresses" in values:
        values["addresses"] = tuple(values["addresses"])
    return Conditions(**values)


#: What the product asks unless somebody says otherwise.
DEFAULT = Conditions()


def verdict(facts: Facts, asked: Conditions = DEFAULT) -> str | None:
    """None when the letter is to be posted, else the reason why not, one line for History.

    Any attribution but ``none`` has a visit: ``likely`` has candidates, ``claimed`` a number. A static substitute is
    ``exact`` and passes too, though there is no visit behind it: its label answers the same question, where the
    enquiry came from, and whoever prints an address on a card wants its enquiries in the CRM.
    """
    return _kind(facts, asked) or _certainty(facts, asked) or _letter(facts, asked)


def _kind(facts: Facts, asked: Conditions) -> str | None:
    if asked.refuse_bounces and (facts.bounce or facts.null_sender):
        return BOUNCE
    if asked.refuse_automatic and facts.auto is not None:
        return f"{AUTOMATIC} ({facts.auto})"
    if asked.refuse_blocked and facts.blocked:
        return BLOCKED
    return None


def _certainty(facts: Facts, asked: Conditions) -> str | None:
    if asked.require_visit and facts.attribution is AttributionState.NONE:
        return NO_VISIT
    if asked.attribution is not None and _RANK.get(facts.attribution.value, 9) > _RANK[asked.attribution]:
        return f"the attribution is {facts.attribution.value}, not {asked.attribution}"
    return None


def _letter(facts: Facts, asked: Conditions) -> str | None:
    if asked.first_letter and facts.previous is not None and facts.previous < asked.first_letter:
        return f"not the sender's first letter in {_span(asked.first_letter)}"
    if facts.size < asked.min_size:
        return f"smaller than {asked.min_size} octets"
    if asked.max_size and facts.size > asked.max_size:
        return f"larger than {asked.max_size} octets"
    if asked.max_recipients and facts.recipients > asked.max_recipients:
        return f"more than {asked.max_recipients} recipients"
    if asked.addresses and facts.addresses.isdisjoint(asked.addresses):
        return "sent to other addresses"
    if asked.subject and not _matches(asked.subject, facts.subject):
        return "the subject does not match"
    return None


def _matches(pattern: str, subject: str) -> bool:
    try:
        return compiled(pattern).search(subject[:SUBJECT].encode("utf-8", "replace")) is not None
    except ValueError:
        return False  # an older version took it: better no deal than a letter that is never read


def _span(seconds: float) -> str:
    return f"{seconds / _DAY:g} days" if seconds >= _DAY else f"{seconds / 3600:g} hours"


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """The pattern; raises ValueError that says what is wrong with it."""
    if len(pattern) > PATTERN:
        raise ValueError(f"must have at most {PATTERN} characters")
    options = re2.Options()
    options.case_sensitive = False
    options.max_mem = _PROGRAM
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"is not a regular expression of RE2: {said}") from None
