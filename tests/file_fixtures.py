"""Messages with attachments behind a running API, for the tests of files, links and ranges."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import aiohttp

from relay.core.mime import Part
from relay.core.wire import stuff
from relay.extract_worker import extract
from tests.store_fixtures import TRACK
from tests.webapi_fixtures import Api

CARD = f"card@{TRACK}"
#: A message that is stored longer than it was received: its dots are stuffed.
DOTTED = b".\r\n..two\r\nSubject: x\r\n\r\n.\r\n...\r\nend\r\n"


async def stored(api: Api, message: bytes, *, in_file: bool = False, **result: Any) -> int:
    """Accept ``message`` (as received) and record its extraction; its id."""
    wire = stuff(message)
    changes: dict[str, Any] = {"body": wire, "size": len(message)}
    if in_file:
        name = hashlib.sha256(wire).hexdigest()
        api.context.bodies.path(name).write_bytes(wire)
        changes |= {"data": None, "file": name}
    accepted = await api.w.accept(CARD, claim=None, **changes)
    await api.w.extract(accepted.message_id, **result)
    return accepted.message_id


async def raw(api: Api, message_id: int) -> tuple[aiohttp.ClientResponse, bytes]:
    return await api.request("GET", f"/v1/messages/{message_id}/raw", token=await api.token("viewer"))


async def attachments(api: Api, message_id: int) -> list[dict[str, Any]]:
    _, seen = await api.call("GET", f"/v1/messages/{message_id}", token=await api.token("viewer"))
    found: list[dict[str, Any]] = seen["attachments"]
    return found


async def fetch(api: Api, url: str, method: str = "GET") -> tuple[aiohttp.ClientResponse, bytes]:
    assert url.startswith(f"{api.url}/a/")
    return await api.request(method, url.removeprefix(api.url))


def of_one_file(octets: bytes, name: str = "offer.pdf", kind: str = "application/pdf") -> tuple[bytes, Part]:
    """A message that has nothing but a file, and where the file lies in it."""
    head = b"Subject: offer\r\nContent-Type: %s\r\nContent-Transfer-Encoding: base64\r\n\r\n" % kind.encode()
    encoded = base64.encodebytes(octets).replace(b"\n", b"\r\n")
    return head + encoded, Part(0, name, kind, len(octets), False, len(head), len(encoded), "base64")


async def received(api: Api, message: bytes, *, in_file: bool = False) -> list[dict[str, Any]]:
    """Accept ``message`` as it came and extract it as the daemon does; its attachments as the API shows them."""
    found = extract(message)
    message_id = await stored(
        api, message, in_file=in_file, text=found.text, subject=found.subject or "", attachments=found.attachments
    )
    return await attachments(api, message_id)
