"""New guidelines while people judge: they are told, read them on the spot, and each judgement says what was read."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.desks import Desk, Desks

pytestmark = pytest.mark.browser

PROJECTS = {
    "panel": {"pairs": 6},
    "unread": {"pairs": 4},
    "link": {"pairs": 4},
    "next-day": {"pairs": 4},
    "plain-new": {"pairs": 3},
}
WRITE = """
import sys
from labeling.models import Project
from labeling.services import set_guidelines
slug, text = sys.stdin.read().split(":")
set_guidelines(project=Project.objects.get(slug=slug), text=text, author=None)
"""
CHANGED = "The guidelines have changed since you judged last."


def _write(desk: Desk, text: str) -> None:
    desk.server.shell(WRITE, f"{desk.slug}:{text}")


def _versions(desk: Desk, count: int) -> list[int]:
    return [row["guidelines_version"] for row in desk.arrived(count)]


def test_a_tab_that_is_open_reads_the_new_version_in_its_panel(desks: Desks) -> None:
    desk = desks("panel")
    desk.ready()
    said, panel = desk.page.locator("#desk-guidelines"), desk.page.locator("#guidelines-panel")
    desk.page.keyboard.press("g")
    expect(panel).to_contain_text("Be kind.")
    desk.page.keyboard.press("g")
    _write(desk, "Be honest.")
    desk.vote("1")
    expect(said).to_contain_text(CHANGED)
    desk.vote("1")
    assert _versions(desk, 2) == [1, 1], "nobody has read the second one yet"
    desk.ready()
    said.get_by_role("button", name="Read version 2").click()
    expect(panel).to_contain_text("Be honest.")
    expect(panel).not_to_contain_text("Be kind.")
    desk.page.keyboard.press("Escape")
    expect(said).to_be_empty()
    expect(desk.page.locator("#desk-title")).to_be_focused()
    desk.vote("1")
    assert _versions(desk, 3) == [1, 1, 2]
    _write(desk, "Be brief.")
    desk.vote("1")
    expect(said.get_by_role("button", name="Read version 3")).to_be_visible()
    desk.page.keyboard.press("g")
    expect(panel).to_contain_text("Be brief.")
    desk.page.keyboard.press("g")
    desk.vote("1")
    assert _versions(desk, 5) == [1, 1, 2, 2, 3]


def test_a_panel_that_was_never_open_counts_as_not_read(desks: Desks) -> None:
    desk = desks("unread")
    desk.has_next()
    _write(desk, "Be honest.")
    desk.vote("1")
    desk.vote("2")
    assert _versions(desk, 2) == [1, 1]


def test_the_difference_is_a_link_and_counts_as_read(desks: Desks) -> None:
    desk = desks("link")
    desk.has_next()
    _write(desk, "Be **honest**.")
    desk.vote("1")
    desk.arrived(1)
    with desk.context.expect_page() as opened:
        desk.page.get_by_role("link", name="What is different").click()
    expect(opened.value.get_by_role("heading", name="What is different")).to_be_visible()
    expect(opened.value.get_by_label("Compare with")).to_have_value("1")
    expect(opened.value.locator(".difference ins")).to_have_text("honest")
    opened.value.close()
    expect(desk.page.locator("#desk-guidelines")).to_be_empty()
    desk.vote("1")
    assert _versions(desk, 2) == [1, 2]


def test_who_comes_back_after_a_change_is_told(desks: Desks) -> None:
    desk = desks("next-day")
    desk.vote("1")
    desk.arrived(1)
    _write(desk, "Be honest.")
    desk.open()
    expect(desk.page.locator("#desk-guidelines")).to_contain_text(CHANGED)
    desk.vote("1")
    desk.ready()
    desk.page.keyboard.press("g")
    expect(desk.page.locator("#guidelines-panel")).to_contain_text("Be honest.")
    desk.page.keyboard.press("g")
    desk.vote("1")
    assert _versions(desk, 3) == [1, 1, 2]


def test_without_javascript_the_change_is_told_once(desks: Desks) -> None:
    desk = desks("plain-new", java_script_enabled=False)
    desk.page.get_by_role("button", name="Left is better").click()
    _write(desk, "Be honest.")
    desk.open()
    expect(desk.page.get_by_text(CHANGED)).to_be_visible()
    expect(desk.page.get_by_role("link", name="What is different")).to_be_visible()
    desk.page.get_by_role("button", name="Left is better").click()
    expect(desk.page.get_by_text(CHANGED)).to_be_hidden()
    assert _versions(desk, 2) == [1, 2]
