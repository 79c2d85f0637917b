"""Sites as the API takes and shows them: the words and types of relay.toml, as JSON (docs/configuration.md)."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, Field

from relay.config import Static, Target
from relay.config import fields as f
from relay.config.models import Section, SiteOptions
from relay.config.rules import broken_rules
from relay.core.channel import Channel
from relay.core.model import Address
from relay.core.site import LeaseOn, Touch
from relay.secrets import Keys, SealError
from relay.store import site_definitions
from relay.store.directory import SiteView, TargetView
from relay.store.sites import SiteDefinition, StaticDefinition, TargetDefinition

#: Addresses that one request may add to a pool.
MOST_ADDRESSES = 10_000

_PATH = re.compile(r"site\[0\]\.(?:(target|static)\[)?")
_ADDITION = re.compile(r"site\[0\]\.target\[0\]\.(?:pool|address|forward_to)")
_PASSWORD = re.compile(r"(?<=://)([^/@]*?):[^/@]*(?=@[^@]*\Z)")


class SiteBody(SiteOptions):
    """What defines a site. ``key`` null: it keeps its own, a new site gets one."""

    key: f.SiteKey | None = None
    targets: Annotated[f.Listed[Target], Field(max_length=1000)] = ()
    statics: Annotated[f.Listed[Static], Field(max_length=1000)] = ()


class NewSite(SiteBody):
    name: f.SiteName


def _no_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class ChangedSite(SiteBody):
    """The whole definition; what it leaves out ends, but for the switches. ``name`` may be given, and is the path's."""

    name: f.SiteName | None = None
    tracking: bool = Field(default=True, description="Left out: as it is.", json_schema_extra=_no_default)
    send_to_crm: bool = Field(default=True, description="Left out: as it is.", json_schema_extra=_no_default)
    edition: Annotated[str, Field(max_length=100)] | None = Field(
        default=None, description="The one that was read: 409 if the definition has been changed since."
    )

    def switched(self, name: str) -> bool | None:
        """What a switch is to be; None: as it is."""
        return getattr(self, name) if name in self.model_fields_set else None


class Switches(Section):
    """What is left out stays as it is."""

    tracking: bool | None = None
    send_to_crm: bool | None = None


class PoolAddition(Section):
    """Either addresses, or how many are to be made at the target's domain."""

    addresses: Annotated[f.Listed[f.Mailbox], Field(max_length=MOST_ADDRESSES)] = ()
    grow: Annotated[int, Field(ge=1, le=MOST_ADDRESSES)] | None = None


class Added(BaseModel):
    added: list[str]


class TargetShown(BaseModel):
    address: str
    method: str
    domain: str | None
    pool: list[str]
    lease: str
    additional: bool
    forward_to: str | None
    next_hop: str | None = Field(
        description="With *** for the password; given back so, it keeps it. Set by who has all sites."
    )


class StaticShown(BaseModel):
    address: str
    target: str
    label: str


class SourceShown(BaseModel):
    marker: str
    channel: Channel | None
    referrer: str | None
    parameter: str | None
    value: str | None
    page: str | None


class SiteShown(BaseModel):
    """A site. But for ``declared`` it can be given back to PUT, which then refuses to undo what others have done."""

    edition: str = Field(description="Of its definition, without its switches: another one after every change.")
    name: str
    key: str
    declared: bool = Field(description="Defined in relay.toml: only its switches and pools change here.")
    origins: list[str]
    tracking: bool
    send_to_crm: bool
    bots: str
    lease_on: LeaseOn
    reserve: int
    visit_timeout: str
    touch: Touch
    visit_cookie: str | None
    marker_cookie: str | None
    cookie_domain: str | None
    server_cookies: bool
    respect_gpc: bool
    google_analytics: bool
    metrica: int
    require_visit: bool
    skip_bounces: bool
    skip_automatic: bool
    sources: list[SourceShown]
    targets: list[TargetShown]
    statics: list[StaticShown]


class SiteSummary(BaseModel):
    name: str
    key: str
    declared: bool
    origins: list[str]
    tracking: bool
    send_to_crm: bool
    targets: list[str]


class SiteList(BaseModel):
    items: list[SiteSummary]


class Substitute(BaseModel):
    address: str
    kind: str
    label: str | None
    leased_until: str | None


class TargetSubstitutes(BaseModel):
    address: str
    method: str
    domain: str | None
    lease: str
    substitutes: list[Substitute]


class TargetList(BaseModel):
    items: list[TargetSubstitutes]


def summary(site: SiteView) -> SiteSummary:
    return SiteSummary(
        name=site.name,
        key=site.key,
        declared=site.declared,
        origins=list(site.origins),
        tracking=site.tracking,
        send_to_crm=site.send_to_crm,
        targets=[str(target.address) for target in site.targets],
    )


