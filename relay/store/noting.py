"""A change and its note in one transaction: neither is there without the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from relay.store import changes
from relay.store.changes import Change
from relay.store.engine import Tx, Verb
from relay.store.store import Store

log = structlog.get_logger()
T = TypeVar("T")


def always(_: object) -> bool:
    """Of a verb that changes something whatever it answers."""
    return True


class Note:
    """What the log of changes will say of what is being done.

    A verb that is run through it is noted in its own transaction, the first that changes something; so of a change in
    many steps that fails midway there is a note, too.
    """

    def __init__(self, store: Store, change: Change) -> None:
        self._store = store
        self._change = change
        self._made = False

    def tell(self, details: Mapping[str, Any]) -> None:
        """Other details than those that were given. A verb may say so while it runs."""
        self._change = replace(self._change, details=details)

    def about(self, site_id: int) -> None:
        """The site whose change it is, where what was given does not name it."""
        self._change = replace(self._change, site_id=site_id)

    async def write(self, verb: Verb[T], changed: Callable[[T], bool] = bool) -> T:
        """As Store.write. ``changed`` tells by the verb's answer whether there is something to note."""
        answer = await self._store.write(self._noting(verb, changed))
        self._made = self._made or changed(answer)  # not before: a transaction may be run anew
        return answer

    async def redefine(self, verb: Verb[T], changed: Callable[[T], bool] = bool) -> T:
        """As Store.redefine, with a note as above."""
        answer = await self._store.redefine(self._noting(verb, changed))
        self._made = self._made or changed(answer)
        return answer

    def _noting(self, verb: Verb[T], changed: Callable[[T], bool]) -> Verb[T]:
        def noting(tx: Tx) -> T:
            answer = verb(tx)
            if not self._made and changed(answer):
                changes.note(tx, self._change)
            return answer

        return noting

    async def finish(self) -> None:
        """Note what was done without a note. It is done: that it cannot be noted is logged, and no error."""
        if self._made:
            return
        try:
            await self._store.write(lambda tx: changes.note(tx, self._change))
            self._made = True
        except Exception as error:
            told = {"action": self._change.action, "who": self._change.name, "kind": self._change.kind}
            log.error("change not noted", **told, subject=self._change.subject, error=str(error))
