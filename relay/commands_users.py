"""The commands about users of the pages: who can log in, and the one-time links by which passwords are chosen."""

from __future__ import annotations

from collections.abc import Mapping

from relay.config.models import Section
from relay.control import ControlError, Lines
from relay.secrets import new_link, token_hash
from relay.store import users
from relay.store.users import LastAdmin, User, UserNameTaken
from relay.workplace import Command, Workplace
from webapi.user_models import ChangedUser, NewUser, UserName


class NamedUser(Section):
    name: UserName


class SetRights(ChangedUser):
    name: UserName


async def create_user(place: Workplace, given: NewUser) -> Lines:
    """The link is in the answer, and nowhere else: only its hash is stored."""
    for site in given.sites or ():
        place.site(site)
    link, now = new_link(), place.clock()
    try:
        await place.write(
            lambda tx: users.create_invited(tx, given.name, given.role, given.sites, token_hash(link), now)
        )
    except UserNameTaken:
        raise ControlError(f"there is a user named {given.name!r} already", "name") from None
    return {"name": given.name, "link": _link(place, link)}


async def invite_user(place: Workplace, given: NamedUser) -> Lines:
    link, now = new_link(), place.clock()
    if not await place.write(lambda tx: users.invite(tx, given.name, token_hash(link), now)):
        raise _nobody(given.name)
    return {"name": given.name, "link": _link(place, link)}


async def change_user(place: Workplace, given: SetRights) -> Lines:
    for site in given.sites or ():
        place.site(site)
    try:
        user: User | None = await place.write(lambda tx: users.change(tx, given.name, given.role, given.sites))
    except LastAdmin:
        raise ControlError("nobody else is an administrator of all sites", "role") from None
    if user is None:
        raise _nobody(given.name)
    return {"name": user.name}


async def remove_user(place: Workplace, given: NamedUser) -> Lines:
    try:
        removed = await place.write(lambda tx: users.remove(tx, given.name))
    except LastAdmin:
        raise ControlError("nobody else is an administrator of all sites", "name") from None
    if not removed:
        raise _nobody(given.name)
    return {"name": given.name}


def _link(place: Workplace, link: str) -> str:
    return f"{place.config.http.public_url}/ui/welcome/{link}"


def _nobody(name: str) -> ControlError:
    return ControlError(f"there is no user named {name!r}", "name")


COMMANDS: Mapping[str, Command] = {
    "user.create": Command(NewUser, create_user),
    "user.invite": Command(NamedUser, invite_user),
    "user.change": Command(SetRights, change_user),
    "user.remove": Command(NamedUser, remove_user),
}
