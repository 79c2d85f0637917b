"""relay visit show | erase"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from relay.cli.settings import SITE_NAME, VISIT_NUMBER, config_option, load


@click.group()
def visit() -> None:
    """Visits: what is known of one, and erasing it."""


@visit.command()
@click.argument("site", type=SITE_NAME)
@click.argument("number", type=VISIT_NUMBER)
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def show(config_file: Path, site: str, number: str, wants_json: bool) -> None:
    """Show all that is stored of the visit NUMBER of SITE."""
    from relay.cli import output

    found = asyncio.run(_visit(config_file, site, number))
    if wants_json:
        output.as_json(found)
        return
    output.fields([(name.replace("_", " "), value) for name, value in found.items() if value not in (None, {})])


@visit.command()
@click.argument("site", type=SITE_NAME)
@click.argument("number", type=VISIT_NUMBER)
@click.option("--browser", is_flag=True, help="With all other visits of the same browser.")
@config_option
def erase(config_file: Path, site: str, number: str, browser: bool) -> None:
    """Erase a visit. Its messages stay, without it: `DELETE /v1/senders/{address}` erases what somebody wrote."""
    from relay.cli.writing import write

    made = write(load(config_file), "visit.erase", {"site": site, "number": number, "browser": browser})
    click.echo(f"{made['visits']} {'visit is' if made['visits'] == 1 else 'visits are'} erased")


async def _visit(config_file: Path, site: str, number: str) -> dict[str, Any]:
    from relay.cli.output import time
    from relay.cli.reading import directory, reading
    from relay.store import history

    async with reading(load(config_file)) as reader:
        view = (await directory(reader)).by_name.get(site)
        rows = [] if view is None else await history.visit(reader, number, frozenset({view.id}))
    if not rows:
        raise click.ClickException(f"site {site!r} has no visit {number}")
    (row,) = rows
    del row["site_id"]
    return row | {
        "own": bool(row["own"]),
        "started_at": time(row["started_at"]),
        "last_seen_at": time(row["last_seen_at"]),
    }
