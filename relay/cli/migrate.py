"""relay migrate"""

from __future__ import annotations

from pathlib import Path

import click

from relay.cli.progress import interruptible, say
from relay.cli.settings import config_option, load


@click.command()
@config_option
def migrate(config_file: Path) -> None:
    """Bring the database to this program's schema, after a copy of it was made.

    The daemon does the same when it starts, so it must not be running meanwhile. Ctrl-C is safe: what is done stays
    done, and the next start goes on from there.
    """
    config = load(config_file)
    from relay.control import DirectoryLock
    from relay.store import migrate as schema
    from relay.store.store import DATABASE, prepare

    database = config.data_dir / DATABASE
    if schema.revision(database) == schema.HEAD:
        click.echo(f"{database} has schema revision {schema.HEAD} already")
        return
    with interruptible("what was applied stays; the next start goes on from there"), DirectoryLock(config.data_dir):
        prepare(database, say)
    click.echo(f"{database} has schema revision {schema.HEAD}")
