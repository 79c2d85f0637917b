"""relay target list | add | remove | pool add | pool grow"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.settings import ADDRESS, DOMAIN, DURATION, NEXT_HOP, SITE_NAME, config_option, load, secret_line

if TYPE_CHECKING:
    from relay.store.directory import TargetView

#: (name of the site, target, its substitutes as the directory lists them)
Listed = tuple[str, "TargetView", list[dict[str, Any]]]


@click.group()
def target() -> None:
    """Targets: the real addresses that stand on a page, and their substitutes."""


@target.command("list")
@click.option("--site", help="Of this site only.")
@click.option("--json", "wants_json", is_flag=True, help="As JSON, with every pool and static address.")
@config_option
def list_(config_file: Path, site: str | None, wants_json: bool) -> None:
    """List the targets."""
    from relay.cli import output
    from relay.config.fields import format_duration

    found = asyncio.run(_targets(config_file, site))
    if wants_json:
        output.as_json([_described(*listed) for listed in found])
        return
    output.table(
        ("site", "address", "method", "domain", "pool", "static", "lease", "forward to"),
        [
            (
                name,
                view.address,
                view.method.value,
                view.domain,
                _count(substitutes, "pool"),
                _count(substitutes, "static"),
                format_duration(view.lease),
                view.forward_to,
            )
            for name, view, substitutes in found
        ],
        right=("pool", "static"),
    )


@target.command()
@click.argument("site", type=SITE_NAME)
@click.argument("address", type=ADDRESS)
@click.option("--method", type=click.Choice(["pool", "plus", "unique"]), default="pool", show_default=True)
@click.option("--domain", type=DOMAIN, help="Where substitutes are made; its MX is this server.")
@click.option("--pool", multiple=True, type=ADDRESS, help="A pool address; may be repeated.")
@click.option("--pool-size", type=click.IntRange(1, 10_000), help="Make up so many pool addresses at --domain.")
@click.option("--lease", type=DURATION, help="How long a pool address is a visit's; 15m when it is not given.")
@click.option("--forward-to", type=ADDRESS, help="Another mailbox than ADDRESS itself.")
@click.option("--next-hop", type=NEXT_HOP, help="Another next hop than relay.toml has.")
@click.option("--next-hop-from-stdin", is_flag=True, help="Read it from stdin: it may hold a password.")
@config_option
def add(config_file: Path, pool: tuple[str, ...], next_hop_from_stdin: bool, **given: Any) -> None:
    """Add the target ADDRESS to SITE and print its pool."""
    from relay.cli.writing import write

    if next_hop_from_stdin:
        given["next_hop"] = secret_line(NEXT_HOP)
    made = write(load(config_file), "target.add", {**given, "pool": list(pool) if pool else None})
    click.echo(f"target {made['address']} is added to site {made['site']}")
    for address in made["pool"]:
        click.echo(address)


@target.command()
@click.argument("site", type=SITE_NAME)
@click.argument("address", type=ADDRESS)
@config_option
def remove(config_file: Path, site: str, address: str) -> None:
    """Remove a target. Mail to its substitutes is still forwarded for retention.routes, without attribution."""
    from relay.cli.writing import write

    write(load(config_file), "target.remove", {"site": site, "address": address})
    click.echo(f"target {address} is removed from site {site}")


@target.group()
def pool() -> None:
    """The substitutes that a pool target leases."""


@pool.command("add")
@click.argument("site", type=SITE_NAME)
@click.argument("address", type=ADDRESS)
@click.argument("substitutes", nargs=-1, required=True, type=ADDRESS)
@config_option
def pool_add(config_file: Path, site: str, address: str, substitutes: tuple[str, ...]) -> None:
    """Add SUBSTITUTES to the pool of the target ADDRESS of SITE."""
    from relay.cli.writing import write

    made = write(load(config_file), "target.pool.add", {"site": site, "address": address, "pool": list(substitutes)})
    click.echo(f"{len(made['pool'])} added to the pool of {address}")


@pool.command("grow")
@click.argument("site", type=SITE_NAME)
@click.argument("address", type=ADDRESS)
@click.argument("count", type=click.IntRange(1, 10_000))
@config_option
def pool_grow(config_file: Path, site: str, address: str, count: int) -> None:
    """Make up COUNT more pool addresses for the target ADDRESS of SITE and print them."""
    from relay.cli.writing import write

    made = write(load(config_file), "target.pool.grow", {"site": site, "address": address, "count": count})
    for substitute in made["pool"]:
        click.echo(substitute)


async def _targets(config_file: Path, site: str | None) -> list[Listed]:
    from relay.cli.reading import directory, reading

    async with reading(load(config_file)) as reader:
        sites = await directory(reader)
        if site is not None and site not in sites.by_name:
            raise click.ClickException(f"there is no site named {site!r}")
        return [
            (view.name, target, await sites.substitutes(target.id))
            for view in sites.by_name.values()
            if site in (None, view.name)
            for target in view.targets
        ]


def _count(substitutes: list[dict[str, Any]], kind: str) -> int:
    return sum(substitute["kind"] == kind for substitute in substitutes)


def _described(site: str, view: TargetView, substitutes: list[dict[str, Any]]) -> dict[str, Any]:
    """A target as the API has it, and whose it is."""
    from relay.cli.output import time
    from relay.config.fields import format_duration

    return {
        "site": site,
        "address": str(view.address),
        "method": view.method.value,
        "domain": view.domain,
        "lease": format_duration(view.lease),
        "substitutes": [substitute | {"leased_until": time(substitute["leased_until"])} for substitute in substitutes],
    }
