"""relay user create | list | invite | change | remove"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.settings import ROLE, ROLE_MEANING, config_option, load, sites_option

if TYPE_CHECKING:
    from relay.store.users import User


@click.group()
def user() -> None:
    """People who log in to the web pages."""


@user.command()
@click.argument("name")
@sites_option
@click.option("--role", type=ROLE, default="viewer", show_default=True, help=ROLE_MEANING)
@config_option
def create(config_file: Path, name: str, sites: tuple[str, ...], role: str) -> None:
    """Make a user and print a one-time link, as the last word, by which the password is chosen within three days."""
    from relay.cli.writing import write

    made = write(load(config_file), "user.create", {"name": name, "role": role, "sites": list(sites) or None})
    click.echo(f"user {made['name']} ({role}, {', '.join(sites) or 'all sites'}): {made['link']}")


@user.command("list")
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def list_(config_file: Path, wants_json: bool) -> None:
    """List who can log in."""
    import asyncio
    from dataclasses import asdict

    from relay.cli import output

    found = asyncio.run(_users(config_file))
    if wants_json:
        output.as_json([{key: value for key, value in asdict(one).items() if key != "id"} for one in found])
        return
    output.table(
        ("name", "role", "sites", "created", "last logged in"),
        [
            (
                one.name,
                one.role,
                "all" if one.sites is None else ", ".join(one.sites),
                output.time(one.created_at),
                "has no password yet" if one.waiting else "never" if one.seen_at is None else output.time(one.seen_at),
            )
            for one in found
        ],
    )


async def _users(config_file: Path) -> list[User]:
    from relay.cli.reading import reading
    from relay.store import users

    async with reading(load(config_file)) as reader:
        return await users.listing(reader)


@user.command()
@click.argument("name")
@config_option
def invite(config_file: Path, name: str) -> None:
    """Print a new one-time link for a user: a lost password, a lost link."""
    from relay.cli.writing import write

    made = write(load(config_file), "user.invite", {"name": name})
    click.echo(f"user {made['name']}: {made['link']}")


@user.command()
@click.argument("name")
@click.option("--role", type=ROLE, required=True)
@sites_option
@config_option
def change(config_file: Path, name: str, role: str, sites: tuple[str, ...]) -> None:
    """Give a user other rights, from the next request on."""
    from relay.cli.writing import write

    made = write(load(config_file), "user.change", {"name": name, "role": role, "sites": list(sites) or None})
    click.echo(f"user {made['name']} ({role}, {', '.join(sites) or 'all sites'})")


@user.command()
@click.argument("name")
@config_option
def remove(config_file: Path, name: str) -> None:
    """Remove a user and end its sessions."""
    from relay.cli.writing import write

    made = write(load(config_file), "user.remove", {"name": name})
    click.echo(f"user {made['name']} is removed")
