"""What a site may be told besides its addresses (docs/configuration.md, [[site]]): how visits are counted and named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any

from relay.core.channel import Channel, SourceRule


class Touch(StrEnum):
    """Whose source a webhook states, of the visits of one browser up to the stated one."""

    LAST = "last"  # the stated visit's own
    FIRST = "first"
    LAST_NON_DIRECT = "last_non_direct"


class LeaseOn(StrEnum):
    """When the script asks for addresses."""

    VIEW = "view"  # as soon as the page is seen
    INTERACTION = "interaction"  # once somebody moved, scrolled or typed


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """``reserve``: percent of a pool that first page views without a sign of a person leave to others.

    ``visit_cookie``, ``marker_cookie``: of another counter on the site. ``metrica``: its counter's number there, or 0.
    """

    lease_on: LeaseOn = LeaseOn.VIEW
    reserve: int = 10
    touch: Touch = Touch.LAST
    visit_cookie: str | None = "roistat_visit"
    marker_cookie: str | None = "roistat_marker"
    cookie_domain: str | None = None
    server_cookies: bool = False
    respect_gpc: bool = False
    google_analytics: bool = False
    metrica: int = 0
    rules: tuple[SourceRule, ...] = ()

    @property
    def counts_mails(self) -> bool:
        """Whether a page view is told how many letters its visit has sent: only where somebody is told of it."""
        return self.google_analytics or self.metrica > 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SiteSettings:
        """What :meth:`to_json` wrote; what an older version did not know has its default, a newer one's is left out."""
        return _read(text)


@lru_cache(maxsize=256)
def _read(text: str) -> SiteSettings:
    known = {each.name for each in fields(SiteSettings)}
    values: dict[str, Any] = {name: value for name, value in json.loads(text).items() if name in known}
    rules = tuple(_rule(rule) for rule in values.pop("rules", ()))
    for name, kind in (("lease_on", LeaseOn), ("touch", Touch)):
        if name in values:
            values[name] = kind(values[name])
    return SiteSettings(**values, rules=rules)


def _rule(values: Mapping[str, Any]) -> SourceRule:
    channel = values.get("channel")
    return SourceRule(**{**values, "channel": None if channel is None else Channel(channel)})
