"""Webhooks over HTTP: where a site's events are posted, and what came of each (webhooks.py posts them)."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, Field

from relay.config import fields as f
from relay.config.models import Section
from relay.store import history, sites
from relay.store.directory import SiteView, WebhookView
from relay.store.sites import WebhookDefinition
from webapi import signature
from webapi.auth import Role, visible_site
from webapi.operation import Call, Operation, Parameters
from webapi.problems import Problem, not_found
from webapi.values import Cursor, Limit, cursor_of, moment, moment_or_none, row_id


class NewWebhook(Section):
    """``secret`` null: one is made."""

    url: f.WebhookUrl
    secret: f.WebhookSecret | None = Field(default=None, repr=False)
    fill: Literal["exact", "inferred", "likely"] = "inferred"


class WebhookShown(BaseModel):
    id: str
    site: str
    url: str
    fill: str
    enabled: bool
    disabled_reason: str | None
    declared: bool


class WebhookCreated(WebhookShown):
    secret: str = Field(description="To check signatures with (Standard Webhooks). Shown this once.")


class WebhookList(BaseModel):
    items: list[WebhookShown]


class Posted(BaseModel):
    id: str
    event: str = Field(description="The webhook-id.")
    message: str
    state: str
    attempts: int
    next_at: str | None
    status: int | None
    answer: str | None
    finished_at: str | None


class PostedPage(BaseModel):
    items: list[Posted]
    next: str | None


class PageQuery(Parameters):
    limit: Limit = 50
    cursor: Cursor | None = None


async def list_webhooks(call: Call) -> WebhookList:
    site = visible_site(call.context.store, call.caller, call.request.match_info["name"])
    return WebhookList(items=[_shown(site, webhook) for webhook in site.webhooks])


async def create_webhook(call: Call) -> WebhookCreated:
    body: NewWebhook = call.body
    site = visible_site(call.context.store, call.caller, call.request.match_info["name"])
    _refuse_declared(site.declared)
    if any(webhook.url == body.url for webhook in site.webhooks):
        raise Problem(409, "the site has a webhook with this URL already", field="url")
    secret = body.secret or signature.new_secret(os.urandom(32))
    definition = WebhookDefinition(body.url, call.context.keys.seal(secret), body.fill)
    now = call.context.clock()
    webhook_id = await call.context.store.redefine(lambda tx: sites.add_webhook(tx, site.id, definition, now))
    site, webhook = _find(call, webhook_id)
    return WebhookCreated(**_shown(site, webhook).model_dump(), secret=secret)


async def delete_webhook(call: Call) -> None:
    _, webhook = _find(call)
    _refuse_declared(webhook.declared)
    now = call.context.clock()
    if not await call.context.store.redefine(lambda tx: sites.remove_webhook(tx, webhook.id, now)):
        raise not_found("webhook")


async def enable_webhook(call: Call) -> WebhookShown:
    _, webhook = _find(call)
    await call.context.store.redefine(lambda tx: sites.enable_webhook(tx, webhook.id))
    call.context.on_posts_due()
    return _shown(*_find(call))


async def list_posts(call: Call) -> PostedPage:
    query: PageQuery = call.query
    _, webhook = _find(call)
    rows = await history.posted(call.context.store.reader, webhook.id, query.cursor, query.limit + 1)
    items = [
        Posted(
            id=str(row["id"]),
            event=row["uid"],
            message=str(row["message_id"]),
            state=row["state"],
            attempts=row["attempts"],
            next_at=moment(row["next_at"]) if row["state"] == "waiting" else None,
            status=row["status"],
            answer=row["answer"],
            finished_at=moment_or_none(row["finished_at"]),
        )
        for row in rows[: query.limit]
    ]
    return PostedPage(items=items, next=cursor_of(int(items[-1].id)) if len(rows) > query.limit else None)


def _find(call: Call, webhook_id: int | None = None) -> tuple[SiteView, WebhookView]:
    wanted = webhook_id or row_id(call.request.match_info["id"], "webhook")
    for site in call.context.store.sites.by_id.values():
        for webhook in site.webhooks:
            if webhook.id == wanted and call.caller.sees(site.id):
                return site, webhook
    raise not_found("webhook")


def _refuse_declared(declared: bool) -> None:
    if declared:
        raise Problem(409, "it is defined in relay.toml and changed there")


def _shown(site: SiteView, webhook: WebhookView) -> WebhookShown:
    return WebhookShown(
        id=str(webhook.id),
        site=site.name,
        url=webhook.url,
        fill=webhook.fill,
        enabled=webhook.enabled,
        disabled_reason=webhook.disabled_reason,
        declared=webhook.declared,
    )


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
    Operation("DELETE", _ONE, "Remove it.", delete_webhook, Role.ADMIN, None, problems=(404, 409)),
    Operation(
        "GET",
        f"{_ONE}/deliveries",
        "What was posted to it, newest first.",
        list_posts,
        Role.VIEWER,
        PostedPage,
        query=PageQuery,
        problems=(404,),
    ),
    Operation(
        "POST",
        f"{_ONE}/enable",
        "Post to it again after it was disabled.",
        enable_webhook,
        Role.ADMIN,
        WebhookShown,
        problems=(404,),
    ),
)
