"""Next hop URLs: what they mean, and one clear sentence for each way to get them wrong."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.nexthop import NextHop, parse_next_hop


@pytest.mark.parametrize(
    ("url", "hop"),
    [
        ("smtp://mail.example.com:2525", NextHop("mail.example.com", 2525, "opportunistic")),
        ("smtp://mail.example.com", NextHop("mail.example.com", 25, "opportunistic")),
        ("SMTP://Mail.Example.COM./", NextHop("mail.example.com", 25, "opportunistic")),
        ("smtps://mail.example.com", NextHop("mail.example.com", 465, "implicit")),
        ("smtp+starttls://mail.example.com", NextHop("mail.example.com", 587, "starttls")),
        ("smtp://127.0.0.1:2526", NextHop("127.0.0.1", 2526, "opportunistic")),
        ("smtp://[::1]:2526", NextHop("::1", 2526, "opportunistic")),
        ("smtp://[2001:DB8::0:1]", NextHop("2001:db8::1", 25, "opportunistic")),
        ("smtp://my_relay", NextHop("my_relay", 25, "opportunistic")),
        ("smtp://почта.пример", NextHop("xn--80a1acny.xn--e1afmkfd", 25, "opportunistic")),
        ("smtps://user:pw@mail.example.com:465", NextHop("mail.example.com", 465, "implicit", "user", "pw")),
        ("smtps://a%40b.example:p%2F%25%3A%20w@h", NextHop("h", 465, "implicit", "a@b.example", "p/%: w")),
        ("smtps://a@b.example:p:w@h", NextHop("h", 465, "implicit", "a@b.example", "p:w")),
        ("smtp+starttls://u:%D0%BF@h", NextHop("h", 587, "starttls", "u", "п")),
        ("smtp://u:p@localhost:26", NextHop("localhost", 26, "opportunistic", "u", "p")),
        ("smtp://u:p@[::1]:26", NextHop("::1", 26, "opportunistic", "u", "p")),
    ],
)
def test_a_next_hop_is_read_as_written(url: str, hop: NextHop) -> None:
    assert parse_next_hop(url) == hop


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must start with smtp://"),
        ("mail.example.com", "must start with smtp://"),
        ("http://mail.example.com", "must start with smtp://"),
        ("smtp:mail.example.com", "must start with smtp://"),
        ("smtp://mail.example.com\r\n", "spaces or control characters"),
        ("smtp://mail example.com", "spaces or control characters"),
        ("smtp://", "names no host"),
        ("smtp://:25", "names no host"),
        ("smtp://-x.example", "not a valid host name"),
        ("smtp://a..b", "not a valid host name"),
        ("smtp://" + "a" * 64, "not a valid host name"),
        ("smtp://" + "a." * 127 + "aa", "not a valid host name"),
        ("smtp://300.1.1.1", "not a valid IPv4 address"),
        ("smtp://☃☃\u2488.example", "not a valid international domain name"),
        ("smtp://host:", "port of the next hop must be a number"),
        ("smtp://host:0", "port of the next hop must be a number"),
        ("smtp://host:65536", "port of the next hop must be a number"),
        ("smtp://host:٢٥", "port of the next hop must be a number"),
        ("smtp://host:25x", "port of the next hop must be a number"),
        ("smtp://[::1]:", "port of the next hop must be a number"),
        ("smtp://[::1]25", "only :port may follow"),
        ("smtp://[::1", "only :port may follow"),
        ("smtp://[mail.example.com]:25", "must hold an IPv6 address"),
        ("smtp://::1", "needs brackets"),
        ("smtp://host:25/inbox", "nothing may follow the port"),
        ("smtp://host:25?verify=no", "nothing may follow the port"),
        ("smtp://host:25#x", "nothing may follow the port"),
        ("smtps://user:p/w@host", "write / as %2F"),
        ("smtps://user@host", "needs a user and a password"),
        ("smtps://user:@host", "needs a user and a password"),
        ("smtps://:pw@host", "needs a user and a password"),
        ("smtps://user:50%@host", "must be written as %25"),
        ("smtps://user:%FF@host", "not UTF-8"),
        ("smtps://us%00er:pw@host", "control characters"),
        ("smtp://user:pw@mail.example.com", "could be read on the way"),
        ("smtp://user:pw@192.0.2.1", "could be read on the way"),
    ],
)
def test_a_wrong_next_hop_is_refused_with_its_problem(url: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_next_hop(url)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "url", ["smtps://user:geheim%@h", "smtps://user:geheim@h:x", "smtps://user:geheim/@h", "smtp://user:geheim@h"]
)
def test_no_error_shows_the_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_next_hop(url)
    assert "geheim" not in str(caught.value)


def test_the_repr_hides_the_password() -> None:
    assert "geheim" not in repr(parse_next_hop("smtps://user:geheim@host"))


_secret = st.text(st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1)


@given(_secret, _secret, st.integers(1, 65535))
def test_any_login_survives_percent_coding(user: str, password: str, port: int) -> None:
    url = f"smtps://{quote(user, safe='')}:{quote(password, safe='')}@mail.example.com:{port}"
    assert parse_next_hop(url) == NextHop("mail.example.com", port, "implicit", user, password)


@given(st.text())
def test_any_text_is_read_or_refused_with_value_error(text: str) -> None:
    for scheme in ("", "smtp://", "smtps://"):
        try:
            hop = parse_next_hop(scheme + text)
        except ValueError:
            continue
        assert 1 <= hop.port <= 65535
        assert hop.host.isascii()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("smtp://mail.example.com", "mail.example.com:25"),
        ("smtp+starttls://mail.example.com:25", "smtp+starttls://mail.example.com:25"),
        ("smtps://a%40b.example:secret@mail.example.com", "smtps://a@b.example@mail.example.com:465#"),
        ("smtps://%E2%80%AEu:secret@mail.example.com", "smtps://%E2%80%AEu@mail.example.com:465#"),
        ("smtp://u:secret@localhost", "smtp://u@localhost:25#"),
    ],
)
def test_the_name_says_how_a_host_is_reached_and_never_the_password(url: str, name: str) -> None:
    found = parse_next_hop(url).name(b"key")
    assert found.rpartition("#")[0] + "#" == name if name.endswith("#") else found == name
    assert "secret" not in found


def test_logins_are_told_apart_by_a_digest_that_needs_our_key() -> None:
    hop = parse_next_hop("smtps://user:right@mail.example.com")
    others = [replace(hop, password="wrong"), replace(hop, user="other"), replace(hop, user="userr", password="ight")]
    assert len({hop.name(b"key"), *(other.name(b"key") for other in others)}) == 4
    assert hop.name(b"key") == hop.name(b"key") != hop.name(b"other")
    longest = replace(hop, host="a" * 253, port=65535, tls="starttls", user="ü" * 1000)
    assert len(longest.name(b"key")) <= 320
