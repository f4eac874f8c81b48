"""What stands around the pages: languages, the theme; and the pages of settings, members and new projects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Membership, Project
from labeling.services import set_guidelines

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]


def _fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_german_is_chosen_on_the_page_kept_and_fits(visit: Visit, project_admin: User, width: int) -> None:
    page = visit(project_admin, "me/")
    page.set_viewport_size({"width": width, "height": 844})
    page.get_by_role("button", name="boss").click()
    page.get_by_role("button", name="Deutsch").click()
    expect(page.get_by_role("heading", name="Eigenes", exact=True)).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "de"
    for path in ("dashboard/", "review/", "judgements/", "people/", "settings/", "qualification/", "guidelines/"):
        page = visit(project_admin, path)
        assert page.locator("html").get_attribute("lang") == "de"
        assert _fits(page), path
    page.get_by_role("button", name="boss").click()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", name="Guidelines", exact=True)).to_be_visible()


def _paper(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))


def test_the_theme_is_switched_kept_and_given_back_to_the_system(visit: Visit, annotator: User) -> None:
    page = visit(annotator, "me/")
    page.emulate_media(color_scheme="light")
    light = _paper(page)
    page.get_by_role("button", name="Theme: as the system has it. Switch to light.").click()
    page.get_by_role("button", name="Theme: light. Switch to dark.").click()
    dark = _paper(page)
    assert dark != light
    page = visit(annotator, "history/")
    assert _paper(page) == dark, "kept, and there before anything is drawn"
    page.get_by_role("button", name="Theme: dark. Switch to as the system has it.").click()
    assert _paper(page) == light
    page.emulate_media(color_scheme="dark")
    assert _paper(page) == dark


@pytest.mark.refusals
def test_settings_are_saved_and_a_wrong_one_says_why(visit: Visit, project_admin: User, project: Project) -> None:
    page = visit(project_admin, "settings/")
    page.get_by_label("Name", exact=True).fill("Very helpful answers")
    page.get_by_label("Reasons", exact=True).fill("Clearer\nSafer")
    page.get_by_label("Rewrites").check()
    page.get_by_role("button", name="Save the settings").click()
    expect(page.get_by_text("The settings were saved.")).to_be_visible()
    project.refresh_from_db()
    assert (project.name, project.reason_chips, project.allows_rewrites) == (
        "Very helpful answers",
        ["Clearer", "Safer"],
        True,
    )
    page.get_by_label("Name", exact=True).fill(" ")
    page.get_by_label("Reasons", exact=True).fill("Shorter")
    page.get_by_role("button", name="Save the settings").click()
    expect(page.locator(".field-errors").first).to_be_visible()
    expect(page.get_by_label("Reasons", exact=True)).to_have_value("Shorter")
    project.refresh_from_db()
    assert project.reason_chips == ["Clearer", "Safer"]


@pytest.mark.refusals
def test_members_come_change_and_go(visit: Visit, project_admin: User, stranger: User, project: Project) -> None:
    page = visit(project_admin, "settings/")
    form = page.locator("#members .inline-form")
    form.get_by_role("textbox").fill("nobody-there")
    form.get_by_role("button", name="Add").click()
    expect(
        page.locator("#members").get_by_text("nobody-there").or_(page.locator(".field-errors")).first
    ).to_be_visible()
    assert Membership.objects.filter(project=project).count() == 1
    form = page.locator("#members .inline-form")
    form.get_by_role("textbox").fill("stranger")
    form.get_by_role("combobox").select_option("reviewer")
    form.get_by_role("button", name="Add").click()
    expect(page.get_by_text("stranger is in the project now. Role: Reviewer.")).to_be_visible()
    page.get_by_label("Role of stranger").select_option("annotator")
    page.get_by_role("row").filter(has_text="stranger").get_by_role("button", name="Change").click()
    expect(page.get_by_label("Role of stranger")).to_have_value("annotator")
    page.get_by_role("button", name="Remove stranger").click()
    expect(page.get_by_label("Role of stranger")).to_have_count(0)
    assert not Membership.objects.filter(user=stranger).exists()


def test_staff_make_a_project_and_become_its_admin(visit: Visit, stranger: User) -> None:
    stranger.is_staff = True
    stranger.save()
    page = visit(stranger, "/")
    page.get_by_role("main").get_by_role("link", name="New project").click()
    page.get_by_label("Name", exact=True).fill("Kind answers")
    page.get_by_label("Short name").fill("kind")
    page.get_by_role("button", name="Make the project").click()
    expect(page.get_by_text("The project is there, and you are its admin.")).to_be_visible()
    assert Membership.objects.get(user=stranger).project.slug == "kind"
    assert Membership.objects.get(user=stranger).role == "admin"


def test_two_versions_of_the_guidelines_are_compared(
    visit: Visit, annotator: User, project_admin: User, project: Project
) -> None:
    for based_on, text in enumerate(("Be kind.", "Be kind and short.", "Be kind, short and right."), 1):
        set_guidelines(project=project, text=text, author=project_admin, based_on=based_on)
    page = visit(annotator, "guidelines/")
    page.get_by_role("link", name="Version 4").click()
    left, right = page.locator(".source").all()
    expect(left).to_have_text("Be kind and short.")
    expect(right.locator("ins").first).to_be_visible()
    assert left.bounding_box()["y"] == right.bounding_box()["y"], "beside each other"
    page.get_by_label("Compare with").select_option("2")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".source").first).to_have_text("Be kind.")
    expect(page.locator(".source").last).to_have_text("Be kind, short and right.")
