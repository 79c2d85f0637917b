"""Webhooks of a site that the API made, with letters to it, for the tests of what the API says about them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from relay.core.hook import Access
from relay.store.schema import posts
from tests.poster_fixtures import posting, until
from tests.store_fixtures import everything
from tests.webapi_fixtures import Api
from tests.webhook_receiver import Receiver

SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0ISE="
CARD = "card@t.garden.example"
POOLED = "a@t.garden.example"
SITE: dict[str, Any] = {
    "name": "garden",
    "key": "pk_garden",
    "origins": ["https://www.garden.example"],
    "targets": [{"address": "sales@garden.example", "domain": "t.garden.example", "pool": [POOLED]}],
    "statics": [{"address": CARD, "target": "sales@garden.example", "label": "card"}],
    "require_visit": False,
}
TEMPLATE = 'body = \'{"lead": {{ subject|tojson }}, "key": {{ variables.key|tojson }}}\'\nvariables = ["key"]'
OPTIONS: dict[str, Any] = {
    "fill": "likely",
    "events": ["message.received", "message.failed", "attribution.changed"],
    "extras": True,
    "headers": {"X-Api-Key": "headerS3cret", "X-Second": "headerS3cret2"},
    "bearer": "bearerS3cret",
    "concurrency": 3,
    "deal_id": "/lead/id",
    "deal_url": "/lead/a~1b~0c",
    "template": TEMPLATE,
    "variables": {"key": "variableS3cret"},
    "conditions": {
        "require_visit": True,
        "skip_bounces": False,
        "skip_automatic": "site",
        "skip_blocked": False,
        "attribution": "exact",
        "first_letter": "90m",
        "min_size": 10,
        "max_size": 1000,
        "max_recipients": 5,
        "recipients": ["Sales@garden.example"],
        "subject": "^offer",
    },
}
SECRETS = ("headerS3cret", "bearerS3cret", "variableS3cret", "passwordS3cret", SECRET, SECRET.removeprefix("whsec_"))


async def added(api: Api, admin: str, url: str = "https://crm.example/hook", **options: Any) -> Any:
    """A webhook of the garden, with its path."""
    status, answer = await api.call("POST", "/v1/sites/garden/webhooks", {"url": url} | options, token=admin)
    assert status == 201, answer
    return answer | {"path": f"/v1/webhooks/{answer['id']}"}


def access(api: Api, webhook: Any) -> Access:
    """What is stored of a webhook, opened."""
    (view,) = [view for view in api.w.site("garden").webhooks if str(view.id) == webhook["id"]]
    return Access() if view.hook.access is None else Access.from_json(api.context.keys.unseal(view.hook.access))


async def posted(
    api: Api, crm: Receiver, count: int = 1, first: int = 0, address: str = CARD, **changes: Any
) -> list[str]:
    """New letters to the garden, each posted by the schedule as long as something is due; their ids."""
    found = []
    for number in range(first, first + count):
        accepted = await api.letter(address, number=number, **changes)
        await api.w.extract(accepted.message_id, subject=f"offer {number}")
        found.append(str(accepted.message_id))
    await drained(api)
    return found


async def state_of(api: Api) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that is stored, but for the tokens that tests make and for who did what."""
    return {name: rows for name, rows in (await everything(api.w)).items() if name not in ("tokens", "changes")}


async def drained(api: Api) -> None:
    """Post what is due now."""
    due = select(posts.c.id).where(posts.c.state == "waiting", posts.c.next_at <= api.w.now)
    async with posting(api.w, api.context.keys) as poster:
        poster.wake()
        await until(api.w, due, lambda rows: not rows)


async def visited_before(api: Api) -> str:
    """The number of a visit that held the pool's address already when the letters came."""
    api.w.pass_time(-10)
    visit, substitute = await api.w.shown("sales@garden.example", "garden")
    api.w.pass_time(10)
    assert substitute == POOLED
    return visit
