"""One browser for all tests of a process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.browser.chromium import chromium

#: Milliseconds for what a page is expected to come to. Reached only when a test fails.
PATIENCE = 30_000.0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    async with chromium() as browser:
        yield browser
