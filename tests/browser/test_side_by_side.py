"""From the family of checkpoints to two answers that grow beside each other, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Project
from tests.browser.test_accessible_pages import _is_well
from tests.training.test_outcome import DETAILS
from training.models import Checkpoint, SideBySide
from training.services import promote_checkpoint

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]


@pytest.fixture
def family(project: Project, policy: Checkpoint, make_checkpoint: Callable[..., Checkpoint]) -> list[Checkpoint]:
    """Three generations and a candidate beside them."""
    values: dict[str, Any] = {"project": project, "kind": "dpo", "details": DETAILS}
    one = make_checkpoint("one", parent=policy, **values)
    promote_checkpoint(project=project, checkpoint=one)
    two = make_checkpoint("two", parent=one, **values)
    promote_checkpoint(project=project, checkpoint=two)
    return [policy, one, two, make_checkpoint("candidate", parent=two, **values)]


def _write(asked: SideBySide, state: str, left: str, right: str, finish_reason: str = "") -> None:
    sides = {
        side: {"text": text, "tokens": len(text.split()), "finish_reason": finish_reason}
        for side, text in (("left", left), ("right", right))
    }
    values = {"answers": [{"prompt_id": "0", **sides}], "progress": {"phase": "answering"}}
    SideBySide.objects.filter(pk=asked.pk).update(state=state, **values)


def test_two_answers_are_read_while_they_are_written(visit: Visit, reviewer: User, family: list[Checkpoint]) -> None:
    page = visit(reviewer, "checkpoints/")
    _is_well(page, "the family")
    page.get_by_role("radio", name="Left: one").check()
    page.get_by_role("radio", name="Right: candidate").check()
    page.get_by_role("button", name="Compare side by side").click()
    page.get_by_label("Prompt", exact=True).fill("Why is the sky blue?")
    page.get_by_role("button", name="Let both answer").click()
    expect(page.get_by_role("heading", name="one and candidate")).to_be_visible()
    asked = SideBySide.objects.get()
    _write(asked, "running", "Because of", "Light")
    left, right = page.locator(".pane").all()
    expect(left.get_by_text("Because of")).to_be_visible()
    expect(right.get_by_text("Light")).to_be_visible()
    _write(asked, "succeeded", "Because of the light.", "Light is scattered.", "stop")
    expect(page.get_by_text("Light is scattered.")).to_be_visible()
    expect(page.locator("#answers[hx-get]")).to_have_count(0)
    _is_well(page, "both answers")
    one, two = (pane.bounding_box() for pane in page.locator(".pane").all())
    assert one["width"] == two["width"]
    assert one["y"] + one["height"] <= two["y"], "one below the other on a phone"
