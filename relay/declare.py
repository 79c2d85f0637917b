"""relay.toml's sites as definitions for the store (relay/store/sites.py)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from relay.config.models import Config, Site, Target
from relay.core.model import Address
from relay.store import webhooks
from relay.store.sites import SiteDefinition, StaticDefinition, TargetDefinition
from webapi.signature import new_secret


def definitions(config: Config, seal: Callable[[str], str]) -> list[SiteDefinition]:
    """Every declared site. ``seal`` encrypts secrets and next hops for the database."""
    return [_site(site, seal) for site in config.sites]


def _site(site: Site, seal: Callable[[str], str]) -> SiteDefinition:
    return SiteDefinition(
        name=site.name,
        key=site.key,
        origins=tuple(site.origins),
        tracking=site.tracking,
        send_to_crm=site.send_to_crm,
        bots=site.bots,
        visit_timeout=site.visit_timeout,
        conditions=site.conditions(),
        settings=site.settings(),
        targets=tuple(_target(target, seal) for target in site.targets),
        statics=tuple(StaticDefinition(static.address, str(static.target), static.label) for static in site.statics),
        webhooks=tuple(
            replace(
                webhooks.definition(hook.url, hook.secret, hook.fill, hook.settings(), hook.access(), seal),
                enabled=hook.enabled,
                previous_secret=None if hook.previous_secret is None else seal(hook.previous_secret),
            )
            for hook in site.webhooks
        ),
    )


def _target(target: Target, seal: Callable[[str], str]) -> TargetDefinition:
    return TargetDefinition(
        address=target.address,
        method=target.method,
        domain=target.domain,
        pool=tuple(target.pool),
        lease=target.lease,
        forward_to=_text(target.forward_to),
        next_hop=None if target.next_hop is None else seal(target.next_hop),
        generate=target.generated,
        additional=target.additional,
    )


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)


def fresh_secret() -> str:
    """A webhook secret nobody has seen (Standard Webhooks)."""
    return new_secret(secrets.token_bytes(32))
