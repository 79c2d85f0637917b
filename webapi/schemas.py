"""The bodies of webhooks as JSON Schema (2020-12), one document for each shape, served and kept in docs/crm.

python -m webapi.schemas docs/crm/schemas    # writes them anew; a test compares
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web

from relay.core import extras, payload
from relay.core.hook import EventType
from webapi.health import let_in
from webapi.operation import Operation
from webapi.problems import not_found

MEDIA_TYPE = "application/schema+json"
#: The shape of a webhook without ``extras``: the reference's keys and no others.
PLAIN = EventType.RECEIVED.value
EXTENDED = f"{PLAIN}.extended"


@cache
def documents() -> Mapping[str, dict[str, Any]]:
    """Name → schema. Only ``message.received`` has a plain shape; the others always have all members."""
    found = {PLAIN: payload.schema()}
    for kind in EventType:
        name = EXTENDED if kind is EventType.RECEIVED else kind.value
        found[name] = payload.schema(extras.properties(kind.value), extras.ATTACHMENT)
    return found


def link(name: str) -> str:
    return f"/v1/schemas/{name}"


async def show(request: web.Request) -> web.Response:
    await let_in(request)
    schema = documents().get(request.match_info["name"])
    if schema is None:
        raise not_found("schema")
    return web.Response(body=json.dumps(schema, ensure_ascii=False).encode(), headers={"Content-Type": MEDIA_TYPE})


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, schema in documents().items():
        (directory / f"{name}.json").write_text(text_of(schema), "utf-8")


def text_of(schema: Mapping[str, Any]) -> str:
    """As it is kept in a file."""
    return json.dumps(schema, ensure_ascii=False, indent=2) + "\n"


OPERATIONS = (
    Operation(
        "GET",
        "/v1/schemas/{name}",
        "The body of a webhook as JSON Schema.",
        show,
        None,
        MEDIA_TYPE,
        problems=(401, 404, 429),
    ),
)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
