"""The accounts of forwarding: what each destination has under way, how much more it may have, and which is down.

    reached          failures = 0, all may go
    not reached      failures + 1, nothing before the back-off is over, then one message alone. What began before it
                     went down may hang for minutes and keeps nobody waiting
    to be retried    one message alone at once if it was down; what began before says no more that it is

A destination is a domain, or a next hop with its login and kind of TLS (core/nexthop.py): a password that is refused
or a certificate that is not trusted says nothing about who comes to the same host in another way.

No destination takes more than a share of what it leaves free. So many that hang leave the next one room, in deliveries
as in memory: forty of them still some.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relay.core.backoff import delay

#: Deliveries under way in all, and octets of their bodies in memory; of a body in a file a chunk at a time is.
IN_FLIGHT = 1000
MEMORY = 64 * 1024 * 1024
#: What is left free is at least so many times what one destination has: enough of it for all its connections to be busy
#: with large letters.
SPARE = 8


@dataclass(slots=True)
class _Destination:
    """``down_until`` > 0: not reached lately. ``refill``: with so few under way, it is time to look what waits.

    ``turn``: how often it went down, came back or was to be retried. ``fell``: the turn with which it went down when it
    was reached until then; ``before``: how many under way began before that.
    """

    in_flight: int = 0
    memory: int = 0
    refill: int = 0
    failures: int = 0
    turn: int = 0
    fell: int = 0
    before: int = 0
    down_until: float = 0.0


_UNKNOWN = _Destination()


class Destinations:
    """``ahead``: deliveries under way for one destination at most; ``largest``: octets that one takes at most."""

    def __init__(self, ahead: int, largest: int) -> None:
        self._ahead = ahead
        self._largest = largest
        self._known: dict[str, _Destination] = {}
        self._in_flight = 0
        self._memory = 0

    def __len__(self) -> int:
        """Those with something under way or a back-off."""
        return len(self._known)

    def is_down(self, name: str) -> bool:
        """Whether the next message to it goes alone, to see whether it is reached again."""
        return (self._known.get(name) or _UNKNOWN).down_until > 0

    def takes(self, name: str, size: int) -> bool:
        """Whether one more delivery of ``size`` octets may begin at once."""
        known = self._known.get(name) or _UNKNOWN
        flights, memory = self.free
        size = min(size, self._largest)
        return not known.down_until and size <= memory and self._room(known, flights, memory, size) > 0

    def capacity(self, due: Iterable[str], now: float) -> dict[str, int]:
        """How many deliveries may begin for each of these destinations, of whatever size."""
        flights, memory = self.free
        capacity: dict[str, int] = {}
        for name in due:
            known = self._known.get(name) or _UNKNOWN
            if known.down_until:
                is_time = now >= known.down_until and known.in_flight <= known.before
                room = int(is_time and flights > 0 and memory > 0)  # whatever share those have that hang
            else:
                room = self._room(known, flights, memory, self._largest)
            if room > 0:
                capacity[name] = room
                flights -= room
                memory -= room * self._largest
        return capacity

    @property
    def free(self) -> tuple[int, int]:
        """Deliveries that may still begin in all, and octets of memory for them."""
        return IN_FLIGHT - self._in_flight, MEMORY - self._memory

    def _room(self, known: _Destination, flights: int, memory: int, size: int) -> int:
        """How many more of ``size`` octets it may have; one where it has none and anything is free."""
        if flights < 1 or memory < 1:
            return 0
        fair = min(
            (flights - SPARE * known.in_flight) // (SPARE + 1),
            (memory - SPARE * known.memory) // ((SPARE + 1) * max(1, size)),
        )
        return min(self._ahead - known.in_flight, max(fair, 0 if known.in_flight else 1))

    def begin(self, name: str, size: int) -> int:
        """A delivery of ``size`` octets begins. What :meth:`note` is to be given: since when it is under way."""
        known = self._known.setdefault(name, _Destination(refill=self._ahead // 2))
        known.in_flight += 1
        known.memory += min(size, self._largest)
        self._in_flight += 1
        self._memory += min(size, self._largest)
        return known.turn

    def end(self, name: str, size: int, turn: int) -> bool:
        """A delivery that began at this ``turn`` is over. True when there is room again for what may wait."""
        known = self._known[name]
        known.in_flight -= 1
        known.memory -= min(size, self._largest)
        self._in_flight -= 1
        self._memory -= min(size, self._largest)
        if turn < known.fell:
            known.before -= 1
        if not known.in_flight and not known.down_until:
            del self._known[name]
        return known.in_flight in (0, known.refill, self._ahead // 2)

    def filled(self, names: Iterable[str]) -> None:
        """What waited for these destinations has begun, as much as there was room for: look again at half of it."""
        for name in names:
            known = self._known[name]
            known.refill = known.in_flight // 2

    def note(self, name: str, reached: bool | None, turn: int, now: float, jitter: float) -> int:
        """What an attempt, begun at this ``turn``, says of its destination: the failures in a row if that is one more.

        Of those that were under way when it went down each says the same, so that is one failure. Nor does it
        count that one fails which began before the destination was reached again or was to be retried: it may have been
        mended meanwhile. None says nothing.
        """
        known = self._known[name]
        if reached and known.down_until:
            known.failures, known.down_until = 0, 0.0
            known.turn += 1
        if reached is not False or turn != known.turn:
            return 0
        known.failures += 1
        known.turn += 1
        if not known.down_until:
            known.fell, known.before = known.turn, known.in_flight
        known.down_until = now + delay(known.failures, jitter)
        return known.failures

    def next_tries(self, names: Iterable[str]) -> list[float]:
        """When the back-offs of these end, of those that have one."""
        return [self._known[name].down_until for name in names if name in self._known and self._known[name].down_until]

    def retry(self, now: float) -> None:
        """Every back-off ends now."""
        for known in self._known.values():
            known.down_until = min(known.down_until, now)
            known.turn += 1

    def clock_set_back(self, by: float) -> None:
        """Back-offs end when they would have ended."""
        for known in self._known.values():
            if known.down_until:
                known.down_until = max(1.0, known.down_until - by)
