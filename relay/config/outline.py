"""The parts of a raw configuration that the rules compare, as far as each can be read.

Whatever cannot be read is left out: its own error is reported already, and the rest is still worth checking, so that
the operator sees every error at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from relay.config import fields
from relay.core.model import Address, Method

T = TypeVar("T")
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Placed:
    """An address and the path of the key it stands at."""

    path: str
    address: Address


@dataclass(frozen=True, slots=True)
class TargetOutline:
    path: str
    raw: Table
    address: Address | None
    method: Method | None
    domain: str | None
    pool: tuple[Placed, ...]
    forward_to: Address | None

    @property
    def destination(self) -> Placed | None:
        """Where its mail goes, and which key says so."""
        if self.raw.get("forward_to", "") != "":
            return Placed(f"{self.path}.forward_to", self.forward_to) if self.forward_to else None
        return Placed(f"{self.path}.address", self.address) if self.address else None

    @property
    def base(self) -> Address | None:
        """The address that a plus target's tags hang on: its own local part at its substitute domain."""
        if self.method is not Method.PLUS or self.address is None or self.domain is None:
            return None
        return Address(self.address.local, self.domain)


@dataclass(frozen=True, slots=True)
class StaticOutline:
    path: str
    address: Address | None
    target: Address | None


@dataclass(frozen=True, slots=True)
class SiteOutline:
    path: str
    raw: Table
    targets: tuple[TargetOutline, ...]
    statics: tuple[StaticOutline, ...]

    @property
    def name(self) -> str:
        return str(self.raw.get("name", ""))


def read(parser: Callable[[object], T], value: object) -> T | None:
    """What ``parser`` makes of the value, None when it refuses it."""
    try:
        return parser(value)
    except ValueError:
        return None


def table(raw: Table, key: str) -> Table:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def tables(raw: Table, key: str, prefix: str = "") -> Iterator[tuple[str, Table]]:
    """The tables of a list of tables, each with its path."""
    value = raw.get(key)
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            yield f"{prefix}{key}[{index}]", item


def sites(raw: Table) -> tuple[SiteOutline, ...]:
    return tuple(
        SiteOutline(
            path,
            site,
            tuple(_target(place, target) for place, target in tables(site, "target", f"{path}.")),
            tuple(
                StaticOutline(
                    place, read(fields.address, static.get("address")), read(fields.address, static.get("target"))
                )
                for place, static in tables(site, "static", f"{path}.")
            ),
        )
        for path, site in tables(raw, "site")
    )


def _target(path: str, raw: Table) -> TargetOutline:
    pool = raw.get("pool")
    members = ((index, read(fields.address, item)) for index, item in enumerate(pool if isinstance(pool, list) else ()))
    return TargetOutline(
        path=path,
        raw=raw,
        address=read(fields.address, raw.get("address")),
        method=read(_method, raw.get("method", "pool")),
        domain=read(fields.domain, raw.get("domain")),
        pool=tuple(Placed(f"{path}.pool[{index}]", address) for index, address in members if address is not None),
        forward_to=read(fields.address, raw.get("forward_to")),
    )


def _method(value: object) -> Method:
    return Method(fields.text(value))
