"""relay history"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.settings import VISIT_NUMBER, config_option, load
from relay.core.model import DeliveryState, folded

if TYPE_CHECKING:
    from relay.config import Config
    from webapi.context import Context
    from webapi.message_views import MessageItem

#: Messages read at once.
PAGE = 500
CSV_COLUMNS = ("id", "received_at", "sender", "receivers", "visit", "attribution", "deal", "subject", "state", "size")
#: The API's (webapi/messages.py, which takes long to import).
STATES = (*(state.value for state in DeliveryState), "collected")


class Moment(click.ParamType[float, float]):
    """ "2026-01-31", "2026-01-31T08:00" (UTC unless it says otherwise), or a duration: so long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        import time

        from relay.config.fields import duration

        try:
            return time.time() - duration(value)
        except ValueError:
            pass  # then it is a date
        try:
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            self.fail(f'{value!r} is no time: write "2026-01-31", "2026-01-31T08:00" or "24h"', param, ctx)


@click.command()
@click.option("--site", help="Messages to this site.")
@click.option("--visit", type=VISIT_NUMBER, help="Messages of the visit with this number.")
@click.option("--sender", help="Messages from this address.")
@click.option("--q", "query", help="Messages with these words in subject, addresses or text.")
@click.option("--state", type=click.Choice(STATES), help="Messages in this state; failed are those that are held.")
@click.option("--since", type=Moment(), help='Received from then on: "2026-01-31", "2026-01-31T08:00" or "24h".')
@click.option("--until", type=Moment(), help="Received before then.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "wants_json", is_flag=True, help="As JSON, as the API has them.")
@click.option("--csv", "wants_csv", is_flag=True, help="As CSV.")
@config_option
def history(config_file: Path, limit: int, wants_json: bool, wants_csv: bool, **wanted: Any) -> None:
    """List the messages received, newest first."""
    if wants_json and wants_csv:
        raise click.UsageError("--json or --csv, not both")
    show = _as_json if wants_json else _as_csv if wants_csv else _as_table
    asyncio.run(show(load(config_file), limit, wanted))


async def _items(config: Config, limit: int, wanted: dict[str, Any]) -> AsyncGenerator[MessageItem, None]:
    """Close it when it is left early: it holds the database open."""
    from dataclasses import replace

    from relay.cli.reading import directory, reading
    from relay.store import history as verbs
    from webapi.message_views import item

    async with reading(config) as reader:
        context = api_context(config)
        chosen = verbs.Filter(**_filter(wanted))
        if wanted["site"] is not None:
            site = (await directory(reader)).by_name.get(wanted["site"])
            if site is None:
                raise click.ClickException(f"there is no site named {wanted['site']!r}")
            chosen = replace(chosen, sites=frozenset([site.id]))
        while limit > 0:
            page = await verbs.page(reader, chosen, min(limit, PAGE))
            for row in page:
                yield item(context, row, chosen.sites)
            limit -= len(page)
            if len(page) < PAGE:
                return
            chosen = replace(chosen, cursor=page[-1].id)


def _filter(wanted: dict[str, Any]) -> dict[str, Any]:
    sender = None if wanted["sender"] is None else folded(wanted["sender"])
    return {name: wanted[name] for name in ("visit", "query", "state", "since", "until")} | {"sender": sender}


def api_context(config: Config) -> Context:
    """What the API's view of a message needs: above all the key by which links to attachments are signed."""
    from relay.bodies import Bodies
    from relay.geoip import GeoIp
    from relay.secrets import Keys
    from relay.store.messages import Evidence
    from relay.store.store import DATABASE, Store
    from webapi.compose import Composer
    from webapi.context import Context

    keys = Keys.read(config.data_dir / "keys")
    return Context(
        store=Store(config.data_dir / DATABASE),  # not opened: a view reads nothing
        bodies=Bodies(config.data_dir / "bodies"),
        keys=keys,
        http=config.http,
        limits=config.limits,
        forward=config.forward,
        public_url=config.http.public_url,
        geoip=GeoIp(()),
        composer=Composer(keys, config.http.public_url, config.retention.raw),
        evidence=lambda: Evidence(config.attribution.window),
    )


async def _as_table(config: Config, limit: int, wanted: dict[str, Any]) -> None:
    from relay.cli import output

    items = [item async for item in _items(config, limit, wanted)]
    output.table(
        ("id", "received", "sender", "receivers", "visit", "attribution", "deal", "state", "subject"),
        [
            (
                item.id,
                item.received_at,
                item.sender or "<>",
                ", ".join(item.receivers),
                item.visit,
                item.attribution.state,
                item.deal.id,
                item.state,
                item.subject,
            )
            for item in items
        ],
        right=("id",),
    )


async def _as_csv(config: Config, limit: int, wanted: dict[str, Any]) -> None:
    from relay.cli import output

    writer = output.Csv(CSV_COLUMNS)
    async with aclosing(_items(config, limit, wanted)) as items:
        async for item in items:
            writer.row(
                (
                    item.id,
                    item.received_at,
                    item.sender,
                    " ".join(item.receivers),
                    item.visit,
                    item.attribution.state,
                    item.deal.id,
                    item.subject,
                    item.state,
                    item.size,
                )
            )


async def _as_json(config: Config, limit: int, wanted: dict[str, Any]) -> None:
    """One array, written message by message."""
    import json

    separator = "[\n"
    async with aclosing(_items(config, limit, wanted)) as items:
        async for item in items:
            sys.stdout.write(separator + json.dumps(item.model_dump()))
            separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")
