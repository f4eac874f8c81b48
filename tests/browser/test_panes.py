"""Two responses lie beside each other in their frames wherever they are compared, and below each other on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from labeling.models import Pair, Project
from labeling.qualification_items import ItemContent, add_items
from tests.conftest import MakePair

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

Visit = Callable[..., Page]
LONG = "\n\n".join(f"Paragraph {number}. " + "And on. " * 30 for number in range(12))


@pytest.fixture
def item(project: Project) -> None:
    question = [{"role": "user", "content": LONG}]
    add_items(project=project, contents=[ItemContent(question, "First", "Second", "a", "Because.")])


@pytest.fixture
def waiting(make_pair: MakePair, make_prompt: Callable[..., object]) -> Pair:
    pair = make_pair(prompt=make_prompt(LONG))
    Pair.objects.update(review="conflict")
    return pair


def _panes(page: Page) -> list[dict[str, float]]:
    boxes = [pane.bounding_box() for pane in page.locator(".pane").all()]
    assert len(boxes) == 2
    return [dict(box) for box in boxes if box]


def _has_frame(page: Page) -> bool:
    return bool(page.locator(".pane").first.evaluate("pane => getComputedStyle(pane).borderTopWidth === '1px'"))


def _lie_beside(page: Page) -> None:
    left, right = _panes(page)
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert _has_frame(page)
    assert page.locator(".prompt-text").evaluate("text => text.clientHeight < innerHeight / 3 && text.scrollTop === 0")


def test_of_the_qualification_set(visit: Visit, annotator: User, item: None) -> None:
    page = visit(annotator, "qualify/?start=1")
    _lie_beside(page)
    assert page.get_by_role("button", name="Left is better").inner_text().split("\n")[-1].strip() == "Left is better"
    votes, window = page.locator(".bar").bounding_box(), page.viewport_size
    assert votes
    assert window
    assert votes["y"] + votes["height"] == window["height"], "the bar stands at the bottom"
    page.keyboard.press("1")
    expect(page.locator(".badge", has_text="your choice")).to_be_visible()
    _lie_beside(page)


def test_of_the_review(visit: Visit, reviewer: User, waiting: Pair) -> None:
    for path in ("review/", f"pairs/{waiting.pk}/"):
        page = visit(reviewer, path)
        _lie_beside(page)
        facts, texts = page.locator(".pair-facts").bounding_box(), _panes(page)
        assert facts
        assert facts["y"] + facts["height"] <= texts[0]["y"], "what is known of the pair stands above it"


@pytest.mark.parametrize("path", ["qualify/?start=1", "review/"])
def test_on_a_phone(visit: Visit, reviewer: User, waiting: Pair, item: None, path: str) -> None:
    page = visit(reviewer, "me/")
    page.set_viewport_size({"width": 390, "height": 844})
    page = visit(reviewer, path)
    first, second = _panes(page)
    assert first["x"] == second["x"]
    assert first["y"] + first["height"] < second["y"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if path.startswith("qualify"):
        assert "First is better" in page.get_by_role("button", name="First is better").inner_text()
