"""The forwarding queue over HTTP: what waits or is held, and what an operator does about it."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, model_validator

from relay.core.model import DeliveryState, folded
from relay.store import history, queue_by_hand, queue_view
from relay.store.queue_view import Place, QueueFilter
from relay.store.store import Store
from webapi import requeue
from webapi.auth import Caller, Role, visible_site
from webapi.operation import Call, Operation, Parameters, Strict
from webapi.problems import Problem, not_found
from webapi.values import LARGEST_ID, Sender, Text, moment, moment_or_none, row_id

#: Deliveries that one request may name: as many as one list shows.
MOST_NAMED = 1000
_PLACE = struct.Struct(">dq")

Id = Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]


def cursor_of(row: dict[str, Any]) -> str:
    """What a client gives back to read on after this row."""
    return base64.urlsafe_b64encode(_PLACE.pack(row["place"], row["id"])).rstrip(b"=").decode()


def read_cursor(value: object) -> Place:
    """The place that such text means; raises ValueError."""
    try:
        next_at, id_ = _PLACE.unpack(base64.urlsafe_b64decode(f"{value}=="))
    except (binascii.Error, struct.error, ValueError):
        next_at, id_ = math.nan, 0
    if not math.isfinite(next_at) or not 0 < id_ <= LARGEST_ID:
        raise ValueError("must be the next of an earlier answer")
    return next_at, id_


Cursor = Annotated[
    Place,
    PlainValidator(read_cursor, json_schema_input_type=str),
    Field(description="`next` of the answer before."),
]
Destination = Annotated[
    Text, Field(max_length=320, description="Domain, or next hop without its password, as the list shows it.")
]


class QueueQuery(Parameters):
    site: Annotated[str | None, Field(description="Name of a site.")] = None
    state: Annotated[Literal["queued", "deferred", "failed"] | None, Field(description="failed: held.")] = None
    destination: Destination | None = None
    sender: Sender | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    cursor: Cursor | None = None


class Waiting(BaseModel):
    id: str
    message: str
    site: str | None = Field(description="null: mail to the operator.")
    received_at: str
    sender: str
    subject: str | None
    recipient: str
    forward_to: str
    destination: str = Field(description="What shares connections and back-off: a domain, or a next hop.")
    state: str
    in_flight: bool = Field(description="An attempt is under way just now.")
    attempts: int
    next_at: str | None = Field(description="null while it is held.")
    expires_at: str = Field(description="When it is held if it could not be forwarded until then.")
    held_at: str | None = Field(description="null while it waits.")
    code: int | None = Field(description="The SMTP code of the last answer; null: there was none.")
    answer: str | None
    host: str | None


class Queue(BaseModel):
    items: list[Waiting]
    next: str | None = Field(description="The `cursor` that goes on from here; null at the end.")


class Retry(Strict):
    """Either these deliveries, or all that are deferred or held and fit."""

    deliveries: Annotated[list[Id], Field(min_length=1, max_length=MOST_NAMED)] | None = None
    all: bool = False
    site: Annotated[str | None, Field(description="With `all`: of this site.")] = None
    state: Annotated[Literal["deferred", "failed"] | None, Field(description="With `all`: only these.")] = None
    destination: Destination | None = None
    sender: Sender | None = None

    @model_validator(mode="after")
    def _either(self) -> Retry:
        if (self.deliveries is None) != self.all:
            raise ValueError("either name deliveries or say all")
        if not self.all and self.model_fields_set - {"deliveries", "all"}:
            raise ValueError("only all can be narrowed down")
        return self


class Drop(Strict):
    deliveries: Annotated[list[Id], Field(min_length=1, max_length=MOST_NAMED)]


class Changed(BaseModel):
    changed: int
    left: list[str] = Field(
        default=[],
        description="What was named and left alone: it neither waits nor is it held, or is in flight; of what is to be "
        "dropped also what another site's delivery carries.",
    )


async def list_queue(call: Call) -> Queue:
    query: QueueQuery = call.query
    wanted = narrowed(call.context.store, call.caller, query.site, query.state, query.destination, query.sender)
    rows = await queue_view.listed(call.context.store.reader, wanted, query.limit + 1, query.cursor)
    shown, more = rows[: query.limit], rows[query.limit :]
    return Queue(
        items=[_waiting(row, call.context.clock()) for row in shown], next=cursor_of(shown[-1]) if more else None
    )


def narrowed(
    store: Store, caller: Caller, site: str | None, state: str | None, destination: str | None, sender: str | None
) -> QueueFilter:
    """What the caller may see of what it asks for; raises Problem 404 for a site that it does not."""
    sites = caller.sites
    if site is not None:
        sites = frozenset({visible_site(store, caller, site, "site").id})
    return QueueFilter(
        sites=sites,
        states=QueueFilter().states if state is None else frozenset((DeliveryState(state),)),
        destination=destination,
        sender=None if sender is None else folded(sender),
    )


def _waiting(row: dict[str, Any], now: float) -> Waiting:
    held = row["state"] == DeliveryState.FAILED.value
    hidden = ("message_id", "claimed_until", "finished_at", "place")
    return Waiting(
        **{name: value for name, value in row.items() if name not in hidden}
        | {
            "id": str(row["id"]),
            "received_at": moment(row["received_at"]),
            "next_at": None if held else moment(row["next_at"]),
            "expires_at": moment(row["expires_at"]),
        },
        message=str(row["message_id"]),
        in_flight=row["claimed_until"] >= now,
        held_at=moment_or_none(row["finished_at"]) if held else None,
    )


async def retry(call: Call) -> None:
    delivery_id = await _delivery(call)
    named = _named(call, [str(delivery_id)])
    if not await requeue.retry_named(call.context.store.reader, call.write, named, *_period(call)):
        raise Problem(409, "it neither waits nor is it held")
    call.context.on_deliveries_due()


async def retry_many(call: Call) -> Changed:
    """What the caller does not see is not there; it is among what is left."""
    body: Retry = call.body
    store, period = call.context.store, _period(call)
    if body.deliveries is None:
        wanted = narrowed(store, call.caller, body.site, body.state, body.destination, body.sender)
        wanted = QueueFilter(wanted.sites, wanted.states & requeue.AGAIN, wanted.destination, wanted.sender)
        answer = Changed(changed=len(await requeue.retry_all(store.reader, call.write, wanted, *period)))
    else:
        named = _named(call, body.deliveries)
        answer = _changed(body.deliveries, await requeue.retry_named(store.reader, call.write, named, *period))
    if answer.changed:
        call.context.on_deliveries_due()
    return answer


async def drop(call: Call) -> None:
    delivery_id = await _delivery(call)
    now, sites = call.context.clock(), call.caller.sites
    if not await call.write(lambda tx: queue_by_hand.drop(tx, [delivery_id], now, sites)):
        raise Problem(409, "it is being forwarded just now, neither waits nor is it held, or another site's carries it")


async def drop_many(call: Call) -> Changed:
    body: Drop = call.body
    # Neither another site's that carries one of them, nor another site's that one of them carries.
    now, sites = call.context.clock(), call.caller.sites
    named = list(await queue_view.ids(call.context.store.reader, _named(call, body.deliveries)))
    return _changed(body.deliveries, set(await call.write(lambda tx: queue_by_hand.drop(tx, named, now, sites))))


def _period(call: Call) -> tuple[float, float]:
    """Now, and until when what is tried again is tried: as long as a new message would be."""
    now = call.context.clock()
    return now, now + call.context.forward.retry_for


def _named(call: Call, named: list[str]) -> QueueFilter:
    """Those of them that wait or are held and are the caller's to see."""
    numbers = tuple(number for text in set(named) if 0 < (number := int(text)) <= LARGEST_ID)
    return QueueFilter(call.caller.sites, ids=numbers)


