"""Why, said after the vote: found by key and in reading order, announced, and left again."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route, expect

from tests.browser.desks import Desks

pytestmark = pytest.mark.browser

CHIPS = ["More correct", "Clearer", "Safer"]
PROJECTS = {
    "by-key": {"pairs": 4, "settings": {"reason_chips": CHIPS}},
    "own-w": {"pairs": 3, "settings": {"reason_chips": CHIPS}, "keys": {"skip": ["w"], "why": ["y"]}},
    "no-chips": {"pairs": 3, "settings": {"reason_chips": []}},
    "order": {"pairs": 3, "settings": {"reason_chips": CHIPS}},
    "counted": {"pairs": 3, "settings": {"reason_chips": CHIPS}},
}


def test_the_reasons_are_announced_reached_by_key_and_left(desks: Desks) -> None:
    desk = desks("by-key")
    page, strip = desk.page, desk.page.locator("#why")
    desk.vote("1")
    expect(page.locator("#announcer")).to_have_text("You chose left. Press W to say why. Next pair.")
    page.keyboard.press("w")
    expect(strip.get_by_role("button", name="More correct")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    desk.until(lambda: desk.judgements()[0]["reasons"] == '["Clearer"]', "the reason")
    page.keyboard.press("Escape")
    expect(strip).to_be_hidden()
    expect(page.locator("#desk-title")).to_be_focused()
    desk.vote("2")
    page.keyboard.press("w")
    strip.get_by_role("button", name="Hide").press("Enter")
    expect(page.locator("#desk-title")).to_be_focused()
    page.keyboard.press("w")
    expect(page.locator("#desk-title")).to_be_focused()
    assert [row["said"] for row in desk.arrived(2)] == ["left", "right"]


def test_the_strip_comes_after_the_desk_and_before_the_bar(desks: Desks) -> None:
    desk = desks("order")
    desk.vote("3")
    page = desk.page
    page.locator(".saying summary").focus()
    for name in [*CHIPS, "Hide", "Left is better"]:
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.textContent.trim().split('\\n').pop().trim()")
        assert focused.startswith(name), focused


def test_a_key_that_is_taken_is_another_ones(desks: Desks) -> None:
    desk = desks("own-w")
    desk.vote("1")
    expect(desk.page.locator("#why kbd")).to_have_text("Y")
    expect(desk.page.locator("#announcer")).to_contain_text("Press Y to say why.")
    desk.ready()
    desk.page.keyboard.press("y")
    expect(desk.page.get_by_role("button", name="More correct")).to_be_focused()
    desk.page.keyboard.press("w")
    expect(desk.page.locator("#skip-menu")).to_be_visible()


def test_without_reasons_nothing_is_offered(desks: Desks) -> None:
    desk = desks("no-chips")
    desk.vote("1")
    expect(desk.page.locator("#announcer")).to_have_text("You chose left. Next pair.")
    desk.page.keyboard.press("w")
    expect(desk.page.locator("#why")).to_be_hidden()


def test_a_reason_that_waits_is_no_further_answer_of_today(desks: Desks) -> None:
    desk = desks("counted")
    desk.has_next()
    held: list[Route] = []
    desk.page.route("**/annotate/submit/", lambda route: held.append(route))
    desk.page.route("**/annotate/reasons/", lambda route: held.append(route))
    desk.vote("1")
    desk.page.get_by_role("button", name="Safer").click()
    held[0].continue_()
    desk.until(lambda: len(held) == 2, "the reasons are on their way")
    expect(desk.page.locator("#today")).to_have_text("1")
    held[1].continue_()
    desk.until(lambda: desk.judgements()[0]["reasons"] == '["Safer"]', "the reason")
