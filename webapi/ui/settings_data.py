"""How long what is kept, and which keys there are: both read here, and changed on the machine itself."""

from __future__ import annotations

from aiohttp import web

from relay.config.models import Retention
from relay.store.users import IDLE, INVITED, LIFETIME
from webapi.auth import Role
from webapi.ui.page import Page, View
from webapi.ui.settings_parts import SETTINGS, need_operator, settings_page

#: Key of [retention]: what it is about, and what happens then.
KEPT = (
    (
        "messages",
        "Messages in the history",
        "Sender, receivers, subject, text, visit and deal go. What still waits or is held stays.",
    ),
    (
        "raw",
        "Letters as received, and their files",
        "The original and its attachments go, so links to files end; the message stays in the history.",
    ),
    ("visits", "Visits", "They go with their source and what they were shown. The message stays, without its visit."),
    (
        "visitor_ip",
        "IP address and browser of visits",
        "City, country and kind of device stay with the visit. How much of an IP address is kept: privacy.visitor_ip.",
    ),
    (
        "routes",
        "Addresses that are out of use",
        "Until then mail to them is still forwarded, without a visit; afterwards it is refused.",
    ),
    ("changes", "The log of changes", "Who changed what, on the page Changes."),
)
#: Name of a key: what it is for, and what ends with a generation that is taken away.
PURPOSES = {
    "seal": (
        "Seals logins and secrets of webhooks and next hops in the database.",
        "What was sealed with it can never be read again: keep every line.",
    ),
    "links": (
        "Signs the links to attachments.",
        "Links that were signed with it end.",
    ),
    "srs": (
        "Signs the return addresses of forwarded mail.",
        "Bounces of mail forwarded with it are refused.",
    ),
    "loop": (
        "Recognises our own mail when it comes back.",
        "Mail stamped with it that comes back is taken for new.",
    ),
}


async def show_retention(view: View) -> web.Response:
    kept: Retention = view.context.retention
    rows = [(key, what, lasting(getattr(kept, key)), then) for key, what, then in KEPT]
    fixed = {"idle": lasting(IDLE), "lifetime": lasting(LIFETIME), "link": lasting(INVITED)}
    return settings_page(view, "settings_retention.html", rows=rows, fixed=fixed)


def lasting(seconds: float) -> str:
    """
    >>> lasting(180 * 86400), lasting(86400), lasting(90_000), lasting(90)
    ('180 days', '1 day', '25 hours', '90 seconds')
    """
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        count, rest = divmod(seconds, size)
        if count and not rest:
            return f"{count:.0f} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:.0f} seconds"


async def show_keys(view: View) -> web.Response:
    need_operator(view)
    files = view.context.keys.files()
    return settings_page(view, "settings_keys.html", files=[(file, *PURPOSES[file.name]) for file in files])


PAGES = (
    Page("GET", f"{SETTINGS}/retention", show_retention, Role.ADMIN),
    Page("GET", f"{SETTINGS}/keys", show_keys, Role.ADMIN),
)
