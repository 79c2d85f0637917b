"""relay queue list | retry | drop"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from relay.cli.settings import config_option, load

_LIMIT = 1000


@click.group()
def queue() -> None:
    """Deliveries that wait to be forwarded, and those that are held because they could not be."""


@queue.command("list")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=_LIMIT, show_default=True)
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def list_(config_file: Path, limit: int, wants_json: bool) -> None:
    """List what waits (queued, deferred) and what is held (failed), next due first."""
    from relay.cli import output

    rows = asyncio.run(_queue(config_file, limit))
    if wants_json:
        output.as_json(rows)
        return
    output.table(
        ("id", "message", "received", "sender", "to", "state", "attempts", "next attempt", "last answer"),
        [
            (
                row["id"],
                row["message"],
                output.time(row["received_at"]),
                row["sender"],
                row["forward_to"],
                row["state"],
                row["attempts"],
                None if row["state"] == "failed" else output.time(row["next_at"]),
                " ".join(filter(None, (row["host"], row["answer"]))),
            )
            for row in rows
        ],
        right=("id", "message", "attempts"),
    )


@queue.command()
@click.argument("ids", metavar="ID...", nargs=-1, type=click.IntRange(min=1))
@click.option("--all", "everything", is_flag=True, help="Everything that is deferred or held.")
@config_option
def retry(config_file: Path, ids: tuple[int, ...], everything: bool) -> None:
    """Try deliveries now. ID is what `relay queue list` shows first."""
    if bool(ids) == everything:
        raise click.UsageError("give the IDs of deliveries, or --all")
    from relay.cli.writing import write

    made = write(load(config_file), "queue.retry", {"all": True} if everything else {"deliveries": ids})
    _tell(ids, made["changed"], "tried now", "does not wait and is not held")


@queue.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=click.IntRange(min=1))
@config_option
def drop(config_file: Path, ids: tuple[int, ...]) -> None:
    """Give deliveries up: they are not forwarded. Their messages stay in the history."""
    from relay.cli.writing import write

    made = write(load(config_file), "queue.drop", {"deliveries": ids})
    _tell(
        ids,
        made["changed"],
        "dropped",
        "does not wait and is not held, is being forwarded just now, or another site's delivery carries it",
    )


def _tell(asked: tuple[int, ...], changed: list[int], done: str, otherwise: str) -> None:
    click.echo(f"{len(changed)} {'delivery' if len(changed) == 1 else 'deliveries'} {done}")
    left = [str(id_) for id_ in asked if id_ not in changed]
    if left:
        raise click.ClickException(f"{', '.join(left)}: {otherwise}")


async def _queue(config_file: Path, limit: int) -> list[dict[str, Any]]:
    from relay.cli.reading import reading
    from relay.store import queue_view

    async with reading(load(config_file)) as reader:
        rows = await queue_view.listed(reader, queue_view.QueueFilter(), limit)
    hidden = ("message_id", "claimed_until", "place")
    return [
        {"message": row["message_id"]} | {name: value for name, value in row.items() if name not in hidden}
        for row in rows
    ]
