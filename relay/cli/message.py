"""relay message show | raw | replay"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.settings import config_option, load

if TYPE_CHECKING:
    from relay.config import Config
    from relay.store.history import MessageRow
    from relay.store.life import Life

MESSAGE_ID = click.IntRange(min=1)


@click.group()
def message() -> None:
    """One message of the history."""


@message.command()
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@click.option("--json", "wants_json", is_flag=True, help="As JSON, as the API has it.")
@config_option
def show(config_file: Path, message_id: int, wants_json: bool) -> None:
    """Show a message with everything that happened to it."""
    config = load(config_file)
    row, life = asyncio.run(_message(config, message_id))
    if wants_json:
        from relay.cli import output
        from relay.cli.history import api_context
        from webapi.message_views import detail

        output.as_json(detail(api_context(config), row, life, None).model_dump())
        return
    _show(row, life)


@message.command()
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@config_option
def raw(config_file: Path, message_id: int) -> None:
    """Write the message to stdout, byte for byte as it was received."""
    asyncio.run(_raw(load(config_file), message_id))


@message.command()
@click.argument("message_id", metavar="ID", type=MESSAGE_ID)
@click.option("--reattribute", is_flag=True, help="First look again whose visit it came from.")
@config_option
def replay(config_file: Path, message_id: int, reattribute: bool) -> None:
    """Post the message's events to the webhooks again, whatever the conditions said, under the same webhook-id."""
    from relay.cli.writing import write

    made = write(load(config_file), "message.replay", {"message": message_id, "reattribute": reattribute})
    count = made["posts"]
    if reattribute:
        click.echo("its attribution has changed" if made["reattributed"] else "its attribution is what it was")
    click.echo(f"message {message_id} is posted again to {count} {'webhook' if count == 1 else 'webhooks'}")


async def _message(config: Config, message_id: int) -> tuple[MessageRow, Life]:
    from relay.cli.reading import reading
    from relay.store import history
    from relay.store.life import life

    async with reading(config) as reader:
        row = await history.one(reader, message_id, None)
        if row is None:
            raise click.ClickException(f"there is no message {message_id}")
        return row, await life(reader, row, None)


async def _raw(config: Config, message_id: int) -> None:
    from relay.bodies import Bodies
    from relay.cli.reading import reading
    from relay.core.wire import Unstuffer, unstuff
    from relay.store import history

    async with reading(config) as reader:
        found = await history.raw(reader, message_id)
        if found is None:
            raise click.ClickException(f"there is no message {message_id}")
        data, file = found
    out = sys.stdout.buffer
    if data is not None:
        out.write(unstuff(data))
    elif file is not None:
        unstuffer = Unstuffer()
        async for chunk in Bodies(config.data_dir / "bodies").chunks(file):
            out.write(unstuffer.feed(chunk))
        out.write(unstuffer.flush())
    else:
        raise click.ClickException(f"the bytes of message {message_id} are gone: retention.raw is over")
    out.flush()


def _show(row: MessageRow, life: Life) -> None:
    from relay.cli import output

    output.fields(
        [
            ("message", row.id),
            ("received", output.time(row.received_at)),
            ("written", output.time(row.written_at)),
            ("subject", row.subject),
            ("sender", row.sender),
            ("envelope", row.mail_from or "<>"),
            ("from", f"{row.helo} [{row.ip}]" + (f", {row.tls}" if row.tls else "")),
            ("size", f"{row.size} octets" + ("" if row.raw_removed_at is None else ", removed since")),
            ("state", row.state),
            ("automatic", row.automatic),
            *(
                (f"deal at {one.site}", " ".join(filter(None, (one.deal_id, one.deal_url))))
                for one in row.receipts
                if one.deal_id
            ),
            ("attachments", ", ".join(part.name for part in row.attachments) or None),
        ]
    )
    for delivery in row.deliveries:
        click.echo()
        output.fields(
            [
                ("delivery", delivery.id),
                ("site", delivery.site),
                ("substitute", delivery.recipient),
                ("forward to", delivery.forward_to),
                ("state", delivery.state + (", possibly repeated" if delivery.possibly_repeated else "")),
                ("attempts", delivery.attempts),
                ("answer", " ".join(filter(None, (delivery.host, delivery.answer))) or None),
                ("attribution", f"{delivery.attribution} ({delivery.method})"),
                ("visit", delivery.visit),
                ("candidates", ", ".join(f"{number} {share:g}" for number, share in delivery.candidates) or None),
            ]
        )
    _events(life)


def _events(life: Life) -> None:
    from relay.cli import output

    rows: list[tuple[Any, ...]] = [
        (path["received_at"], "received", f"{path['recipient']} ({path['kind']}) from {path['ip']}")
        for path in life.paths
    ]
    rows += [
        (attempt["finished_at"], "attempt", f"{attempt['outcome']}: {attempt['host']} {attempt['answer']}")
        for attempt in life.attempts
    ]
    rows += [
        (post["started_at"], "posted", f"{post['url']}: {post['status'] or 'no answer'} {post['answer']}")
        for post in life.post_attempts
    ]
    click.echo()
    output.table(("time", "what", "how"), [(output.time(at), what, how) for at, what, how in sorted(rows)])
    for event in life.events:
        reason = f" ({event['reason']})" if event["reason"] else ""
        said = f"event {event['uid']} ({event['type']}) for site {event['site']}: {event['state']}{reason}"
        click.echo(output.printable(said))
        for post in life.posts:
            if post["uid"] == event["uid"]:
                why = f": {post['answer']}" if post["answer"] else ""
                click.echo(output.printable(f"  webhook {post['webhook_id']} {post['url']}: {post['state']}{why}"))
    if life.text:
        click.echo()
        for line in life.text.splitlines():
            click.echo(output.printable(line) if line else "")
