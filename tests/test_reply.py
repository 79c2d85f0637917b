"""SMTP replies: each one well formed, said once, and silent about what helps an attacker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.core import reply
from relay.core.reply import Reply

REPLIES = {name: value for name, value in vars(reply).items() if isinstance(value, Reply)}
MADE = [reply.greeting("mx.example.com"), reply.helo("mx.example.com"), reply.queued("01J9ZK3W")]


def test_there_are_replies_to_look_at() -> None:
    assert len(REPLIES) > 40


@pytest.mark.parametrize("name", REPLIES)
def test_a_constant_is_well_formed(name: str) -> None:
    found = REPLIES[name]
    assert name.isupper()
    assert 200 <= found.code <= 599
    assert re.fullmatch(r"[!-~]+( [!-~]+)*", found.text)
    if found.code == 354:  # RFC 2034 §4: no enhanced code with 3xx
        assert found.enhanced == ""
        assert found.line == f"{found.code} {found.text}"
    else:
        assert re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", found.enhanced)
        assert found.enhanced[0] == str(found.code)[0]
        assert found.line == f"{found.code} {found.enhanced} {found.text}"


@pytest.mark.parametrize("found", [*REPLIES.values(), *MADE], ids=str)
def test_a_reply_is_one_ascii_line_of_at_most_512_octets(found: Reply) -> None:
    assert found.wire == found.line.encode("ascii") + b"\r\n"
    assert str(found) == found.line
    assert len(found.wire) <= 512
    assert found.wire.count(b"\n") == found.wire.count(b"\r") == 1


def test_each_reply_stands_once() -> None:
    lines = [found.line for found in REPLIES.values()]
    assert len(lines) == len(set(lines))


def test_every_reply_is_given_somewhere() -> None:
    sources = "".join(path.read_text("utf-8") for path in Path(reply.__file__).parents[1].rglob("*.py"))
    assert REPLIES.keys() - set(re.findall(r"\breply\.([A-Z_]+)", sources)) == set()


def test_no_reply_names_software_or_a_cause_inside() -> None:
    telltale = re.compile(r"relay|python|aiosmtpd|sqlite|database|disk|exception|traceback", re.IGNORECASE)
    assert [found.line for found in REPLIES.values() if telltale.search(found.text)] == []


def test_replies_with_a_name_in_them() -> None:
    assert reply.greeting("mx.example.com").line == "220 mx.example.com ESMTP"
    assert reply.helo("mx.example.com").line == "250 mx.example.com"
    assert reply.queued("01J9ZK3W").line == "250 2.0.0 Queued as 01J9ZK3W"


def test_ehlo_names_the_host_and_then_each_extension() -> None:
    assert reply.ehlo("mx.example.com", ["PIPELINING", "SIZE 1000"]) == (
        b"250-mx.example.com\r\n250-PIPELINING\r\n250 SIZE 1000\r\n"
    )
    assert reply.ehlo("mx.example.com", []) == b"250 mx.example.com\r\n"


def test_a_text_that_is_not_ascii_is_an_error() -> None:
    with pytest.raises(UnicodeEncodeError):
        Reply(550, "5.1.1", "Empfänger unbekannt")
