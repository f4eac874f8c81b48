"""Other views of the two texts: by key, by button and by touch, and what they say when they cannot come."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Route, expect

from tests.browser.desks import Desk, Desks

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
PROJECTS = {
    "buttons": {"texts": [("One **bold** word.", "One *leaning* word."), ("Three.", "Four.")]},
    "touched": {"texts": [("One **bold** word.", "One *leaning* word."), ("Three.", "Four.")]},
    "own-keys": {"pairs": 2, "keys": {"difference": ["v"], "left": ["j"], "right": ["k"]}},
    "slow": {"pairs": 2},
    "broken": {"pairs": 3},
}


def _button(desk: Desk, name: str) -> Locator:
    return desk.page.get_by_role("group", name="Show both responses").get_by_role("button", name=name)


@pytest.mark.parametrize("slug", ["buttons", "touched"])
def test_by_button(desks: Desks, slug: str) -> None:
    desk = desks(slug, **(PHONE if slug == "touched" else {}))
    desk.ready()
    press = Locator.tap if slug == "touched" else Locator.click
    show = desk.page.locator
    words, raw = _button(desk, "Words that differ"), _button(desk, "As written")
    pressed = show('.views [aria-pressed="true"]')
    expect(pressed).to_have_count(0)
    press(words)
    expect(show(".difference ins, .difference del").first).to_be_visible()
    said = desk.page.locator("#announcer")
    expect(said).to_have_text("Differences shown.")
    expect(show(".panes .reading").first).to_be_hidden()
    expect(pressed).to_have_text(["D Words that differ"])
    press(raw)
    expect(show(".raw").nth(0)).to_be_visible()
    expect(show(".raw").nth(1)).to_be_visible()
    expect(pressed).to_have_count(1)
    expect(raw).to_have_attribute("aria-pressed", "true")
    press(raw)
    expect(show(".panes .reading").nth(1)).to_be_visible()
    expect(pressed).to_have_count(0)
    for key, sentence in (
        *(("d", "Differences shown."), ("d", "Differences hidden."), ("r", "Raw text shown.")),
        *(("r", "Rendered text shown."), ("r", "Raw text shown.")),
    ):
        desk.page.keyboard.press(key)
        expect(said).to_have_text(sentence)
    expect(raw).to_have_attribute("aria-pressed", "true")
    desk.vote("1")
    expect(pressed).to_have_count(0)
    expect(show(".panes .reading").nth(0)).to_be_visible()


def test_own_keys_are_written_on_the_panes_and_views_of_every_pair(desks: Desks) -> None:
    desk = desks("own-keys")
    for key in ("j", ""):
        desk.ready()
        expect(desk.page.locator(".pane-head kbd")).to_have_text(["J", "K"])
        expect(_button(desk, "Words that differ").locator("kbd")).to_have_text("V")
        expect(_button(desk, "Words that differ")).to_have_attribute("aria-keyshortcuts", "V")
        if key:
            desk.vote(key)


def test_pressed_twice_while_it_loads_it_is_one_view(desks: Desks) -> None:
    desk = desks("slow")
    desk.ready()
    held: list[Route] = []
    desk.page.route("**/annotate/difference/**", lambda route: held.append(route))
    desk.page.keyboard.press("d")
    desk.page.keyboard.press("d")
    desk.until(lambda: held, "the question")
    desk.page.wait_for_timeout(200)
    assert len(held) == 1
    held[0].continue_()
    expect(desk.page.locator(".difference")).to_have_count(2)
    expect(desk.page.locator(".difference").first).to_be_visible()


def test_what_cannot_be_fetched_is_said_in_its_own_words(desks: Desks) -> None:
    desks.is_network_cut = True
    desk = desks("broken")
    desk.has_next()
    desk.ready()
    alert = desk.page.get_by_role("alert")
    for answer, sentence in (
        (lambda route: route.abort(), "The words that differ could not be fetched."),
        (lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"), "The words that differ could not"),
        (lambda route: route.fulfill(headers={"HX-Redirect": "/sign-in/"}), "You are signed out."),
        (lambda route: route.fulfill(status=410, body="It is gone.", content_type="text/plain"), "It is gone."),
    ):
        desk.page.route("**/annotate/difference/**", answer)
        with desk.page.expect_request("**/annotate/difference/**") as asked:
            desk.page.keyboard.press("d")
        asked.value.response()  # its end: what the alert says before is of the request before
        desk.page.evaluate("() => new Promise((done) => setTimeout(done))")
        expect(alert).to_contain_text(sentence)
        desk.page.unroute("**/annotate/difference/**")
    desk.page.keyboard.press("d")
    expect(desk.page.locator(".difference").first).to_be_visible()
    expect(alert).to_be_empty()
