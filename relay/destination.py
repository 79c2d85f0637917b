"""Where mail goes: the next hop of each target, and the name by which its deliveries are counted and back off."""

from __future__ import annotations

from relay.core.nexthop import NextHop, parse_next_hop
from relay.secrets import Keys


class NextHops:
    """Those of targets, unsealed once, and the configured one, ``url``, for targets without their own."""

    def __init__(self, keys: Keys, url: str | None) -> None:
        self._keys = keys
        self._configured = parse_next_hop(url) if url else None
        self._unsealed: dict[str, NextHop] = {}
        self._names: dict[NextHop, str] = {}

    def of(self, sealed: str | None) -> NextHop | None:
        """None: the MX of the domain.

        :raises SealError: it is sealed with a key that we no longer have.
        :raises ValueError: it was sealed by a version that took what this one does not.
        """
        if sealed is None:
            return self._configured
        if sealed not in self._unsealed:
            self._unsealed[sealed] = parse_next_hop(self._keys.unseal(sealed))
        return self._unsealed[sealed]

    def name(self, sealed: str | None, real_address: str) -> str:
        """The next hop with its login, or the domain (core/destinations.py). Raises as :meth:`of`."""
        hop = self.of(sealed)
        if hop is None:
            return real_address.rpartition("@")[2]
        if hop not in self._names:
            self._names[hop] = hop.name(self._keys.current("loop"))
        return self._names[hop]
