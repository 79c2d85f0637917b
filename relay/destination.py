"""What a delivery is counted by and backs off by: the next hop with its login, or the domain (core/destinations.py)."""

from __future__ import annotations

from relay.core.nexthop import parse_next_hop
from relay.secrets import Keys


class Naming:
    """``next_hop`` is the configured one, for targets without their own."""

    def __init__(self, keys: Keys, next_hop: str | None) -> None:
        self._keys = keys
        self._configured = self._name(next_hop) if next_hop else None
        self._names: dict[str, str] = {}  # by the sealed next hop of a target

    def of(self, sealed: str | None, real_address: str) -> str:
        """:raises SealError: the target's next hop is sealed with a key that we no longer have."""
        if sealed is None:
            return self._configured or real_address.rpartition("@")[2]
        if sealed not in self._names:
            self._names[sealed] = self._name(self._keys.unseal(sealed))
        return self._names[sealed]

    def _name(self, next_hop: str) -> str:
        return parse_next_hop(next_hop).name(self._keys.current("loop"))
