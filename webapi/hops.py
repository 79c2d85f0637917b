"""Who passed a request on, read from its proxies' header fields, the nearest hop first.

    X-Forwarded-For: client, proxy, proxy              each proxy adds its peer at the end
    Forwarded: for=192.0.2.43;proto=https, for="[2001:db8:cafe::17]:4711"           RFC 7239 §4

    Forwarded         = 1#forwarded-element
    forwarded-element = [ forwarded-pair ] *( ";" [ forwarded-pair ] )
    forwarded-pair    = token "=" ( token / quoted-string )
    node              = ( IPv4address / "[" IPv6address "]" / "unknown" / obfnode ) [ ":" node-port ]

The client writes what it likes at the beginning, a proxy of ours well-formed text at the end. So everything is read
from its end, and only as far as somebody asks: a quotation mark that the client left open swallows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

#: Hops that are read at most. No chain of proxies is that long; what a header has more is a client's invention.
MOST = 32
#: Characters of an element that is read; four parameters are not that long.
LONGEST_ELEMENT = 500
#: Characters of a hop; an address with brackets, zone and port is shorter.
_LONGEST = 100

# A value outside quotation marks may be more than a token here: some proxies write IPv6 addresses and ports bare.
_PAIR = re.compile(
    r"""[ \t]* (?: ([!#$%&'*+.^_`|~0-9A-Za-z-]+) = (?: "((?:[^"\\]|\\.)*)" | ([^\s",;=]*) ) )? [ \t]* (?: ; | \Z )""",
    re.VERBOSE,
)


def read(name: str, values: Sequence[str]) -> Iterator[str]:
    """The hops of a header field (X-Forwarded-For or Forwarded) from the last to the first, at most MOST.

    A hop is text as written, to be read as an address by whoever asks; "" for one that tells no address.
    """
    forwarded = name == "Forwarded"
    divide = _elements if forwarded else _items
    elements = (element for value in reversed(values) for element in divide(value))
    for element in islice(elements, MOST):
        hop = _node(element) if forwarded else element
        yield hop if len(hop) <= _LONGEST else ""


def _items(value: str) -> Iterator[str]:
    """What stands between commas, the last first."""
    comma = ","
    while comma:
        value, comma, item = value.rpartition(",")
        yield item.strip()


def _elements(value: str) -> Iterator[str]:
    """The same where a comma in a quoted string divides nothing."""
    end = len(value)
    quoted = False
    for at in range(end - 1, -1, -1):
        if value[at] == '"' and not _escaped(value, at):
            quoted = not quoted
        elif value[at] == "," and not quoted:
            yield value[at + 1 : end]
            end = at
    yield value[:end]


def _escaped(value: str, at: int) -> bool:
    """Whether an odd number of backslashes stands before this character."""
    start = at
    while start > 0 and value[start - 1] == "\\":
        start -= 1
    return (at - start) % 2 == 1


def _node(element: str) -> str:
    """The ``for`` of one element; "" when it has none, several, or is malformed (RFC 7239 §4: once at most)."""
    found: str | None = None
    if len(element) > LONGEST_ELEMENT:  # before it is read: its white space may be read in many ways
        return ""
    at = 0
    while at < len(element):
        pair = _PAIR.match(element, at)
        if pair is None:
            return ""
        if (pair[1] or "").lower() == "for":
            if found is not None:
                return ""
            found = re.sub(r"\\(.)", r"\1", pair[2]) if pair[2] is not None else pair[3]
        at = pair.end()
    return found or ""
