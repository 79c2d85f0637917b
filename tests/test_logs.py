"""Log entries: their form, their levels, where the libraries' go, and what never gets into them."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from relay import logs
from tests.daemon import ROOT
from tests.plain_logs import plain_logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("mail.log", "mail.debug"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("aiohttp.access").disabled = False
    structlog.reset_defaults()
    plain_logs()


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(level: logs.Level = "info", format: logs.Format = "json") -> tuple[io.StringIO, Any]:
    stream = io.StringIO()
    logs.setup(level, format, stream)
    return stream, structlog.get_logger()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise BrokenPipeError


def test_an_entry_is_one_line_of_json_with_level_and_utc_time() -> None:
    stream, log = configured()
    log.info("delivered", message=17, text="two\nlines")
    (entry,) = entries(stream)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "delivered", "level": "info", "message": 17, "text": "two\nlines"}


def test_levels_below_the_configured_one_are_silent() -> None:
    stream, log = configured("warning")
    log.debug("no")
    log.info("no")
    log.warning("yes")
    assert [entry["event"] for entry in entries(stream)] == ["yes"]


def test_debug_shows_everything_of_ours_and_only_warnings_of_the_libraries() -> None:
    stream, log = configured("debug")
    log.debug("ours")
    logging.getLogger("aiosqlite").debug("INSERT … secret letter")
    logging.getLogger("mail.log").info("RCPT TO:<sales@example.com>")
    logging.getLogger("mail.log").warning("odd command")
    assert [(entry["event"], entry.get("logger")) for entry in entries(stream)] == [
        ("ours", None),
        ("odd command", "mail.log"),
    ]


def test_aiosmtpd_stays_silent_even_if_it_set_its_own_level() -> None:
    logging.getLogger("mail.log").setLevel(logging.DEBUG)
    stream, _ = configured("debug")
    logging.getLogger("mail.log").info("EHLO")
    assert entries(stream) == []


def test_the_access_log_of_aiohttp_is_off() -> None:
    stream, _ = configured("debug")
    logging.getLogger("aiohttp.access").error("GET /")
    assert entries(stream) == []


def test_python_warnings_become_entries() -> None:
    stream, _ = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old API", DeprecationWarning, stacklevel=1)
    (entry,) = entries(stream)
    assert (entry["logger"], entry["level"]) == ("py.warnings", "warning")
    assert "old API" in entry["event"]


def test_a_traceback_is_in_the_entry_of_ours_and_of_a_library() -> None:
    stream, log = configured()
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("ours")
        logging.getLogger("asyncio").exception("theirs")
    for entry in entries(stream):
        assert entry["exception"].endswith("ValueError: broken")


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    "leak",
    [
        {"password": "C4NARY"},
        {"secret": "C4NARY"},
        {"token": b"C4NARY"},
        {"authorization": "Bearer C4NARY"},
        {"text": "Authorization: Bearer C4NARYC4NARY"},
        {"url": "smtps://user:C4NARY@mail.example.com:465"},
        {"url": "smtps://user:p@C4NARY@mail.example.com:465"},
        {"text": "using whsec_C4NARYC4NARY= now"},
        {"text": "vr_C4NARYC4NARY"},
        {"text": "xwhsec_C4NARYC4NARY 1vr_C4NARYC4NARY"},
        {"text": "authorization: bearer C4NARYC4NARY"},
        {"text": "authorization: basic C4NARYC4NARY"},
        {"text": "url_smtp://user:C4NARY@mail.example.com"},
        {"url": "SMTPS://user:C4NARY@mail.example.com:465"},
        {"values": ["vr_C4NARYC4NARY"]},
        {"values": {"key": "whsec_C4NARYC4NARY"}},
    ],
)
def test_secrets_are_hidden(format: logs.Format, leak: dict[str, Any]) -> None:
    stream, log = configured("debug", format)
    log.debug("event", **leak)
    assert logs.HIDDEN in stream.getvalue()
    assert "C4NARY" not in stream.getvalue()


def test_secrets_are_hidden_in_events_tracebacks_and_library_entries() -> None:
    stream, log = configured()
    try:
        raise ValueError("smtp://user:C4NARY@host:25")
    except ValueError:
        log.exception("whsec_C4NARYC4NARY")
        logging.getLogger("asyncio").exception("vr_C4NARYC4NARY %s", "vr_C4NARYC4NARY")
    assert len(entries(stream)) == 2
    assert "C4NARY" not in stream.getvalue()


def test_a_number_that_json_does_not_know_is_null_beside_text_that_is_not_ascii() -> None:
    stream, log = configured()
    for text in ("plain", "ä", "\ud800"):
        log.info("a", text=text, other=float("nan"), more=[1, float("-inf")])
    assert [(entry["other"], entry["more"]) for entry in entries(stream)] == [(None, [1, None])] * 3


def test_ordinary_texts_pass_unchanged() -> None:
    stream, log = configured()
    log.info(
        "a",
        to="sales@example.com",
        url="https://example.com/x_y?vr_=1",
        text="Basic facts, whsec_ and vr_, srvr_settings",
        none=None,
    )
    (entry,) = entries(stream)
    assert entry["to"] == "sales@example.com"
    assert entry["url"] == "https://example.com/x_y?vr_=1"
    assert entry["text"] == "Basic facts, whsec_ and vr_, srvr_settings"
    assert entry["none"] is None


def test_auto_is_json_unless_the_stream_is_a_terminal() -> None:
    stream, log = configured(format="auto")
    log.info("a")
    assert entries(stream)[0]["event"] == "a"
    terminal = Terminal()
    logs.setup("info", "auto", terminal)
    structlog.get_logger().info("a")
    assert "\x1b[" in terminal.getvalue()


def test_text_from_strangers_cannot_move_the_cursor_of_a_terminal_or_forge_a_line() -> None:
    stream, log = configured(format="console")
    log.info("a", sender="\x1b[2J\x9b31m\r\nfake line\x00\udcff")
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert "x1b[2J" in line
    assert "fake line" in line


def test_console_entries_of_exceptions_keep_their_lines() -> None:
    stream, log = configured(format="console")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("bad")
    assert stream.getvalue().splitlines()[1] == "Traceback (most recent call last):"


def test_lone_surrogates_do_not_break_a_json_entry() -> None:
    stream, log = configured()
    log.info("a", sender="\udcff")
    assert entries(stream)[0]["sender"] == "\udcff"


@pytest.mark.parametrize("value", ["plain", "\x9b2J", "\x7f", "\u2028", "Привет", "\ud800", 1 << 70])
def test_a_json_entry_is_visible_ascii_and_laid_out_alike_whatever_it_says(value: object) -> None:
    stream, log = configured()
    log.info("a", value=value)
    assert stream.getvalue().rstrip("\n").isprintable()
    assert stream.getvalue().isascii()
    assert '"event":"a"' in stream.getvalue()
    assert entries(stream)[0]["value"] == value


def test_a_full_disk_or_closed_pipe_behind_the_log_does_not_reach_the_caller() -> None:
    logs.setup("info", "json", Broken())
    structlog.get_logger().info("a")
    logging.getLogger("asyncio").error("b")
    closed = io.StringIO()
    logs.setup("info", "json", closed)
    closed.close()
    structlog.get_logger().info("a")


def test_the_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("info", "json")
    structlog.get_logger().info("a")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "a"


def loud(source: str) -> Iterator[str]:
    """The events that a module logs at level error or worse."""
    if not re.search(r"log\.(error|exception|critical)\(", source):
        return  # to parse it takes a hundred times as long
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="error" | "exception" | "critical"),
                args=[ast.Constant(value=event), *_],
            ) if name.endswith("log"):
                yield str(event)


def test_of_every_loud_line_the_documentation_says_what_to_do() -> None:
    sources = [file.read_text() for part in ("relay", "webapi") for file in (ROOT / part).rglob("*.py")]
    events = {event for source in sources for event in loud(source)}
    assert len(events) > 50
    rows = (ROOT / "docs" / "operations.md").read_text().partition("## What to do when …")[2]
    assert {event for event in events if f"`{event}`" not in rows} == set()
