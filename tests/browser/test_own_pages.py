"""One's own judgements on their pages: opened again, looked at again, and closed once a dataset has used them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling import queue
from labeling.models import Preference, Project
from labeling.review import send_back
from labeling.services import freeze_preferences
from tests.conftest import MakePair

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]


@pytest.fixture
def judged(project: Project, annotator: User, make_pair: MakePair) -> list[Preference]:
    """Two judgements for A; a third pair is open."""
    found = []
    for number in range(2):
        make_pair(f"First {number}", f"Second {number}")
        token = queue.lease_next(project, annotator.pk).token
        found.append(queue.submit(project, token, annotator.pk, "a").preference)
    make_pair("First of the open one", "Second of the open one")
    return found


def _key_for(page: Page, text: str) -> str:
    return "1" if page.locator('[data-side="left"]', has_text=text).count() else "2"


def test_a_judgement_of_the_history_is_opened_and_changed(
    visit: Visit, annotator: User, judged: list[Preference]
) -> None:
    page = visit(annotator, "history/")
    older = page.locator(".judgement", has_text="First 0")
    older.get_by_role("button", name="Open it again").click()
    expect(page.get_by_text("Choose again to change it")).to_be_visible()
    expect(page.locator(".is-previous")).to_contain_text("First 0")
    page.keyboard.press(_key_for(page, "Second 0"))
    expect(page.get_by_text("First of the open one").first).to_be_visible()
    expect(page.locator("#desk-outbox")).to_have_text("")
    page = visit(annotator, "history/")
    newest = page.locator(".judgement").first
    expect(newest.locator(".is-better")).to_have_text("Second 0")
    expect(newest.get_by_text("version 2")).to_be_visible()


def test_one_that_a_dataset_uses_stays_as_it_is(visit: Visit, annotator: User, judged: list[Preference]) -> None:
    page = visit(annotator, "history/")
    first = page.locator(".judgement", has_text="First 0")
    freeze_preferences([judged[0].pk])  # while the page is open
    first.get_by_role("button", name="Open it again").click()
    expect(page.locator(".note-error")).to_contain_text("Not done.")
    first = page.locator(".judgement", has_text="First 0")
    expect(first.get_by_role("button")).to_have_count(0)
    expect(first).to_contain_text("A dataset uses this one, so it stays as it is.")
    expect(page.locator(".judgement", has_text="First 1").get_by_role("button")).to_be_visible()


def test_what_was_sent_back_is_found_from_the_desk_and_settled(
    visit: Visit, annotator: User, reviewer: User, judged: list[Preference]
) -> None:
    for preference in judged:
        send_back(preference=preference, reviewer=reviewer, note=f"Why, of {preference.pair_id}?")
    page = visit(annotator, "annotate/")
    expect(page.get_by_role("link", name="Mine 2 to look at again")).to_be_visible()
    page.get_by_role("link", name="2 to look at again", exact=True).click()
    page.get_by_role("button", name="Look again").first.click()
    expect(page.locator("q")).to_have_text(f"Why, of {judged[0].pair_id}?")
    expect(page.get_by_role("link", name="1 to look at again", exact=True)).to_be_visible()
    page.keyboard.press(_key_for(page, "First 0"))
    expect(page.get_by_text("First of the open one").first).to_be_visible()
    expect(page.locator("#desk-outbox")).to_have_text("")
    page = visit(annotator, "me/")
    expect(page.get_by_role("button", name="Look again")).to_have_count(1)
    expect(page.locator(".nav-count")).to_contain_text("1")
