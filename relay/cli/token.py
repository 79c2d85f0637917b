"""relay token create | list | revoke"""

from __future__ import annotations

from pathlib import Path

import click

from relay.cli.settings import ROLE, ROLE_MEANING, config_option, load, sites_option


@click.group()
def token() -> None:
    """Tokens for the management API."""


@token.command()
@click.argument("name")
@sites_option
@click.option("--role", type=ROLE, default="admin", show_default=True, help=ROLE_MEANING)
@config_option
def create(config_file: Path, name: str, sites: tuple[str, ...], role: str) -> None:
    """Make a token and print it as the last word. It is shown this once: only its hash is stored."""
    from relay.cli.writing import write

    made = write(load(config_file), "token.create", {"name": name, "role": role, "sites": list(sites) or None})
    click.echo(f"token {name} ({role}, {', '.join(sites) or 'all sites'}): {made['token']}")


@token.command("list")
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def list_(config_file: Path, wants_json: bool) -> None:
    """List the tokens (never their secrets)."""
    import asyncio

    from relay.cli import output

    rows = asyncio.run(_tokens(config_file))
    if wants_json:
        names = ("name", "role", "sites", "created_at")
        output.as_json([dict(zip(names, row, strict=True)) for row in rows])
        return
    output.table(
        ("name", "role", "sites", "created"),
        [
            (name, role, "all" if sites is None else ", ".join(sites), output.time(created_at))
            for name, role, sites, created_at in rows
        ],
    )


async def _tokens(config_file: Path) -> list[tuple[str, str, list[str] | None, float]]:
    import json

    from relay.cli.reading import reading
    from relay.store import tokens

    async with reading(load(config_file)) as reader:
        return [
            (name, role, None if sites is None else json.loads(sites), created_at)
            for name, role, sites, created_at in await reader.all(tokens.listing())
        ]


@token.command()
@click.argument("name")
@config_option
def revoke(config_file: Path, name: str) -> None:
    """Take a token out of use; a running daemon stops accepting it within seconds."""
    from relay.cli.writing import write

    write(load(config_file), "token.revoke", {"name": name})
    click.echo(f"token {name} is revoked")
