"""What may be said beside a choice, on the page: by hand, by key, and never a vote by accident."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Route, expect

from tests.browser.desks import Desks

pytestmark = pytest.mark.browser

CHIPS = ["More correct", "Clearer", "Safer"]
SAID = {"reason_chips": CHIPS, "criteria": ["Correct", "Kind"], "asks_strength": True}
PROJECTS = {
    "enter": {"pairs": 2, "settings": SAID},
    "enter-plain": {"pairs": 2, "settings": SAID},
    "late": {"pairs": 3, "settings": SAID | {"reasons_percent": 100}},
    "by-hand": {"pairs": 3, "settings": SAID},
}


@pytest.mark.parametrize("slug", ["enter", "enter-plain"])
def test_enter_in_a_field_is_no_vote(desks: Desks, slug: str) -> None:
    desk = desks(slug, java_script_enabled=slug == "enter")
    desk.page.get_by_text("Say more about this pair").click()
    before = desk.key
    fields = (
        desk.page.get_by_label("Much better, not only better"),
        desk.page.get_by_role("checkbox", name="Clearer"),
        desk.page.get_by_role("group", name="Kind").get_by_label("Right"),
    )
    for field in fields:
        field.press("Space")
        field.press("Enter")
        field.press("NumpadEnter")
        expect(field).to_be_checked()
    desk.page.wait_for_timeout(500)
    assert (desk.key, desk.judgements()) == (before, [])
    desk.page.get_by_role("button", name="Right is better").press("Enter")
    (row,) = desk.arrived(1)
    assert (row["said"], row["is_strong"], row["reasons"]) == ("right", 1, '["Clearer"]')


def test_a_criterion_and_much_better_chosen_by_hand(desks: Desks) -> None:
    desk = desks("by-hand")
    desk.ready()
    page = desk.page
    page.get_by_text("Say more about this pair").click()
    page.get_by_label("Much better, not only better").check()
    page.get_by_role("group", name="Correct").get_by_label("Left").check()
    kind = page.get_by_role("group", name="Kind")
    kind.get_by_label("Left").check()
    kind.get_by_label("Left").press("ArrowRight")  # goes on in the group, and is no vote
    expect(kind.get_by_label("Equal")).to_be_checked()
    before = desk.key
    page.get_by_role("button", name="Left is better").click()
    desk.moved_on(before)
    (row,) = desk.arrived(1)
    assert (row["said"], row["is_strong"]) == ("left", 1)
    assert json.loads(row["criteria"]) == {"Correct": row["shown_left"], "Kind": "tie"}
    expect(page.get_by_label("Much better, not only better")).not_to_be_checked()
    desk.vote("3")
    assert [row["is_strong"] for row in desk.arrived(2)] == [1, 0]


def test_what_is_asked_of_a_pair_stays_while_the_last_answer_arrives(desks: Desks) -> None:
    desk = desks("late")
    desk.has_next()
    desk.ready()
    held: list[Route] = []
    desk.page.route("**/annotate/submit/", lambda route: held.append(route))
    alert = desk.page.get_by_role("alert")
    for _ in range(2):
        desk.page.keyboard.press("1")
        expect(alert).to_contain_text("This pair needs a reason.")
        if not held:
            before = desk.key
            desk.page.keyboard.press("2")
            desk.page.keyboard.press("Enter")
            desk.moved_on(before)
            desk.ready()
    held[0].continue_()
    desk.has_next()
    expect(alert).to_contain_text("This pair needs a reason.")
    assert [row["reasons"] for row in desk.arrived(1)] == ['["Clearer"]']
