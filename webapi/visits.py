"""Visits over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from relay.store import history, retention
from webapi.auth import Role, visible_site
from webapi.operation import Call, Operation, Parameters
from webapi.problems import Problem, not_found
from webapi.values import moment


class VisitQuery(Parameters):
    site: Annotated[str | None, Field(description="Name of its site, where several count with the same number.")] = None


class VisitShown(BaseModel):
    """A visit. ``own``: we counted it; else another counter did, and its number is unique only at its site."""

    number: str
    own: bool
    site: str
    first_visit: str | None
    started_at: str
    last_seen_at: str
    referrer: str | None
    landing_page: str | None
    domain: str | None
    marker: str | None
    channel: str | None
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    utm_term: str | None
    utm_content: str | None
    params: dict[str, str]
    google_client_id: str | None
    ym_uid: str | None
    ip: str | None
    city: str | None
    country: str | None
    user_agent: str | None
    device: str | None
    browser: str | None
    os: str | None
    first_touch: str | None = Field(description="Marker of the browser's first visit, as long as that is known.")
    last_non_direct_touch: str | None = Field(description="Marker of its last visit that was not direct.")


class Erasure(VisitQuery):
    browser: Annotated[bool, Field(description="All visits of the same browser at the site.")] = False


class Erased(BaseModel):
    visits: int


async def show_visit(call: Call) -> VisitShown:
    row = await _found(call)
    times = {name: moment(row[name]) for name in ("started_at", "last_seen_at")}
    return VisitShown(**row | times | {"own": bool(row["own"])})


async def erase_visit(call: Call) -> Erased:
    query: Erasure = call.query
    row = await _found(call)
    now = call.context.clock()
    erased = await call.write(
        lambda tx: retention.erase_visit(tx, row["site_id"], row["number"], now, browser=query.browser)
    )
    call.context.store.routes.forget_all()  # its unique addresses are retired
    return Erased(visits=erased)


async def _found(call: Call) -> dict[str, Any]:
    """The visit that is asked for; raises Problem 404, and 409 where its number is several sites'."""
    query: VisitQuery = call.query
    sites = call.caller.sites
    if query.site is not None:
        sites = frozenset({visible_site(call.context.store, call.caller, query.site, "site").id})
    rows = await history.visit(call.context.store.reader, call.path["number"], sites)
    if not rows:
        raise not_found("visit")
    if len(rows) > 1:
        names = ", ".join(row["site"] for row in rows[:20])
        raise Problem(409, f"several sites have a visit of this number, say which: {names}", field="site")
    return rows[0]


OPERATIONS = (
    Operation(
        "GET",
        "/v1/visits/{number}",
        "A visit.",
        show_visit,
        Role.VIEWER,
        VisitShown,
        query=VisitQuery,
        problems=(404, 409),
    ),
    Operation(
        "DELETE",
        "/v1/visits/{number}",
        "Erase a visit; its messages stay, without it.",
        erase_visit,
        Role.ADMIN,
        Erased,
        query=Erasure,
        problems=(404, 409),
    ),
)
