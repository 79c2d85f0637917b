"""Webhook signatures after Standard Webhooks (standardwebhooks.com, specification 1.0.0, "Signature scheme").

    webhook-signature: v1,BASE64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY")) [ v1,…]

One signature for each secret: while a secret is being exchanged, the receiver accepts whichever it knows.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"
MIN_OCTETS, MAX_OCTETS = 24, 64


def new_secret(random: bytes) -> str:
    """The secret made of 24 to 64 random octets; raises ValueError for any other number."""
    _check_length(random)
    return PREFIX + base64.b64encode(random).decode("ascii")


def decode_secret(secret: str) -> bytes:
    """The key octets of ``whsec_…``; raises ValueError that says what is wrong and never holds the secret."""
    if not secret.startswith(PREFIX):
        raise ValueError(f'a webhook secret begins with "{PREFIX}"')
    encoded = secret.removeprefix(PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f'what follows "{PREFIX}" is not base64') from None
    _check_length(key)
    return key


def _check_length(key: bytes) -> None:
    if not MIN_OCTETS <= len(key) <= MAX_OCTETS:
        raise ValueError(f"a webhook secret holds {MIN_OCTETS} to {MAX_OCTETS} octets, this one {len(key)}")


def sign(secrets: Sequence[str], msg_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``, a signature for each secret in their order.

    ``timestamp`` is in whole seconds, the one sent as ``webhook-timestamp``. Raises ValueError for a malformed
    secret, or for none: what is not signed is not sent.
    """
    if not secrets:
        raise ValueError("a webhook needs a secret to be signed with")
    content = f"{msg_id}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(decode_secret(secret), content, "sha256")).decode("ascii")
        for secret in secrets
    )
