"""relay demo"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the demo keeps its data. Without it: a temporary folder, removed at the end.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
def demo(data_dir: Path | None, open_browser: bool) -> None:
    """Show the whole product on this machine: a demo site, its mailbox, the history and a demo CRM.

    Everything listens on loopback only; the addresses are printed.
    """
    from relay.demo import run_demo

    run_demo(data_dir, open_browser)
