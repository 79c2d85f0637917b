"""What happened to one message, and to one webhook: plain rows for pages, the API and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select

from relay.store.history import MessageRow, dicts
from relay.store.reader import Reader
from relay.store.schema import attempts, events, paths, post_attempts, posts, sites, texts, webhooks


@dataclass(frozen=True, slots=True)
class Life:
    """Everything that happened to one message, for its page: plain rows in order of time."""

    text: str | None
    paths: tuple[dict[str, Any], ...]
    attempts: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    posts: tuple[dict[str, Any], ...]
    post_attempts: tuple[dict[str, Any], ...]


async def life(reader: Reader, row: MessageRow, visible: frozenset[int] | None) -> Life:
    """The life of a message that :func:`one` found, as far as the reader may see it."""
    delivery_ids = [delivery.id for delivery in row.deliveries]
    scope = [events.c.message_id == row.id]
    if visible is not None:
        scope.append(events.c.site_id.in_(sorted(visible)))
    return Life(
        text=await _text(reader, row.id),
        paths=await dicts(reader, _paths(row.id, delivery_ids)),
        attempts=await dicts(reader, _attempts(delivery_ids)),
        events=await dicts(reader, _EVENTS.where(*scope)),
        posts=await dicts(reader, _POSTS.where(*scope)),
        post_attempts=await dicts(reader, _POST_ATTEMPTS.where(*scope)),
    )


async def _text(reader: Reader, message_id: int) -> str | None:
    said = await reader.all(select(texts.c.head, texts.c.rest).where(texts.c.message_id == message_id))
    return "".join(part or "" for part in said[0]) if said else None


def _paths(message_id: int, delivery_ids: Sequence[int]) -> Select[Any]:
    """By which recipients it came."""
    return (
        select(paths.c.recipient, paths.c.kind, paths.c.received_at, paths.c.ip)
        .where(paths.c.message_id == message_id, paths.c.delivery_id.in_(delivery_ids))
        .order_by(paths.c.id)
    )


def _attempts(delivery_ids: Sequence[int]) -> Select[Any]:
    """What came of forwarding it."""
    return (
        select(
            attempts.c.delivery_id,
            attempts.c.started_at,
            attempts.c.finished_at,
            attempts.c.outcome,
            attempts.c.code,
            attempts.c.answer,
            attempts.c.host,
        )
        .where(attempts.c.delivery_id.in_(delivery_ids))
        .order_by(attempts.c.id)
    )


_EVENTS = (
    select(
        events.c.uid,
        sites.c.name.label("site"),
        events.c.type,
        events.c.state,
        events.c.reason,
        events.c.created_at,
    )
    .join(sites, sites.c.id == events.c.site_id)
    .order_by(events.c.id)
)
_POSTS = (
    select(
        posts.c.id,
        events.c.uid,
        posts.c.webhook_id,
        webhooks.c.url,
        posts.c.state,
        posts.c.attempts,
        posts.c.next_at,
        posts.c.status,
        posts.c.answer,
        posts.c.finished_at,
    )
    .join(events, events.c.id == posts.c.event_id)
    .join(webhooks, webhooks.c.id == posts.c.webhook_id)
    .order_by(posts.c.id)
)
_POST_ATTEMPTS = (
    select(
        events.c.uid,
        posts.c.webhook_id,
        webhooks.c.url,
        posts.c.state,
        post_attempts.c.started_at,
        post_attempts.c.duration,
        post_attempts.c.status,
        post_attempts.c.answer,
    )
    .join(posts, posts.c.id == post_attempts.c.post_id)
    .join(events, events.c.id == posts.c.event_id)
    .join(webhooks, webhooks.c.id == posts.c.webhook_id)
    .order_by(post_attempts.c.id)
)
