"""Commands that read: query-only, beside a running daemon or without one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from relay.config import Config
    from relay.store.directory import Directory
    from relay.store.reader import Reader


@asynccontextmanager
async def reading(config: Config) -> AsyncIterator[Reader]:
    """The database, to be read. Raises ClickException when there is none, or one of another schema revision.

    Raises Damaged where there was one.
    """
    from relay.store import migrate
    from relay.store.reader import Reader
    from relay.store.store import DATABASE, revision

    database = config.data_dir / DATABASE
    found = revision(database)
    if found is None:
        raise click.ClickException(f"there is no database at {database} yet: relay serve makes one")
    if found != migrate.HEAD:
        raise click.ClickException(
            f"{database} has schema revision {found} and this program works with {migrate.HEAD}: run relay migrate, "
            "or use the program that belongs to the database"
        )
    reader = Reader(database, size=1)
    try:
        await reader.start()
        yield reader
    finally:
        await reader.close()


async def directory(reader: Reader) -> Directory:
    """Every site with its targets and webhooks."""
    from relay.store.directory import Directory

    sites = Directory(reader)
    await sites.load()
    return sites