def shown(site: SiteView, substitutes: dict[int, list[dict[str, Any]]], keys: Keys) -> SiteShown:
    """A site with the substitutes of each target (Directory.substitutes, by target id)."""
    conditions = site.conditions
    settings = asdict(site.settings)
    rules = settings.pop("rules")
    return SiteShown(
        edition=site_definitions.edition(site_definitions.of_view(site, substitutes)),
        **settings,
        sources=rules,
        name=site.name,
        key=site.key,
        declared=site.declared,
        origins=list(site.origins),
        tracking=site.tracking,
        send_to_crm=site.send_to_crm,
        bots=site.bots,
        visit_timeout=f.format_duration(site.visit_timeout),
        require_visit=conditions.get("require_visit", True),
        skip_bounces=conditions.get("refuse_bounces", True),
        skip_automatic=conditions.get("refuse_automatic", True),
        targets=[
            TargetShown(
                address=str(target.address),
                method=target.method.value,
                domain=target.domain,
                pool=[row["address"] for row in substitutes[target.id] if row["kind"] == "pool"],
                lease=f.format_duration(target.lease),
                additional=target.additional,
                forward_to=target.forward_to,
                next_hop=shown_next_hop(target, keys),
            )
            for target in site.targets
        ],
        statics=[
            StaticShown(address=row["address"], target=str(target.address), label=row["label"] or "")
            for target in site.targets
            for row in substitutes[target.id]
            if row["kind"] == "static"
        ],
    )


def shown_next_hop(target: TargetView, keys: Keys) -> str | None:
    """A target's next hop without its password; None for one that our keys no longer open."""
    if target.next_hop is None:
        return None
    try:
        return _PASSWORD.sub(r"\1:***", keys.unseal(target.next_hop))
    except SealError:
        return None


def definition(name: str, key: str, body: SiteBody, before: SiteView | None, keys: Keys) -> SiteDefinition:
    """What the store is told; ``before`` is the site as it is, whose passwords are kept where they were not shown."""
    return SiteDefinition(
        name=name,
        key=key,
        origins=tuple(body.origins),
        tracking=body.switched("tracking") if isinstance(body, ChangedSite) else body.tracking,
        send_to_crm=body.switched("send_to_crm") if isinstance(body, ChangedSite) else body.send_to_crm,
        bots=body.bots,
        visit_timeout=body.visit_timeout,
        conditions=body.conditions(),
        settings=body.settings(),
        targets=tuple(
            TargetDefinition(
                address=target.address,
                method=target.method,
                domain=target.domain,
                pool=tuple(target.pool),
                lease=target.lease,
                forward_to=None if target.forward_to is None else str(target.forward_to),
                next_hop=_sealed_next_hop(target, before, keys),
                generate=target.generated,
                additional=target.additional,
            )
            for target in body.targets
        ),
        statics=tuple(StaticDefinition(static.address, str(static.target), static.label) for static in body.statics),
    )


def _sealed_next_hop(target: Target, before: SiteView | None, keys: Keys) -> str | None:
    if target.next_hop is None:
        return None
    if before is not None and keeps_next_hop(target, before, keys):
        return before.by_address[target.address.key].next_hop
    return keys.seal(target.next_hop)


def keeps_next_hop(target: Target, before: SiteView | None, keys: Keys) -> bool:
    """Whether a target has its next hop as it was shown."""
    known = before.by_address.get(target.address.key) if before else None
    return known is not None and target.next_hop == shown_next_hop(known, keys)


def broken(body: SiteBody, next_hop: str | None, public_url: str) -> tuple[tuple[str, str], ...]:
    """What the rules for relay.toml say against a definition: (field, detail) each.

    ``next_hop`` is [forward]'s, ``public_url`` [http]'s.
    """
    raw = {
        "forward": {"next_hop": next_hop or ""},
        "http": {"public_url": public_url},
        "site": [
            {
                "cookie_domain": body.cookie_domain or "",
                "server_cookies": body.server_cookies,
                "sources": [dict(rule) for rule in body.sources],
                "target": [_raw_target(target) for target in body.targets],
                "static": [
                    {"address": str(static.address), "target": str(static.target), "label": static.label}
                    for static in body.statics
                ],
            }
        ],
    }
    return tuple((_here(problem.path), _here(problem.message)) for problem in broken_rules(raw))


def broken_addition(
    target: TargetView, addresses: tuple[Address, ...], next_hop: str | None
) -> tuple[tuple[str, str], ...]:
    """As :func:`broken`, for addresses that are to join a pool."""
    raw = {
        "address": str(target.address),
        "forward_to": target.forward_to or "",
        "next_hop": target.next_hop or "",  # sealed: the rules ask whether there is one
        "pool": [str(address) for address in addresses],
    }
    problems = broken_rules({"forward": {"next_hop": next_hop or ""}, "site": [{"target": [raw]}]})

    def here(text: str) -> str:
        text = _ADDITION.sub("addresses", text).replace("site[0].target[0].", "the target's ")
        return text.replace(' (site "")', "").replace(' of site ""', "")

    return tuple((here(problem.path), here(problem.message)) for problem in problems)


def _raw_target(target: Target) -> dict[str, Any]:
    """A target as TOML would give it."""
    raw: dict[str, Any] = {
        "address": str(target.address),
        "method": target.method.value,
        "domain": target.domain or "",
        "pool": [str(address) for address in target.pool],
        "forward_to": "" if target.forward_to is None else str(target.forward_to),
        "next_hop": target.next_hop or "",
    }
    return raw if target.pool_size is None else raw | {"pool_size": target.pool_size}


def _here(text: str) -> str:
    text = _PATH.sub(lambda match: f"{match[1]}s[" if match[1] else "", text)
    return text.replace(' (site "")', "").replace(' of site ""', "")
