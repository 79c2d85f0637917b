"""relay init"""

from __future__ import annotations

from pathlib import Path

import click

from relay.cli.settings import config_option


@click.command()
@config_option
@click.option(
    "--hostname",
    prompt="Name of this server (as in its MX record)",
    help="This server's own name, as in its MX record. Asked for when it is not given.",
)
@click.option(
    "--operator",
    prompt="Mailbox for postmaster and abuse mail and alerts (may stay empty)",
    default="",
    help="Who gets postmaster and abuse mail, and alerts. Asked for when it is not given.",
)
def init(config_file: Path, hostname: str, operator: str) -> None:
    """Write a first relay.toml. A file that exists is never overwritten."""
    from relay.config import render_initial

    text = render_initial(hostname, operator)
    try:
        # Owner only: what is added next is likely to be a password (forward.next_hop).
        with config_file.open("x", opener=_private) as file:
            file.write(text)
    except FileExistsError:
        raise click.ClickException(f"{config_file} exists already and is left as it is") from None
    click.echo(f"{config_file} is written. Add your site to it, then run: relay check")


def _private(path: str, flags: int) -> int:
    import os

    return os.open(path, flags, 0o600)
