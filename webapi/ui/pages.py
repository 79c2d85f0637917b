"""All pages, and how they join the web application."""

from __future__ import annotations

from aiohttp import web

from webapi.context import CONTEXT
from webapi.problems import Handler, Problem, from_exception, phrase
from webapi.ui import (
    addresses,
    checks,
    history,
    hooks,
    login,
    message,
    queue,
    session,
    settings,
    sites,
    sources,
)
from webapi.ui.assets import asset, assets
from webapi.ui.page import Page, View, see_other
from webapi.ui.render import load, render
from webapi.ui.session import ROOT

PAGES: tuple[Page, ...] = (
    *login.PAGES,
    *history.PAGES,
    *message.PAGES,
    *sites.PAGES,
    *addresses.PAGES,
    *sources.PAGES,
    *hooks.PAGES,
    *queue.PAGES,
    *checks.PAGES,
    *settings.PAGES,
)


async def home(request: web.Request) -> web.Response:
    return see_other(f"{ROOT}/history")


def add(app: web.Application) -> None:
    """Register every page. What is open to strangers: the login, one-time links, the pages' own files."""
    context = app[CONTEXT]
    load()
    assets()
    app[login.DOOR] = login.Door.of(context.limits)
    for path in ("/", ROOT, f"{ROOT}/"):
        app.router.add_get(path, home)
    app.router.add_get(f"{ROOT}/static/{{digest}}/{{name}}", asset)
    for method, path, handler in login.ROUTES:
        app.router.add_route(method, path, handler)
    for page in PAGES:
        app.router.add_route(page.method, page.path, page.endpoint())
        if page.method == "GET":
            app.router.add_route("HEAD", page.path, page.endpoint())


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What goes wrong with a page is told by a page."""
    if request.path != ROOT and not request.path.startswith(f"{ROOT}/"):
        return await handler(request)
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        problem = from_exception(request, error)
    except ConnectionError:
        raise
    except Exception as error:
        problem = from_exception(request, error)
    return await _problem_page(request, problem)


async def _problem_page(request: web.Request, problem: Problem) -> web.StreamResponse:
    """For who is logged in with the menu, if the store still says who that is."""
    view = None
    if problem.status not in (500, 503):
        visitor = await session.visitor(request)
        view = None if visitor is None else View(request, request.app[CONTEXT], visitor, {})
    response = render(view, "problem.html", status=problem.status, problem=problem, title=phrase(problem.status))
    response.headers.update(problem.headers)
    return response
