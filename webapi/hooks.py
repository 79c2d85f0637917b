"""Webhooks over HTTP: where a site's events are posted (webhooks.py posts them, hook_log.py has what came of it)."""

from __future__ import annotations

import os
import secrets

from relay.hook_changes import HookRefused, changed_webhook, difference, new_webhook
from relay.store import hook_edition, post_log, webhooks
from relay.store.directory import SiteView, WebhookView
from relay.store.engine import Tx
from relay.store.noting import always
from relay.store.site_definitions import EditionPassed
from webapi import signature
from webapi.auth import Role, visible_site
from webapi.hook_models import (
    ChangedWebhook,
    DealAnswered,
    NewWebhook,
    Rotation,
    SecretShown,
    Tested,
    WebhookCreated,
    WebhookDetail,
    WebhookList,
    WebhookShown,
    request_shown,
    shown,
)
from webapi.operation import Call, Operation
from webapi.problems import Outdated, Problem, not_found
from webapi.trial import trial
from webapi.values import moment_or_none, row_id

#: Times that a change is tried while others change the webhook.
TRIES = 20


async def list_webhooks(call: Call) -> WebhookList:
    site = visible_site(call.context.store, call.caller, call.path["name"])
    return WebhookList(items=[_shown(call, site, webhook) for webhook in site.webhooks])


async def show_webhook(call: Call) -> WebhookDetail:
    site, webhook = find(call)
    reader = call.context.store.reader
    doing = await post_log.doing(reader, webhook.id)
    ended = [one.state for one in await post_log.recent(reader, webhook.id) if one.state in ("delivered", "failed")]
    standing = call.context.standing(webhook.id)
    return WebhookDetail(
        **shown(site, webhook, call.context.keys),
        waiting=doing.waiting,
        failed=doing.failed,
        last_at=moment_or_none(doing.last_at),
        last_status=doing.last_status,
        last_answer=doing.last_answer,
        recent=len(ended),
        delivered=ended.count("delivered"),
        failures=standing.failures,
        rests_for=standing.rests_for,
    )


async def create_webhook(call: Call) -> WebhookCreated:
    body: NewWebhook = call.body
    site = visible_site(call.context.store, call.caller, call.path["name"])
    _refuse_declared(site.declared)
    secret = body.secret or signature.new_secret(os.urandom(32))
    try:
        wanted = new_webhook(site, body.url, secret, body, call.context.keys)
    except HookRefused as error:
        raise _problem(error) from None
    now = call.context.clock()
    webhook_id = await call.redefine(lambda tx: webhooks.add(tx, site.id, wanted, now))
    site, webhook = find(call, webhook_id)
    return WebhookCreated(**shown(site, webhook, call.context.keys), secret=secret)


async def change_webhook(call: Call) -> WebhookShown:
    body: ChangedWebhook = call.body
    for left in reversed(range(TRIES)):
        try:
            await _change(call, body)
        except EditionPassed:  # what the change leaves out is to stay as somebody else has just made it
            if body.edition is not None or left == 0:
                raise Outdated("the webhook") from None
        else:
            break
    call.context.on_posts_due()
    return _shown(call, *find(call))


async def _change(call: Call, body: ChangedWebhook) -> None:
    """Change it as it is known; raises EditionPassed where somebody else has changed it meanwhile."""
    context = call.context
    site, webhook = find(call)
    expected = hook_edition.edition(webhook) if body.edition is None else body.edition
    wanted = None
    if body.model_fields_set - {"enabled", "edition"}:  # a switch, unlike a definition, is not relay.toml's alone
        _refuse_declared(webhook.declared)
        try:
            wanted = changed_webhook(site, webhook, body.url, body, context.keys)
        except HookRefused as error:
            raise _problem(error) from None
    now = context.clock()
    if call.note is not None:
        enabled = webhook.enabled if body.enabled is None else body.enabled
        call.note.tell(difference(webhook, wanted, enabled, context.keys))

    def change(tx: Tx) -> None:
        hook_edition.expect(tx, webhook.id, expected)
        if wanted is not None:
            webhooks.change(tx, webhook.id, wanted)
        if body.enabled and not webhook.enabled:
            webhooks.enable(tx, webhook.id)
        elif body.enabled is False and webhook.disabled_reason not in webhooks.ON_PURPOSE:
            webhooks.switch_off(tx, webhook.id, webhooks.BY_HAND, now)

    await call.redefine(change, always)


