"""Values as the API writes and reads them: times, cursors, ids."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainValidator

from relay.core.address import MAX_SENDER
from webapi.problems import not_found

LARGEST_ID = (1 << 63) - 1


def moment(seconds: float) -> str:
    """A time as RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else moment(seconds)


def seconds_or_none(text: str | None) -> float | None:
    """The time that :func:`moment` wrote, in seconds since the epoch."""
    return None if text is None else datetime.fromisoformat(text).timestamp()


def _read_moment(value: object) -> float:
    """Seconds since the epoch of an RFC 3339 time; a date alone is its beginning, and no zone means UTC."""
    try:
        read = datetime.fromisoformat(str(value))
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError('must be a time such as "2026-01-31T12:00:00Z", or a date') from None


def cursor_of(row_id: int) -> str:
    """What a client gives back to read on after this row. It says nothing else, and is checked when it comes back."""
    return base64.urlsafe_b64encode(row_id.to_bytes(8, "big")).rstrip(b"=").decode()


def _read_cursor(value: object) -> int:
    text = str(value)
    try:
        row_id = int.from_bytes(base64.urlsafe_b64decode(f"{text}="), "big")
    except (binascii.Error, ValueError):
        row_id = 0
    if not 0 < row_id <= LARGEST_ID or cursor_of(row_id) != text:
        raise ValueError("must be the next of an earlier answer")
    return row_id


def row_id(text: str, what: str) -> int:
    """A number out of a path; raises Problem 404 for what cannot be one."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 19) or not 0 < int(text) <= LARGEST_ID:
        raise not_found(what)
    return int(text)


Moment = Annotated[
    float,
    PlainValidator(_read_moment, json_schema_input_type=str),
    Field(description="RFC 3339 time, or a date.", examples=["2026-01-31T12:00:00Z"]),
]
Cursor = Annotated[
    int,
    PlainValidator(_read_cursor, json_schema_input_type=str),
    Field(description="`next` of the answer before."),
]
Limit = Annotated[int, Field(ge=1, le=200, description="Items of one answer at most.")]
"""A page size."""

Digits = Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]


def _no_nul(value: object) -> object:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain NUL")
    return value


#: Text that a client may store or search for.
Text = Annotated[str, BeforeValidator(_no_nul)]
#: Characters of a sender: the octets that one may have, and the quotes that History shows around odd dots.
LONGEST_SENDER = MAX_SENDER + 2
Sender = Annotated[Text, Field(max_length=LONGEST_SENDER, description="Bare address of the sender.")]
