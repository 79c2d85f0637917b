"""The forms of a site: its fields, and what of its definition each of them changes (webapi/site_models.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.config.models import DEFAULT_POOL_SIZE
from relay.core.model import Method
from webapi.site_models import SiteShown, SourceShown
from webapi.ui import forms
from webapi.ui.forms import Form

#: A new site: the rest has defaults that are good to begin with.
NEW = Form({"name": forms.TEXT, "origins": forms.ITEMS, "tracking": forms.BOX, "send_to_crm": forms.BOX})
#: A target. Its address is what it is known by, so it is given once.
TARGET = Form(
    {
        "method": forms.TEXT,
        "domain": forms.TEXT,
        "pool": forms.ITEMS,
        "pool_size": forms.OPTIONAL_NUMBER,
        "lease": forms.TEXT,
        "forward_to": forms.TEXT,
        "next_hop": forms.TEXT,
        "additional": forms.BOX,
    }
)
NEW_TARGET = Form({"address": forms.TEXT, **TARGET.fields})
STATIC = Form({"address": forms.TEXT, "target": forms.TEXT, "label": forms.TEXT})
ADDITION = Form({"grow": forms.OPTIONAL_NUMBER, "addresses": forms.ITEMS})
SETTINGS = Form(
    {
        "origins": forms.ITEMS,
        "require_visit": forms.BOX,
        "skip_bounces": forms.BOX,
        "skip_automatic": forms.BOX,
        "touch": forms.TEXT,
        "visit_timeout": forms.TEXT,
        "visit_cookie": forms.TEXT,
        "marker_cookie": forms.TEXT,
        "cookie_domain": forms.TEXT,
        "server_cookies": forms.BOX,
        "lease_on": forms.TEXT,
        "reserve": forms.NUMBER,
        "bots": forms.TEXT,
        "respect_gpc": forms.BOX,
        "google_analytics": forms.BOX,
        "metrica": forms.NUMBER,
    }
)
RULE = Form(
    {
        "marker": forms.TEXT,
        "channel": forms.OPTIONAL,
        "referrer": forms.TEXT,
        "parameter": forms.TEXT,
        "value": forms.TEXT,
        "page": forms.TEXT,
    }
)
FIRST_TARGET = "targets[0]."
NEW_TARGET_VALUES: Mapping[str, Any] = {"method": "pool", "lease": "15m"}


def definition(site: SiteShown) -> dict[str, Any]:
    """A site as the API takes it: what it shows, but for whether relay.toml declares it and what has forms of its own.

    Switches are not in it: a form that was opened before somebody threw one would put it back.
    """
    return site.model_dump(mode="json", exclude={"declared", "edition", "tracking", "send_to_crm"})


def target_of(given: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A target of what its form says; ``before`` is the one it was, whose address and pool stay.

    Fields that another method would take are hidden in the form, so what is left in them counts for nothing.
    """
    target = dict(given)
    has_pool = before is not None and before["pool"] != []
    if target["method"] != Method.POOL:
        target["pool"], target["pool_size"] = [], None
    elif has_pool:
        assert before is not None
        target["pool"], target["pool_size"] = before["pool"], None
    elif target["pool"] == [] and target["pool_size"] is None and target["domain"]:
        target["pool_size"] = DEFAULT_POOL_SIZE
    if target["pool_size"] is None:
        del target["pool_size"]
    if not target["lease"]:
        del target["lease"]
    return target if before is None else {"address": before["address"], **target}


def rule_in_words(rule: SourceShown) -> str:
    """What a rule asks of a page view: "comes from partner.example, has ?ref=spring"."""
    said = []
    if rule.referrer:
        said.append(f"comes from {rule.referrer}")
    if rule.parameter:
        said.append(f"has ?{rule.parameter}={rule.value}" if rule.value else f"has ?{rule.parameter}=…")
    if rule.page:
        said.append(f"begins on {rule.page}")
    return " and ".join(said)
