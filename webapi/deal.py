"""The deal that a receiver's answer names."""

from __future__ import annotations

import json
import math
from urllib.parse import urlsplit

from jsonpointer import JsonPointerException

from relay import presets
from relay.core import template
from relay.core.hook import Access
from relay.core.template import TemplateError
from relay.store.post import Hook

#: Characters of a deal's number and of its address.
DEAL_ID, DEAL_URL = 200, 2000
#: Where the number and the address stand unless the webhook or its template says otherwise.
ID_AT, URL_AT = "/deal_id", "/deal_url"

Deal = tuple[str | None, str | None]


def read_deal(answer: bytes, hook: Hook, access: Access) -> Deal | None:
    """(number, address) out of a JSON answer, None when it has neither. What is not a plain value is ignored."""
    shape = presets.of(hook.settings.template) if hook.settings.template else None
    id_at = hook.settings.deal_id or (shape.deal_id if shape else ID_AT)
    url_at = hook.settings.deal_url or (shape.deal_url if shape else URL_AT)
    if (id_at, url_at) == (ID_AT, URL_AT) and b'"deal_' not in answer:
        return None  # most receivers have nothing to say
    found = _json(answer)
    deal_id = _plain(_at(found, id_at), DEAL_ID)
    url = _plain(_at(found, url_at), DEAL_URL) if url_at.startswith("/") else None
    if shape is not None and deal_id is not None and url_at == shape.deal_url and not url_at.startswith("/"):
        url = _rendered(shape, hook, deal_id, access)
    if url is not None and not _is_web_address(url):
        url = None
    return None if deal_id is None and url is None else (deal_id, url)


def _rendered(shape: template.Template, hook: Hook, deal_id: str, access: Access) -> str | None:
    try:
        return _plain(template.deal_url(shape, hook.url, deal_id, access.variables), DEAL_URL)
    except TemplateError:
        return None  # the number is worth having without its address


def _json(answer: bytes) -> object:
    try:
        return json.loads(answer) if answer else None
    except (ValueError, RecursionError):
        return None


def _at(found: object, pointer: str) -> object:
    if not isinstance(found, dict | list):
        return None
    try:
        return template.resolve(pointer, found)
    except JsonPointerException:
        return None


def _plain(value: object, longest: int) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = str(value).strip()
    return text if text.isprintable() and 0 < len(text) <= longest else None


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in text
    except ValueError:
        return False
