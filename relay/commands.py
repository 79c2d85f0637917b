"""The commands that write: the running daemon does them for the CLI (control socket), or the CLI does them itself.

Each is a function of a Workplace and of arguments that a model has judged; `perform` is the one way to it. Sites,
targets and blocked senders are in relay/commands_sites.py, webhooks in relay/commands_webhooks.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from relay import commands_sites, commands_users, commands_webhooks
from relay.config import fields as f
from relay.config.models import Section
from relay.config.problems import problems_of
from relay.control import ControlError, Handler, Lines
from relay.secrets import new_token, token_hash
from relay.store import changes, history, queue_by_hand, replay, retention, tokens
from relay.store.changes import Change
from relay.store.engine import StoreUnavailable
from relay.store.noting import Note, always
from relay.store.queue_view import QueueFilter
from relay.store.routes import AddressTaken
from relay.store.sites import DeclaredElsewhere, NameTaken
from relay.workplace import Command, Workplace
from webapi import requeue
from webapi.audit import shown
from webapi.replays import reattribute

if TYPE_CHECKING:
    from relay.app import Daemon

Id = Annotated[int, Field(ge=1, le=(1 << 63) - 1)]
#: Arguments that say what a command is about, the most telling first.
SUBJECTS = ("name", "address", "webhook", "message", "site")
#: Deliveries that one command may name.
MOST_IDS = 10_000


class CreateToken(Section):
    name: f.ShortText
    role: Literal["admin", "manager", "viewer"] = "admin"
    sites: f.Listed[f.SiteName] | None = None


async def create_token(place: Workplace, given: CreateToken) -> Lines:
    """The token itself is in the answer, and nowhere else: only its hash is stored."""
    for name in given.sites or ():
        place.site(name)
    token, now = new_token(), place.clock()
    try:
        await place.write(
            lambda tx: tokens.create(tx, given.name, token_hash(token), given.role, given.sites, now), changed=always
        )
    except tokens.TokenNameTaken:
        raise ControlError(f"there is a token named {given.name!r} already", "name") from None
    return {"name": given.name, "token": token}


class RevokeToken(Section):
    name: f.ShortText


async def revoke_token(place: Workplace, given: RevokeToken) -> Lines:
    if not await place.write(lambda tx: tokens.revoke(tx, given.name)):
        raise ControlError(f"there is no token named {given.name!r}", "name")
    return {"name": given.name}


class RetryDeliveries(Section):
    """Either these, or all that are deferred or held."""

    deliveries: Annotated[f.Listed[Id], Field(min_length=1, max_length=MOST_IDS)] | None = None
    all: bool = False


async def retry_deliveries(place: Workplace, given: RetryDeliveries) -> Lines:
    """Try deliveries now, and again for as long as a new message would be."""
    if (given.deliveries is None) != given.all:
        raise ControlError("either name deliveries or say all", "deliveries")
    now = place.clock()
    expires_at = now + place.config.forward.retry_for
    if given.deliveries is None:
        wanted = QueueFilter(states=requeue.AGAIN)
        changed = await requeue.retry_all(place.store.reader, place.write, wanted, now, expires_at)
    else:
        await _about_theirs(place, given.deliveries)
        named = QueueFilter(ids=tuple(given.deliveries))
        changed = sorted(await requeue.retry_named(place.store.reader, place.write, named, now, expires_at))
    place.deliveries_due()
    return {"changed": changed}


class DropDeliveries(Section):
    deliveries: Annotated[f.Listed[Id], Field(min_length=1, max_length=MOST_IDS)]


async def drop_deliveries(place: Workplace, given: DropDeliveries) -> Lines:
    """Give deliveries up; their messages stay in the history."""
    now = place.clock()
    await _about_theirs(place, given.deliveries)
    return {"changed": await place.write(lambda tx: queue_by_hand.drop(tx, given.deliveries, now))}


async def _about_theirs(place: Workplace, deliveries: Sequence[int]) -> None:
    _about_one(place, await changes.sites_of(place.store.reader, deliveries=deliveries))


def _about_one(place: Workplace, found: Collection[int]) -> None:
    """Of several sites the log of changes names none, as for the API."""
    if len(found) == 1:
        place.about(*found)


class ReplayMessage(Section):
    message: Id
    reattribute: bool = False


async def replay_message(place: Workplace, given: ReplayMessage) -> Lines:
    """Post the message's events again, under the same webhook-id."""
    row = await history.one(place.store.reader, given.message, None)
    if row is None:
        raise ControlError(f"there is no message {given.message}", "message")
    if row.extraction == "waiting":
        raise ControlError(f"message {given.message} is being read just now: it will be posted anyway", "message")
    _about_one(place, await changes.sites_of(place.store.reader, message=given.message))
    now = place.clock()
    changed = 0
    if given.reattribute:
        changed = await reattribute(place.store, given.message, place.evidence(), now, None, place.write)
    posts = await place.write(lambda tx: replay.replay(tx, given.message, None, now))
    if not posts and not changed:
        raise ControlError(f"message {given.message} belongs to no site with an enabled webhook", "message")
    place.posts_due()
    return {"posts": posts, "reattributed": changed}


