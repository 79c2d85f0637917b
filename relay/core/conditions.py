"""Which letters become deals (PRODUCT.md, "The POST to the CRM").

A letter that fails a condition is not posted, and History shows the reason given here. Whether the site sends
anything at all (*Send to CRM*) is the caller's question.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.core.model import AttributionState

BOUNCE = "bounce"
AUTOMATIC = "automatic mail"
NO_VISIT = "no visit"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a letter when it is accepted.

    ``auto`` is the scanner's reason for automatic mail, or None. ``null_sender``: the reverse-path was ``<>``.
    """

    attribution: AttributionState
    bounce: bool = False
    null_sender: bool = False
    auto: str | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a site asks of a letter before it becomes a deal. The defaults are the product's."""

    require_visit: bool = True
    refuse_bounces: bool = True
    refuse_automatic: bool = True


def verdict(facts: Facts, conditions: Conditions | None = None) -> str | None:
    """None when the letter is to be posted, else the reason why not, one line for History.

    Any attribution but ``none`` has a visit: ``likely`` has candidates, ``claimed`` a number. A static substitute is
    ``exact`` and passes too, though there is no visit behind it: its label answers the same question, where the
    enquiry came from, and whoever prints an address on a card wants its enquiries in the CRM.
    """
    asked = conditions or Conditions()
    if asked.refuse_bounces and (facts.bounce or facts.null_sender):
        return BOUNCE
    if asked.refuse_automatic and facts.auto is not None:
        return f"{AUTOMATIC} ({facts.auto})"
    if asked.require_visit and facts.attribution is AttributionState.NONE:
        return NO_VISIT
    return None