def _changed(named: list[str], changed: set[int]) -> Changed:
    done = {str(id_) for id_ in changed}
    return Changed(changed=len(done), left=[text for text in dict.fromkeys(named) if text.lstrip("0") not in done])


async def _delivery(call: Call) -> int:
    delivery_id = row_id(call.path["id"], "delivery")
    site = await history.site_of_delivery(call.context.store.reader, delivery_id)
    if site is None or not call.caller.sees(site[0]):
        raise not_found("delivery")
    return delivery_id


_ALL = "/v1/queue"
_ONE = "/v1/queue/{id}"
LIST = Operation(
    "GET",
    _ALL,
    "What waits or is held, soonest first.",
    list_queue,
    Role.VIEWER,
    Queue,
    query=QueueQuery,
    problems=(404,),
)
RETRY = Operation(
    "POST",
    f"{_ALL}/retry",
    "Try these deliveries now, or all that are deferred or held.",
    retry_many,
    Role.ADMIN,
    Changed,
    body=Retry,
    audited=lambda answer: answer.changed > 0,
    problems=(404,),
)
DROP = Operation(
    "POST",
    f"{_ALL}/drop",
    "Give these deliveries up; their messages stay in the history.",
    drop_many,
    Role.ADMIN,
    Changed,
    body=Drop,
    audited=lambda answer: answer.changed > 0,
)
OPERATIONS = (
    LIST,
    RETRY,
    DROP,
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
