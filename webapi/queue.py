"""The forwarding queue over HTTP: what waits or is held, and what an operator does about it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from relay.store import history, queue
from webapi.auth import Role
from webapi.operation import Call, Operation, Parameters
from webapi.problems import Problem, not_found
from webapi.values import moment, row_id


class QueueQuery(Parameters):
    limit: Annotated[int, Field(ge=1, le=1000)] = 200


class Waiting(BaseModel):
    id: str
    message: str
    site: str | None = Field(description="null: mail to the operator.")
    received_at: str
    sender: str
    recipient: str
    forward_to: str
    state: str
    attempts: int
    next_at: str | None = Field(description="null while it is held.")
    expires_at: str
    answer: str | None
    host: str | None


class Queue(BaseModel):
    items: list[Waiting]


async def list_queue(call: Call) -> Queue:
    query: QueueQuery = call.query
    rows = await history.waiting(call.context.store.reader, call.caller.sites, query.limit)
    return Queue(
        items=[
            Waiting(
                **row
                | {
                    "id": str(row["id"]),
                    "received_at": moment(row["received_at"]),
                    "next_at": None if row["state"] == "failed" else moment(row["next_at"]),
                    "expires_at": moment(row["expires_at"]),
                },
                message=str(row["message_id"]),
            )
            for row in rows
        ]
    )


async def retry(call: Call) -> None:
    delivery_id = await _delivery(call)
    now = call.context.clock()
    until = now + call.context.forward.retry_for
    if not await call.context.store.write(lambda tx: queue.retry(tx, [delivery_id], now, until)):
        raise Problem(409, "it neither waits nor is it held")
    call.context.on_deliveries_due()


async def drop(call: Call) -> None:
    delivery_id = await _delivery(call)
    now = call.context.clock()
    if not await call.context.store.write(lambda tx: queue.drop(tx, [delivery_id], now)):
        raise Problem(409, "it is being forwarded just now, or neither waits nor is it held")


async def _delivery(call: Call) -> int:
    delivery_id = row_id(call.request.match_info["id"], "delivery")
    site = await history.site_of_delivery(call.context.store.reader, delivery_id)
    if site is None or not call.caller.sees(site[0]):
        raise not_found("delivery")
    return delivery_id


_ONE = "/v1/queue/{id}"
OPERATIONS = (
    Operation(
        "GET", "/v1/queue", "What waits or is held, soonest first.", list_queue, Role.VIEWER, Queue, query=QueueQuery
    ),
    Operation(
        "POST", f"{_ONE}/retry", "Try this delivery now.", retry, Role.ADMIN, None, status=204, problems=(404, 409)
    ),
    Operation(
        "POST",
        f"{_ONE}/drop",
        "Give this delivery up; the message stays in the history.",
        drop,
        Role.ADMIN,
        None,
        status=204,
        problems=(404, 409),
    ),
)
