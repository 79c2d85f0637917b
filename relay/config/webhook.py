"""What a webhook may be told: the same in relay.toml, in the API and on the command line."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from relay import presets
from relay.config import fields as f
from relay.config.problems import OptionError
from relay.core import template
from relay.core.conditions import compiled
from relay.core.hook import CONCURRENCY, Access, EventType, HookSettings, is_reserved
from relay.core.template import TemplateError

#: Further fields and variables of one webhook.
MOST = 50


class Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True)


def _pattern(value: object) -> str:
    compiled(f.text(value))
    return f.text(value)


def _pointer(value: object) -> str:
    """A JSON pointer (RFC 6901); empty: the product's own, or the template's."""
    template.check_pointer(f.text(value))
    return f.text(value)


def _headers(value: object) -> dict[str, str]:
    seen: set[str] = set()
    for name, content in _texts(value).items():
        if not f.is_token(name) or is_reserved(name):
            raise ValueError(f'"{name:.60}" is not the name of a header field that a webhook may set')
        if not content.isascii() or not content.isprintable():
            raise ValueError(f'"{name}" must be printable ASCII')
        if name.lower() in seen:
            raise ValueError(f'"{name}" is there twice: capitals make no difference')
        seen.add(name.lower())
    return _texts(value)


def _variables(value: object) -> dict[str, str]:
    for name in _texts(value):
        if not name.isidentifier():
            raise ValueError(f'"{name:.60}" is not a name of letters, digits and "_"')
    return _texts(value)


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise ValueError('must be a table of strings: { "name" = "value" }')
    if len(value) > MOST or any(len(name) > 100 or len(text) > 4000 for name, text in value.items()):
        raise ValueError(f"must have at most {MOST} names of at most 100, strings of at most 4000 characters")
    return value


def _login(value: object) -> str:
    if f.text(value) and (":" not in f.text(value) or not f.text(value).isprintable()):
        raise ValueError('must be "user:password"')
    return f.text(value)


def _bearer(value: object) -> str:
    text = f.text(value)
    if not text.isascii() or not text.isprintable() or " " in text or len(text) > 4000:
        raise ValueError("must be a token without spaces")
    return text


#: "site": as the site has it.
AsSite = Literal["site", True, False]
Pointer = Annotated[str, f.by(_pointer)]


class HookConditions(Section):
    """Which letters go to this webhook. What is left out is as the site says, or asks nothing."""

    require_visit: AsSite = "site"
    skip_bounces: AsSite = "site"
    skip_automatic: AsSite = "site"
    skip_blocked: AsSite = "site"
    attribution: Literal["", "exact", "inferred", "likely"] = ""
    first_letter: Annotated[float, f.between("0s", "3650d")] = 0.0
    min_size: f.Size = 0
    max_size: f.Size = 0
    max_recipients: Annotated[int, Field(ge=0, le=10_000)] = 0
    recipients: Annotated[f.Listed[f.Mailbox], Field(max_length=1000)] = ()
    subject: Annotated[str | None, f.by(f.optional(_pattern))] = None

    @model_validator(mode="after")
    def _some_size(self) -> HookConditions:
        if 0 < self.max_size < self.min_size:
            raise OptionError("max_size", f"is below min_size ({self.min_size}): no letter has such a size")
        return self

    def differing(self) -> dict[str, Any]:
        """Those that say something, as relay/core/conditions.py names them."""
        said = {
            "require_visit": self.require_visit,
            "refuse_bounces": self.skip_bounces,
            "refuse_automatic": self.skip_automatic,
            "refuse_blocked": self.skip_blocked,
        }
        asked = {
            "attribution": self.attribution,
            "first_letter": self.first_letter,
            "min_size": self.min_size,
            "max_size": self.max_size,
            "max_recipients": self.max_recipients,
            "addresses": [str(address).lower() for address in self.recipients],
            "subject": self.subject,
        }
        return {name: value for name, value in said.items() if value != "site"} | {
            name: value for name, value in asked.items() if value
        }


class HookChange(Section):
    """What a webhook is told besides its URL and secret; judged one by one, as a change leaves most of it out."""

    fill: Literal["exact", "inferred", "likely"] = "inferred"
    events: Annotated[
        f.Listed[Literal["message.received", "message.failed", "attribution.changed"]], Field(min_length=1)
    ] = (EventType.RECEIVED.value,)
    extras: bool = False
    headers: Annotated[dict[str, str], f.by(_headers)] = Field(default={}, repr=False)
    basic: Annotated[str, f.by(_login)] = Field(default="", repr=False)
    bearer: Annotated[str, f.by(_bearer)] = Field(default="", repr=False)
    concurrency: Annotated[int, Field(ge=1, le=100)] = CONCURRENCY
    deal_id: Pointer = ""
    deal_url: Pointer = ""
    template: Annotated[str, f.by(f.template)] = ""
    variables: Annotated[dict[str, str], f.by(_variables)] = Field(default={}, repr=False)
    conditions: HookConditions = Field(default_factory=HookConditions)


class HookOptions(HookChange):
    """The same as a whole."""

    @model_validator(mode="after")
    def _agree(self) -> HookOptions:
        return self.agreed()

    def agreed(self) -> HookOptions:
        """Itself; raises OptionError when one option contradicts another."""
        if self.basic and self.bearer:
            raise OptionError("bearer", 'there is a basic login: give one of them, and of the other ""')
        if (self.basic or self.bearer) and any(name.lower() == "authorization" for name in self.headers):
            raise OptionError("headers", "has Authorization, and there is a basic or bearer login: give one of them")
        if self.variables and not self.template:
            raise OptionError("variables", "there is no template that could use them")
        return self

    def settings(self) -> HookSettings:
        return HookSettings(
            events=tuple(dict.fromkeys(self.events)),
            extras=self.extras,
            concurrency=self.concurrency,
            deal_id=self.deal_id,
            deal_url=self.deal_url,
            template=self.template,
            conditions=self.conditions.differing(),
        )

    def access(self) -> Access:
        authorization = f"Bearer {self.bearer}" if self.bearer else ""
        if self.basic:
            authorization = "Basic " + base64.b64encode(self.basic.encode()).decode("ascii")
        return Access(tuple(self.headers.items()), authorization, dict(self.variables))


def options_of(fill: Any, settings: HookSettings, access: Access) -> HookOptions:
    """The options that came to these settings."""
    conditions = dict(settings.conditions)
    kind, _, login = access.authorization.partition(" ")
    given: dict[str, Any] = {
        "fill": fill,
        "events": settings.events,
        "extras": settings.extras,
        "headers": dict(access.headers),
        "basic": base64.b64decode(login).decode() if kind == "Basic" else "",
        "bearer": login if kind == "Bearer" else "",
        "concurrency": settings.concurrency,
        "deal_id": settings.deal_id,
        "deal_url": settings.deal_url,
        "template": settings.template,
        "variables": dict(access.variables),
        "conditions": {
            "require_visit": conditions.get("require_visit", "site"),
            "skip_bounces": conditions.get("refuse_bounces", "site"),
            "skip_automatic": conditions.get("refuse_automatic", "site"),
            "skip_blocked": conditions.get("refuse_blocked", "site"),
            "attribution": conditions.get("attribution", ""),
            "first_letter": f.format_duration(conditions.get("first_letter", 0.0)),
            "min_size": conditions.get("min_size", 0),
            "max_size": conditions.get("max_size", 0),
            "max_recipients": conditions.get("max_recipients", 0),
            "recipients": tuple(conditions.get("addresses", ())),
            "subject": conditions.get("subject"),
        },
    }
    return HookOptions.model_validate(given)


def changed(before: HookOptions, change: HookChange) -> HookOptions:
    """``before`` with what ``change`` was given; raises OptionError when the two do not agree."""
    given = {name: getattr(change, name) for name in change.model_fields_set if name in HookOptions.model_fields}
    return before.model_copy(update=given).agreed()


def check_template(url: str, options: HookOptions) -> None:
    """Try the template on sample letters; raises OptionError."""
    if not options.template:
        return
    try:
        template.check(presets.of(options.template), url, options.variables)
    except TemplateError as error:
        field = error.field if error.field.startswith("variables") else f"template.{error.field}"
        raise OptionError(field, error.message) from None
