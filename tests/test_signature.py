"""webapi/signature.py against the standard's vector and its own library as the verifier."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.corpora import corpus
from webapi.signature import decode_secret, new_secret, sign

SECRET = new_secret(bytes(range(24)))
OTHER = new_secret(bytes(range(32)))


def test_the_vectors_of_the_standard_are_reproduced() -> None:
    vectors = json.loads((corpus("webhooks-standard") / "vectors.json").read_text())
    for vector in vectors:
        signature = sign(
            [vector["secret"]], vector["webhook-id"], int(vector["webhook-timestamp"]), vector["body"].encode()
        )
        assert signature == vector["webhook-signature"]
    assert len(vectors) >= 1


def verify(secret: str, signature: str, body: bytes, timestamp: int, msg_id: str = "msg_1") -> None:
    headers = {"webhook-id": msg_id, "webhook-timestamp": str(timestamp), "webhook-signature": signature}
    Webhook(secret).verify(body, headers, json_parse=False)


@given(st.binary(min_size=24, max_size=64), st.text(max_size=60), st.from_regex(r"[A-Za-z0-9_]{1,40}", fullmatch=True))
def test_the_standards_library_verifies_what_we_sign(random: bytes, text: str, msg_id: str) -> None:
    secret, now, body = new_secret(random), int(time.time()), text.encode(errors="replace")
    verify(secret, sign([secret], msg_id, now, body), body, now, msg_id)


def test_while_a_secret_is_exchanged_the_receiver_may_know_either() -> None:
    now = int(time.time())
    signature = sign([SECRET, OTHER], "msg_1", now, b"{}")
    assert [part.partition(",")[0] for part in signature.split(" ")] == ["v1", "v1"]
    verify(SECRET, signature, b"{}", now)
    verify(OTHER, signature, b"{}", now)


@pytest.mark.parametrize(
    ("secret", "body", "msg_id"), [(OTHER, b"{}", "msg_1"), (SECRET, b"{ }", "msg_1"), (SECRET, b"{}", "msg_2")]
)
def test_another_secret_body_or_id_is_not_verified(secret: str, body: bytes, msg_id: str) -> None:
    now = int(time.time())
    with pytest.raises(WebhookVerificationError):
        verify(secret, sign([SECRET], "msg_1", now, b"{}"), body, now, msg_id)


def test_nothing_is_signed_without_a_secret() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        sign([], "msg_1", 0, b"{}")


@given(st.binary(min_size=24, max_size=64))
def test_a_secret_is_decoded_to_the_octets_it_was_made_of_padded_or_not(random: bytes) -> None:
    secret = new_secret(random)
    assert decode_secret(secret) == decode_secret(secret.rstrip("=")) == random


@pytest.mark.parametrize("length", [0, 23, 65])
def test_a_secret_of_another_length_is_neither_made_nor_taken(length: int) -> None:
    with pytest.raises(ValueError, match=f"24 to 64 octets, this one {length}"):
        new_secret(bytes(length))
    with pytest.raises(ValueError, match=f"24 to 64 octets, this one {length}"):
        decode_secret("whsec_" + base64.b64encode(bytes(length)).decode())


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("", "begins with"),
        (SECRET.removeprefix("whsec_"), "begins with"),
        ("WHSEC_" + SECRET[6:], "begins with"),
        ("whsec_not base64!", "not base64"),
        ("whsec_" + "_-" * 20, "not base64"),
        ("whsec_A", "not base64"),
        ("whsec_ключ", "not base64"),
    ],
)
def test_a_malformed_secret_is_refused_with_the_reason_and_without_itself(secret: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        decode_secret(secret)
    assert secret[6:] == "" or secret[6:] not in str(refusal.value)
    with pytest.raises(ValueError, match=reason):
        sign([SECRET, secret], "msg_1", 0, b"{}")
