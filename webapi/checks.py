"""Checks over HTTP: what `relay check` does, done by the daemon itself; one run at a time, its results in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import structlog
from aiohttp import web
from pydantic import BaseModel, Field

from relay.core.check import CHECKS, FAIL, NAMES, Check, Finding, Level
from webapi.auth import Caller, Role
from webapi.context import Context
from webapi.operation import Call, Operation, Strict
from webapi.problems import Problem
from webapi.values import moment_or_none

log = structlog.get_logger()

#: Seconds that a whole run may take; each check has a little less, so that it can say itself what it waited for.
PATIENCE = 30.0
EACH = PATIENCE - 3
_WORST_FIRST = ("fail", "warn", "unknown", "ok")

State = Literal["ok", "warn", "fail", "unknown"]
Name = Literal[
    "data_dir", "database", "disk", "clock", "geoip", "daemon", "cookies", "tls", "dns", "next_hops", "webhooks"
]  # core/check.py NAMES, for the type checker


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found at ``at``."""

    findings: tuple[Finding, ...]
    at: float

    @property
    def worst(self) -> Level:
        levels = {finding.level for finding in self.findings}
        return "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"


@dataclass(slots=True)
class Runs:
    """The results of the latest runs, by the name of the check; ``running`` are those whose result is awaited."""

    results: dict[str, Result] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    started_at: float | None = None
    _task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._task is not None

    def start(self, context: Context, names: Collection[str]) -> bool:
        """Begin a run; False where one is under way, for each would only spoil the other's patience."""
        if self._task is not None:
            return False
        self.running = set(names)
        self.started_at = context.clock()
        self._task = asyncio.create_task(self._run(context, names), name="checks")
        return True

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, context: Context, names: Collection[str]) -> None:
        def tell(name: str, findings: Sequence[Finding]) -> None:
            self.running.discard(name)
            self.results[name] = Result(tuple(findings), context.clock())

        text, hint = f"did not end in {PATIENCE:g} seconds", "try again; look at DNS and network"
        try:
            async with asyncio.timeout(PATIENCE):
                await context.run_checks(names, tell)
        except TimeoutError:
            pass
        except Exception:
            log.exception("checks failed unexpectedly")
            text, hint = "could not be checked", "the log has the details"
        finally:
            for name in [name for name in names if name in self.running]:
                tell(name, [Finding(FAIL, _titles[name], text, hint)])
            self._task = None


_titles = {check.name: check.title for check in CHECKS}
RUNS = web.AppKey("runs", Runs)


def install(app: web.Application) -> None:
    app[RUNS] = Runs()
    app.on_cleanup.append(_close)


async def _close(app: web.Application) -> None:
    await app[RUNS].close()


class FindingShown(BaseModel):
    level: Level
    what: str
    text: str
    hint: str = Field(description="What to do; empty where it is good.")


class CheckShown(BaseModel):
    name: str
    title: str
    about: str = Field(description="What it looks at.")
    state: State = Field(description="The worst of its findings; unknown: it has not run yet.")
    running: bool
    checked_at: str | None
    findings: list[FindingShown] = Field(description="Failures first.")


class ChecksShown(BaseModel):
    running: bool
    started_at: str | None = Field(description="When the latest run began.")
    checks: list[CheckShown] = Field(description="Failures first.")


class RunWanted(Strict):
    checks: Annotated[list[Name] | None, Field(min_length=1, description="Only these; null: all.")] = None


def shown(runs: Runs) -> ChecksShown:
    checks = [_shown(check, runs) for check in CHECKS]
    checks.sort(key=lambda check: _WORST_FIRST.index(check.state))
    return ChecksShown(running=runs.is_running, started_at=moment_or_none(runs.started_at), checks=checks)


def _shown(check: Check, runs: Runs) -> CheckShown:
    result = runs.results.get(check.name)
    findings = sorted(result.findings, key=lambda finding: _WORST_FIRST.index(finding.level)) if result else []
    return CheckShown(
        name=check.name,
        title=check.title,
        about=check.about,
        state=result.worst if result else "unknown",
        running=check.name in runs.running,
        checked_at=moment_or_none(result.at if result else None),
        findings=[FindingShown(level=one.level, what=one.what, text=one.text, hint=one.hint) for one in findings],
    )


async def show_checks(call: Call) -> ChecksShown:
    """What is known; nothing is run for it."""
    for_all_sites(call.caller)
    return shown(call.request.app[RUNS])


async def run_checks(call: Call) -> ChecksShown:
    for_all_sites(call.caller)
    body: RunWanted = call.body
    runs = call.request.app[RUNS]
    if not runs.start(call.context, tuple(dict.fromkeys(body.checks or NAMES))):
        raise Problem(409, "checks are running just now; their results come within half a minute")
    return shown(runs)


def for_all_sites(caller: Caller) -> None:
    """The findings name the domains, servers and receivers of every site."""
    if caller.sites is not None:
        raise Problem(403, "the checks are for who sees all sites")


SHOW = Operation("GET", "/v1/checks", "What the checks found when they ran last.", show_checks, Role.ADMIN, ChecksShown)
RUN = Operation(
    "POST",
    "/v1/checks",
    "Run all checks, or some; their results come within half a minute.",
    run_checks,
    Role.ADMIN,
    ChecksShown,
    body=RunWanted,
    status=202,
    problems=(409,),
    audited=False,
)
OPERATIONS = (SHOW, RUN)
