"""The form of a webhook, and its conditions in words (webapi/hook_models.py).

What only the receiver may know – a login, the values of header fields and variables – is never shown. The form says
"keep" for it, and a change then leaves it out; a new value takes its place as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from relay import presets
from webapi.problems import Problem
from webapi.site_models import SiteShown
from webapi.ui import forms
from webapi.ui.forms import Form, Given, Shown

_CONDITIONS = {
    "conditions.require_visit": forms.AS_SITE,
    "conditions.skip_bounces": forms.AS_SITE,
    "conditions.skip_automatic": forms.AS_SITE,
    "conditions.skip_blocked": forms.AS_SITE,
    "conditions.attribution": forms.TEXT,
    "conditions.first_letter": forms.TEXT,
    "conditions.min_size": forms.SIZE,
    "conditions.max_size": forms.SIZE,
    "conditions.max_recipients": forms.NUMBER,
    "conditions.recipients": forms.ITEMS,
    "conditions.subject": forms.TEXT,
}
HOOK = Form(
    {
        "url": forms.TEXT,
        "events": forms.BOXES,
        "fill": forms.TEXT,
        "extras": forms.BOX,
        "concurrency": forms.NUMBER,
        "deal_id": forms.TEXT,
        "deal_url": forms.TEXT,
        **_CONDITIONS,
    }
)
#: What the form has besides, for what is not shown or is one of several things.
SHAPE = Form({"shape": forms.TEXT, "template": forms.BLOCK})
LOGIN = Form({"login": forms.TEXT, "basic": forms.TEXT, "bearer": forms.TEXT})
HEADERS = Form({"headers": forms.HEADERS})
VARIABLES = Form({"variables": forms.VARIABLES})
SECRET = Form({"secret": forms.OPTIONAL})
ROTATION = Form({"secret": forms.OPTIONAL, "keep": forms.TEXT})
REPLAY = Form({"what": forms.TEXT, "since": forms.TEXT, "until": forms.TEXT, "reattribute": forms.BOX})

#: ``shape`` of a webhook with a template of its own; empty for none, else a preset's name.
OWN = "own"
#: Names of everything that the form shows: by them errors find their fields.
NAMES = (*HOOK.fields, *SHAPE.fields, *LOGIN.fields, *HEADERS.fields, *VARIABLES.fields, *SECRET.fields)
NEW_VALUES: Mapping[str, Any] = {
    "events": ["message.received"],
    "fill": "inferred",
    "concurrency": 10,
    "conditions": {
        **dict.fromkeys(("require_visit", "skip_bounces", "skip_automatic", "skip_blocked"), "site"),
        "first_letter": "0s",
        "max_recipients": 0,
    },
}


def read(given: Given, *, new: bool) -> dict[str, Any]:
    """The body of the operation that makes a webhook, or changes one; raises Problem 400 with all errors at once."""
    body: dict[str, Any] = {}
    errors: list[tuple[str, str]] = []
    parts = [HOOK]
    parts += [HEADERS] if new or _replaced(given, "headers") else []
    parts += [VARIABLES] if new or _replaced(given, "variables") else []
    parts += [SECRET] if new else []
    for part in parts:
        try:
            body |= part.read(given)
        except Problem as problem:
            errors += problem.errors
    if errors:
        raise Problem(400, errors[0][1], errors=tuple(errors))
    body["conditions"]["first_letter"] = body["conditions"]["first_letter"] or "0s"
    if body.get("secret", "") is None:
        del body["secret"]
    body |= _template(given) | _login(given)
    if not body["template"]:
        body.setdefault("variables", {})  # those that were kept are nobody's any more
    return body


def _replaced(given: Given, name: str) -> bool:
    """Whether something was typed, or what is stored is to go."""
    kept = forms.last(given.get(f"{name}_kept", ())) == "on"
    return not kept or bool(forms.last(given.get(name, ())).strip())


def _template(given: Given) -> dict[str, Any]:
    shape = SHAPE.read(given)
    return {"template": shape["template"] if shape["shape"] == OWN else shape["shape"]}


def _login(given: Given) -> dict[str, Any]:
    """``login``: keep, none, basic or bearer. One that is given ends the other."""
    login = LOGIN.read(given)
    if login["login"] == "keep":
        return {}
    return {name: login[name] if login["login"] == name else "" for name in ("basic", "bearer")}


def typed(given: Given) -> dict[str, Shown]:
    """What was typed. Secrets too: the page is the answer to whoever has just sent them, and kept by nobody."""
    values: dict[str, Shown] = {}
    for part in (HOOK, SHAPE, LOGIN, HEADERS, VARIABLES, SECRET):
        values |= part.typed(given)
    values |= {f"{name}_kept": not _replaced(given, name) for name in ("headers", "variables")}
    # Of what was shown, not of what there is: corrected and sent again, the form may still be late.
    return values | {"edition": forms.last(given.get("edition", ()))}


def filled(webhook: Mapping[str, Any]) -> dict[str, Shown]:
    """What the form shows of a webhook; of a new one with NEW_VALUES."""
    template = webhook.get("template", "")
    own = template not in ("", *presets.names())
    known = "id" in webhook
    return {
        "edition": webhook.get("edition", ""),
        **HOOK.filled(webhook),
        "shape": OWN if own else template,
        "template": template if own else "",
        "login": "keep" if webhook.get("login") else "none",
        "basic": "",
        "bearer": "",
        "headers": "",
        "headers_kept": known and bool(webhook.get("headers")),
        "variables": "",
        "variables_kept": known and bool(webhook.get("variables")),
        "secret": "",
    }


def site_conditions(site: SiteShown) -> list[str]:
    """What a site asks of a letter before it is posted, in words that go on from "A letter becomes a deal when it"."""
    return _kinds(site.require_visit, site.skip_bounces, site.skip_automatic, blocked=True)


def conditions(asked: Mapping[str, Any], site: SiteShown) -> list[str]:
    """The same of a webhook, with what it leaves to its site; ``asked`` is its ConditionsShown."""

    def of(name: str, of_site: bool) -> bool:
        return of_site if asked[name] == "site" else bool(asked[name])

    words = _kinds(
        of("require_visit", site.require_visit),
        of("skip_bounces", site.skip_bounces),
        of("skip_automatic", site.skip_automatic),
        blocked=of("skip_blocked", True),
    )
    if asked["attribution"]:
        words.append(_CERTAIN[asked["attribution"]])
    if asked["first_letter"] != "0s":
        words.append(f"is the sender's first in {asked['first_letter']}")
    words += _sizes(asked["min_size"], asked["max_size"])
    if asked["max_recipients"]:
        words.append(f"has at most {asked['max_recipients']} of our addresses as recipients")
    if asked["recipients"]:
        words.append("was sent to " + _either(asked["recipients"]))
    if asked["subject"]:
        words.append(f"has a subject that matches {asked['subject']}")
    return words


_CERTAIN = {
    "exact": "has an exact attribution",
    "inferred": "has an exact or inferred attribution",
    "likely": "has an exact, inferred or likely attribution",
}


def _kinds(visit: bool, bounces: bool, automatic: bool, *, blocked: bool) -> list[str]:
    said = (
        (visit, "has a visit, or was sent to a static address"),
        (bounces, "is no bounce"),
        (automatic, "is no automatic mail"),
        (blocked, "comes from no blocked sender"),
    )
    return [words for asked, words in said if asked]


def _sizes(least: int, most: int) -> list[str]:
    shown = forms.SIZE.show
    words = [f"is at least {_octets(shown(least))}"] if least else []
    return words + ([f"is at most {_octets(shown(most))}"] if most else [])


def _octets(shown: Shown) -> str:
    return f"{shown} large" if str(shown).endswith("B") else f"{shown} octets large"


def _either(names: Sequence[str]) -> str:
    most = 3
    if len(names) > most:
        return f"{', '.join(names[:most])} or one of {len(names) - most} others"
    return " or ".join(names)
