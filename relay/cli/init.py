"""relay init"""

from __future__ import annotations

import os
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
    prompt="Mailbox for postmaster and abuse mail (may stay empty)",
    default="",
    help="Who gets postmaster and abuse mail. Asked for when it is not given.",
)
def init(config_file: Path, hostname: str, operator: str) -> None:
    """Write a first relay.toml. A file that exists is never overwritten."""
    from relay.config import render_initial

    text = render_initial(hostname, operator)
    try:
        # Owner only: what is added next is likely to be a password (forward.next_hop).
        descriptor = os.open(config_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise click.ClickException(f"{config_file} exists already and is left as it is") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    click.echo(f"{config_file} is written. Add your site to it, then run: relay check")
