"""relay history"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.settings import config_option, load

if TYPE_CHECKING:
    from relay.config import Config
    from relay.store.history import DeliveryRow, MessageRow

#: Messages read at once.
PAGE = 500
CSV_COLUMNS = (
    "id",
    "received_at",
    "sender",
    "receivers",
    "visit",
    "attribution",
    "deal",
    "subject",
    "state",
    "size",
)


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
        except ValueError:
            self.fail(f'{value!r} is no time: write "2026-01-31", "2026-01-31T08:00" or "24h"', param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@click.command()
@click.option("--site", help="Messages to this site.")
@click.option("--visit", help="Messages of the visit with this number.")
@click.option("--sender", help="Messages from this address.")
@click.option("--q", "query", help="Messages with these words in subject, addresses or text.")
@click.option("--state", help="Messages in this state: queued, deferred, forwarded, failed, …")
@click.option("--since", type=Moment(), help='Received from then on: "2026-01-31", "2026-01-31T08:00" or "24h".')
@click.option("--until", type=Moment(), help="Received before then.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@click.option("--csv", "wants_csv", is_flag=True, help="As CSV.")
@config_option
def history(config_file: Path, limit: int, wants_json: bool, wants_csv: bool, **wanted: Any) -> None:
    """List the messages received, newest first."""
    if wants_json and wants_csv:
        raise click.UsageError("--json or --csv, not both")
    show = _as_json if wants_json else _as_csv if wants_csv else _as_table
    asyncio.run(show(load(config_file), limit, wanted))


async def _rows(config: Config, limit: int, wanted: dict[str, Any]) -> AsyncIterator[MessageRow]:
    from dataclasses import replace

    from relay.cli.reading import directory, reading
    from relay.store import history as verbs

    async with reading(config) as reader:
        chosen = verbs.Filter(**_filter(wanted))
        if wanted["site"] is not None:
            site = (await directory(reader)).by_name.get(wanted["site"])
            if site is None:
                raise click.ClickException(f"there is no site named {wanted['site']!r}")
            chosen = replace(chosen, sites=frozenset([site.id]))
        while limit > 0:
            page = await verbs.page(reader, chosen, min(limit, PAGE))
            for row in page:
                yield row
            limit -= len(page)
            if len(page) < PAGE:
                return
            chosen = replace(chosen, before=page[-1].id)


def _filter(wanted: dict[str, Any]) -> dict[str, Any]:
    from relay.core.model import fold

    sender = wanted["sender"]
    if sender is not None:
        local, _, domain = sender.rpartition("@")
        sender = f"{fold(local)}@{domain.lower()}" if local else sender  # as senders are stored
    return {name: wanted[name] for name in ("visit", "query", "state", "since", "until")} | {"sender": sender}


async def _as_table(config: Config, limit: int, wanted: dict[str, Any]) -> None:
    from relay.cli import output

    rows = [row async for row in _rows(config, limit, wanted)]
    output.table(
        ("id", "received", "sender", "receivers", "visit", "deal", "state", "subject"),
        [
            (
                row.id,
                output.time(row.received_at),
                row.sender or "<>",
                ", ".join(_receivers(row)),
                _visit(row),
                row.deal_id,
                row.state,
                row.subject,
            )
            for row in rows
        ],
        right=("id",),
    )


async def _as_csv(config: Config, limit: int, wanted: dict[str, Any]) -> None:
    from relay.cli import output

    writer = output.Csv(CSV_COLUMNS)
    async for row in _rows(config, limit, wanted):
        chosen = best_delivery(row)
        writer.row(
            (
                row.id,
                output.time(row.received_at),
                row.sender,
                " ".join(_receivers(row)),
                _visit(row),
                chosen and chosen.attribution,
                row.deal_id,
                row.subject,
                row.state,
                row.size,
            )
        )


async def _as_json(config: Config, limit: int, wanted: dict[str, Any]) -> None:
    """One array, written message by message."""
    import json

    separator = "[\n"
    async for row in _rows(config, limit, wanted):
        sys.stdout.write(separator + json.dumps(item(row)))
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")


def item(row: MessageRow) -> dict[str, Any]:
    """A message as the management API shows it; attachments without links, which only the daemon signs."""
    chosen = best_delivery(row)
    return {
        "id": str(row.id),
        "received_at": moment(row.received_at),
        "site": chosen and chosen.site,
        "sender": row.sender,
        "receivers": _receivers(row),
        "subject": row.subject,
        "visit": _visit(row),
        "attribution": {
            "state": chosen.attribution if chosen else "none",
            "method": chosen and chosen.method,
            "candidates": [
                {"visit": number, "probability": share} for number, share in (chosen.candidates if chosen else ())
            ],
        },
        "deal": {"id": row.deal_id, "url": row.deal_url},
        "state": row.state,
        "size": row.size,
        "attachments": [
            {"name": part.name, "url": None, "size": part.size, "type": part.type} for part in row.attachments
        ],
        "auth": {"spf": None, "dkim": None, "dmarc": None},
    }


def moment(seconds: float) -> str:
    """A time as the management API writes it: RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def best_delivery(row: MessageRow) -> DeliveryRow | None:
    """The best-attributed delivery, the first on a tie; None for a message that has none."""
    from relay.core.attribution import best
    from relay.core.model import Attribution, AttributionState

    if not row.deliveries:
        return None
    return row.deliveries[best([Attribution(AttributionState(d.attribution), d.method) for d in row.deliveries])]


def _receivers(row: MessageRow) -> list[str]:
    return list(dict.fromkeys(delivery.recipient for delivery in row.deliveries))


def _visit(row: MessageRow) -> str | None:
    chosen = best_delivery(row)
    return chosen.visit if chosen else None
