"""The delivery log of a webhook: request, answer and timing of every attempt; and posting again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from relay.core.template import TemplateError
from relay.secrets import SealError
from relay.store import post_log, replay
from relay.store.engine import Turn
from relay.store.post import PostJob
from relay.store.post_jobs import find_job
from relay.store.replay import Selection
from webapi.auth import Role
from webapi.compose import NotWanted
from webapi.hook_models import Posted, PostedDetail, PostedPage, Replaying, ReplayRequest, Try, request_shown
from webapi.hooks import find
from webapi.operation import Call, Operation, Parameters
from webapi.problems import Problem, not_found
from webapi.replays import reattribute, replay_posts, replay_selected
from webapi.requests import Request
from webapi.values import LARGEST_ID, Cursor, Limit, cursor_of, moment, moment_or_none, row_id

_DISABLED = "the webhook is disabled: enable it first"


class LogQuery(Parameters):
    state: Literal["waiting", "delivered", "failed", "withheld"] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


async def list_posts(call: Call) -> PostedPage:
    query: LogQuery = call.query
    _, webhook = find(call)
    reader = call.context.store.reader
    rows = await post_log.posted(reader, webhook.id, query.cursor, query.limit + 1, query.state)
    items = [Posted(**posted(row)) for row in rows[: query.limit]]
    return PostedPage(items=items, next=cursor_of(int(items[-1].id)) if len(rows) > query.limit else None)


async def show_post(call: Call) -> PostedDetail:
    _, webhook = find(call)
    store, composer = call.context.store, call.context.composer
    row = await post_log.post(store.reader, webhook.id, row_id(call.path["post"], "post"))
    if row is None:
        raise not_found("post")
    tries = row.pop("tries")
    job: PostJob | None = await store.write(lambda tx: find_job(tx, row["id"], ""), turn=Turn.IDLE)
    if job is None:
        raise not_found("post")  # erased since
    at = tries[-1]["started_at"] if tries else call.context.clock()
    try:
        request: Request | None = composer.compose(job, at)
    except (NotWanted, SealError, TemplateError):
        request = None
    shown = None if request is None else request_shown(await asyncio.to_thread(composer.shown, request, job.hook))
    return PostedDetail(**posted(row), request=shown, tries=[_try(one, request) for one in tries])


async def replay_webhook(call: Call) -> Replaying:
    body: ReplayRequest = call.body
    site, webhook = find(call)
    context, now = call.context, call.context.clock()
    ranged = body.since is not None or body.until is not None
    if (bool(body.posts), body.failed, ranged).count(True) != 1:
        raise Problem(400, "give one of posts, failed, or since and until", field="posts")
    if not webhook.enabled:  # before anything is attributed anew
        raise Problem(409, _DISABLED)
    evidence = context.evidence() if body.reattribute else None
    try:
        if body.posts:
            event_ids = await _events(call, webhook.id, body.posts)
            if evidence is not None:
                for message_id in await post_log.message_of(context.store.reader, event_ids):
                    await reattribute(context.store, message_id, evidence, now, (site.id,), call.write)
            count = await replay_posts(call.write, webhook.id, event_ids, now)
        else:
            wanted = Selection(body.failed, body.since, body.until)
            count = await replay_selected(context.store, webhook.id, site.id, wanted, now, evidence, call.write)
    except replay.OutOfUse:
        raise Problem(409, _DISABLED) from None
    context.on_posts_due()
    return Replaying(posts=count)


async def _events(call: Call, webhook_id: int, posts: Sequence[str]) -> list[int]:
    """The events of these posts; raises Problem 400 when one is none of this webhook's."""
    wanted = {int(post) for post in posts}
    found = await post_log.events_of(
        call.context.store.reader, webhook_id, [one for one in wanted if one <= LARGEST_ID]
    )
    if len(found) < len(wanted):  # an event is posted to a webhook by one post
        raise Problem(400, "not all of them are posts of this webhook", field="posts")
    return found


def posted(row: dict[str, Any]) -> dict[str, Any]:
    """The members of Posted, of a row of the log."""
    return {
        "id": str(row["id"]),
        "event": row["uid"],
        "type": row["type"],
        "message": str(row["message_id"]),
        "created_at": moment(row["created_at"]),
        "sender": row["sender"],
        "subject": row["subject"],
        "state": row["state"],
        "attempts": row["attempts"],
        "next_at": moment(row["next_at"]) if row["state"] == "waiting" else None,
        "status": row["status"],
        "answer": row["answer"],
        "finished_at": moment_or_none(row["finished_at"]),
        "seconds": None if row["seconds"] is None else round(row["seconds"], 3),
    }


def _try(row: dict[str, Any], request: Request | None) -> Try:
    sent = row["digest"] is not None
    same = sent and request is not None and hashlib.sha256(request.body).digest() == row["digest"]
    return Try(
        started_at=moment(row["started_at"]),
        seconds=round(row["duration"], 3),
        status=row["status"],
        answer=row["answer"],
        size=row["size"],
        as_sent=same if sent else None,
    )


_LOG = "/v1/webhooks/{id}/deliveries"
OPERATIONS = (
    Operation(
        "GET",
        _LOG,
        "What was posted to it, newest first.",
        list_posts,
        Role.VIEWER,
        PostedPage,
        query=LogQuery,
        problems=(404,),
    ),
    Operation(
        "GET",
        f"{_LOG}/{{post}}",
        "One post: the request, and every attempt with its answer.",
        show_post,
        Role.VIEWER,
        PostedDetail,
        problems=(404,),
    ),
    Operation(
        "POST",
        "/v1/webhooks/{id}/replay",
        "Post to it again, under the same webhook-ids.",
        replay_webhook,
        Role.MANAGER,
        Replaying,
        body=ReplayRequest,
        status=202,
        problems=(404, 409),
    ),
)
