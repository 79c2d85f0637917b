"""The demo CRM: one webhook receiver, as a CRM developer would write it after the documentation.

It checks the signature (Standard Webhooks 1.0.0, "Verifying webhook authenticity"), makes one deal of each event,
however often it is posted, and answers the deal's number.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping

from aiohttp import web

from relay.demo.board import Board

#: Seconds that a webhook's timestamp may be away from now.
TOLERANCE = 300.0
#: Deals are numbered from here on.
FIRST_DEAL = 1000


class NotVerified(Exception):
    """The request was not signed with our secret; says why."""


class Crm:
    """``secret`` as in relay.toml; ``page_url`` is where a deal can be looked at."""

    def __init__(self, board: Board, secret: str, page_url: str, clock: Callable[[], float] = time.time) -> None:
        self._board = board
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self._page_url = page_url
        self._clock = clock
        self._posts: dict[str, int] = {}

    async def receive(self, request: web.Request) -> web.Response:
        """POST /crm: 200 with the deal, 401 for a bad signature, 400 for a body that is no event."""
        body = await request.read()
        arrived = self._clock()
        try:
            event = verify(self._key, request.headers, body, arrived)
            payload = json.loads(body)
            deal = FIRST_DEAL + int(payload["id"])
        except NotVerified as error:
            return web.json_response({"error": str(error)}, status=401)
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": "not an event"}, status=400)
        answer = {"deal_id": str(deal), "deal_url": f"{self._page_url}/#deal-{deal}"}
        posted = self._posts[event] = self._posts.pop(event, 0) + 1
        if len(self._posts) > 1000:
            del self._posts[next(iter(self._posts))]
        self._board.put(
            "crm",
            event,
            {
                "at": arrived,
                "message": payload["id"],
                "event": event,
                "posted": posted,
                "payload": payload,
                "answer": answer,
            },
        )
        return web.json_response(answer)


def verify(key: bytes, headers: Mapping[str, str], body: bytes, now: float) -> str:
    """The id of a genuine event; raises NotVerified."""
    event, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not event or not (timestamp.isascii() and timestamp.isdigit()):
        raise NotVerified("webhook-id or webhook-timestamp is missing")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise NotVerified("webhook-timestamp is too far from now")
    expected = hmac.digest(key, f"{event}.{timestamp}.".encode() + body, hashlib.sha256)
    for signature in headers.get("webhook-signature", "").split(" "):
        version, _, value = signature.partition(",")
        try:
            if version == "v1" and hmac.compare_digest(base64.b64decode(value), expected):
                return event
        except binascii.Error:
            continue
    raise NotVerified("webhook-signature is not from our secret")
