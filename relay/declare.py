"""relay.toml's sites as definitions for the store (relay/store/sites.py), and the store opened with them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import structlog

from relay.config.models import Config, Site, Target
from relay.core.model import Address
from relay.secrets import Keys
from relay.store import posts, queue, webhooks
from relay.store.sites import SiteDefinition, StaticDefinition, TargetDefinition, declare_all
from relay.store.store import DATABASE, Store
from webapi.signature import new_secret

log = structlog.get_logger()


async def open_store(
    stack: AsyncExitStack,
    config: Config,
    keys: Keys,
    now: float,
    say: Callable[[str], None],
    removed: Callable[[str], None],
) -> tuple[Store, int]:
    """For who holds the lock on data_dir: with the sites that relay.toml names, and no claims of who held it before.

    And how many deliveries were claimed. ``say`` is told of each step of a migration, ``removed`` the name of each site
    that the file declared before and names no more. Raises what Store.open and declare_all do.
    """
    store = Store(config.data_dir / DATABASE)
    stack.push_async_callback(store.close)
    await store.open(say, now)
    declared = definitions(config, keys.seal)
    for name in await store.redefine(lambda tx: declare_all(tx, declared, now)):
        removed(name)
    await store.write(lambda tx: posts.void_post_claims(tx, now))
    return store, await store.write(queue.void_claims)


def log_removed(name: str) -> None:
    """A declared site is gone from relay.toml. Nothing brings it back: under the same name it will be a new one."""
    log.warning("site removed", site=name)


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
