"""DKIM signatures (RFC 6376), made and judged by dkimpy. Keys come from a mapping, not from DNS."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import dkim
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: Letters that others have signed; their origin and licence are written there.
LETTERS = Path(__file__).with_name("dkim_letters")
#: Every way a letter is signed here: how its header and its body are read, and whether ``l=`` ends what is signed.
WAYS = tuple(itertools.product((b"simple", b"relaxed"), (False, True)))
#: A key record by the name that it is published at.
Keys = Mapping[bytes, bytes]


class Signer:
    """Signs for ``customer.test``; its key's record is in ``keys``. Ed25519 (RFC 8463), which takes little time."""

    def __init__(self, selector: bytes) -> None:
        private = Ed25519PrivateKey.generate()
        public = base64.b64encode(private.public_key().public_bytes_raw())
        self._selector = selector
        self._private = base64.b64encode(private.private_bytes_raw())
        self.keys: Keys = {selector + b"._domainkey.customer.test.": b"v=DKIM1; k=ed25519; p=" + public}

    def signed(self, content: bytes) -> bytes:
        """With a signature of each of WAYS before it."""
        signatures = [
            dkim.DKIM(content).sign(
                self._selector,
                b"customer.test",
                self._private,
                b"ed25519-sha256",
                canonicalize=(way, way),
                length=length,
            )
            for way, length in WAYS
        ]
        return b"".join(signatures) + content


def verdicts(message: bytes, keys: Keys) -> list[bool]:
    """Whether each signature of the message holds, from its top to its end."""

    def record(name: bytes, timeout: float) -> bytes | None:
        return keys.get(name)

    found = []
    header = message.partition(b"\r\n\r\n")[0]
    for number in range(len(re.findall(rb"(?mi)^DKIM-Signature:", header))):
        try:
            found.append(dkim.DKIM(message).verify(number, record))
        except dkim.ValidationError:  # the body is another one
            found.append(False)
    return found


def published(path: Path) -> Keys:
    """The key records of a ``.dns`` file."""
    records = path.read_bytes().replace(b"\\\n", b"").splitlines()
    split = (record.partition(b":") for record in records if record)
    return {name + b".": text.strip() for name, _, text in split}
