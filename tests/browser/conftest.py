"""A headless Chromium, Debian's own, for the pages; tests that need one skip loudly where it is not installed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, async_playwright

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[BrowserContext]:
    """A browser with a profile of its own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("THE PAGES ARE NOT TESTED: chromium is not installed (apt-get install chromium)")
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=chromium, args=FLAGS, accept_downloads=True
        )
        context.set_default_timeout(15_000)
        yield context
        await context.close()
