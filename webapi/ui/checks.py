"""Checks: the connections tested, what is wrong first and what to do about it."""

from __future__ import annotations

from aiohttp import web

from webapi import checks
from webapi.auth import Role
from webapi.problems import Problem
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render

PATH = "/ui/checks"


async def show(view: View) -> web.Response:
    """Where nothing is known yet, find out: only then does looking at the page run anything."""
    runs = view.request.app[checks.RUNS]
    checks.for_all_sites(view.caller)
    if not runs.results and not runs.is_running:
        await perform(view, checks.RUN)
    return _render(view, None)


async def progress(view: View) -> web.Response:
    """What is known meanwhile, for the page to put in its place; asked for by htmx only."""
    checks.for_all_sites(view.caller)
    if "HX-Request" not in view.request.headers:
        return see_other(PATH)
    return _render(view, "results")


async def run(view: View) -> web.Response:
    name = view.field("check")
    try:
        await perform(view, checks.RUN, body={"checks": [name]} if name else {})
    except Problem as problem:
        if problem.status != 409:  # else somebody else was quicker: their run is shown
            raise
    return see_other(PATH)


def _render(view: View, block: str | None) -> web.Response:
    runs = view.request.app[checks.RUNS]
    shown = checks.shown(runs)
    states = [check.state for check in shown.checks]
    return render(
        view,
        "checks.html",
        block=block,
        checks=shown.checks,
        running=shown.running,
        left=len(runs.running),
        started_at=runs.started_at,
        at={name: result.at for name, result in runs.results.items()},
        counts={state: states.count(state) for state in ("fail", "warn", "ok", "unknown")},
    )


PAGES = (
    Page("GET", PATH, show, Role.ADMIN),
    Page("GET", f"{PATH}/progress", progress, Role.ADMIN),
    Page("POST", PATH, run, Role.ADMIN),
)
