"""Finding a secret in a text, however it is written there.

    leaks(text, {"token": "vr_…"}) == {"token": ["base64"]}

A secret is looked for as it is, percent-encoded (each of the usual ways), in hexadecimal and in base64, there also in
the middle of something longer, as a password is in the login of Basic authentication.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from urllib.parse import quote, quote_plus


def leaks(text: str, secrets: Mapping[str, str | bytes]) -> dict[str, list[str]]:
    """The secrets that are in the text, each with how it is written."""
    lower = text.lower()
    found: dict[str, list[str]] = {}
    for name, secret in secrets.items():
        octets = secret.encode() if isinstance(secret, str) else secret
        assert len(octets) >= 12, f"{name} is too short to be found by"
        ways = [way for way, spelling in spellings(octets) if spelling in (lower if way == "hex" else text)]
        if ways:
            found[name] = ways
    return found


def spellings(secret: bytes) -> Iterator[tuple[str, str]]:
    """Each way to write it, and how it looks."""
    yield "hex", secret.hex()
    for before in range(3):  # octets before it, of three that make four characters
        whole = base64.b64encode(bytes(before) + secret).decode().rstrip("=")
        first = (before * 8 + 5) // 6
        inner = whole[first : (before + len(secret)) * 8 // 6]
        yield "base64", inner
        yield "base64", inner.translate(str.maketrans("+/", "-_"))
    try:
        text = secret.decode()
    except UnicodeDecodeError:
        return
    yield "plain", text
    yield "plain", json.dumps(text)[1:-1]
    for encoded in (quote(text, safe=""), quote(text), quote_plus(text), quote(text, safe=":@!$'()*,;=")):
        yield "url", encoded
        yield "url", encoded.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d")
