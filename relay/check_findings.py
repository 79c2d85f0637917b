"""What `relay check` says, and what it is about: the configuration together with the sites of the database."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import func, select

from relay.config import Config
from relay.core.address import parse
from relay.core.check import FAIL, OK, WARN, Finding, Level
from relay.core.model import Address
from relay.core.nexthop import NextHop, parse_next_hop
from relay.secrets import Keys, KeysError, SealError
from relay.store import damage, migrate, routes
from relay.store.directory import Directory, TargetView
from relay.store.engine import StoreUnavailable
from relay.store.reader import Reader
from relay.store.schema import messages
from relay.store.store import DATABASE, revision

__all__ = ["FAIL", "OK", "WARN", "CookieScope", "Finding", "Level", "Subject", "gather"]

_UNUSABLE = (OSError, sqlite3.Error, StoreUnavailable, migrate.WrongRevision, damage.Damaged, KeysError, SealError)
#: Seconds that any check may take in all.
PATIENCE = 60.0


class CookieScope(NamedTuple):
    """Where a site's cookies are kept: on the hosts of its origins, and, where it has one, all over its domain."""

    origins: tuple[str, ...]
    domain: str | None


@dataclass(slots=True)
class Subject:
    """``recipients``: real addresses by the next hop that takes their mail, None for their domain's MX.

    ``domains`` are those of substitutes, ``origins`` those of sites, ``mailboxes`` the domains of all targets in the
    database, removed ones too: their substitutes go on. ``webhooks``: (site, URL) and why it is disabled, None for an
    enabled one. ``cookies``: where each site keeps its own, by its name. ``revision`` is the database's schema, None
    without a database. ``patience``: seconds for any check in all.
    """

    config: Config
    now: float
    patience: float = PATIENCE
    revision: str | None = None
    is_unusable: bool = False  # the database
    newest_message: float = 0.0
    domains: set[str] = field(default_factory=set)
    mailboxes: set[str] = field(default_factory=set)
    origins: set[str] = field(default_factory=set)
    recipients: dict[NextHop | None, set[Address]] = field(default_factory=lambda: defaultdict(set))
    webhooks: dict[tuple[str, str], str | None] = field(default_factory=dict)
    cookies: dict[str, CookieScope] = field(default_factory=dict)

    @property
    def beyond_loopback(self) -> bool:
        """Whether mail from outside can reach us without another server in front."""
        return any(isinstance(endpoint, str) or not endpoint.loopback for endpoint in self.config.smtp.listen)

    @property
    def mailbox_domains(self) -> set[str]:
        """Those of real addresses: their MX takes the mail of people."""
        return self.mailboxes.union(address.domain for addresses in self.recipients.values() for address in addresses)

    def forwards(self, address: Address, next_hop: str | None) -> None:
        """Mail for the real ``address`` goes to its own ``next_hop``, to the configured one, or by MX."""
        url = next_hop or self.config.forward.next_hop
        self.recipients[parse_next_hop(url) if url else None].add(address)


async def gather(config: Config, now: float, patience: float = PATIENCE) -> tuple[Subject, list[Finding]]:
    """What is to be checked, and what already went wrong while that was found out."""
    subject = Subject(config, now, patience)
    if config.operator is not None:
        subject.forwards(config.operator, None)
    for site in config.sites:
        for target in site.targets:
            subject.forwards(target.forward_to or target.address, target.next_hop)
            subject.domains.update(filter(None, (target.domain, *(address.domain for address in target.pool))))
        subject.domains.update(static.address.domain for static in site.statics)
        subject.origins.update(site.origins)
        subject.cookies[site.name] = CookieScope(tuple(site.origins), site.cookie_domain)
        subject.webhooks.update({(site.name, hook.url): _why(hook.enabled, None) for hook in site.webhooks})
    path = config.data_dir / DATABASE
    try:
        subject.revision = revision(path)
        if subject.revision == migrate.HEAD:
            await _from_database(subject)
    except _UNUSABLE as error:
        subject.is_unusable = True
        hint = "do not stop a daemon that still runs before you have read docs/operations.md, What to do when"
        return subject, [Finding(FAIL, "database", str(error), hint)]
    return subject, []


async def _from_database(subject: Subject) -> None:
    reader = Reader(subject.config.data_dir / DATABASE, size=1)
    try:
        await reader.start()
        ((newest,),) = await reader.all(select(func.max(messages.c.received_at)))
        subject.newest_message = newest or 0.0
        subject.domains.update(row[0] for row in await reader.run(routes.DOMAINS))
        for real in await reader.run(routes.REAL):
            subject.mailboxes.update(parse(address).domain for address in real if address)
        sites = Directory(reader)
        await sites.load()
    finally:
        await reader.close()
    for site in sites.by_id.values():
        if not site.declared:  # a declared one stands in relay.toml, which counts from the next start on
            subject.origins.update(site.origins)
            subject.cookies[site.name] = CookieScope(tuple(site.origins), site.settings.cookie_domain)
            for target in site.targets:
                _add(subject, target)
        # Its state lives in the database, whoever declared it.
        subject.webhooks.update(
            {(site.name, hook.url): _why(hook.enabled, hook.disabled_reason) for hook in site.webhooks}
        )


def _why(enabled: bool, reason: str | None) -> str | None:
    return None if enabled else reason or "by hand"


def _add(subject: Subject, target: TargetView) -> None:
    next_hop = None
    if target.next_hop is not None:
        next_hop = Keys.read(subject.config.data_dir / "keys").unseal(target.next_hop)
    subject.forwards(parse(target.forward_to) if target.forward_to else target.address, next_hop)
