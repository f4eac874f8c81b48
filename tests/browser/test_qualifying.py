"""A newcomer's tries: each key and its answer, another try, no try left, and what an admin does about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Project
from labeling.qualification_items import ItemContent, add_items

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]
PHONE = {"width": 390, "height": 844}
CHAT = [
    {"role": "user", "content": "The first question. " * 60},
    {"role": "assistant", "content": "The first answer. " * 60},
    {"role": "user", "content": "Which of the two?"},
]


def _items(project: Project, *expected: str) -> None:
    question = [{"role": "user", "content": "Which of the two?"}]
    contents = [ItemContent(question, f"A of {n}", f"B of {n}", word, "Because.") for n, word in enumerate(expected)]
    add_items(project=project, contents=contents)


def _side_of(page: Page, text: str) -> str:
    return "left" if page.locator('[data-side="left"]', has_text=text).count() else "right"


def test_every_key_gives_its_answer(visit: Visit, annotator: User, project: Project) -> None:
    keys = {"1": "left", "ArrowRight": "right", "3": "tie", "4": "both_bad", "ArrowLeft": "left", "2": "right"}
    _items(project, *["tie"] * len(keys))
    page = visit(annotator, "qualify/?start")
    said = {"left": "left", "right": "right", "tie": "equally good", "both_bad": "both bad"}
    for key, answer in keys.items():
        expect(page.get_by_role("form", name="Your answer")).to_be_visible()
        page.keyboard.press(key)
        expect(page.locator("#feedback")).to_contain_text(f"You chose {said[answer]}.")
        if answer in ("left", "right"):
            expect(page.locator(f'[data-side="{answer}"]')).to_contain_text("your choice")
        page.keyboard.press("Enter")
    expect(page.get_by_text("1 of 6 were right; 5 are needed.")).to_be_visible()


def test_another_try_shows_the_sides_changed_and_lets_in(visit: Visit, annotator: User, project: Project) -> None:
    _items(project, "a")
    page = visit(annotator, "qualify/?start")
    first = _side_of(page, "A of 0")
    page.keyboard.press("2" if first == "left" else "1")
    expect(page.get_by_role("heading", name="Not what was expected")).to_be_visible()
    expect(page.locator("#feedback")).to_contain_text(f"Expected was: {first} is better.")
    expect(page.locator(f'[data-side="{first}"]')).to_contain_text("better")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Not passed yet")).to_be_visible()
    expect(page.get_by_text("You have one try.")).to_be_visible()
    page.get_by_role("link", name="Try again").click()
    expect(page.locator(f'[data-side="{first}"]')).to_contain_text("B of 0")
    page.keyboard.press("2" if first == "left" else "1")
    expect(page.get_by_role("heading", name="As expected")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="You may judge")).to_be_visible()


def test_out_of_tries_an_admin_grants_one_and_lets_in(
    visit: Visit, annotator: User, other_annotator: User, project_admin: User, project: Project
) -> None:
    _items(project, "both_bad")
    page = visit(annotator, "qualify/?start")
    for _ in range(project.qualification_tries):
        page = visit(annotator, "qualify/?start")
        page.keyboard.press("3")
        expect(page.get_by_role("heading", name="Not what was expected")).to_be_visible()
    page = visit(annotator, "annotate/")
    expect(page.get_by_role("heading", name="Out of tries")).to_be_visible()
    expect(page.get_by_text("Ask boss.")).to_be_visible()

    page = visit(project_admin, "qualification/")
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="annotator", exact=True))
    expect(row).to_contain_text("out of tries")
    row.get_by_role("button", name="One more try").click()
    expect(row).to_contain_text("not yet")
    other = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="other", exact=True))
    other.get_by_role("button", name="Let in").click()
    expect(other).to_contain_text("since")
    expect(other.get_by_role("button")).to_have_count(0)

    page = visit(annotator, "qualify/?start")
    page.keyboard.press("4")
    expect(page.get_by_role("heading", name="As expected")).to_be_visible()
    page = visit(other_annotator, "annotate/")
    expect(page.get_by_role("heading", name="No prompts yet")).to_be_visible()


def test_an_item_on_a_phone_is_answered_by_touch_alone(visit: Visit, annotator: User, project: Project) -> None:
    add_items(project=project, contents=[ItemContent(CHAT, "A " * 900, "B " * 900, "tie", "Because. " * 40)])
    page = visit(annotator, "me/")
    page.set_viewport_size(PHONE)
    page = visit(annotator, "qualify/?start")
    expect(page.locator(".prompt-text").get_by_text("Which of the two?")).to_be_in_viewport()
    for name in ("First is better", "Second is better", "Equally good", "Both bad"):
        button = page.get_by_role("button", name=name)
        box = button.bounding_box()
        assert box
        assert box["height"] >= 44
        expect(button).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Equally good").click()
    expect(page.locator("#feedback")).to_contain_text("That is the expected answer.")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("link", name="See the result").click()
    expect(page.get_by_role("heading", name="You may judge")).to_be_visible()
