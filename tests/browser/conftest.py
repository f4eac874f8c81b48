"""A browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.desks import Desks, Server, web_alone
from tests.installation import Installation
from tests.services import CHROMIUM, REQUIRED

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium for a file's tests and no longer: beside Playwright's event loop Django refuses its database."""
    if CHROMIUM is None:
        assert not REQUIRED, "REQUIRE_SERVICES=1, but there is no Chromium"
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert problems == [], "the browser's console"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A web server of a file's own, with what its ``PROJECTS`` asks for."""
    with web_alone(tmp_path_factory.mktemp("desk")) as server:
        server.seed(request.module.PROJECTS)
        yield server


@pytest.fixture
def desks(browser: Browser, server: Server) -> Iterator[Desks]:
    desks = Desks(browser, server)
    yield desks
    desks.close()


def sign_in(page: Page, installation: Installation, name: str) -> None:
    page.goto(f"{installation.url}/sign-in/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(installation.passwords[name])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/sign-in/" not in url)
