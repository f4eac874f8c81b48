"""The qualification set as admins write it: item by item, from a file, and from a pair."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Project
from labeling.onboarding import set_of
from tests.conftest import MakePair

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]
ROW = {"prompt": "Why?", "response_a": "So.", "response_b": "Because.", "choice": "b", "explanation": "It says why."}


def _write(page: Page, prompt: str, explanation: str) -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Response A").fill("Canberra")
    page.get_by_label("Response B").fill("Sydney")
    page.get_by_label("A is better").check()
    page.get_by_label("Why").fill(explanation)
    page.get_by_role("button", name="Save").click()


def _summaries(page: Page) -> list[str]:
    return [summary.inner_text().split("\n")[0].strip() for summary in page.locator(".items summary span[dir]").all()]


@pytest.mark.refusals
def test_items_are_written_changed_ordered_and_taken_out(visit: Visit, project_admin: User, project: Project) -> None:
    page = visit(project_admin, "qualification/")
    page.get_by_role("link", name="Add an item").click()
    _write(page, "What is the capital?", " ")
    expect(page.locator(".field-errors, .note-error").first).to_be_visible()
    expect(page.get_by_label("Response A")).to_have_value("Canberra")
    page.get_by_label("Why").fill("Canberra was **built** for it.")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The item was added at the end of the set.")).to_be_visible()
    page.get_by_role("link", name="Add an item").click()
    _write(page, "And the largest city?", "Sydney is not asked for.")
    assert _summaries(page) == ["What is the capital?", "And the largest city?"]

    page.locator(".items summary").first.click()
    expect(page.locator(".item-preview strong").first).to_have_text("built")
    page.get_by_role("button", name="Move down").first.click()
    expect(page.locator(".items summary").first).to_contain_text("And the largest city?")
    page.get_by_role("link", name="Edit").first.click()
    page.get_by_label("Prompt").fill("And the largest town?")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The item was saved.")).to_be_visible()
    page.get_by_role("button", name="Take out").last.click()
    expect(page.get_by_text("The item was taken out of the set.")).to_be_visible()
    assert _summaries(page) == ["And the largest town?"]


@pytest.mark.refusals
def test_a_file_is_imported_whole_or_not_at_all(visit: Visit, project_admin: User, project: Project) -> None:
    page = visit(project_admin, "qualification/")

    def give(*lines: str) -> None:
        content = "\n".join(lines).encode()
        page.get_by_label("Items (JSONL)").set_input_files(
            {"name": "items.jsonl", "mimeType": "application/jsonl", "buffer": content}
        )
        page.get_by_role("button", name="Import").click()

    give(json.dumps(ROW), json.dumps(ROW | {"choice": "c"}), "no JSON")
    expect(page.get_by_text("Nothing was imported.")).to_be_visible()
    expect(page.locator(".problems li")).to_have_count(2)
    expect(page.locator(".problems")).to_contain_text("Line 2")
    assert not set_of(project).exists()
    give(json.dumps(ROW), json.dumps(ROW | {"prompt": "And why not?"}))
    expect(page.get_by_text("2 items imported.")).to_be_visible()
    assert _summaries(page) == ["Why?", "And why not?"]


def test_a_pair_becomes_an_item_from_its_page(
    visit: Visit, project_admin: User, project: Project, make_pair: MakePair
) -> None:
    pair = make_pair("Text of A", "Text of B")
    page = visit(project_admin, f"pairs/{pair.pk}/")
    page.get_by_label("Expected answer").select_option("b")
    page.get_by_label("Explanation").fill("B says more.")
    page.get_by_role("button", name="Use it in the qualification set").click()
    expect(page.get_by_text("The item was added at the end of the set.")).to_be_visible()
    page.get_by_role("link", name="Qualification set").click()
    expect(page.locator(".items .badge")).to_have_text("B is better")
    assert set_of(project).get().response_b == "Text of B"
