"""relay demo"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the demo keeps its database. Without it: a folder of its own.",
)
def demo(data_dir: Path | None) -> None:
    """Show the whole product on this machine: a demo site, its mailbox, the history and a demo CRM.

    Everything listens on loopback only; the addresses are printed.
    """
    from relay.demo import run_demo

    run_demo(data_dir)
