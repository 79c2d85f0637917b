"""Reports over HTTP."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from relay.core.source import levels
from relay.store import figures
from webapi.auth import Role, visible_site
from webapi.operation import Call, Operation, Parameters
from webapi.values import Moment

#: Seconds that a report looks back where it is not told.
MONTH = 30 * 86_400.0


class SourcesQuery(Parameters):
    site: Annotated[str, Field(description="Name of a site.")]
    since: Moment | None = None
    until: Moment | None = None


class SourceShown(BaseModel):
    """``messages`` and ``deals`` are those of visits that are stated, not only likely."""

    marker: str | None
    source_level_1: str | None
    source_level_2: str | None
    visits: int
    messages: int
    deals: int


class Sources(BaseModel):
    items: list[SourceShown]


async def sources(call: Call) -> Sources:
    query: SourcesQuery = call.query
    site = visible_site(call.context.store, call.caller, query.site, "site")
    until = call.context.clock() if query.until is None else query.until
    since = until - MONTH if query.since is None else query.since
    found = await figures.sources(call.context.store.reader, site.id, since, until)
    items = []
    for source in found:
        first, second = levels(source.marker)
        items.append(
            SourceShown(
                marker=source.marker,
                source_level_1=first,
                source_level_2=second,
                visits=source.visits,
                messages=source.messages,
                deals=source.deals,
            )
        )
    return Sources(items=items)


OPERATIONS = (
    Operation(
        "GET",
        "/v1/reports/sources",
        "Visits, messages and deals by marker, for the last 30 days unless told otherwise.",
        sources,
        Role.VIEWER,
        Sources,
        query=SourcesQuery,
        problems=(404,),
    ),
)
