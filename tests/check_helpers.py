"""Short ways to run one of the checks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from relay.check_findings import OK, Finding, Subject, gather
from relay.config import Config, parse
from tests.daemon import BASE, merged, toml

NAME = "mx.track.test"


def configured(directory: Path, settings: Mapping[str, Any] | None = None) -> Config:
    return parse(toml(merged(BASE, settings or {})), directory)


async def findings(
    what: Callable[[Subject], Awaitable[list[Finding]]], config: Config, now: float | None = None
) -> list[Finding]:
    subject, problems = await gather(config, time.time() if now is None else now)
    assert problems == []
    return await what(subject)


def only(found: list[Finding], what: str) -> Finding:
    """The one finding about ``what``, which says what to do unless it is good."""
    (finding,) = [finding for finding in found if finding.what == what]
    assert finding.level == OK or finding.hint
    return finding
