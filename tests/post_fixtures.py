"""Short ways to post what a World has accepted, for the tests of events, deals and replays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import select

from relay.core.hook import EventType, HookSettings
from relay.store import posts as post_verbs
from relay.store.post import PostJob, PostResult
from relay.store.schema import events, posts
from relay.store.webhooks import WebhookDefinition
from tests.store_fixtures import World, hook

#: Every event there is.
ALL = tuple(kind.value for kind in EventType)


def asking(*kinds: str, url: str = "https://crm.example/hook", **changes: Any) -> WebhookDefinition:
    """A webhook that takes these events (all by default); ``changes`` are further settings."""
    return hook(url, settings=HookSettings(events=kinds or ALL, **changes))


async def claim(w: World, who: str = "poster", most: int = 10) -> list[PostJob]:
    """What is due."""
    due = await w.store.reader.run(post_verbs.DUE_WEBHOOKS, now=w.now)
    return await w.store.write(lambda tx: post_verbs.claim_posts(tx, {webhook: most for (webhook,) in due}, who, w.now))


async def finish(w: World, job: PostJob, state: str = "delivered", **changes: Any) -> bool:
    result = PostResult(job, state, w.now + 5, 200 if state == "delivered" else 503, "answer", w.now, 0.25)
    return await w.store.write(lambda tx: post_verbs.finish_post(tx, replace(result, **changes), w.now))


async def post_rows(w: World, *names: str) -> list[tuple[Any, ...]]:
    """These columns (the state by default) of all posts, the oldest first."""
    return await w.rows(select(*(posts.c[name] for name in names or ("state",))).order_by(posts.c.id))


async def event_rows(w: World, *names: str, kind: str | None = None) -> list[tuple[Any, ...]]:
    """These columns (type, state, reason by default) of all events, or of one kind."""
    query = select(*(events.c[name] for name in names or ("type", "state", "reason"))).order_by(events.c.id)
    return await w.rows(query if kind is None else query.where(events.c.type == kind))
