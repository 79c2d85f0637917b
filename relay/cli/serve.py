"""relay serve"""

from __future__ import annotations

import gc
from pathlib import Path

import click

from relay.cli.settings import config_option, load


@click.command()
@config_option
def serve(config_file: Path) -> None:
    """Run the daemon until SIGTERM or Ctrl-C.

    It creates data_dir and missing keys, brings the database to this program's schema, and logs to stderr.
    """
    gc.disable()  # all that imports make stays: looking through it for what can go is a tenth of their time
    try:
        config = load(config_file)
        from relay import app, eventloop, logs
    finally:
        gc.enable()
    logs.setup(config.log.level, config.log.format)
    eventloop.run(app.serve_forever(config, config_file))
