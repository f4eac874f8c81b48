"""The keys of the reviewer's desk, and its pages as assistive technology reads them."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from labeling.measure import measure_all
from labeling.models import Pair
from tests.labeling import crowd

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="module", autouse=True)
def beside_the_event_loop():
    """Playwright's loop runs in this thread, and no coroutine of ours in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield


@pytest.fixture
def signed_in(live_server, project, reviewer, sign_in, page):
    """A reviewer's page with three pairs to review, and a way to each address."""
    crowd.judge(project, crowd.people(project, 4), 40)
    Pair.objects.filter(pk__in=Pair.objects.order_by("pk")[:3]).update(review="conflict")
    measure_all()
    cookie = sign_in(reviewer).cookies["sessionid"].value
    page.context.add_cookies([{"name": "sessionid", "value": cookie, "url": live_server.url}])

    def go(path: str) -> None:
        page.goto(f"{live_server.url}/p/{project.slug}/{path}")
        page.wait_for_timeout(450)  # keys are deaf for a moment, so that a held one decides nothing

    return go


def test_keys_decide_pass_over_and_take_out(signed_in, page):
    first, second, third = Pair.objects.order_by("pk")[:3]
    signed_in("review/")
    page.get_by_label("Note (optional)").fill("1 and R are letters here.")
    page.keyboard.press("1")
    expect(page.get_by_label("Note (optional)")).to_have_value("1 and R are letters here.1")
    page.get_by_role("heading", name="Review").click()
    page.keyboard.press("2")
    expect(page.get_by_text("counts as “B is better” from now on")).to_be_visible()
    expect(page.get_by_role("link", name=f"Pair {second.pk}", exact=True)).to_be_visible()
    page.wait_for_timeout(450)
    page.keyboard.press("n")
    expect(page.get_by_role("link", name=f"Pair {third.pk}", exact=True)).to_be_visible()
    page.wait_for_timeout(450)
    page.keyboard.press("r")
    expect(page.get_by_text("was taken out")).to_be_visible()
    for pair in (first, second, third):
        pair.refresh_from_db()
    assert (first.adjudicated_choice, second.review, third.is_retired) == ("b", "conflict", True)
    assert first.adjudications.get().note == "1 and R are letters here.1"


def test_a_key_held_over_the_change_of_page_decides_nothing(signed_in, page):
    _first, second = Pair.objects.order_by("pk")[:2]
    signed_in("review/")
    page.keyboard.down("1")
    expect(page.get_by_role("link", name=f"Pair {second.pk}", exact=True)).to_be_visible()
    page.keyboard.down("1")
    page.wait_for_timeout(500)
    page.keyboard.up("1")
    second.refresh_from_db()
    assert second.adjudicated_choice == ""


@pytest.mark.parametrize("path", ["review/", "judgements/", "pairs/", "people/", "dashboard/", "me/"])
def test_pages_are_read_by_everybody_and_fit_on_a_phone(signed_in, page, path):
    page.set_viewport_size({"width": 390, "height": 844})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        signed_in(path)
        violations = Axe().run(page).response["violations"]
        assert [(found["id"], found["nodes"][0]["target"]) for found in violations] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
