"""Logging: one line an entry, JSON for machines or coloured text for people, to one stream, secrets hidden.

Our own code logs through ``structlog.get_logger()``. Levels below the configured one cost a no-op call. Libraries log
through ``logging``; they come out of the same stream, at WARNING or above whatever our own level: aiosmtpd logs every
command at INFO and aiosqlite every statement with its values at DEBUG, which is other people's mail. aiohttp's access
log is off.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

#: Entry keys whose value is never written, whoever logs it.
SECRET_KEYS = frozenset({"password", "secret", "token", "authorization", "cookie", "private_key"})
HIDDEN = "[hidden]"
#: What holds no text and so no secret; a list of such (ports) stays a list.
_PLAIN = int | float | bool | None

# What gives a secret away inside a longer text: our token and webhook secret prefixes, a password in a URL, a header.
_SECRETS = re.compile(
    r"(?P<prefix>(?:whsec|vr)_)(?=[a-z+/=_-]{0,64}[A-Z0-9])[A-Za-z0-9+/=_-]{8,}"
    r"|(?P<scheme>(?i:[a-z][a-z0-9+.-]{0,20})://[^\s:/@]*:)[^\s/]+(?=@)"
    r"|(?P<header>\b(?:(?i:Bearer|Authorization: *Basic)|Basic) )[A-Za-z0-9+/=._~-]{8,}"
)
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x0A}


def setup(level: Level, format: Format, stream: TextIO | None = None) -> None:
    """Configure structlog and the root of ``logging``, once, before the first entry. The default stream is stderr.

    "auto" is console text on a terminal and JSON otherwise.
    """
    target = stream or sys.stderr
    out, colours = cast(TextIO, _Unbreakable(target)), target.isatty()
    as_json = format == "json" or (format == "auto" and not target.isatty())
    entry: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        hide_secrets,
    ]
    last: list[Processor] = (
        [structlog.processors.JSONRenderer(_as_json)]
        if as_json
        else [
            _printable,
            structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
    structlog.configure(
        processors=[*entry, *last],
        wrapper_class=_Logger,
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *entry],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)
    logging.captureWarnings(True)
    # aiosmtpd sets the level of its own loggers, so the root's does not reach them.
    for name in ("mail.log", "mail.debug"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").disabled = True


def set_level(level: Level) -> None:
    """Entries below this level are left out from now on, by loggers as well that are in use already."""
    number = logging.getLevelNamesMapping()[level.upper()]
    _Logger.__bases__ = (structlog.make_filtering_bound_logger(number),)
    logging.getLogger().setLevel(max(number, logging.WARNING))


def hide_secrets(logger: WrappedLogger, method: str, entry: EventDict) -> EventDict:
    """Blank what SECRET_KEYS name and what looks like a secret in any text, the traceback's included."""
    for key, value in entry.items():
        if key in SECRET_KEYS:
            entry[key] = HIDDEN
        elif isinstance(value, str):
            if "_" in value or "@" in value or " " in value:  # no pattern matches without one of these
                entry[key] = _SECRETS.sub(_hide, value)
        elif not isinstance(value, _PLAIN) and not (
            isinstance(value, list) and all(isinstance(v, _PLAIN) for v in value)
        ):
            entry[key] = _SECRETS.sub(_hide, str(value))
    return entry


def _as_json(entry: EventDict, default: Callable[[Any], Any]) -> str:
    """Text from strangers is harmless to a terminal: what is not visible ASCII is escaped."""
    with contextlib.suppress(orjson.JSONEncodeError):  # a lone surrogate, a number of more than 64 bits
        line = orjson.dumps(entry, default=default)
        if line.isascii() and b"\x7f" not in line:
            return line.decode()
    return json.dumps({key: _finite(value) for key, value in entry.items()}, default=default, separators=(",", ":"))


def _finite(value: Any) -> Any:
    """JSON knows no other numbers: orjson writes null, json what nobody can read."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hide(match: re.Match[str]) -> str:
    return f"{match[match.lastgroup or 0]}{HIDDEN}"


def _printable(logger: WrappedLogger, method: str, entry: EventDict) -> EventDict:
    """Make text from strangers harmless to a terminal: no control characters, nothing that cannot be encoded."""
    for key, value in entry.items():
        if isinstance(value, str):
            text = value.encode("utf-8", "backslashreplace").decode().translate(_CONTROLS)
            entry[key] = text if key == "exception" else text.replace("\n", "\\n")
    return entry


class _Logger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]  # made at run time
    """Every logger of ours. What it inherits from changes with the level: loggers are kept where they are in use."""


class _Unbreakable:
    """A stream whose failures go no further: a full disk or a closed pipe behind the log must never fail the mail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: the stream is closed
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass
