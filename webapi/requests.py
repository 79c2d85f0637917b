"""An HTTP request to a receiver and what comes of it, for who makes it and who wants it made.

It knows nothing of webhooks, so that a process without keys and database can do it (webapi/request_process.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

#: Seconds that a request may take in all, and octets of its answer that are read.
TIMEOUT = 15.0
ANSWER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why there is none, for History. ``trouble``: a traceback for the log, when the fault is ours."""

    reason: str
    trouble: str | None = None


class Requester(Protocol):
    """Makes requests; whatever goes wrong is a NoAnswer."""

    async def open(self) -> None: ...
    async def request(self, request: Request) -> Answer | NoAnswer: ...
    async def close(self) -> None: ...


OURS = "the attempt failed here, the log says why"
