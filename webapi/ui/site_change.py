"""How the pages change a site: what they have shown is changed, and nothing that others have changed meanwhile.

A form carries the edition of the site that it was made of. Where it is not the site's any more, the form is refused and
shown anew; what only adds something is tried again on a fresh reading instead.
A form that is shown again with an error keeps the edition that it came with: corrected, it is as late as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from webapi import sites as sites_api
from webapi.problems import Outdated, Problem
from webapi.site_models import SiteShown
from webapi.ui import site_forms
from webapi.ui.forms import Form, Shown
from webapi.ui.page import View, perform

API = {(each.method, each.path): each for each in sites_api.OPERATIONS}
ONE = "/v1/sites/{name}"
_SHOW, _PUT = API["GET", ONE], API["PUT", ONE]
#: Times that an addition is tried while others change the site.
TRIES = 20

#: A definition, as the API takes it.
Document = dict[str, Any]


async def shown(view: View) -> SiteShown:
    """The site that the path names, as it is now."""
    site: SiteShown = await perform(view, _SHOW, path={"name": view.path["name"]})
    return site


async def own(view: View) -> SiteShown:
    """The same; raises Problem 409 when relay.toml has it, whose forms change nothing here."""
    site = await shown(view)
    refuse_declared(site)
    return site


def refuse_declared(site: SiteShown) -> None:
    if site.declared:
        raise Problem(409, f"{site.name} is defined in relay.toml and changed there")


def page_of(name: str) -> str:
    """The path of the site's page."""
    return f"/ui/sites/{quote(name, safe='')}"


def check_edition(view: View, site: SiteShown) -> None:
    """Raise Outdated unless the form was made of the site as it is."""
    if view.field("edition") != site.edition:
        raise Outdated("the site")


def typed(view: View, form: Form) -> dict[str, Shown]:
    """What was typed, to be shown again, with the edition that came with it."""
    return form.typed(view.form) | {"edition": view.field("edition")}


async def save(view: View, site: SiteShown, document: Document) -> None:
    """Let the site, of which the form was made, become what ``document`` says; raises Outdated and other Problems."""
    check_edition(view, site)
    await _put(view, site, document)


async def add(view: View, change: Callable[[Document], None]) -> None:
    """Make an addition to the site as it is; ``change`` puts it into the definition. Raises Problem."""
    for left in reversed(range(TRIES)):
        site = await shown(view)
        document = site_forms.definition(site)
        change(document)
        try:
            await _put(view, site, document)
        except Outdated:  # somebody was faster: theirs and ours are both to be kept
            if left == 0:
                raise
        else:
            return


async def _put(view: View, site: SiteShown, document: Document) -> None:
    await perform(view, _PUT, path={"name": site.name}, body=document | {"edition": site.edition})
