"""Webhooks as the API takes and shows them: the words of [[site.webhook]] in relay.toml, as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from relay.config import fields as f
from relay.config.webhook import HookChange, HookOptions, Section, options_of
from relay.core.hook import Access
from relay.secrets import Keys, SealError
from relay.store import hook_edition
from relay.store.directory import SiteView, WebhookView
from webapi.requests import Request
from webapi.values import Moment


class NewWebhook(HookOptions):
    """``secret`` null: one is made."""

    url: f.WebhookUrl
    secret: f.WebhookSecret | None = Field(default=None, repr=False)


class ChangedWebhook(HookChange):
    """What is left out stays as it is; ``conditions``, ``headers`` and ``variables`` are given whole."""

    url: f.WebhookUrl | None = None
    enabled: bool | None = None
    edition: Annotated[str, Field(max_length=100)] | None = Field(
        default=None, description="As it was shown: 409 when the definition is another now. Null: change what there is."
    )


class Rotation(Section):
    """``secret`` null: one is made. ``keep``: how long the one before signs as well."""

    secret: f.WebhookSecret | None = Field(default=None, repr=False)
    keep: Annotated[float, f.between("0s", "30d")] = 86_400.0


class ReplayRequest(Section):
    """One of these: posts of its log, all that have failed (those that wait for another attempt, too), or all letters
    received in a time. ``reattribute``: first look again whose visits they came from."""

    posts: Annotated[f.Listed[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,18}$")]], Field(max_length=1000)] = ()
    failed: bool = False
    since: Moment | None = None
    until: Moment | None = None
    reattribute: bool = False


class ConditionsShown(BaseModel):
    """ "site": as the site says. Empty, null and zero ask nothing."""

    require_visit: bool | str
    skip_bounces: bool | str
    skip_automatic: bool | str
    skip_blocked: bool | str
    attribution: str
    first_letter: str
    min_size: int
    max_size: int
    max_recipients: int
    recipients: list[str]
    subject: str | None


class WebhookShown(BaseModel):
    """A webhook. Logins, the values of headers and of variables are never shown."""

    id: str
    site: str
    url: str
    fill: str
    enabled: bool
    disabled_reason: str | None
    declared: bool = Field(description="Defined in relay.toml, and changed there.")
    edition: str = Field(description="Of its definition, without secret and switch: another one after every change.")
    events: list[str]
    extras: bool
    concurrency: int
    login: str | None = Field(description="basic, bearer or null.")
    headers: list[str] = Field(description="Names of further header fields.")
    variables: list[str] = Field(description="Names of the template's variables.")
    template: str
    deal_id: str
    deal_url: str
    conditions: ConditionsShown


class WebhookCreated(WebhookShown):
    secret: str = Field(description="To check signatures with (Standard Webhooks). Shown this once.")


class WebhookList(BaseModel):
    items: list[WebhookShown]


class WebhookDetail(WebhookShown):
    """With how it is doing."""

    waiting: int = Field(description="Posts that wait for an attempt.")
    failed: int = Field(description="Posts that were given up; they can be replayed.")
    last_at: str | None
    last_status: int | None
    last_answer: str | None
    recent: int = Field(description="Its latest posts, up to 100, that were delivered or given up.")
    delivered: int = Field(description="How many of them were delivered.")
    failures: int = Field(description="Attempts in a row that failed, until now, since the daemon was started.")
    rests_for: float | None = Field(description="Seconds until it is tried again after that many; null: it does not.")


class SecretShown(BaseModel):
    secret: str = Field(description="Shown this once.")


class RequestShown(BaseModel):
    """A request without its secrets."""

    method: str
    url: str
    headers: dict[str, str]
    body: str


class DealAnswered(BaseModel):
    id: str | None
    url: str | None


class Tested(BaseModel):
    """What came of the made-up letter. ``status`` null: there was no answer, ``answer`` says why."""

    succeeded: bool
    request: RequestShown | None
    status: int | None
    answer: str
    seconds: float
    deal: DealAnswered | None


class Posted(BaseModel):
    id: str
    event: str = Field(description="The webhook-id.")
    type: str
    message: str
    created_at: str
    sender: str
    subject: str | None
    state: str = Field(description="waiting, delivered, failed or withheld; readers tolerate new values.")
    attempts: int
    next_at: str | None
    status: int | None
    answer: str | None = Field(description="The receiver's, or why there is none.")
    finished_at: str | None
    seconds: float | None = Field(description="What the last attempt took.")


class PostedPage(BaseModel):
    items: list[Posted]
    next: str | None


class Try(BaseModel):
    """``as_sent``: whether the body shown is the one that was sent then; null where nothing was sent."""

    started_at: str
    seconds: float
    status: int | None
    answer: str
    size: int | None = Field(description="Octets of the body that was sent.")
    as_sent: bool | None


class PostedDetail(Posted):
    """The request is composed from what is stored: it differs from what was sent where that was changed since."""

    request: RequestShown | None
    tries: list[Try]


class Replaying(BaseModel):
    posts: int


def shown(site: SiteView, webhook: WebhookView, keys: Keys) -> dict[str, Any]:
    """The members of WebhookShown."""
    options = options_of(webhook.fill, webhook.hook.settings, access_of(webhook, keys))
    conditions = options.conditions
    return {
        "id": str(webhook.id),
        "site": site.name,
        "url": webhook.url,
        "fill": webhook.fill,
        "enabled": webhook.enabled,
        "disabled_reason": webhook.disabled_reason,
        "declared": webhook.declared,
        "edition": hook_edition.edition(webhook),
        "events": list(options.events),
        "extras": options.extras,
        "concurrency": options.concurrency,
        "login": "basic" if options.basic else "bearer" if options.bearer else None,
        "headers": list(options.headers),
        "variables": list(options.variables),
        "template": options.template,
        "deal_id": options.deal_id,
        "deal_url": options.deal_url,
        "conditions": dict(conditions)
        | {
            "first_letter": f.format_duration(conditions.first_letter),
            "recipients": [str(address) for address in conditions.recipients],
        },
    }


def request_shown(request: Request) -> RequestShown:
    """A request that Composer.shown has rid of its secrets."""
    return RequestShown(
        method=request.method,
        url=request.url,
        headers=dict(request.headers),
        body=request.body.decode("utf-8", "replace"),
    )


def access_of(webhook: WebhookView, keys: Keys) -> Access:
    """What the receiver asks of us; nothing where our keys no longer open it."""
    if webhook.hook.access is None:
        return Access()
    try:
        return Access.from_json(keys.unseal(webhook.hook.access))
    except SealError:
        return Access()
