"""Headless Chromium for tests: Debian's own, driven by Playwright; nothing is downloaded.

Debian's headless shell where it is: the same engine without the browser round it, which takes three quarters of the
processor time of a test. What it lacks of a browser (its cache of pages for "back") is tested in a whole one.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

from tests.missing import missing

#: No update checks, no background traffic: the only thing it talks to is what a test opens.
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


SHELL = ("chromium-headless-shell",)
WHOLE = ("chromium", "chromium-browser", "google-chrome")


def executable(*names: str) -> str:
    """Where Chromium is; skips the test, saying so, when there is none by these names."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        missing("NOT TESTED IN A BROWSER: no chromium on this machine (apt install chromium)")
    return path


@asynccontextmanager
async def chromium(*, back_forward_cache: bool = False) -> AsyncIterator[Browser]:
    """A running browser, ended with the context; Playwright's own choice is to keep no page for "back"."""
    path = executable(*(WHOLE if back_forward_cache else SHELL + WHOLE))
    without = ["--disable-back-forward-cache"] if back_forward_cache else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path, args=list(ARGUMENTS), ignore_default_args=without
        )
        try:
            yield browser
        finally:
            await browser.close()