class EraseVisit(Section):
    site: f.SiteName
    number: f.VisitNumber
    browser: bool = False


async def erase_visit(place: Workplace, given: EraseVisit) -> Lines:
    """Its messages stay, without it."""
    site, now = place.site(given.site), place.clock()
    erased = await place.write(lambda tx: retention.erase_visit(tx, site.id, given.number, now, browser=given.browser))
    if not erased:
        raise ControlError(f"site {site.name!r} has no visit {given.number}", "number")
    place.store.routes.forget_all()  # its unique addresses are retired
    return {"visits": erased}


def _any_changed(answer: Lines) -> bool:
    return bool(answer["changed"])


COMMANDS: Mapping[str, Command] = {
    "token.create": Command(CreateToken, create_token),
    "token.revoke": Command(RevokeToken, revoke_token),
    "queue.retry": Command(RetryDeliveries, retry_deliveries, audited=_any_changed),
    "queue.drop": Command(DropDeliveries, drop_deliveries, audited=_any_changed),
    "message.replay": Command(ReplayMessage, replay_message),
    "visit.erase": Command(EraseVisit, erase_visit),
    **commands_sites.COMMANDS,
    **commands_webhooks.COMMANDS,
    **commands_users.COMMANDS,
}


async def perform(place: Workplace, name: str, arguments: Lines, account: str) -> Lines:
    """Run the command ``name``; ``account`` is who runs it.

    Raises ControlError with words for the user; it names the argument to blame.
    """
    command = COMMANDS[name]
    try:
        given = command.arguments.model_validate(arguments)
    except ValidationError as error:
        problems = problems_of(error, command.arguments)
        raise ControlError("; ".join(map(str, problems)), problems[0].path) from None
    note = Note(place.store, _change(place, name, given, account)) if command.audited else None  # before: a site may go
    try:
        answer = await command.run(replace(place, note=note), given)
        if note is not None and (not callable(command.audited) or command.audited(answer)):
            await note.finish()
        return answer
    except DeclaredElsewhere as error:
        raise ControlError(f"site {error} is defined in relay.toml: change it there", "site") from None
    except (AddressTaken, NameTaken) as error:
        raise ControlError(str(error)) from None
    except StoreUnavailable as error:
        raise ControlError(f"the database: {error}") from None


def _change(place: Workplace, name: str, given: Section, account: str) -> Change:
    """What the log of changes says of a command: its arguments, but no secrets."""
    details = shown(given)
    site = place.store.sites.by_name.get(str(details.get("site", "")))
    subject = next((str(details[key]) for key in SUBJECTS if details.get(key)), None)
    site_id = None if site is None else site.id
    return Change(place.clock(), "command", account, name, site_id, subject, details)


def handlers(daemon: Daemon, clock: Callable[[], float]) -> Mapping[str, Handler]:
    """What the daemon's control socket answers: every command, and `status`, by which others find its ports."""

    async def run(name: str, arguments: Lines, account: str) -> Lines:
        place = Workplace(
            daemon.store,
            daemon.keys,
            daemon.config,  # as it is now
            clock,
            deliveries_due=daemon.forwarder.retry_now,
            posts_due=daemon.poster.wake,
            learned=lambda: daemon.intake.evidence,
        )
        return await perform(place, name, arguments, account)

    async def status(_: Lines, __: str) -> Lines:
        return {"pid": os.getpid(), "smtp": daemon.smtp.ports, "http": daemon.http_ports}

    return {"status": status, **{name: partial(run, name) for name in COMMANDS}}
