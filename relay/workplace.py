"""What a command that writes works on: the store, the keys and the configuration, the running daemon's or its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from relay.config.models import Config, Section
from relay.control import ControlError, Lines
from relay.secrets import Keys
from relay.store.directory import SiteView
from relay.store.engine import Verb
from relay.store.messages import Evidence
from relay.store.noting import Note
from relay.store.store import Store

T = TypeVar("T")


def _nobody_waits() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Workplace:
    """The wake-ups are hints to the daemon's workers; without a daemon nobody waits for them.

    ``note`` is what the log of changes will say of the command that runs.
    """

    store: Store
    keys: Keys
    config: Config
    clock: Callable[[], float]
    deliveries_due: Callable[[], None] = _nobody_waits
    posts_due: Callable[[], None] = _nobody_waits
    learned: Callable[[], Evidence] | None = None
    note: Note | None = None

    async def write(self, verb: Verb[T], changed: Callable[[T], bool] = bool) -> T:
        """Store.write, with the note in the same transaction when the answer says that something was ``changed``."""
        return await (self.store.write(verb) if self.note is None else self.note.write(verb, changed))

    async def redefine(self, verb: Verb[T], changed: Callable[[T], bool] = bool) -> T:
        """Store.redefine, likewise."""
        return await (self.store.redefine(verb) if self.note is None else self.note.redefine(verb, changed))

    def about(self, site_id: int) -> None:
        """Let the note say whose change it is, so that those who administer this site see it."""
        if self.note is not None:
            self.note.about(site_id)

    def evidence(self) -> Evidence:
        """What attribution goes by: with a daemon the delays as well that it has learned."""
        if self.learned is not None:
            return self.learned()
        return Evidence(
            self.config.attribution.window, self.config.attribution.known_sender, kept=self.config.retention.visits
        )

    def site(self, name: str) -> SiteView:
        """The live site of this name; raises ControlError."""
        site = self.store.sites.by_name.get(name)
        if site is None:
            raise ControlError(f"there is no site named {name!r}", "site")
        return site


@dataclass(frozen=True, slots=True)
class Command:
    """``run`` gets what ``arguments`` made of a JSON object, and answers one.

    ``audited``: it changes what lasts; a predicate of the answer where it may have changed nothing.
    """

    arguments: type[Section]
    run: Callable[[Workplace, Any], Awaitable[Lines]]
    audited: bool | Callable[[Lines], bool] = True
