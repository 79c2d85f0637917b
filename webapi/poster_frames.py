"""What goes over the socket between the daemon and its poster's process (webapi/poster_process.py).

Octets of length, then the message, pickled: both ends are ours and of one version, both hold the same keys, and what
strangers say is parsed by neither (webapi/request_worker.py).
"""

from __future__ import annotations

import asyncio
import copyreg
import io
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

from relay.core.extras import PayloadExtras
from relay.core.hook import HookSettings
from relay.core.mime import Part
from relay.core.model import Attribution, Candidate
from relay.core.payload import PayloadAttachment, PayloadMessage, PayloadVisit
from relay.secrets import Keys
from relay.store.post import Hook, PostJob, PostResult
from webapi.tally import Tally

#: Octets of a message at most, a claim of many large letters; more is a fault of ours.
MOST = 1 << 30
_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a poster is made of. ``links_live_for``: seconds; ``log``: level and format (relay/logs.py)."""

    keys: Keys
    public_url: str
    links_live_for: float
    allow_private_addresses: bool
    log: tuple[str, str]
    claim: str = ""


@dataclass(frozen=True, slots=True)
class Submit:
    """To the poster: Poster.submit."""

    jobs: Sequence[PostJob]
    passed_over: frozenset[int]


@dataclass(frozen=True, slots=True)
class Wake:
    """To the poster: Poster.wake."""


@dataclass(frozen=True, slots=True)
class LogLevel:
    """To the poster: relay.toml was read again."""

    level: str


@dataclass(frozen=True, slots=True)
class Close:
    """To the poster, the last message: Poster.close."""

    grace: float


@dataclass(frozen=True, slots=True)
class Ask:
    """From the poster: call a method of PostStore."""

    number: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """To the poster. ``unavailable``: StoreUnavailable's text; ``failed``: another error's."""

    number: int
    value: Any = None
    unavailable: str | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """From the poster, when it changed and as a sign of life. ``standings`` by webhook: failures in a row, and when its
    rest is over (``time.monotonic``)."""

    backed_up: frozenset[int] = frozenset()
    standings: Mapping[int, tuple[int, float | None]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)


_NOTHING = PayloadMessage(id="", email_id="", subject=None, text="", email_from="", email_to="")


def bare(job: PostJob) -> PostJob:
    """Without the letter, for the way back: the store knows it."""
    return replace(job, message=_NOTHING, parts=(), visit=None, extras=None)


def bare_result(result: PostResult) -> PostResult:
    return replace(result, job=bare(result.job))


def _as_call(made: type[Any]) -> Callable[[Any], tuple[type[Any], tuple[Any, ...]]]:
    """How instances of a frozen dataclass are pickled: as a call with their fields, in half the time of its own way."""
    names = [field.name for field in fields(made)]
    values = attrgetter(*names)
    return (lambda one: (made, values(one))) if len(names) > 1 else lambda one: (made, (values(one),))


class _Pickler(pickle.Pickler):
    #: What each letter brings over; everything else goes its own way.
    dispatch_table = copyreg.dispatch_table | {
        made: _as_call(made)
        for made in (
            *(Submit, Ask, Answered, PostJob, PostResult, Hook, HookSettings, Part, Attribution, Candidate),
            *(PayloadMessage, PayloadAttachment, PayloadVisit, PayloadExtras),
        )
    }


def pack(message: object) -> bytes:
    """Raises ValueError for more than MOST octets."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    pickled = buffer.getvalue()
    if len(pickled) > MOST:
        raise ValueError(f"a message of {len(pickled)} octets")
    return _LENGTH.pack(len(pickled)) + pickled


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message; raises EOFError, ConnectionError, ValueError."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MOST:
        raise ValueError(f"a message of {length} octets")
    return pickle.loads(await reader.readexactly(length))  # noqa: S301  # our own process, see above
