"""relay site list | show | add | remove | tracking | crm | block | unblock | blocked"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.settings import BLOCKED_SENDER, ORIGIN, SITE_KEY, SITE_NAME, config_option, load

if TYPE_CHECKING:
    from relay.config import Config
    from relay.store.directory import SiteView

ON_OR_OFF = click.Choice(["on", "off"])


@click.group()
def site() -> None:
    """Websites. Those that relay.toml declares are changed there; their switches and pools here as well."""


@site.command("list")
@click.option("--json", "wants_json", is_flag=True, help="As JSON, as the API has them.")
@config_option
def list_(config_file: Path, wants_json: bool) -> None:
    """List the sites."""
    from relay.cli import output

    sites = asyncio.run(_sites(load(config_file)))
    if wants_json:
        from webapi.site_models import summary

        output.as_json([summary(view).model_dump() for view in sites])
        return
    output.table(
        ("name", "key", "tracking", "crm", "targets", "webhooks", "defined in"),
        [
            (
                view.name,
                view.key,
                _switch(view.tracking),
                _switch(view.send_to_crm),
                len(view.targets),
                len(view.webhooks),
                "relay.toml" if view.declared else "the database",
            )
            for view in sites
        ],
        right=("targets", "webhooks"),
    )


@site.command()
@click.argument("name")
@click.option("--json", "wants_json", is_flag=True, help="As JSON, as the API has it.")
@config_option
def show(config_file: Path, name: str, wants_json: bool) -> None:
    """Show one site with its targets and webhooks."""
    from relay.cli import output
    from relay.config.fields import format_duration

    config = load(config_file)
    view = next((view for view in asyncio.run(_sites(config)) if view.name == name), None)
    if view is None:
        raise click.ClickException(f"there is no site named {name!r}")
    if wants_json:
        output.as_json(asyncio.run(_as_api(config, view)))
        return
    output.fields(
        [
            ("name", view.name),
            ("key", view.key),
            ("origins", ", ".join(view.origins)),
            ("tracking", _switch(view.tracking)),
            ("send to CRM", _switch(view.send_to_crm)),
            ("bots", view.bots),
            ("addresses on", view.settings.lease_on.value),
            ("reserve", f"{view.settings.reserve} % of a pool"),
            ("visit timeout", format_duration(view.visit_timeout)),
            ("touch", view.settings.touch.value),
            ("cookie domain", view.settings.cookie_domain),
            ("own sources", ", ".join(rule.marker for rule in view.settings.rules) or None),
            ("conditions", ", ".join(name for name, on in view.conditions.items() if on)),
            ("defined in", "relay.toml" if view.declared else "the database"),
        ]
    )
    for target in view.targets:
        where = f" at {target.domain}" if target.domain else ""
        click.echo(f"target   {target.address}: {target.method.value}{where}")
    for webhook in view.webhooks:
        state = "enabled" if webhook.enabled else f"disabled ({webhook.disabled_reason or 'by hand'})"
        click.echo(f"webhook  {webhook.id} {output.printable(webhook.url)}: {output.printable(state)}")


@site.command()
@click.argument("name", type=SITE_NAME)
@click.option(
    "--origin", "origins", multiple=True, required=True, type=ORIGIN, help="https://www.example.com; may be repeated."
)
@click.option("--key", type=SITE_KEY, help="Its public key, pk_…; made up when it is not given.")
@click.option("--tracking/--no-tracking", default=True, show_default=True, help="Track e-mails.")
@click.option("--crm/--no-crm", default=True, show_default=True, help="Send to CRM.")
@config_option
def add(config_file: Path, name: str, origins: tuple[str, ...], key: str | None, tracking: bool, crm: bool) -> None:
    """Add a site and print its key as the last word."""
    from relay.cli.writing import write

    made = write(
        load(config_file),
        "site.add",
        {"site": name, "origins": list(origins), "key": key, "tracking": tracking, "send_to_crm": crm},
    )
    click.echo(f"site {name} is added; its key in the page is {made['key']}")


@site.command()
@click.argument("name", type=SITE_NAME)
@config_option
def remove(config_file: Path, name: str) -> None:
    """Remove a site. Mail to its addresses is still forwarded for retention.routes, without attribution."""
    from relay.cli.writing import write

    write(load(config_file), "site.remove", {"site": name})
    click.echo(f"site {name} is removed")


@site.command()
@click.argument("name", type=SITE_NAME)
@click.argument("state", type=ON_OR_OFF)
@config_option
def tracking(config_file: Path, name: str, state: str) -> None:
    """Switch Track e-mails on or off: off, pages show the real addresses."""
    _turn(config_file, "site.tracking", name, state)
    click.echo(f"site {name}: Track e-mails is {state}")


@site.command()
@click.argument("name", type=SITE_NAME)
@click.argument("state", type=ON_OR_OFF)
@config_option
def crm(config_file: Path, name: str, state: str) -> None:
    """Switch Send to CRM on or off."""
    _turn(config_file, "site.crm", name, state)
    click.echo(f"site {name}: Send to CRM is {state}")


def _turn(config_file: Path, command: str, name: str, state: str) -> None:
    from relay.cli.writing import write

    write(load(config_file), command, {"site": name, "on": state == "on"})


async def _sites(config: Config) -> list[SiteView]:
    from relay.cli.reading import directory, reading

    async with reading(config) as reader:
        return list((await directory(reader)).by_name.values())


async def _as_api(config: Config, view: SiteView) -> dict[str, Any]:
    """The site as the API shows it; of a next hop's login the password is hidden."""
    from relay.cli.reading import directory, reading
    from relay.secrets import Keys
    from webapi.site_models import shown

    async with reading(config) as reader:
        sites = await directory(reader)
        substitutes = {target.id: await sites.substitutes(target.id) for target in view.targets}
    return shown(view, substitutes, Keys.read(config.data_dir / "keys")).model_dump()


@site.command()
@click.argument("name", type=SITE_NAME)
@click.argument("sender", type=BLOCKED_SENDER)
@config_option
def block(config_file: Path, name: str, sender: str) -> None:
    """Make no more deals of SENDER's letters: an address, or a domain as @example.com. They are forwarded as before."""
    from relay.cli.writing import write

    made = write(load(config_file), "site.block", {"site": name, "sender": sender})
    click.echo(f"{made['sender']} is blocked at site {name}: its letters become no deals")


@site.command()
@click.argument("name", type=SITE_NAME)
@click.argument("sender", type=BLOCKED_SENDER)
@config_option
def unblock(config_file: Path, name: str, sender: str) -> None:
    """Make deals of SENDER's letters again."""
    from relay.cli.writing import write

    made = write(load(config_file), "site.unblock", {"site": name, "sender": sender})
    click.echo(f"{made['sender']} is not blocked at site {name} any more")


@site.command()
@click.argument("name", type=SITE_NAME)
@config_option
def blocked(config_file: Path, name: str) -> None:
    """List the senders whose letters become no deals, one a line."""
    from relay.cli import output

    for sender in asyncio.run(_blocked(load(config_file), name)):
        click.echo(output.printable(sender))


async def _blocked(config: Config, name: str) -> list[str]:
    from relay.cli.reading import directory, reading
    from relay.store import blocked

    async with reading(config) as reader:
        sites = await directory(reader)
        if name not in sites.by_name:
            raise click.ClickException(f"there is no site named {name!r}")
        return await blocked.listing(reader, sites.by_name[name].id)


def _switch(on: bool) -> str:
    return "on" if on else "off"
