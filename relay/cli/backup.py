"""relay backup"""

from __future__ import annotations

from pathlib import Path

import click

from relay.cli.progress import interruptible, say
from relay.cli.settings import config_option, load


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@config_option
def backup(config_file: Path, directory: Path) -> None:
    """Copy database, large bodies and keys to the new DIRECTORY, while mail flows.

    DIRECTORY is a whole data_dir: to restore, stop the daemon and put it in data_dir's place. Ctrl-C leaves nothing.
    """
    config = load(config_file)
    from relay import backup as copies

    with interruptible(f"nothing is left at {directory}"):
        done = copies.backup(config.data_dir, directory, say)
    for message_id in done.lost:
        say(f"Warning: the body of message {message_id} is missing in {config.data_dir / 'bodies'}")
    click.echo(f"{directory}: {done.messages} messages, {done.bodies} large bodies, {done.octets} octets")
