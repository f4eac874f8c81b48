"""The annotate page on little room: magnified, on a phone, and with the focus never under what is fixed."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.desks import Desks

pytestmark = pytest.mark.browser

LINKED = "\n\n".join(
    f"Paragraph {number} with https://example.org/{number} in it. " + "And on. " * 20 for number in range(9)
)
SAID = {"reason_chips": ["More correct", "Clearer"], "criteria": ["Correct", "Kind"], "allows_rewrites": True}
SIZES = {"magnified": (640, 400), "laptop": (683, 384), "phone": (390, 844), "wide": (1280, 720)}
PROJECTS = {
    **{f"tab-{name}": {"texts": [(LINKED, f"{LINKED} Or so.")], "settings": SAID} for name in SIZES},
    **{f"read-{name}": {"texts": [(LINKED, f"{LINKED} Or so.")] * 2, "settings": SAID} for name in SIZES},
    "whole": {"pairs": 2},
    "stacked": {"pairs": 4, "settings": SAID},
}
# What somebody who tabs through the page sees of what has the focus, or the name of what does not let them.
COVERED = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const box = at.getBoundingClientRect();
  const x = (Math.max(box.left, 0) + Math.min(box.right, innerWidth)) / 2;
  const top = Math.max(box.top, 0), bottom = Math.min(box.bottom, innerHeight);
  if (bottom <= top) return `${at.outerHTML.slice(0, 80)} is not on the screen`;
  // Of a text higher than the screen its middle, and of a field to write in the line with the cursor.
  const middle = box.height > innerHeight / 2 && innerHeight / 2;
  const ends = middle ? [middle] : at.matches("textarea") ? [top + 20] : [top + 3, bottom - 3];
  const isSeen = (shown) => shown && (at.contains(shown) || shown.contains(at));
  return ends.every((y) => isSeen(document.elementFromPoint(x, y))) ? null : `${at.outerHTML.slice(0, 80)} is covered`;
}"""

IN_PANES = """() => [0.1, 0.3, 0.5, 0.7, 0.9].map((part) => {
  return document.elementFromPoint(innerWidth / 2, part * innerHeight).closest(".pane") !== null;
})"""


@pytest.mark.parametrize("size", SIZES)
def test_what_has_the_focus_is_seen_in_both_directions(desks: Desks, size: str) -> None:
    width, height = SIZES[size]
    desk = desks(f"tab-{size}", viewport={"width": width, "height": height})
    desk.ready()
    page = desk.page
    page.get_by_text("Say more about this pair").click()
    if size in ("phone", "wide"):
        page.get_by_role("button", name="Show all of both").click()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    for key in ("Tab", "Shift+Tab"):
        for _ in range(60):
            page.keyboard.press(key)
            assert page.evaluate(COVERED) is None
    assert desk.judgements() == []


@pytest.mark.parametrize("size", ["magnified", "laptop"])
def test_a_magnified_page_belongs_to_the_texts(desks: Desks, size: str) -> None:
    width, height = SIZES[size]
    desk = desks(f"read-{size}", viewport={"width": width, "height": height})
    desk.ready()
    page = desk.page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing scrolls sideways"
    page.locator('[data-side="right"]').evaluate("(pane) => pane.scrollIntoView({ block: 'start' })")
    assert all(page.evaluate(IN_PANES)), "the texts have the screen"
    before = desk.key
    page.get_by_role("button", name="Second is better").click()
    desk.moved_on(before)
    title = page.locator("#desk-title")
    expect(title).to_be_in_viewport()
    expect(title).to_be_focused()
    desk.ready()
    expect(page.locator("#why")).to_be_visible()
    page.keyboard.press("w")
    expect(page.get_by_role("button", name="More correct")).to_be_in_viewport()


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("width", [390, 701, 800, 1001, 1201])
def test_every_button_is_whole_in_both_languages(desks: Desks, width: int, language: str) -> None:
    desk = desks("whole", viewport={"width": width, "height": 700}, locale=language)
    desk.ready()
    for button in desk.page.locator(".bar button, .views button").all():
        box = button.bounding_box()
        assert box, "it is there"
        assert 0 <= box["x"] < box["x"] + box["width"] <= width, button.text_content()
        assert button.evaluate("(button) => button.scrollWidth <= button.clientWidth"), button.text_content()
    head = desk.page.locator(".desk-head").bounding_box()
    views = desk.page.locator(".views").bounding_box()
    title = desk.page.locator("#desk-title").bounding_box()
    assert head
    assert views
    assert title
    assert views["x"] >= title["x"] + title["width"] or views["y"] >= title["y"] + title["height"], "beside or below"


def test_stacked_panes_are_first_and_second_everywhere(desks: Desks) -> None:
    desk = desks("stacked", viewport={"width": 390, "height": 844})
    desk.ready()
    page = desk.page
    for number, name in ((1, "first"), (2, "second")):
        expect(page.get_by_role("article", name=f"Response {number}, {name}")).to_be_visible()
    page.get_by_text("Say more about this pair").click()
    kind = page.get_by_role("group", name="Kind")
    kind.get_by_label("First").check()
    expect(kind.get_by_role("radio", name="Left")).to_have_count(0)
    text = desk.text("right").strip()
    page.get_by_role("button", name="Start from the second").click()
    assert page.locator("#rewrite").input_value().strip() == text
    page.locator("#rewrite").fill("")
    page.locator("#desk-title").focus()
    desk.vote("2")
    expect(page.locator("#announcer")).to_contain_text("You chose the second.")
    expect(page.locator("#why-said")).to_have_text("You chose the second.")
    desk.ready()
    page.keyboard.press("u")
    expect(page.locator("#desk .note").get_by_text("You chose the second.")).to_be_visible()
    expect(page.locator("#desk .note").get_by_text("You chose right.")).to_be_hidden()
    (row,) = desk.arrived(1)
    assert row["said"] == "right"
