"""A reviewer's day: deciding and taking back by key, gold, sending back, looking for judgements, taking them home."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Pair, Preference, Project, SentBack
from tests.labeling import crowd

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]
DEAF_MS = 450  # keys are deaf for a moment, so that a held one decides nothing


@pytest.fixture
def pairs(project: Project) -> list[Pair]:
    """Thirty pairs with two judgements each; the first four wait for a reviewer."""
    made = crowd.judge(project, crowd.people(project, 3), 30)
    Pair.objects.filter(pk__in=[pair.pk for pair in made[:4]]).update(review="conflict")
    return made


def _press(page: Page, key: str, said: str) -> None:
    page.wait_for_timeout(DEAF_MS)
    page.keyboard.press(key)
    expect(page.get_by_text(said)).to_be_visible()


def test_keys_decide_equally_good_both_bad_and_leave(visit: Visit, reviewer: User, pairs: list[Pair]) -> None:
    page = visit(reviewer, "review/")
    _press(page, "3", f"Pair {pairs[0].pk} counts as “Equally good”")
    _press(page, "4", f"Pair {pairs[1].pk} counts as “Both bad”")
    _press(page, "l", f"Pair {pairs[2].pk} stays as its 2 judgements have it.")
    found = [Pair.objects.get(pk=pair.pk) for pair in pairs[:4]]
    assert [pair.adjudicated_choice for pair in found] == ["tie", "both_bad", "", ""]
    assert [pair.review for pair in found] == ["", "", "", "conflict"]


def test_a_mistaken_key_is_taken_back_from_the_link_of_its_message(
    visit: Visit, reviewer: User, pairs: list[Pair]
) -> None:
    page = visit(reviewer, "review/")
    _press(page, "1", f"Pair {pairs[0].pk} counts as “A is better”")
    page.get_by_role("link", name=f"Pair {pairs[0].pk}", exact=True).click()
    expect(page.get_by_role("button", name="Take the decision back")).to_be_visible()
    _press(page, "l", f"The decision on pair {pairs[0].pk} is taken back; its 2 judgements count again.")
    expect(page.get_by_role("button", name="Take the decision back")).to_have_count(0)
    assert Pair.objects.get(pk=pairs[0].pk).adjudicated_choice == ""


def test_what_was_taken_out_is_brought_back_by_key(visit: Visit, reviewer: User, pairs: list[Pair]) -> None:
    page = visit(reviewer, f"pairs/{pairs[9].pk}/")
    _press(page, "r", "was taken out; its 2 judgements count no more.")
    expect(page.get_by_role("button", name="A is better")).to_have_count(0)
    assert Pair.objects.get(pk=pairs[9].pk).is_retired
    _press(page, "l", "is back; its 2 judgements count again.")
    assert not Pair.objects.get(pk=pairs[9].pk).is_retired


def test_a_pair_becomes_gold_and_is_a_pair_like_the_others_again(
    visit: Visit, reviewer: User, pairs: list[Pair]
) -> None:
    page = visit(reviewer, f"pairs/{pairs[9].pk}/")
    page.get_by_label("Known answer").select_option("tie")
    page.get_by_role("button", name="Make gold").click()
    expect(page.get_by_text("and “Equally good” is expected")).to_be_visible()
    assert Pair.objects.get(pk=pairs[9].pk).gold_choice == "tie"
    page.get_by_role("button", name="End that").click()
    expect(page.get_by_text("is a pair like the others again.")).to_be_visible()
    assert Pair.objects.get(pk=pairs[9].pk).gold_choice == ""


def test_a_judgement_goes_back_with_a_note_in_which_keys_are_letters(
    visit: Visit, reviewer: User, pairs: list[Pair]
) -> None:
    page = visit(reviewer, "review/")
    page.wait_for_timeout(DEAF_MS)
    first = page.locator(".judged > li").first
    first.get_by_text("Send back").first.click()
    note = first.get_by_role("textbox")
    note.press_sequentially("1 r l: really?")
    first.get_by_role("button", name="Send back").click()
    expect(page.get_by_text("sees this pair again with your note")).to_be_visible()
    expect(page.locator(".judged > li").first).to_contain_text("“1 r l: really?” Not looked at yet.")
    assert SentBack.objects.get().note == "1 r l: really?"
    assert Pair.objects.get(pk=pairs[0].pk).adjudicated_choice == ""


def test_filters_narrow_pages_go_on_and_the_export_is_what_was_found(
    visit: Visit, reviewer: User, pairs: list[Pair], tmp_path: Path
) -> None:
    said = Preference.objects.filter(pair=pairs[3])
    said.update(comment="=1+1, and more", choice="b", shown_left="b")
    page = visit(reviewer, "judgements/")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    page.get_by_role("link", name="Older").click()
    expect(rows).to_have_count(10)
    page.get_by_role("link", name="Newest").click()
    expect(rows).to_have_count(50)
    page.get_by_label("Choice").select_option("b")
    page.get_by_label("Side").select_option("left")
    page.get_by_label("With a comment").check()
    page.get_by_role("button", name="Show").click()
    expect(rows).to_have_count(2)
    expect(page.get_by_label("With a comment")).to_be_checked()

    wanted = sorted(said.values_list("pk", flat=True))
    for name in ("CSV", "JSONL"):
        with page.expect_download() as started:
            page.get_by_role("link", name=name, exact=True).click()
        text = Path(started.value.path()).read_text()
        read = list(csv.DictReader(text.splitlines())) if name == "CSV" else list(map(json.loads, text.splitlines()))
        assert sorted(int(row["id"]) for row in read) == wanted
        assert read[0]["comment"] == ("'=1+1, and more" if name == "CSV" else "=1+1, and more")
    page.get_by_label("In the prompt").fill("Nobody asked this")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", name="None is like that")).to_be_visible()


def test_pairs_are_found_by_state(visit: Visit, reviewer: User, pairs: list[Pair]) -> None:
    page = visit(reviewer, "pairs/")
    page.get_by_label("State").select_option("conflict")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr")).to_have_count(4)
    page.locator("tbody").get_by_role("link", name=str(pairs[0].pk), exact=True).click()
    expect(page.get_by_role("heading", name=f"Pair {pairs[0].pk}", exact=True)).to_be_visible()
