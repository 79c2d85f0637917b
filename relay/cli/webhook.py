"""relay webhook list | add | remove | enable"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.settings import SITE_NAME, WEBHOOK_SECRET, WEBHOOK_URL, config_option, load, secret_line

if TYPE_CHECKING:
    from relay.store.directory import WebhookView


@click.group()
def webhook() -> None:
    """Webhooks: where the events of a site are posted."""


@webhook.command("list")
@click.option("--site", help="Of this site only.")
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def list_(config_file: Path, site: str | None, wants_json: bool) -> None:
    """List the webhooks (never their secrets)."""
    from relay.cli import output

    found = asyncio.run(_webhooks(config_file, site))
    if wants_json:
        names = ("url", "fill", "enabled", "disabled_reason", "declared")
        output.as_json(
            [{"id": str(view.id), "site": name} | {key: getattr(view, key) for key in names} for name, view in found]
        )
        return
    output.table(
        ("id", "site", "url", "fill", "enabled", "why not"),
        [
            (view.id, name, view.url, view.fill, "yes" if view.enabled else "no", view.disabled_reason)
            for name, view in found
        ],
        right=("id",),
    )


@webhook.command()
@click.argument("site", type=SITE_NAME)
@click.argument("url", type=WEBHOOK_URL)
@click.option(
    "--fill",
    type=click.Choice(["exact", "inferred", "likely"]),
    default="inferred",
    show_default=True,
    help="For which attributions the visit's fields are filled.",
)
@click.option("--secret-from-stdin", is_flag=True, help="Read the secret (whsec_…) from stdin; else one is made up.")
@config_option
def add(config_file: Path, site: str, url: str, fill: str, secret_from_stdin: bool) -> None:
    """Add a webhook to SITE; a secret that was made up is printed this once, as the last word."""
    from relay.cli.writing import write

    secret = secret_line(WEBHOOK_SECRET) if secret_from_stdin else None
    made = write(load(config_file), "webhook.add", {"site": site, "url": url, "fill": fill, "secret": secret})
    told = f"; its secret, shown this once: {made['secret']}" if "secret" in made else ""
    click.echo(f"webhook {made['id']} is added to site {site}{told}")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=click.IntRange(min=1))
@config_option
def remove(config_file: Path, webhook_id: int) -> None:
    """Remove a webhook; what was posted to it stays in the history."""
    from relay.cli.writing import write

    made = write(load(config_file), "webhook.remove", {"webhook": webhook_id})
    click.echo(f"webhook {webhook_id} ({made['url']}) is removed")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=click.IntRange(min=1))
@config_option
def enable(config_file: Path, webhook_id: int) -> None:
    """Enable a webhook that was disabled, for example because it had answered 410."""
    from relay.cli.writing import write

    made = write(load(config_file), "webhook.enable", {"webhook": webhook_id})
    click.echo(f"webhook {webhook_id} ({made['url']}) is enabled")


async def _webhooks(config_file: Path, site: str | None) -> list[tuple[str, WebhookView]]:
    from relay.cli.reading import directory, reading

    async with reading(load(config_file)) as reader:
        sites = await directory(reader)
        if site is not None and site not in sites.by_name:
            raise click.ClickException(f"there is no site named {site!r}")
        return [
            (view.name, hook) for view in sites.by_name.values() if site in (None, view.name) for hook in view.webhooks
        ]
