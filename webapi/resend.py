"""Sending a letter again to its real address, over HTTP (relay/store/resend.py has what that means)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from relay.store import history
from relay.store.noting import always
from relay.store.resend import NotAgain, NotAllowed
from relay.store.resend import resend as send_again
from webapi.auth import Role
from webapi.operation import Call, Operation, Parameters
from webapi.problems import Problem, not_found
from webapi.values import row_id


class ResendQuery(Parameters):
    attempts: Annotated[
        int | None,
        Field(
            ge=0,
            le=1_000_000,
            description="As the delivery has it: refused if there was another since, so that a repeated request sends "
            "one copy.",
        ),
    ] = None


async def resend(call: Call) -> None:
    """Forward a delivery again that was forwarded; for who may retry what is held, also one that is held or dropped."""
    query: ResendQuery = call.query
    delivery_id = row_id(call.path["id"], "delivery")
    site = await history.site_of_delivery(call.context.store.reader, delivery_id)
    if site is None or not call.caller.sees(site[0]):
        raise not_found("delivery")
    now = call.context.clock()
    until, sites = now + call.context.forward.retry_for, call.caller.sites
    only_copies = call.caller.role < Role.ADMIN
    try:
        await call.write(
            lambda tx: send_again(tx, delivery_id, query.attempts, now, until, sites, only_copies=only_copies),
            changed=always,
        )
    except NotAgain as error:
        raise Problem(409, str(error)) from None
    except NotAllowed as error:
        raise Problem(403, f"{error}: to send it again takes the role admin") from None
    except LookupError:
        raise not_found("delivery") from None  # erased meanwhile
    call.context.on_deliveries_due()


OPERATIONS = (
    Operation(
        "POST",
        "/v1/queue/{id}/resend",
        "Send it again to its real address: what was forwarded or, for admins, is held or was dropped.",
        resend,
        Role.MANAGER,
        None,
        query=ResendQuery,
        status=204,
        problems=(404, 409),
    ),
)
