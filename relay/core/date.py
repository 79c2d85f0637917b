"""The Date field: read as real mail writes it, and written by RFC 5322 §3.3."""

from __future__ import annotations

import re
from datetime import UTC, datetime

#: Octets of the field that are looked at.
DATE_LIMIT = 128

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = {name.lower(): index for index, name in enumerate(MONTHS, start=1)}
# RFC 5322 §4.3, and names that mean one offset only. Any other name says nothing: it counts as +0000.
_ZONE = {"est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7, "mdt": -6, "pst": -8, "pdt": -7}
_ZONE |= {"msk": 3, "cet": 1, "cest": 2, "eet": 2, "eest": 3, "jst": 9}
# What nine of ten programs write. It says here what its words say.
_COMMON = re.compile(
    rb"[ \t]*+(?:[A-Z][a-z]{2}, )?([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) "
    rb"([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})[ \t\r\n]*+"
).fullmatch
_COMMENT = re.compile(r"\([^()]*\)")
_CLOCK = re.compile(r"(\d\d?):(\d\d?)(?::(\d\d?))?(?:[.,]\d+)?(.*)")
_OFFSET = re.compile(r"(?:gmt|utc?)?([+-]?)(\d\d):?(\d\d)")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:t|$)(.*)")


def parse_date(value: bytes) -> float | None:
    """Seconds since the epoch of a Date field, None when there is no telling.

    RFC 5322 §3.3 and §4.3 (obsolete zones, years of two and three digits, comments), asctime and ISO 8601. Without
    a zone: UTC. At most 128 octets are looked at.
    """
    common = _COMMON(value) if len(value) <= DATE_LIMIT else None
    if common is not None and (month := _MONTH.get(common[2].decode().lower(), 0)):
        clock = int(common[4]), int(common[5]), int(common[6])
        offset = (int(common[8]) * 60 + int(common[9])) * (-60 if common[7] == b"-" else 60)
        return _seconds(int(common[3]), month, int(common[1]), clock, offset)
    return _words_date(value[:DATE_LIMIT].decode("ascii", "replace").lower())


def _words_date(text: str) -> float | None:
    """The words may stand in any order, as far as each says what it is."""
    for _ in range(4 if "(" in text else 0):  # comments in comments, as deep as anyone nests them
        text = _COMMENT.sub(" ", text)
    day = month = year = -1
    offset: int | None = None
    clock: tuple[int, int, int] | None = None
    words = text.partition("(")[0].replace(",", " ").split()
    while words:
        word = words.pop(0)
        if clock is None and (match := _CLOCK.fullmatch(word)):
            clock = int(match[1]), int(match[2]), int(match[3] or 0)
            words[:0] = [match[4]] if match[4] else []  # a zone without a space before it
        elif word.isdecimal() and len(word) <= 4 and (day < 0 or year < 0):
            if day < 0 and len(word) <= 2:
                day = int(word)
            elif year < 0:
                year = int(word)
        elif word[:3] in _MONTH and word.isalpha():
            month = _MONTH[word[:3]]
        elif match := _OFFSET.fullmatch(word):
            offset = (int(match[2]) * 60 + int(match[3])) * (-60 if match[1] == "-" else 60)
        elif match := _ISO.fullmatch(word):
            year, month, day = int(match[1]), int(match[2]), int(match[3])
            words[:0] = [match[4]] if match[4] else []
        elif word in ("am", "pm") and clock:
            clock = (clock[0] % 12 + (12 if word == "pm" else 0), *clock[1:])
        elif word[:1].isdecimal() and word.count("-") == 2:
            words[:0] = word.split("-")  # 23-Nov-2026
        elif offset is None and word in _ZONE:  # "+0800 CST" is China's
            offset = _ZONE[word] * 3600
    return _seconds(year, month, day, clock, offset or 0)


def _seconds(year: int, month: int, day: int, clock: tuple[int, int, int] | None, offset: int) -> float | None:
    if clock is None or year < 0:
        return None
    if year < 1000:
        year += 2000 if year < 50 else 1900
    hour, minute, second = clock
    try:  # the 60th second is a leap second; datetime knows none
        moment = datetime(year, month, day, hour, minute, 59 if second == 60 else second, tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp() - (offset if abs(offset) < 86400 else 0)


def format_date(now: float) -> str:
    """The date-time of RFC 5322 §3.3, in UTC, down to the second."""
    moment = datetime.fromtimestamp(int(now), UTC)
    day, month = _DAYS[moment.weekday()], MONTHS[moment.month - 1]
    clock = f"{moment.hour:02}:{moment.minute:02}:{moment.second:02}"
    return f"{day}, {moment.day} {month} {moment.year} {clock} +0000"