async def delete_webhook(call: Call) -> None:
    _, webhook = find(call)
    _refuse_declared(webhook.declared)
    now = call.context.clock()
    if not await call.redefine(lambda tx: webhooks.remove(tx, webhook.id, now)):
        raise not_found("webhook")


async def enable_webhook(call: Call) -> WebhookShown:
    _, webhook = find(call)
    await call.redefine(lambda tx: webhooks.enable(tx, webhook.id))
    call.context.on_posts_due()
    return _shown(call, *find(call))


async def rotate_secret(call: Call) -> SecretShown:
    body: Rotation = call.body
    _, webhook = find(call)
    _refuse_declared(webhook.declared)
    secret = body.secret or signature.new_secret(os.urandom(32))
    sealed, until = call.context.keys.seal(secret), call.context.clock() + body.keep
    if not await call.redefine(lambda tx: webhooks.rotate(tx, webhook.id, sealed, until)):
        raise not_found("webhook")
    return SecretShown(secret=secret)


async def test_webhook(call: Call) -> Tested:
    """Post a made-up letter to it now, whether it is enabled or not."""
    site, webhook = find(call)
    context = call.context
    with context.trials.one():
        found = await trial(
            context.composer,
            webhook.hook,
            site.name,
            f"test_{secrets.token_hex(8)}",
            allow_private_addresses=context.allow_private_addresses,
            clock=context.clock,
            resolver=context.resolver,
        )
    request = found.request
    return Tested(
        succeeded=found.succeeded,
        request=None if request is None else request_shown(request),
        status=found.status,
        answer=found.answer,
        seconds=round(found.seconds, 3),
        deal=None if found.deal is None else DealAnswered(id=found.deal[0], url=found.deal[1]),
    )


def find(call: Call, webhook_id: int | None = None) -> tuple[SiteView, WebhookView]:
    """The webhook that the path names, with its site; raises Problem 404 where the caller sees none."""
    wanted = webhook_id or row_id(call.path["id"], "webhook")
    for site in call.context.store.sites.by_id.values():
        for webhook in site.webhooks:
            if webhook.id == wanted and call.caller.sees(site.id):
                return site, webhook
    raise not_found("webhook")


def _problem(error: HookRefused) -> Problem:
    return Problem(409 if error.conflict else 400, str(error), field=error.field)


def _refuse_declared(declared: bool) -> None:
    if declared:
        raise Problem(409, "it is defined in relay.toml and changed there")


def _shown(call: Call, site: SiteView, webhook: WebhookView) -> WebhookShown:
    return WebhookShown(**shown(site, webhook, call.context.keys))


_OF_SITE = "/v1/sites/{name}/webhooks"
_ONE = "/v1/webhooks/{id}"
OPERATIONS = (
    Operation("GET", _OF_SITE, "Its webhooks.", list_webhooks, Role.VIEWER, WebhookList, problems=(404,)),
    Operation(
        "POST",
        _OF_SITE,
        "A new webhook; its secret is answered this once.",
        create_webhook,
        Role.ADMIN,
        WebhookCreated,
        body=NewWebhook,
        status=201,
        problems=(404, 409),
    ),
    Operation("GET", _ONE, "A webhook and how it is doing.", show_webhook, Role.VIEWER, WebhookDetail, problems=(404,)),
    Operation(
        "PATCH",
        _ONE,
        "Change it; what is left out stays.",
        change_webhook,
        Role.ADMIN,
        WebhookShown,
        body=ChangedWebhook,
        problems=(404, 409),
    ),
    Operation("DELETE", _ONE, "Remove it.", delete_webhook, Role.ADMIN, None, problems=(404, 409)),
    Operation(
        "POST",
        f"{_ONE}/enable",
        "Post to it again after it was disabled.",
        enable_webhook,
        Role.ADMIN,
        WebhookShown,
        problems=(404,),
    ),
    Operation(
        "POST",
        f"{_ONE}/rotate",
        "A new secret; the one before signs as well for a while.",
        rotate_secret,
        Role.ADMIN,
        SecretShown,
        body=Rotation,
        problems=(404, 409),
    ),
    Operation(
        "POST",
        f"{_ONE}/test",
        "Post a made-up letter to it and answer what came of it.",
        test_webhook,
        Role.MANAGER,
        Tested,
        problems=(404,),
        audited=False,
    ),
)
