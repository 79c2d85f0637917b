"""relay webhook list | show | add | change | remove | enable | disable | rotate | test | log | replay"""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.settings import (
    DURATION,
    SITE_NAME,
    WEBHOOK_SECRET,
    WEBHOOK_URL,
    config_option,
    load,
    secret_line,
    webhook_settings,
)

if TYPE_CHECKING:
    from relay.config import Config
    from relay.store.directory import SiteView, WebhookView

WEBHOOK_ID = click.IntRange(min=1)
SETTINGS = click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A TOML file with keys of [[site.webhook]]: events, extras, headers, template, conditions, …",
)
TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"])


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

    config = load(config_file)
    found = asyncio.run(_webhooks(config, site))
    if wants_json:
        output.as_json([_as_json(config, view, hook) for view, hook in found])
        return
    output.table(
        ("id", "site", "url", "fill", "enabled", "why not"),
        [
            (hook.id, view.name, hook.url, hook.fill, "yes" if hook.enabled else "no", hook.disabled_reason)
            for view, hook in found
        ],
        right=("id",),
    )


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@config_option
def show(config_file: Path, webhook_id: int) -> None:
    """Show a webhook with everything it is told, and how it is doing, as JSON (never its secrets)."""
    from relay.cli import output

    config = load(config_file)
    view, hook, doing = asyncio.run(_one(config, webhook_id))
    times = {"last_at": output.time(doing["last_at"])}
    output.as_json(_as_json(config, view, hook) | doing | times)


@webhook.command()
@click.argument("site", type=SITE_NAME)
@click.argument("url", type=WEBHOOK_URL)
@click.option(
    "--fill",
    type=click.Choice(["exact", "inferred", "likely"]),
    help="For which attributions the visit's fields are filled: inferred unless said otherwise.",
)
@SETTINGS
@click.option("--secret-from-stdin", is_flag=True, help="Read the secret (whsec_…) from stdin; else one is made up.")
@config_option
def add(
    config_file: Path, site: str, url: str, fill: str | None, settings_file: Path | None, secret_from_stdin: bool
) -> None:
    """Add a webhook to SITE; a secret that was made up is printed this once, as the last word."""
    from relay.cli.writing import write

    secret = secret_line(WEBHOOK_SECRET) if secret_from_stdin else None
    given = webhook_settings(settings_file) | {"site": site, "url": url, "secret": secret}
    made = write(load(config_file), "webhook.add", given | ({} if fill is None else {"fill": fill}))
    told = f"; its secret, shown this once: {made['secret']}" if "secret" in made else ""
    click.echo(f"webhook {made['id']} is added to site {site}{told}")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@click.option("--url", type=WEBHOOK_URL, help="Post there from now on.")
@SETTINGS
@config_option
def change(config_file: Path, webhook_id: int, url: str | None, settings_file: Path | None) -> None:
    """Change a webhook; what is not given stays as it is."""
    from relay.cli.writing import write

    given = webhook_settings(settings_file) | {"webhook": webhook_id, "url": url}
    made = write(load(config_file), "webhook.change", given)
    click.echo(f"webhook {webhook_id} ({made['url']}) is changed")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@config_option
def remove(config_file: Path, webhook_id: int) -> None:
    """Remove a webhook; what was posted to it stays in the history."""
    _tell(config_file, "remove", webhook_id, "removed")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@config_option
def enable(config_file: Path, webhook_id: int) -> None:
    """Enable a webhook that was disabled, for example because it had answered 410."""
    _tell(config_file, "enable", webhook_id, "enabled")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@config_option
def disable(config_file: Path, webhook_id: int) -> None:
    """Post nothing more to a webhook; what waits for it fails, and can be replayed."""
    _tell(config_file, "disable", webhook_id, "disabled")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@click.option("--keep", type=DURATION, default="24h", show_default=True, help="How long the old secret signs as well.")
