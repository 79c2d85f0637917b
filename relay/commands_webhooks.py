"""The commands about webhooks (relay/commands.py runs them). What relay.toml declares is changed there."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from relay.config import fields as f
from relay.config.models import Section
from relay.config.webhook import HookChange, HookOptions
from relay.control import ControlError, Lines
from relay.declare import fresh_secret
from relay.hook_changes import HookRefused, changed_webhook, new_webhook
from relay.store import hook_edition, replay, webhooks
from relay.store.directory import SiteView, WebhookView
from relay.store.engine import Tx
from relay.store.replay import Selection
from relay.store.site_definitions import EditionPassed
from relay.store.sites import DeclaredElsewhere
from relay.workplace import Command, Workplace
from webapi.compose import Composer
from webapi.replays import replay_selected
from webapi.trial import trial


class AddWebhook(HookOptions):
    """``secret`` None: one is generated, and is in the answer this once."""

    site: f.SiteName
    url: f.WebhookUrl
    secret: f.WebhookSecret | None = Field(default=None, repr=False)


async def add_webhook(place: Workplace, given: AddWebhook) -> Lines:
    site = place.site(given.site)
    if site.declared:
        raise DeclaredElsewhere(site.name)
    secret, now = given.secret or fresh_secret(), place.clock()
    try:
        wanted = new_webhook(site, given.url, secret, given, place.keys, called=f"site {site.name!r}")
    except HookRefused as error:
        raise ControlError(str(error), error.field or "site") from None
    webhook_id = await place.redefine(lambda tx: webhooks.add(tx, site.id, wanted, now))
    return {"id": webhook_id} | ({} if given.secret else {"secret": secret})


class NamedWebhook(Section):
    webhook: Annotated[int, Field(ge=1)]


class ChangeWebhook(HookChange):
    """What is left out stays as it is."""

    webhook: Annotated[int, Field(ge=1)]
    url: f.WebhookUrl | None = None


async def change_webhook(place: Workplace, given: ChangeWebhook) -> Lines:
    site, webhook = _own(place, given.webhook)
    try:
        wanted = changed_webhook(site, webhook, given.url, given, place.keys, called=f"site {site.name!r}")
    except HookRefused as error:
        raise ControlError(str(error), error.field or "webhook") from None

    def change(tx: Tx) -> bool:
        hook_edition.expect(tx, webhook.id, hook_edition.edition(webhook))
        return webhooks.change(tx, webhook.id, wanted)

    try:
        await place.redefine(change)
    except EditionPassed:
        raise ControlError(f"somebody else has changed webhook {webhook.id} meanwhile: try again", "webhook") from None
    return {"id": webhook.id, "url": wanted.url}


async def remove_webhook(place: Workplace, given: NamedWebhook) -> Lines:
    _, webhook = _own(place, given.webhook)
    now = place.clock()
    await place.redefine(lambda tx: webhooks.remove(tx, webhook.id, now))
    return {"id": webhook.id, "url": webhook.url}


async def enable_webhook(place: Workplace, given: NamedWebhook) -> Lines:
    """Post to it again, after a 410 or somebody's hand had disabled it."""
    _, webhook = _webhook(place, given.webhook)
    await place.redefine(lambda tx: webhooks.enable(tx, webhook.id))
    place.posts_due()
    return {"id": webhook.id, "url": webhook.url}


async def disable_webhook(place: Workplace, given: NamedWebhook) -> Lines:
    """Post nothing more to it; what waits for it fails, and can be replayed."""
    _, webhook = _webhook(place, given.webhook)
    now = place.clock()
    await place.redefine(lambda tx: webhooks.switch_off(tx, webhook.id, webhooks.BY_HAND, now))
    return {"id": webhook.id, "url": webhook.url}


class RotateSecret(NamedWebhook):
    """``secret`` None: one is generated. ``keep``: how long the one before signs as well."""

    secret: f.WebhookSecret | None = Field(default=None, repr=False)
    keep: Annotated[float, f.between("0s", "30d")] = 86_400.0


async def rotate_secret(place: Workplace, given: RotateSecret) -> Lines:
    _, webhook = _own(place, given.webhook)
    secret = given.secret or fresh_secret()
    sealed, until = place.keys.seal(secret), place.clock() + given.keep
    await place.redefine(lambda tx: webhooks.rotate(tx, webhook.id, sealed, until))
    return {"id": webhook.id, "url": webhook.url} | ({} if given.secret else {"secret": secret})


async def try_webhook(place: Workplace, given: NamedWebhook) -> Lines:
    """Post a made-up letter to it and tell what came of it."""
    site, webhook = _webhook(place, given.webhook)
    config = place.config
    found = await trial(
        Composer(place.keys, config.http.public_url, config.retention.raw),
        webhook.hook,
        site.name,
        f"test_{secrets.token_hex(8)}",
        allow_private_addresses=config.webhooks.allow_private_addresses,
        clock=place.clock,
    )
    request = None if found.request is None else dataclasses.asdict(found.request)
    if request is not None:
        request["body"] = request["body"].decode("utf-8", "replace")
    return {
        "url": webhook.url,
        "succeeded": found.succeeded,
        "request": request,
        "status": found.status,
        "answer": found.answer,
        "seconds": found.seconds,
        "deal": found.deal,
    }


class ReplayWebhook(NamedWebhook):
    """Either all that have failed, or all letters that were received in a time (seconds since the epoch)."""

    failed: bool = False
    since: float | None = None
    until: float | None = None
    reattribute: bool = False


async def replay_webhook(place: Workplace, given: ReplayWebhook) -> Lines:
    """Post to it again, under the same webhook-ids."""
    ranged = given.since is not None or given.until is not None
    if given.failed == ranged:
        raise ControlError("give either failed, or since and until", "failed")
    site, webhook = _webhook(place, given.webhook)
    if not webhook.enabled:  # before anything is attributed anew
        raise _disabled(webhook.id)
    wanted = Selection(given.failed, given.since, given.until)
    evidence = place.evidence() if given.reattribute else None
    try:
        count = await replay_selected(place.store, webhook.id, site.id, wanted, place.clock(), evidence, place.write)
    except replay.OutOfUse:
        raise _disabled(webhook.id) from None
    place.posts_due()
    return {"posts": count}


COMMANDS: Mapping[str, Command] = {
    "webhook.add": Command(AddWebhook, add_webhook),
    "webhook.change": Command(ChangeWebhook, change_webhook),
    "webhook.remove": Command(NamedWebhook, remove_webhook),
    "webhook.enable": Command(NamedWebhook, enable_webhook),
    "webhook.disable": Command(NamedWebhook, disable_webhook),
    "webhook.rotate": Command(RotateSecret, rotate_secret),
    "webhook.test": Command(NamedWebhook, try_webhook, audited=False),
    "webhook.replay": Command(ReplayWebhook, replay_webhook),
}


def _webhook(place: Workplace, webhook_id: int) -> tuple[SiteView, WebhookView]:
    for site in place.store.sites.by_id.values():
        for webhook in site.webhooks:
            if webhook.id == webhook_id:
                place.about(site.id)
                return site, webhook
    raise ControlError(f"there is no webhook {webhook_id}", "webhook")


def _disabled(webhook_id: int) -> ControlError:
    return ControlError(f"webhook {webhook_id} is disabled: enable it first", "webhook")


def _own(place: Workplace, webhook_id: int) -> tuple[SiteView, WebhookView]:
    """A webhook that is not declared; raises DeclaredElsewhere."""
    site, webhook = _webhook(place, webhook_id)
    if webhook.declared:
        raise DeclaredElsewhere(site.name)
    return site, webhook
