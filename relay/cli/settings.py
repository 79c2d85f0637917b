"""--config, which every subcommand takes, and values of arguments, judged as relay.toml's are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from relay.config import Config

F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """Add --config FILE; the command gets it as ``config_file``."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        default=Path("relay.toml"),
        show_default="relay.toml",
        metavar="FILE",
        help="The configuration file.",
    )(command)


def load(path: Path) -> Config:
    """The configuration; raises ConfigError, which ends the program with exit code 2."""
    from relay import config  # pydantic takes longer to import than --help may take in all

    return config.load(path)


class Value(click.ParamType[str, str]):
    """Text that relay.toml would take in such a place (relay/config/fields.py); it is passed on as written."""

    def __init__(self, name: str, reader: str) -> None:
        self.name = name
        self._reader = reader

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from relay.config import fields

        read: Callable[[object], object] = getattr(fields, self._reader)
        try:
            read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


ADDRESS = Value("address", "address")
BLOCKED_SENDER = Value("sender", "blocked_sender")
DOMAIN = Value("domain", "domain")
DURATION = Value("duration", "duration")
NEXT_HOP = Value("url", "next_hop")
ORIGIN = Value("origin", "origin")
SITE_KEY = Value("key", "site_key")
SITE_NAME = Value("name", "site_name")
ROLE = click.Choice(["admin", "manager", "viewer"])
WEBHOOK_SECRET = Value("secret", "webhook_secret")
WEBHOOK_URL = Value("url", "webhook_url")

#: For who may see sites: people and tokens.
ROLE_MEANING = "viewer reads; manager also replays, switches and adds to pools; admin does everything."
sites_option = click.option(
    "--site", "sites", multiple=True, type=SITE_NAME, help="A site to see; may be repeated. None: all."
)


def webhook_settings(path: Path | None) -> dict[str, Any]:
    """The keys of [[site.webhook]] in a TOML file; a template that it names by its file is read."""
    import tomllib

    if path is None:
        return {}
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        template = given.get("template")
        if isinstance(template, str) and template.endswith(".toml") and "\n" not in template:
            given["template"] = (path.parent / template).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path}: {error}") from None
    for name in ("site", "url", "secret", "webhook"):
        if name in given:
            raise click.ClickException(f"{path}: {name}: is given on the command line, a secret by stdin")
    return given


def secret_line(kind: Value) -> str:
    """A value from stdin, not from an argument, which everybody on the machine could read."""
    return kind.convert(sys.stdin.readline().strip(), None, None)


VISIT_NUMBER = Value("number", "visit_number")
