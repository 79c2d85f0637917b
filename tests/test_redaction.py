"""webapi/redaction.py: no spelling of a secret is left, whatever stands around it, and all else is."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.hook import Access
from relay.core.template_filters import as_json, percent_encoded
from webapi import redaction
from webapi.redaction import Redaction, echoed, rendered

BASIC = "Basic " + base64.b64encode("jörg:hush / hush".encode()).decode()
ACCESS = Access(
    (("X-Api-Key", "header/S3cret+"), ("X-Login", "Bearer second/T0ken=")),
    "Bearer bearer/S3cret==",
    {"code": 'variable <"S3cret"> & ключ', "short": "1"},
)


@pytest.mark.parametrize("secret", ["header/S3cret+", "second/T0ken=", "bearer/S3cret==", 'variable <"S3cret"> & ключ'])
@pytest.mark.parametrize(
    "written",
    [
        str,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: json.dumps(text).replace("/", "\\/"),  # PHP
        str.upper,
        str.lower,
        html.escape,
        quote,
        quote_plus,
        lambda text: quote(text, safe=""),
    ],
    ids=["plain", "json", "utf8", "php", "upper", "lower", "html", "url", "form", "percent"],
)
def test_an_echo_is_hidden_however_it_is_written(secret: str, written: object) -> None:
    assert callable(written)
    said = Redaction(echoed(ACCESS)).text(f"you sent {written(secret)}, 1")
    assert said.replace('"', "") == "you sent ***, 1"


def test_a_variable_is_hidden_as_the_filters_of_templates_write_it() -> None:
    secret = 'a "key"\u2028/ ключ'
    hidden = Redaction(rendered(Access(variables={"code": secret})))
    for written in (as_json(secret)[1:-1], percent_encoded(secret.encode())):
        assert hidden.text(f"is {written}.") == "is ***."


def test_of_a_basic_login_all_three_are_hidden() -> None:
    hidden = Redaction(echoed(Access(authorization=BASIC)))
    assert hidden.text(f"{BASIC} is jörg:hush / hush, hush / hush") == "Basic *** is ***, ***"
    assert Redaction(echoed(Access(authorization="Basic §"))).text("Basic §") == "Basic §"


def test_without_secrets_nothing_is_hidden() -> None:
    assert Redaction(echoed(Access())).octets(b"a\xff") == b"a\xff"


def test_what_only_begins_like_a_secret_is_left_and_a_shorter_secret_in_it_is_not() -> None:
    hidden = Redaction(["https://crm.example/key", "https:", "https://crm.example/"])
    assert (
        hidden.text("https://crm.test/ https://crm.example/kex https://crm.example/key") == "***//crm.test/ ***kex ***"
    )
    assert Redaction(["https://crm.example/key"]).text("https://crm.example/kex") == "https://crm.example/kex"


def test_a_secret_that_begins_within_the_beginning_of_another_is_found() -> None:
    assert Redaction(["aaaaaaaaaaaaaaaaaaaab"]).text("a" * 30 + "b") == "a" * 10 + "***"


def test_one_that_the_end_cuts_off_is_hidden() -> None:
    hidden = Redaction(["0123456789abcdef" * 10])
    assert hidden.text("key 0123456789abcdef01") == "key ***"
    assert hidden.text("key 0123456789abcdef0x") == "key 0123456789abcdef0x"


@pytest.mark.parametrize("size", range(redaction.SECRET, len("secret-token-of-a-shop")))
def test_however_little_of_it_is_left_before_the_end(size: int) -> None:
    hidden = Redaction(["secret-token-of-a-shop"])
    assert hidden.text("you sent " + "secret-token-of-a-shop"[:size]) == "you sent ***"


def test_beginnings_without_end_are_hidden_from_some_number_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_BEGUN", 2)
    assert Redaction(["0123456789abcdef"]).text("0123456789ab-" * 4 + "x") == "0123456789ab-" * 2 + "***-***-x"


@given(st.lists(st.text("ab/é", min_size=6, max_size=30), min_size=1, max_size=8), st.text("ab/é", max_size=200))
def test_no_whole_secret_is_left(secrets: list[str], text: str) -> None:
    hidden = Redaction(secrets)
    for said in (text, secrets[0].join((text, text)), "".join(secrets)):
        shown = hidden.text(said)
        assert not any(secret in shown for secret in secrets)
        assert shown == said or "***" in shown


def test_fifty_long_variables_are_found_in_a_large_body() -> None:
    values = [f"«{n}» & {'ключ/' * 700}" for n in range(50)]
    access = Access(variables={f"v{n}": value for n, value in enumerate(values)})
    body = "".join(f"{'x' * 100_000}{value}{value.upper()}{quote(value, safe='')}" for value in values)
    assert Redaction(rendered(access)).text(body) == ("x" * 100_000 + "***" * 3) * 50


@pytest.mark.parametrize(
    "written",
    [
        lambda text: quote(text, safe="").lower(),
        lambda text: "".join(f"\\u{ord(char):04X}" for char in text),
        lambda text: html.escape(text).replace("&#x27;", "&#39;").replace("/", "&#47;"),
        lambda text: text.swapcase(),
        lambda text: json.dumps(json.dumps({"token": text})),
        lambda text: base64.b64encode(text.encode()).decode(),
    ],
    ids=["percent in small letters", "u escapes", "numbered entities", "capitals", "json in json", "base64"],
)
def test_an_answer_that_repeats_a_secret_in_any_other_spelling_is_known(written: Callable[[str], str]) -> None:
    secret = "aB3+/x=Q&z'<9\"k"
    answer = f"you sent {written(secret)}, thanks".encode()
    assert redaction.repeats(answer, Access(variables={"code": secret}))
    assert not redaction.repeats(b"thanks for the letter", Access(variables={"code": secret}))
