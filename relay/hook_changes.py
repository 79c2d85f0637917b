"""What a webhook is to become, as the API and the command line are told it: judged, and sealed for the store.

What may be done to which webhook (declared ones, how many a caller sees) is each side's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from relay.config.problems import OptionError
from relay.config.webhook import HookChange, HookOptions, changed, check_template, options_of
from relay.core.hook import Access, HookSettings
from relay.secrets import Keys, SealError
from relay.store import webhooks
from relay.store.directory import SiteView, WebhookView
from relay.store.site_definitions import CHANGED, members, values
from relay.store.webhooks import WebhookDefinition


class HookRefused(Exception):
    """A webhook cannot be so. ``field`` names what was given wrongly, None when nothing was.

    ``conflict``: it is what there is already that stands against it.
    """

    def __init__(self, message: str, field: str | None, *, conflict: bool = False) -> None:
        super().__init__(message)
        self.field = field
        self.conflict = conflict


def new_webhook(
    site: SiteView, url: str, secret: str, options: HookOptions, keys: Keys, *, called: str = "the site"
) -> WebhookDefinition:
    """A further webhook of the site, which messages name as ``called``; raises HookRefused."""
    if len(site.webhooks) >= webhooks.MOST:
        raise HookRefused(f"{called} has {webhooks.MOST} webhooks, the most it may have", None, conflict=True)
    return _definition(site.webhooks, url, secret, options, keys, called)


def changed_webhook(
    site: SiteView, webhook: WebhookView, url: str | None, change: HookChange, keys: Keys, *, called: str = "the site"
) -> WebhookDefinition:
    """What the webhook becomes; ``url`` None: it keeps its own. Raises HookRefused.

    What only the receiver may know has to be readable: it would be lost otherwise.
    """
    sealed = webhook.hook.access
    try:
        access = Access() if sealed is None else Access.from_json(keys.unseal(sealed))
        options = changed(options_of(webhook.fill, webhook.hook.settings, access), change)
    except SealError as error:
        message = f"its login, header fields and variables cannot be read: {error}"
        raise HookRefused(message, None, conflict=True) from None
    except OptionError as error:
        raise _refused(error) from None
    others = (other for other in site.webhooks if other.id != webhook.id)
    return _definition(others, url or webhook.url, None, options, keys, called)


def difference(webhook: WebhookView, wanted: WebhookDefinition | None, enabled: bool, keys: Keys) -> dict[str, Any]:
    """What becomes another, for the log of changes; of what may hold a secret (a URL, too) that it does, no more."""
    told = values({"enabled": webhook.enabled}, {"enabled": enabled})
    if wanted is None:
        return told
    before, after = (_plain(settings) for settings in (webhook.hook.settings, wanted.settings))
    told |= values({"url": webhook.url, "fill": webhook.fill}, {"url": wanted.url, "fill": wanted.fill}, ("url",))
    told |= members("events", before.pop("events"), after.pop("events"))
    conditions = values(before.pop("conditions"), after.pop("conditions"))
    told |= {f"conditions.{name}": value for name, value in conditions.items()}
    told |= values(before, after, ("template",))
    old, new = _access(webhook.hook.access, keys), _access(wanted.access, keys)
    same = {
        "headers": old.headers == new.headers,
        "login": old.authorization == new.authorization,
        "variables": dict(old.variables) == dict(new.variables),
    }
    return told | {name: CHANGED for name, is_same in same.items() if not is_same}


def _plain(settings: HookSettings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(settings.to_json())
    return plain


def _access(sealed: str | None, keys: Keys) -> Access:
    return Access() if sealed is None else Access.from_json(keys.unseal(sealed))


def _definition(
    others: Iterable[WebhookView], url: str, secret: str | None, options: HookOptions, keys: Keys, called: str
) -> WebhookDefinition:
    if any(other.url == url for other in others):
        raise HookRefused(f"{called} has a webhook with this URL already", "url", conflict=True)
    try:
        check_template(url, options)
    except OptionError as error:
        raise _refused(error) from None
    return webhooks.definition(url, secret, options.fill, options.settings(), options.access(), keys.seal)


def _refused(error: OptionError) -> HookRefused:
    return HookRefused(f"{error.field}: {error}", error.field)
