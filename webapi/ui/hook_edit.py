"""The forms of a webhook: a new one, a change, a new secret, its removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from relay import presets
from relay.core.hook import EventType
from webapi import hooks as hooks_api
from webapi.auth import Role
from webapi.hook_models import SecretShown, WebhookCreated, WebhookDetail
from webapi.problems import Outdated, Problem
from webapi.ui import forms, hook_forms
from webapi.ui.forms import Errors, Shown
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render

_API = {(each.method, each.path): each for each in hooks_api.OPERATIONS}
_ONE = "/v1/webhooks/{id}"
_CREATE, _SHOW = _API["POST", "/v1/sites/{name}/webhooks"], _API["GET", _ONE]
_PATCH, _DELETE, _ROTATE = _API["PATCH", _ONE], _API["DELETE", _ONE], _API["POST", f"{_ONE}/rotate"]


async def new_webhook(view: View) -> web.StreamResponse:
    return _form(view, None, hook_forms.filled(hook_forms.NEW_VALUES) | {"site": view.query("site")})


async def make_webhook(view: View) -> web.StreamResponse:
    """What is answered has the secret, this once: it is no redirect."""
    try:
        body = hook_forms.read(view.form, new=True)
        made: WebhookCreated = await perform(view, _CREATE, path={"name": view.field("site")}, body=body)
    except Problem as problem:
        values = hook_forms.typed(view.form) | {"site": view.field("site")}
        return _form(view, None, values, forms.errors_of(problem, hook_forms.NAMES), problem.status)
    return _secret(view, made.id, made.secret, made=True)


async def edit_webhook(view: View) -> web.StreamResponse:
    webhook = await _shown(view)
    if webhook.declared:
        return _declared(webhook)
    return _as_it_is(view, webhook)


async def change_webhook(view: View) -> web.StreamResponse:
    webhook = await _own(view)
    try:
        body = hook_forms.read(view.form, new=False) | {"edition": view.field("edition")}
        await perform(view, _PATCH, path={"id": webhook.id}, body=body)
    except Outdated as problem:  # not what was typed: saved again, it would undo what others have changed
        return _as_it_is(view, await _own(view), forms.errors_of(problem, ()), problem.status)
    except Problem as problem:
        errors = forms.errors_of(problem, hook_forms.NAMES)
        return _form(view, webhook, hook_forms.typed(view.form), errors, problem.status)
    return see_other(f"/ui/webhooks/{webhook.id}", "hook_changed")


def _as_it_is(view: View, webhook: WebhookDetail, errors: Errors = forms.NONE, status: int = 200) -> web.StreamResponse:
    return _form(view, webhook, hook_forms.filled(webhook.model_dump(mode="json")), errors, status)


def _form(
    view: View,
    webhook: WebhookDetail | None,
    values: Mapping[str, Shown],
    errors: Errors = forms.NONE,
    status: int = 200,
) -> web.StreamResponse:
    return render(
        view,
        "hooks_edit.html",
        status=status,
        webhook=webhook,
        sites=[site.name for site in view.sites if not site.declared],
        events=[kind.value for kind in EventType],
        presets={name: presets.load(name).variables for name in presets.names()},
        own=hook_forms.OWN,
        values=values,
        errors=errors,
    )


async def ask_to_rotate(view: View) -> web.StreamResponse:
    webhook = await _shown(view)
    return _declared(webhook) if webhook.declared else _rotation(view, webhook, {"secret": "", "keep": "24h"})


async def rotate(view: View) -> web.StreamResponse:
    """A new secret, shown this once as well."""
    webhook = await _own(view)
    try:
        given = hook_forms.ROTATION.read(view.form)
        body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        made: SecretShown = await perform(view, _ROTATE, path={"id": webhook.id}, body=body)
    except Problem as problem:
        errors = forms.errors_of(problem, hook_forms.ROTATION.fields)
        return _rotation(view, webhook, hook_forms.ROTATION.typed(view.form), errors, problem.status)
    return _secret(view, webhook.id, made.secret, made=False)


def _rotation(
    view: View, webhook: WebhookDetail, values: Mapping[str, Shown], errors: Errors = forms.NONE, status: int = 200
) -> web.StreamResponse:
    return render(view, "hooks_rotate.html", status=status, webhook=webhook, values=values, errors=errors)


def _secret(view: View, webhook_id: str, secret: str, *, made: bool) -> web.StreamResponse:
    return render(view, "hooks_secret.html", id=webhook_id, secret=secret, made=made)


async def ask_to_remove(view: View) -> web.StreamResponse:
    webhook = await _shown(view)
    return _declared(webhook) if webhook.declared else render(view, "hooks_remove.html", webhook=webhook)


async def remove(view: View) -> web.StreamResponse:
    await perform(view, _DELETE, path={"id": view.path["id"]})
    return see_other("/ui/webhooks", "hook_removed")


async def _shown(view: View) -> WebhookDetail:
    webhook: WebhookDetail = await perform(view, _SHOW, path={"id": view.path["id"]})
    return webhook


def _declared(webhook: WebhookDetail) -> web.Response:
    return see_other(f"/ui/webhooks/{webhook.id}", "declared")


async def _own(view: View) -> WebhookDetail:
    """The webhook that the path names; raises Problem 409 when relay.toml has it."""
    webhook = await _shown(view)
    if webhook.declared:
        raise Problem(409, "this webhook is defined in relay.toml and changed there")
    return webhook


_HOOK = "/ui/webhooks/{id}"
PAGES = (
    Page("GET", "/ui/webhooks/new", new_webhook, Role.ADMIN),
    Page("POST", "/ui/webhooks/new", make_webhook, Role.ADMIN),
    Page("GET", f"{_HOOK}/edit", edit_webhook, Role.ADMIN),
    Page("POST", f"{_HOOK}/edit", change_webhook, Role.ADMIN),
    Page("GET", f"{_HOOK}/rotate", ask_to_rotate, Role.ADMIN),
    Page("POST", f"{_HOOK}/rotate", rotate, Role.ADMIN),
    Page("GET", f"{_HOOK}/remove", ask_to_remove, Role.ADMIN),
    Page("POST", f"{_HOOK}/remove", remove, Role.ADMIN),
)
