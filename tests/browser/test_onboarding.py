"""Newcomers, by keyboard and without JavaScript; keys that are pressed into their fields; a preview while writing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.conf import settings
from playwright.sync_api import Browser, Page, expect

from tests.installation import bare_environment, free_port, wait_until

pytestmark = pytest.mark.browser

SEED = """
from django.contrib.auth.models import User
from labeling.qualification_items import ItemContent, add_items
from labeling.services import add_member, create_project
boss = User.objects.create_user("boss", password="secret-password")
project = create_project(name="Helpful answers", slug="helpful", admin=boss)
for name in ("ada", "ben"):
    add_member(project=project, user=User.objects.create_user(name, password="secret-password"), role="annotator")
add_items(project=project, contents=[
    ItemContent([{"role": "user", "content": f"Question {n}"}], "First", "Second", "tie", f"Because of {n}.")
    for n in (1, 2)
])
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, with two newcomers, an admin and two items."""
    environment = bare_environment(tmp_path_factory.mktemp("onboarding")) | {"TIEBREAK_DEBUG": "1"}
    manage = [sys.executable, "manage.py"]
    port = free_port()
    for command in (["migrate", "-v0"], ["shell", "-v0", "-c", SEED]):
        subprocess.run([*manage, *command], cwd=settings.BASE_DIR, env=environment, check=True)
    run = [*manage, "runserver", "--noreload", f"127.0.0.1:{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(run, cwd=settings.BASE_DIR, env=environment, **quiet)
    try:
        wait_until(lambda: _answers(port), 30, "the server")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _sign_in(page: Page, address: str, name: str) -> None:
    page.goto(f"{address}/sign-in/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill("secret-password")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/sign-in/" not in url)


def _accessible(page: Page) -> None:
    assert Axe().run(page).response["violations"] == []


def test_by_keyboard_alone(page: Page, address: str) -> None:
    _sign_in(page, address, "ada")
    page.goto(f"{address}/p/helpful/annotate/")
    expect(page.get_by_role("heading", name="Before your first pair")).to_be_visible()
    page.get_by_role("link", name="Start").press("Enter")
    for number in (1, 2):
        expect(page.get_by_text(f"Question {number}")).to_be_visible()
        _accessible(page)
        page.keyboard.press("3")
        expect(page.get_by_role("heading", name="As expected")).to_be_visible()
        expect(page.get_by_text(f"Because of {number}.")).to_be_visible()
        _accessible(page)
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="You may judge")).to_be_visible()


def test_without_javascript(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    _sign_in(page, address, "ben")
    page.goto(f"{address}/p/helpful/annotate/")
    page.get_by_role("link", name="Start").click()
    for button in ("Equally good", "Both bad"):
        page.get_by_role("button", name=button).click()
        page.locator("[data-next]").click()
    expect(page.get_by_text("1 of 2 were right; 2 are needed.")).to_be_visible()
    context.close()


def test_keys_are_pressed_into_their_fields(page: Page, address: str) -> None:
    _sign_in(page, address, "boss")
    page.goto(f"{address}/keys/")
    _accessible(page)
    skip = page.get_by_label("Skip the pair, key 1")
    for pressed, shown in (("x", "X"), ("ArrowUp", "↑"), (" ", "Space"), ("Backspace", ""), ("k", "K")):
        skip.press(pressed)
        expect(skip).to_have_value(shown)
    skip.press("Tab")
    expect(page.get_by_label("Skip the pair, key 2")).to_be_focused()
    page.get_by_role("button", name="Save the keys").click()
    expect(page.get_by_text("Your keys were saved.")).to_be_visible()
    expect(skip).to_have_value("K")


def test_guidelines_are_previewed_while_they_are_written(page: Page, address: str) -> None:
    _sign_in(page, address, "boss")
    page.goto(f"{address}/p/helpful/guidelines/edit/")
    page.get_by_label("Guidelines", exact=True).press_sequentially("Be **kind**.")
    expect(page.locator("#preview strong")).to_have_text("kind")
    _accessible(page)
    page.get_by_role("button", name="Save as a new version").click()
    expect(page.get_by_text("Version 2 is what everybody reads now.")).to_be_visible()
