"""Commands that write: through the daemon that runs, or alone with the lock on data_dir when none does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from relay.cli.progress import say

if TYPE_CHECKING:
    from relay.config import Config

#: What stands for "not given" is not sent: the command's own default holds.
Arguments = Mapping[str, Any]


def write(config: Config, command: str, arguments: Arguments) -> dict[str, Any]:
    """Run one of relay/commands.py and return its result.

    Raises ControlError, AlreadyRunning while a daemon starts or stops, and what opening the store may be refused for.
    """
    from relay.control import NotRunning, call

    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return call(config.data_dir / "control.sock", command, given)
    except NotRunning:
        return asyncio.run(_alone(config, command, given))


async def _alone(config: Config, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
    from relay import commands
    from relay.control import DirectoryLock, account
    from relay.declare import open_store
    from relay.secrets import Keys
    from relay.workplace import Workplace

    async with AsyncExitStack() as stack:
        stack.enter_context(DirectoryLock(config.data_dir))
        keys = Keys.load(config.data_dir / "keys")
        store, _ = await open_store(
            stack,
            config,
            keys,
            time.time(),
            say,
            lambda name: say(f"site {name} is removed: relay.toml declares it no more"),
        )
        return await commands.perform(Workplace(store, keys, config, time.time), command, arguments, account())
