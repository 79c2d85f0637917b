"""The command line: its subcommands, and the one place where their failures become text and exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from relay.cli.backup import backup
from relay.cli.check import check
from relay.cli.demo import demo
from relay.cli.geoip import geoip
from relay.cli.history import history
from relay.cli.init import init
from relay.cli.message import message
from relay.cli.migrate import migrate
from relay.cli.queue import queue
from relay.cli.serve import serve
from relay.cli.site import site
from relay.cli.target import target
from relay.cli.token import token
from relay.cli.user import user
from relay.cli.visit import visit
from relay.cli.webhook import webhook


class Root(click.Group):
    """Says what went wrong instead of showing a traceback, where somebody can do something about it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own; a broken pipe is a reader that has enough (`head`), and click ends quietly
        except Exception as error:
            from relay.cli.failures import WRONG_USE, explained

            found = explained(error)
            if found is None:
                raise
            code, text = found
            # A configuration's errors stand alone, one a line, so that editors and scripts can follow their paths.
            click.echo(text if code == WRONG_USE else f"Error: {text}", err=True)
            ctx.exit(code)


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"visit-relay {version('visit-relay')}")
    except PackageNotFoundError:
        click.echo("visit-relay, run from its source")
    ctx.exit()


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """visit-relay tells which website visit each e-mail enquiry came from.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """


for _command in (
    serve,
    init,
    demo,
    check,
    site,
    target,
    webhook,
    token,
    user,
    geoip,
    visit,
    history,
    message,
    queue,
    migrate,
    backup,
):
    cli.add_command(_command)


def main() -> None:
    """The console script."""
    _open_streams()
    cli(prog_name="relay")


def _open_streams() -> None:
    """Standard streams that are closed (`relay serve 2>&-`) become /dev/null, and no text is too much for any.

    Before anything else is opened: it would get such a descriptor, and with it what is meant for standard error. And
    where the encoding of the locale lacks a letter that is escaped, so that no output ends in the middle.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # processes of ours log there
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
