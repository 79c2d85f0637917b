"""What was last seen of a site's pages: whether the tag is in, where, and which origin was turned away.

In memory, one record a site, for whoever sets a site up; after a restart the visits still say when the last page was
seen. An origin is whatever a client wrote: a program can write any, so a refused one is a hint and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel, Field

from relay.store import figures
from webapi.auth import Role, visible_site
from webapi.operation import Call, Operation
from webapi.values import moment, moment_or_none

#: Characters that are kept of an origin and of a page's address.
KEPT = 300


@dataclass(slots=True)
class Sight:
    """Times in seconds since the epoch, None for what was not seen. ``origin`` None: a server asked, with a token."""

    viewed_at: float | None = None
    origin: str | None = None
    page: str | None = None  # as it came; bare_page is what is shown of it
    refused_at: float | None = None
    refused_origin: str = ""
    fetched_at: float | None = None

    @property
    def bare_page(self) -> str | None:
        """The page's address without query and fragment: they may say who looked at it."""
        return (self.page or "").partition("#")[0].partition("?")[0][:KEPT] or None


@dataclass(slots=True)
class Sights:
    """The latest sight of each site, by its id. Every page view writes it: nothing is worked out before it is read."""

    _of: dict[int, Sight] = field(default_factory=dict)

    def of(self, site_id: int) -> Sight:
        sight = self._of.get(site_id)
        if sight is None:
            sight = self._of[site_id] = Sight()
        return sight

    def viewed(self, site_id: int, origin: str | None, page: str | None, now: float) -> None:
        """A page view was answered."""
        sight = self.of(site_id)
        sight.viewed_at, sight.origin, sight.page = now, origin, page

    def refused(self, site_id: int, origin: str, now: float) -> None:
        """A page of an origin that is not the site's has asked for it."""
        sight = self.of(site_id)
        sight.refused_at, sight.refused_origin = now, origin[:KEPT]

    def fetched(self, site_id: int, now: float) -> None:
        """The site's script was fetched."""
        self.of(site_id).fetched_at = now


SIGHTS = web.AppKey("sights", Sights)


class PageSeen(BaseModel):
    at: str
    origin: str | None = Field(description="Null: a server asked, with a token.")
    page: str | None = Field(description="Its address without the query.")


class Refused(BaseModel):
    at: str
    origin: str


class Seen(BaseModel):
    """All of it since the daemon was started, but for ``last_visit``."""

    page_view: PageSeen | None = Field(description="The last page view that was answered.")
    refused: Refused | None = Field(description="The last origin that is none of the site's: a client can write any.")
    script_at: str | None = Field(description="When the script was fetched last; browsers keep it for a while.")
    last_visit: str | None = Field(description="When the visit that began last was seen last.")


async def show_seen(call: Call) -> Seen:
    site = visible_site(call.context.store, call.caller, call.path["name"])
    sight = call.request.app[SIGHTS].of(site.id)
    visited_at = await figures.last_seen(call.context.store.reader, site.id)
    viewed = refused = None
    if sight.viewed_at is not None:
        viewed = PageSeen(at=moment(sight.viewed_at), origin=sight.origin, page=sight.bare_page)
    if sight.refused_at is not None:
        refused = Refused(at=moment(sight.refused_at), origin=sight.refused_origin)
    return Seen(
        page_view=viewed,
        refused=refused,
        script_at=moment_or_none(sight.fetched_at),
        last_visit=moment_or_none(visited_at),
    )


OPERATIONS = (
    Operation(
        "GET",
        "/v1/sites/{name}/seen",
        "Whether its pages were seen: is the tag in?",
        show_seen,
        Role.VIEWER,
        Seen,
        problems=(404,),
    ),
)
