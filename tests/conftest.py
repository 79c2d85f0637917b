"""Fixtures for tests that post: the instance's keys, a CRM, and a store whose shop has one webhook, the CRM's.

And Ctrl-C as programs know it: a shell starts what is to run behind it with SIGINT ignored, and that is handed on.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from relay import eventloop
from relay.secrets import Keys
from tests.plain_logs import plain_logs
from tests.poster_fixtures import SECRET
from tests.store_fixtures import SHOP, World, hook, world
from tests.webhook_receiver import Receiver

if TYPE_CHECKING:
    from tests.webapi_fixtures import Api


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    plain_logs()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported for nine thousand tests stays to the end: the garbage collector need not walk over it again and
    again, neither while it is made nor while the tests run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the daemon's loop; a module with another one says so in ``LOOP``."""
    return {"loop": getattr(item.getparent(pytest.Module).obj, "LOOP", eventloop.new)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.load(tmp_path_factory.mktemp("data") / "keys")


@pytest.fixture
async def crm() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def w(tmp_path: Path, keys: Keys, crm: Receiver) -> AsyncIterator[World]:
    async with world(tmp_path, replace(SHOP, webhooks=(hook(crm.url, secret=keys.seal(SECRET)),))) as found:
        found.now = time.time()  # signatures are only good for five minutes
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """The web API of a module's tests that leave it as it was (webapi_fixtures.of_all): it takes more than they do."""
    from tests.webapi_fixtures import serving  # other suites need not import what is served

    async with serving(tmp_path_factory.mktemp("shared")) as found:
        yield found
