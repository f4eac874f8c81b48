"""A browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from labeling.models import Project
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


def _is_told(message: ConsoleMessage, is_refused: bool) -> bool:
    """Whether the browser complains of something that a test does not expect."""
    is_refusal = "the server responded with a status of 4" in message.text
    return message.type == "error" and not (is_refused and is_refusal)


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    is_refused = request.node.get_closest_marker("refusals") is not None
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if _is_told(message, is_refused) else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert problems == [], "the browser's console"


@pytest.fixture(scope="module")
def beside_the_event_loop() -> Iterator[None]:
    """Playwright's loop runs in this thread, and no coroutine of ours in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield


@pytest.fixture
def visit(
    beside_the_event_loop: None, live_server: object, project: Project, sign_in: Callable[[User], Client], page: Page
) -> Callable[..., Page]:
    """Opens a path of the project, or of the site with a slash in front, as somebody who is signed in."""

    def open_as(user: User, path: str = "") -> Page:
        cookie = sign_in(user).cookies["sessionid"].value
        page.context.add_cookies([{"name": "sessionid", "value": cookie, "url": str(live_server)}])
        page.goto(f"{live_server}{path}" if path.startswith("/") else f"{live_server}/p/{project.slug}/{path}")
        return page

    return open_as


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with web_alone(tmp_path_factory.mktemp("desks")) as server:
        yield server


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, web: Server) -> Server:
    """The web server of all files that drive a desk, with what this one's ``PROJECTS`` asks for besides."""
    web.seed(request.module.PROJECTS)
    return web


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
