"""Hiding what only a webhook's receiver may know: in a request that is shown, and in an answer that is kept.

One pass of RE2 finds all secrets in all spellings, so fifty variables cost about what one costs. The pattern holds only
how each of them begins, as whole ones of thousands of characters would be too large a pattern; the rest is compared.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from html import escape, unescape
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import re2

from relay.core.hook import Access
from relay.core.template_filters import as_json, percent_encoded, without_surrogates

HIDDEN = "***"
#: Characters from which on a value is taken for a secret, and hidden where it appears.
SECRET = 6
#: Octets of a spelling that the pattern holds: with more of them RE2 runs out of memory, and then takes minutes.
_BEGINNING = 12
_MEMORY = 32 << 20
#: Places where a secret only begins; from then on such beginnings are hidden, too, so that no text takes long.
_BEGUN = 10_000


#: What is kept of an answer that repeats a secret in a spelling which cannot be cut out of it.
REPEATED = b"(the answer repeats a secret of this webhook and is not kept)"
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def repeats(answer: bytes, access: Access) -> bool:
    """Whether a secret is in the answer whatever escapes and capitals it is written with, or in base64.

    Also where there is no telling.
    """
    text = answer.decode("utf-8", "replace")
    forms = [text.lower()]
    for _ in range(2):  # what was escaped twice, as JSON within JSON
        try:
            text = unescape(unquote(_ESCAPED.sub(lambda found: chr(int(found[1], 16)), text))).replace("\\", "")
        except ValueError:  # "&#1…;" of more digits than int() takes
            return True
        forms.append(text.lower())
    for secret in _secrets(access):
        if any(secret.lower() in form for form in forms):
            return True
        if base64.b64encode(secret.encode()).rstrip(b"=") in answer:
            return True
    return False


def _secrets(access: Access) -> set[str]:
    """Variables, the values of own header fields and the login, as far as they are long enough to be secrets."""
    secrets = [*access.variables.values(), *_credentials(access.authorization)]
    for _, value in access.headers:
        secrets += (value, *_credentials(value))
    return {secret.strip() for secret in secrets if len(secret.strip()) >= SECRET}


class Redaction:
    """Hides the texts ``spellings``. ``size``: their octets."""

    def __init__(self, spellings: Iterable[str]) -> None:
        whole = {text.encode("utf-8", "replace") for text in spellings}
        self.size = sum(map(len, whole))
        self._whole: dict[bytes, list[bytes]] = {}
        for text in sorted(whole, key=len, reverse=True):
            self._whole.setdefault(text[:_BEGINNING], []).append(text)
        for begins, texts in self._whole.items():
            texts += [begins[:size] for size in range(len(begins) - 1, 0, -1) if begins[:size] in whole]
        self._pattern = _any_of(self._whole) if whole else None

    def octets(self, data: bytes) -> bytes:
        """``data`` (UTF-8) without the secrets, and without one that its end cuts off."""
        if self._pattern is None:
            return data
        pieces: list[bytes] = []
        shown, at, begun = 0, 0, 0
        while match := self._pattern.search(data, at):
            start, end = match.span()
            texts = self._whole[data[start:end]]
            found = next((len(text) for text in texts if data.startswith(text, start)), 0)
            if not found and any(text.startswith(data[start:]) for text in texts if len(text) > len(data) - start):
                found = len(data) - start
            if not found:
                begun += 1
                if begun <= _BEGUN:
                    at = start + 1
                    continue
                found = end - start
            pieces += (data[shown:start], HIDDEN.encode())
            shown = at = start + found
        end = self._cut_off(data[shown:])
        if not pieces and not end:
            return data
        return b"".join((*pieces, data[shown : len(data) - end], HIDDEN.encode() if end else b""))

    def _cut_off(self, rest: bytes) -> int:
        """Octets at the end that are less than the beginning of a secret which the pattern looks for."""
        for size in range(min(_BEGINNING - 1, len(rest)), SECRET - 1, -1):
            if any(begins.startswith(rest[-size:]) for begins in self._whole):
                return size
        return 0

    def text(self, text: str) -> str:
        return self.octets(text.encode("utf-8", "replace")).decode("utf-8", "replace")


def _any_of(literals: Iterable[bytes]) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # octets
    options.longest_match = True  # one may begin with another
    options.never_capture = True
    options.max_mem = _MEMORY
    options.log_errors = False
    return re2.compile(b"|".join(map(re2.escape, literals)), options)


def rendered(access: Access) -> Iterator[str]:
    """The variables as a template's filters (core/template_filters.py) may have written them."""
    for value in access.variables.values():
        plain = {text for text in (value, value.upper(), value.lower()) if len(text.strip()) >= SECRET}
        plain |= {escape(text) for text in plain}
        plain |= {text.strip() for text in plain}
        yield from plain
        for text in plain:
            yield as_json(text)[1:-1]
            yield percent_encoded(without_surrogates(text).encode())


def echoed(access: Access) -> Iterator[str]:
    """Variables, the values of own header fields and the login, as a receiver may repeat them in its answer."""
    plain = _secrets(access)
    for text in plain | {text.upper() for text in plain} | {text.lower() for text in plain}:
        if len(text) >= SECRET:
            yield text
            yield from (escape(text), escape(text).replace("&#x27;", "&#039;"))  # Python, PHP
            for written in (json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]):
                yield from (written, written.replace("/", "\\/"))
            yield from (quote(text, safe=""), quote(text), quote_plus(text))


def _credentials(authorization: str) -> Iterator[str]:
    """What follows the scheme (RFC 9110 §11.4), and of a basic login the password (RFC 7617)."""
    scheme, _, credentials = authorization.partition(" ")
    yield credentials
    if scheme.lower() == "basic":
        try:
            login = base64.b64decode(credentials).decode()
        except ValueError:
            return
        yield from (login, login.partition(":")[2])
