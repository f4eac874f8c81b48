"""Every page as assistive technology reads it: in light and dark, on a desk and on a phone, which each fits.

The annotate page has states of its own, which test_annotate.py gives to axe.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling import queue
from labeling.answers import Details
from labeling.measure import measure_all
from labeling.models import Pair, Preference, Project
from labeling.qualification_items import ItemContent, add_items
from labeling.review import send_back
from labeling.services import add_member, create_project, set_guidelines
from tests.conftest import MakePair
from tests.labeling import crowd

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]
SIZES = {"desk": (1440, 900), "phone": (390, 844)}
CHAT = [
    {"role": "user", "content": "What is the capital?\n\n" + "And why is that so? " * 40},
    {"role": "assistant", "content": "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = " + "1 + " * 60 + "1\n```"},
    {"role": "user", "content": "Which?"},
]
OF_ADMINS = (
    *("settings/", "qualification/", "qualification/new/", "qualification/{item}/", "guidelines/edit/"),
    *("pairs/{pair}/", "people/{person}/", "dashboard/", "review/", "judgements/", "pairs/", "people/", "prompts/"),
)
OF_EVERYBODY = ("", "annotate/", "me/", "history/", "guidelines/", "guidelines/2/")


@pytest.fixture
def known(
    project: Project, annotator: User, reviewer: User, project_admin: User, make_pair: MakePair
) -> SimpleNamespace:
    """A project in which every page has something to show."""
    project.criteria, project.reason_chips, project.allows_rewrites = ["Correct"], ["Clearer"], True
    project.save()
    users = crowd.people(project, 4)
    crowd.judge(project, users, 40)
    Pair.objects.filter(pk__in=Pair.objects.order_by("pk")[:2]).update(review="conflict")
    make_pair("The first answer.", "The second answer.")
    details = Details(criteria={"Correct": "a"}, reasons=("Clearer",), comment="See the end.", rewrite="The best one.")
    own = queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a", details).preference
    send_back(preference=own, reviewer=reviewer, note="Is that so?")
    Preference.objects.filter(annotator=users[0]).update(seconds=0.5)
    set_guidelines(project=project, text="# Be kind\n\n" + "And short. " * 40, author=project_admin, based_on=1)
    (item,) = add_items(project=project, contents=[ItemContent(CHAT, "One", "Two", "a", "Because.")])
    measure_all()
    return SimpleNamespace(item=item.pk, pair=own.pair_id, person=users[0].pk)


def _is_well(page: Page, where: str) -> None:
    """In both schemes and both sizes, without loading it anew."""
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found = Axe().run(page).response["violations"]
            assert [(one["id"], one["nodes"][0]["target"]) for one in found] == [], f"{where}, {size}, {scheme}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{where}, {size}"


@pytest.mark.slow
def test_pages_of_reviewers_and_admins(visit: Visit, project_admin: User, known: SimpleNamespace) -> None:
    for path in OF_ADMINS:
        _is_well(visit(project_admin, path.format(**vars(known))), path)


@pytest.mark.slow
def test_pages_of_everybody(visit: Visit, annotator: User, known: SimpleNamespace) -> None:
    for path in OF_EVERYBODY:
        _is_well(visit(annotator, path), path)


def test_a_newcomers_pages(visit: Visit, stranger: User, project: Project, known: SimpleNamespace) -> None:
    (newcomer,) = crowd.people(project, 1, name="newcomer")
    page = visit(newcomer, "qualify/")
    _is_well(page, "before")
    page = visit(newcomer, "qualify/?start")
    _is_well(page, "an item")
    page.get_by_role("button", name="Both bad").click()
    expect(page.get_by_role("heading", name="Not what was expected")).to_be_visible()
    _is_well(page, "what was expected")
    page.get_by_role("link", name="See the result").click()
    _is_well(page, "not passed yet")


def test_the_door_and_what_lies_behind_it(page: Page, live_server: object, visit: Visit, stranger: User) -> None:
    page.goto(f"{live_server}/sign-in/")
    _is_well(page, "sign in")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Username").fill("nobody")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    _is_well(page, "the wrong password")
    _is_well(visit(stranger, "/"), "no project")
    stranger.is_staff = True
    stranger.save()
    _is_well(visit(stranger, "/new-project/"), "a new project")
    _is_well(visit(stranger, "/keys/"), "keys")


def test_projects(visit: Visit, annotator: User, project: Project) -> None:
    add_member(project=create_project(name="Kind answers", slug="kind"), user=annotator, role="annotator")
    page = visit(annotator, "/")
    expect(page.get_by_role("link", name="Kind answers")).to_be_visible()
    _is_well(page, "projects")


@pytest.mark.refusals
def test_what_is_not_open_and_what_is_not_there(visit: Visit, annotator: User, project: Project) -> None:
    page = visit(annotator, "settings/")
    expect(page.get_by_role("heading", name="This is not open to you")).to_be_visible()
    _is_well(page, "403")
    page = visit(annotator, "nowhere/")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    _is_well(page, "404")
