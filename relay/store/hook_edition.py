"""The edition of a webhook's definition, compared in the transaction that changes it (as site_definitions.py does).

Its secret and whether it is enabled are not of it: they are changed by themselves.
"""

from __future__ import annotations

import hashlib
import json

from sqlalchemy import bindparam, select

from relay.core.hook import HookSettings
from relay.store.directory import WebhookView
from relay.store.engine import Statement, Tx
from relay.store.schema import webhooks
from relay.store.site_definitions import EditionPassed

_DEFINED = Statement(
    select(webhooks.c.url, webhooks.c.fill, webhooks.c.settings, webhooks.c.access).where(
        webhooks.c.id == bindparam("webhook"), webhooks.c.removed_at.is_(None)
    )
)


def expect(tx: Tx, webhook_id: int, wanted: str) -> None:
    """Raise EditionPassed unless the webhook's definition still has this edition."""
    row = tx.one(_DEFINED, webhook=webhook_id)
    if row is None:
        raise EditionPassed
    url, fill, settings, access = row
    if _edition(url, fill, HookSettings.from_json(settings), access) != wanted:
        raise EditionPassed


def edition(webhook: WebhookView) -> str:
    """What is another after every change, also after one that seals the same logins, fields and variables anew."""
    return _edition(webhook.url, webhook.fill, webhook.hook.settings, webhook.hook.access)


def _edition(url: str, fill: str, settings: HookSettings, access: str | None) -> str:
    # ``access`` as it is sealed: everybody who sees the webhook sees its edition, from which no login may be guessed.
    told = [url, fill, settings.to_json(), access]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
