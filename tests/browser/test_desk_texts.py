"""Texts on the desk as people read them: conversations, formulas, code, other scripts, and what hides in a text."""

from __future__ import annotations

import pytest
from playwright.sync_api import FloatRect, Locator, expect

from tests.browser.desks import Desk, Desks, Server

pytestmark = pytest.mark.browser

CONVERSATION = """
import sys
from labeling.models import Project
from labeling.prompts import parse_prompt
from labeling.services import NewResponse, add_pair, add_prompts
project = Project.objects.get(slug="turns")
said = [{"role": ("user", "assistant")[n % 2], "content": f"Turn {n}. " + "On and on. " * 60} for n in range(5)]
add_prompts(project=project, prompts=[parse_prompt(said)])
add_pair(prompt=project.prompts.get(), responses=(NewResponse("One.", [1], "stop"), NewResponse("Two.", [2], "stop")))
"""
FORMULA = "The root is\n\n$$x = \\frac{-b}{2a}$$\n\nfor all $a$."
CODE = '```python\ndef twice(n):\n    return n * 2  # "doubled"\n```'
CJK = "東京は日本の首都です。" * 40
HEBREW = "שלום עולם, זה טקסט מימין לשמאל."
HIDDEN = "Pay \u202e100\u202c euros to\u200bnobody."
PROJECTS = {
    "turns": {},
    "formula": {"texts": [(FORMULA, FORMULA.replace("2a", "3a"))]},
    "code": {"texts": [(CODE, CODE.replace("2", "3"))]},
    "cjk": {"texts": [(CJK, CJK[:-11])]},
    "mixed": {"texts": [(HEBREW, f"{HEBREW}\n\nAnd English after it.")]},
    "hidden": {"texts": [(HIDDEN, HIDDEN.replace("100", "900"))]},
}


@pytest.fixture(scope="module", autouse=True)
def conversation(server: Server) -> None:
    server.shell(CONVERSATION)


def _open(desks: Desks, slug: str) -> Desk:
    desk = desks(slug)
    desk.ready()
    return desk


def _box(element: Locator) -> FloatRect:
    box = element.bounding_box()
    assert box, "it is on the page"
    return box


def test_a_conversation_opens_at_its_last_turn_and_folds(desks: Desks) -> None:
    desk = _open(desks, "turns")
    prompt, text = desk.page.locator(".prompt"), desk.page.locator(".prompt-text")
    expect(prompt.locator("summary")).to_contain_text("4 earlier messages")
    assert text.evaluate("(text) => text.scrollTop") > 0
    last = prompt.locator(".is-last")
    inside = "(turn) => Math.abs(turn.getBoundingClientRect().top - turn.parentElement.getBoundingClientRect().top) < 2"
    assert last.evaluate(inside), "its last turn stands at the top"
    expect(prompt.get_by_text("Turn 0.")).not_to_be_in_viewport()
    text.press("Home")
    expect(prompt.get_by_text("Turn 0.")).to_be_in_viewport()
    summary = prompt.locator("summary")
    before = _box(desk.page.locator(".panes"))
    summary.press("Enter")
    expect(text).to_be_hidden()
    assert _box(desk.page.locator(".panes"))["y"] < before["y"] - 50, "the texts have its room"
    summary.press("Space")
    expect(text).to_be_visible()
    assert desk.judgements() == []


def test_formulas_are_drawn_and_their_source_is_one_key_away(desks: Desks) -> None:
    desk = _open(desks, "formula")
    pane = desk.page.locator('[data-side="left"]')
    expect(pane.locator("math")).to_have_count(2)
    assert _box(pane.locator("mfrac"))["height"] > 20, "numerator above denominator"
    expect(pane.locator(".reading")).not_to_contain_text("\\frac")
    desk.page.keyboard.press("r")
    expect(pane.locator(".raw")).to_contain_text("\\frac{-b}")


def test_code_has_its_colours_and_its_lines(desks: Desks) -> None:
    desk = _open(desks, "code")
    code = desk.page.locator('[data-side="right"] pre code')
    colours = code.evaluate(
        "(code) => new Set([...code.querySelectorAll('span')].map((s) => getComputedStyle(s).color)).size"
    )
    assert colours > 1
    assert "\n    return" in (code.text_content() or "")


def test_lines_without_spaces_break(desks: Desks) -> None:
    desk = _open(desks, "cjk")
    for key in ("", "r", "d"):
        if key:
            desk.page.keyboard.press(key)
        for side in ("left", "right"):
            pane = desk.page.locator(f'[data-side="{side}"] [data-scrolls]')
            assert pane.evaluate("(pane) => pane.scrollWidth <= pane.clientWidth"), (key, side)
    expect(desk.page.locator(".difference").first).to_be_visible()


def test_each_paragraph_has_its_own_direction(desks: Desks) -> None:
    desk = _open(desks, "mixed")
    paragraphs = desk.page.locator(".panes .reading p")
    found = paragraphs.evaluate_all("(all) => all.map((p) => [getComputedStyle(p).direction, p.textContent[0]])")
    assert sorted({direction for direction, first in found if first == "ש"}) == ["rtl"]
    assert sorted({direction for direction, first in found if first == "A"}) == ["ltr"]


def test_hidden_characters_are_seen_in_every_view(desks: Desks) -> None:
    desk = _open(desks, "hidden")
    for key, view in (("", ".reading"), ("r", ".raw"), ("d", ".difference")):
        if key:
            desk.page.keyboard.press(key)
        marks = desk.page.locator(f'[data-side="left"] {view} .control')
        expect(marks).to_have_count(3)
        for mark in marks.all():
            assert _box(mark)["width"] > 4, "no mark without its width"
        text = desk.page.locator(f'[data-side="left"] {view}').text_content() or ""
        assert not set("\u202e\u202c\u200b") & set(text), "nothing turns the text around"
