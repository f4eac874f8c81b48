"""Every state of the annotate page as assistive technology reads it: light and dark, on a phone and wide."""

from __future__ import annotations

import itertools

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.desks import Desk, Desks

pytestmark = pytest.mark.browser

SIZES = {"wide": (1440, 900), "phone": (390, 844)}
LOOKS = list(itertools.product(SIZES, ("light", "dark")))
TEXTS = [(f"A **bold** word, number {number}.", f"A *leaning* word, number {number}.") for number in range(4)]
ASKED = {"reason_chips": ["More correct", "Clearer"], "criteria": ["Correct"], "allows_rewrites": True}
PROJECTS = {f"{size}-{scheme}": {"texts": TEXTS, "settings": ASKED} for size, scheme in LOOKS} | {
    f"asks-{size}-{scheme}": {"texts": TEXTS, "settings": ASKED | {"reasons_percent": 100}} for size, scheme in LOOKS
}
NEW_GUIDELINES = """
import sys
from labeling.models import Project
from labeling.services import set_guidelines
set_guidelines(project=Project.objects.get(slug=sys.stdin.read()), text="Be honest.", author=None)
"""


def _open(desks: Desks, slug: str, size: str, scheme: str) -> Desk:
    width, height = SIZES[size]
    desk = desks(slug, viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    desk.ready()
    return desk


def _readable(desk: Desk) -> None:
    found = Axe().run(desk.page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []
    assert desk.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing scrolls sideways"


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_views_undo_and_news(desks: Desks, size: str, scheme: str) -> None:
    desk = _open(desks, f"{size}-{scheme}", size, scheme)
    press, show = desk.page.keyboard.press, desk.page.locator
    press("d")
    expect(show(".difference ins").first).to_be_visible()
    _readable(desk)
    press("r")
    expect(show(".raw").first).to_be_visible()
    _readable(desk)
    desk.vote("1")
    expect(show("#why")).to_be_visible()
    desk.page.get_by_role("button", name="Clearer").click()
    _readable(desk)
    desk.until(lambda: desk.judgements()[0]["reasons"] == '["Clearer"]', "the reason")
    press("u")
    expect(show("#desk .note")).to_be_visible()
    _readable(desk)
    desk.server.shell(NEW_GUIDELINES, desk.slug)
    desk.vote("2")
    expect(show("#desk-guidelines")).not_to_be_empty()
    _readable(desk)


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_a_required_reason_and_an_alert(desks: Desks, size: str, scheme: str) -> None:
    desk = _open(desks, f"asks-{size}-{scheme}", size, scheme)
    alert = desk.page.get_by_role("alert")
    desk.page.keyboard.press("1")
    expect(alert).to_contain_text("This pair needs a reason.")
    desk.page.keyboard.press("1")
    _readable(desk)
    desk.page.keyboard.press("Escape")
    desk.page.locator("#rewrite").fill("Better.")
    desk.page.locator("#desk-title").focus()
    desk.page.keyboard.press("3")
    expect(alert).to_contain_text("A rewrite improves one response.")
    _readable(desk)
    assert desk.judgements() == []