@click.option("--secret-from-stdin", is_flag=True, help="Read the secret (whsec_…) from stdin; else one is made up.")
@config_option
def rotate(config_file: Path, webhook_id: int, keep: str, secret_from_stdin: bool) -> None:
    """Give a webhook a new secret; one that was made up is printed this once, as the last word."""
    from relay.cli.writing import write

    secret = secret_line(WEBHOOK_SECRET) if secret_from_stdin else None
    made = write(load(config_file), "webhook.rotate", {"webhook": webhook_id, "keep": keep, "secret": secret})
    told = f"; its new secret, shown this once: {made['secret']}" if "secret" in made else ""
    click.echo(f"webhook {webhook_id} ({made['url']}) signs with both secrets for {keep}{told}")


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def test(config_file: Path, webhook_id: int, wants_json: bool) -> None:
    """Post a made-up letter to a webhook and show the request, the answer and the time it took."""
    from relay.cli import output
    from relay.cli.writing import write

    found = write(load(config_file), "webhook.test", {"webhook": webhook_id})
    if wants_json:
        output.as_json(found)
    else:
        _show_trial(found)
    if not found["succeeded"]:
        raise SystemExit(1)


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@click.option("--state", type=click.Choice(["waiting", "delivered", "failed", "withheld"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Posts at most.")
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def log(config_file: Path, webhook_id: int, state: str | None, limit: int, wants_json: bool) -> None:
    """Show what was posted to a webhook and what came of it, the newest first."""
    from relay.cli import output

    rows = asyncio.run(_posted(load(config_file), webhook_id, state, limit))
    if wants_json:
        output.as_json(rows)
        return
    output.table(
        ("id", "message", "state", "attempts", "next", "status", "answer"),
        [
            (row["id"], row["message"], row["state"], row["attempts"], row["next_at"], row["status"], row["answer"])
            for row in rows
        ],
        right=("id", "message", "attempts", "status"),
    )


@webhook.command()
@click.argument("webhook_id", metavar="ID", type=WEBHOOK_ID)
@click.option("--failed", is_flag=True, help="All that have failed, or wait for another attempt.")
@click.option("--since", type=TIME, help="All letters received from this time on (UTC).")
@click.option("--until", type=TIME, help="… and before this one.")
@click.option("--reattribute", is_flag=True, help="First look again whose visits they came from.")
@config_option
def replay(
    config_file: Path,
    webhook_id: int,
    failed: bool,
    since: datetime | None,
    until: datetime | None,
    reattribute: bool,
) -> None:
    """Post to a webhook again, under the same webhook-ids; what its conditions withhold stays withheld."""
    from relay.cli.writing import write

    given = {"webhook": webhook_id, "failed": failed, "since": _seconds(since), "until": _seconds(until)}
    made = write(load(config_file), "webhook.replay", given | {"reattribute": reattribute})
    click.echo(f"{made['posts']} {'letter is' if made['posts'] == 1 else 'letters are'} posted again")


def _tell(config_file: Path, verb: str, webhook_id: int, done: str) -> None:
    from relay.cli.writing import write

    made = write(load(config_file), f"webhook.{verb}", {"webhook": webhook_id})
    click.echo(f"webhook {webhook_id} ({made['url']}) is {done}")


def _seconds(moment: datetime | None) -> float | None:
    from datetime import UTC

    return None if moment is None else moment.replace(tzinfo=UTC).timestamp()


def _show_trial(found: dict[str, Any]) -> None:
    from relay.cli import output

    request = found["request"]
    if request is not None:
        click.echo(output.printable(f"{request['method']} {request['url']}"))
        for name, value in request["headers"].items():
            click.echo(output.printable(f"{name}: {value}"))
        click.echo()
        click.echo(output.printable(request["body"]))
        click.echo()
    status = "no answer" if found["status"] is None else found["status"]
    click.echo(output.printable(f"{status} after {found['seconds']:.3f} s: {found['answer']}"))
    if found["deal"]:
        click.echo(output.printable("deal " + " ".join(filter(None, found["deal"]))))
    click.echo("the webhook works" if found["succeeded"] else "the webhook does not work")


def _as_json(config: Config, view: SiteView, hook: WebhookView) -> dict[str, Any]:
    from relay.secrets import Keys
    from webapi.hook_models import shown

    return shown(view, hook, Keys.read(config.data_dir / "keys"))


async def _webhooks(config: Config, site: str | None) -> list[tuple[SiteView, WebhookView]]:
    from relay.cli.reading import directory, reading

    async with reading(config) as reader:
        sites = await directory(reader)
        if site is not None and site not in sites.by_name:
            raise click.ClickException(f"there is no site named {site!r}")
        return [(view, hook) for view in sites.by_name.values() if site in (None, view.name) for hook in view.webhooks]


async def _one(config: Config, webhook_id: int) -> tuple[SiteView, WebhookView, dict[str, Any]]:
    from dataclasses import asdict

    from relay.cli.reading import reading
    from relay.store import post_log

    found = next((pair for pair in await _webhooks(config, None) if pair[1].id == webhook_id), None)
    if found is None:
        raise click.ClickException(f"there is no webhook {webhook_id}")
    async with reading(config) as reader:
        return *found, asdict(await post_log.doing(reader, webhook_id))


async def _posted(config: Config, webhook_id: int, state: str | None, limit: int) -> list[dict[str, Any]]:
    from relay.cli.reading import reading
    from relay.store import post_log
    from webapi.hook_log import posted

    await _one(config, webhook_id)
    async with reading(config) as reader:
        return [posted(row) for row in await post_log.posted(reader, webhook_id, None, limit, state)]
