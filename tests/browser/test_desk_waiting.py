"""What the desk says when it is not one ordinary pair: a second look, a pause, and pairs that others have."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.desks import Desks

pytestmark = pytest.mark.browser

PROJECTS = {"again": {"pairs": 24}, "paused": {"pairs": 3}, "others": {"pairs": 1}, "empty": {}}
SET = """
import json, sys
from labeling.models import Project
slug, values = json.loads(sys.stdin.read())
Project.objects.filter(slug=slug).update(**values)
"""
JUDGE = """
from django.contrib.auth.models import User
from labeling import queue
from labeling.models import Project
from labeling.own_places import reserve
project, user = Project.objects.get(slug="again"), User.objects.get(username="again")
for _ in range(22):
    queue.submit(project, queue.lease_next(project, user.pk).token, user.pk, "a")
Project.objects.filter(slug="again").update(repeat_percent=100)
reserve(Project.objects.get(slug="again"), user.pk)
"""
TAKE = """
from django.contrib.auth.models import User
from labeling import queue
from labeling.models import Project
from labeling.services import add_member
project, user = Project.objects.get(slug="others"), User.objects.create(username="somebody")
add_member(project=project, user=user, role="annotator")
queue.lease_next(project, user.pk)
"""


def _readable(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert [found["id"] for found in Axe().run(page).response["violations"]] == []


def test_a_second_look_says_that_it_is_one(desks: Desks) -> None:
    desk = desks("empty")
    desk.server.shell(JUDGE)
    desk = desks("again")
    desk.ready()
    expect(desk.page.locator("#desk .badge")).to_have_text("Second look")
    expect(desk.page.locator("#desk")).to_contain_text("Judge it as if it were new.")
    _readable(desk.page)
    desk.vote("1")
    assert [row["is_repeat"] for row in desk.arrived(23)] == [0] * 22 + [1]


def test_a_pause_is_told_and_ends_by_itself(desks: Desks) -> None:
    desk = desks("empty")
    desk.server.shell(SET, '["paused", {"is_paused": true}]')
    desk = desks("paused")
    title = desk.page.get_by_role("heading", level=1)
    expect(title).to_have_text("Paused")
    expect(desk.page.locator(".waiting")).to_contain_text("An admin has paused this project. Your judgements are safe.")
    expect(desk.page.locator(".votes")).to_be_hidden()
    _readable(desk.page)
    desk.page.keyboard.press("1")
    desk.server.shell(SET, '["paused", {"is_paused": false}]')
    desk.vote("2")
    assert [row["said"] for row in desk.arrived(1)] == ["right"]


def test_what_others_have_may_come_back(desks: Desks) -> None:
    desk = desks("empty")
    expect(desk.page.get_by_role("heading", level=1)).to_have_text("No prompts yet")
    desk.server.shell(TAKE)
    desk = desks("others")
    expect(desk.page.get_by_role("heading", level=1)).to_have_text("Nothing for you right now")
    expect(desk.page.locator(".waiting")).to_contain_text("1 pair is with other people.")
    _readable(desk.page)
