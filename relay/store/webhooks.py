"""Webhooks of sites: declared in relay.toml, found there by their URL, or made and changed one by one.

Whatever is secret of them comes sealed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, select, update
from sqlalchemy import insert as insert_into

from relay.core.hook import Access, HookSettings
from relay.store import posts
from relay.store.engine import Statement, Tx
from relay.store.schema import webhooks

#: Why a webhook is disabled that relay.toml switches off; only this reason goes when the file switches it on again.
SWITCHED_OFF = "switched off in relay.toml"
#: The same for somebody's hand.
BY_HAND = "switched off"
#: Nothing of what comes meanwhile is for such a webhook. One that is disabled for another reason, a 410, loses nothing:
#: what comes fails, and can be replayed.
ON_PURPOSE = (SWITCHED_OFF, BY_HAND)
REMOVED = "the webhook was removed"
#: Webhooks of one site: each is judged for every letter in the transaction that reads it.
MOST = 20


@dataclass(frozen=True, slots=True)
class WebhookDefinition:
    """``secret``, ``previous_secret`` and ``access`` (core/hook.py Access) are sealed already.

    ``secret`` None: a webhook that exists keeps its own.
    """

    url: str
    secret: str | None
    fill: str
    enabled: bool = True
    settings: HookSettings = field(default_factory=HookSettings)
    access: str | None = None
    previous_secret: str | None = None


def definition(
    url: str, secret: str | None, fill: str, settings: HookSettings, access: Access, seal: Callable[[str], str]
) -> WebhookDefinition:
    """A definition of what is still open; ``seal`` encrypts it."""
    return WebhookDefinition(
        url=url,
        secret=None if secret is None else seal(secret),
        fill=fill,
        settings=settings,
        access=None if access == Access() else seal(access.to_json()),
    )


OF_SITE = Statement(
    select(webhooks.c.id, webhooks.c.url, webhooks.c.secret, webhooks.c.declared, webhooks.c.disabled_reason).where(
        webhooks.c.site_id == bindparam("site"), webhooks.c.removed_at.is_(None)
    )
)
_DEFINED = "url secret fill settings access previous_secret previous_until"
_INSERT = Statement(insert_into(webhooks), f"site_id enabled disabled_reason declared created_at {_DEFINED}")
_UPDATE = Statement(update(webhooks).where(webhooks.c.id == bindparam("webhook")), _DEFINED)
_CHANGE = Statement(
    update(webhooks).where(webhooks.c.id == bindparam("webhook"), webhooks.c.removed_at.is_(None)),
    "url fill settings access",
)
_ROTATE = Statement(
    update(webhooks)
    .where(webhooks.c.id == bindparam("webhook"), webhooks.c.removed_at.is_(None))
    .values(previous_secret=webhooks.c.secret, previous_until=bindparam("until"), secret=bindparam("sealed"))
)
_SWITCH = Statement(
    update(webhooks).where(webhooks.c.id == bindparam("webhook"), webhooks.c.removed_at.is_(None)),
    "enabled disabled_reason",
)
_REMOVE = Statement(
    update(webhooks).where(webhooks.c.id == bindparam("webhook"), webhooks.c.removed_at.is_(None)),
    "removed_at enabled disabled_reason",
)


def define(tx: Tx, site_id: int, definitions: Sequence[WebhookDefinition], now: float, *, declared: bool) -> None:
    """Declared ones follow the definition, found by their URL; others are only added to, and removed one by one."""
    existing = {row[1]: row for row in tx.all(OF_SITE, site=site_id) if row[3] == int(declared)}
    for webhook in definitions:
        row = existing.pop(webhook.url, None)
        if row is None:
            add(tx, site_id, webhook, now, declared=declared)
            continue
        webhook_id, _, secret, _, reason = row
        tx.run(_UPDATE, webhook=webhook_id, **_values(webhook) | {"secret": webhook.secret or secret})
        if not webhook.enabled and reason is None:
            switch_off(tx, webhook_id, SWITCHED_OFF, now)
        elif webhook.enabled and reason == SWITCHED_OFF:
            enable(tx, webhook_id)
    if declared:
        for webhook_id, *_ in existing.values():
            remove(tx, webhook_id, now)


def _values(webhook: WebhookDefinition) -> dict[str, object]:
    return {
        "url": webhook.url,
        "secret": webhook.secret,
        "fill": webhook.fill,
        "settings": webhook.settings.to_json(),
        "access": webhook.access,
        "previous_secret": webhook.previous_secret,
        "previous_until": None,
    }


def add(tx: Tx, site_id: int, webhook: WebhookDefinition, now: float, *, declared: bool = False) -> int:
    """A webhook of the site; its id. Raises ValueError when it has no secret."""
    if webhook.secret is None:
        raise ValueError("a new webhook needs a secret")
    return tx.insert(
        _INSERT,
        site_id=site_id,
        enabled=int(webhook.enabled),
        disabled_reason=None if webhook.enabled else SWITCHED_OFF if declared else BY_HAND,
        declared=int(declared),
        created_at=now,
        **_values(webhook),
    )


def change(tx: Tx, webhook_id: int, webhook: WebhookDefinition) -> bool:
    """Everything but its secret and whether it is enabled becomes what the definition says. False: there is none."""
    return (
        tx.run(
            _CHANGE,
            webhook=webhook_id,
            url=webhook.url,
            fill=webhook.fill,
            settings=webhook.settings.to_json(),
            access=webhook.access,
        )
        > 0
    )


def rotate(tx: Tx, webhook_id: int, secret: str, until: float) -> bool:
    """Sign with this sealed secret from now on, and with the one before as well until then. False: there is none."""
    return tx.run(_ROTATE, webhook=webhook_id, sealed=secret, until=until) > 0


def remove(tx: Tx, webhook_id: int, now: float) -> bool:
    """Take the webhook out of use; what waits for it fails, its delivery log stays. False when there is none."""
    if not tx.run(_REMOVE, webhook=webhook_id, removed_at=now, enabled=0, disabled_reason=REMOVED):
        return False
    posts.give_up(tx, webhook_id, REMOVED, now)
    return True


def enable(tx: Tx, webhook_id: int) -> bool:
    """Post to it again, whatever had disabled it. False when there is none."""
    return tx.run(_SWITCH, webhook=webhook_id, enabled=1, disabled_reason=None) > 0


def switch_off(tx: Tx, webhook_id: int, reason: str, now: float) -> bool:
    """Post nothing more to it; what waits for it fails and can be replayed. False when there is none."""
    if not tx.run(_SWITCH, webhook=webhook_id, enabled=0, disabled_reason=reason):
        return False
    posts.give_up(tx, webhook_id, reason, now)
    return True
