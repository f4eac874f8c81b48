"""What becomes of answers when the network, the server, the storage or the account are not as they should be."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.browser.desks import PASSWORD, Desk, Desks, Server

pytestmark = pytest.mark.browser

CHIPS = ["More correct", "Clearer", "Safer"]
PROJECTS = {
    **{f"undo-{number}": {"pairs": 4} for number in range(5)},
    "double": {"pairs": 4},
    "skipped": {"pairs": 4},
    "reasons": {"pairs": 4, "settings": {"reason_chips": CHIPS}},
    "forbidden": {"pairs": 4},
    "stale": {"pairs": 4},
    "poison": {"pairs": 6},
    "discarded": {"pairs": 4},
    "odd": {"pairs": 4},
    "stopped": {"pairs": 4},
    "ada": {"pairs": 4},
    "ben": {"pairs": 4},
    "two-tabs": {"pairs": 4},
    "reopened": {"pairs": 4},
    "drafts": {"pairs": 4},
    "elsewhere": {"pairs": 4},
    "until": {"pairs": 1},
    "poll": {"pairs": 1},
}
SUBMIT = "**/annotate/submit/"


@pytest.fixture
def desks(browser: Browser, server: Server) -> Iterator[Desks]:
    desks = Desks(browser, server, is_network_cut=True)  # what is refused is a red line in the console
    yield desks
    desks.close()


def _answering(status: int, body: str = "<h1>Not now</h1>", kind: str = "text/html"):
    return lambda route: route.fulfill(status=status, body=body, content_type=kind)


def _unsaved(desk: Desk):
    return desk.page.locator("#desk-outbox")


def _try_now(desk: Desk) -> None:
    """Presses the button, if the page has not tried again by itself meanwhile."""
    desk.page.evaluate("document.querySelector('#desk-outbox button')?.click()")


def _said(desk: Desk, count: int) -> list[str]:
    return [row["said"] for row in desk.arrived(count) if row["is_current"]]


# Undo


def test_undo_right_after_a_vote_on_a_slow_network(desks: Desks) -> None:
    desk = desks("undo-0")
    desk.has_next()
    text = desk.text("left")
    held: list[Route] = []
    desk.page.route(SUBMIT, lambda route: held.append(route))
    voted = desk.vote("1")
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#desk-notice")).to_contain_text("your last answer is being saved first")
    desk.ready()
    desk.page.keyboard.press("2")  # meanwhile nothing votes
    (vote,) = held
    vote.continue_()
    desk.page.unroute(SUBMIT)
    expect(desk.page.locator("#desk .note")).to_contain_text("You chose left.")
    expect(desk.page.locator("#desk-notice")).to_be_empty()
    assert desk.text("left") == text
    assert desk.key != voted, "a lease of its own"
    desk.vote("2")
    assert _said(desk, 2) == ["right"]


def test_undo_without_a_connection_takes_back_what_was_not_sent(desks: Desks) -> None:
    desk = desks("undo-1")
    desk.has_next()
    text = desk.text("left")
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("Said once.")
    desk.page.locator("#desk-title").focus()
    desk.context.set_offline(True)
    voted = desk.vote("1")
    following = desk.text("left")
    expect(_unsaved(desk)).to_contain_text("Your answer is kept on this device")
    expect(desk.page.locator("#today")).to_have_text("1")
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#desk-notice")).to_contain_text("so it is taken back")
    expect(desk.page.locator("#today")).to_have_text("0")
    expect(_unsaved(desk)).to_be_empty()
    expect(desk.page.locator('.votes [aria-pressed="true"]')).to_have_attribute("value", "left")
    expect(desk.page.locator(".pane.is-previous")).to_have_attribute("data-side", "left")
    assert (desk.key, desk.text("left")) == (voted, text)
    desk.vote("2")
    assert desk.text("left") == following, "what was on the screen comes after it"
    desk.context.set_offline(False)
    (row,) = desk.arrived(1)
    assert (row["said"], row["comment"], row["version"]) == ("right", "Said once.", 1)


def test_undo_at_the_last_pair_on_the_device(desks: Desks) -> None:
    desk = desks("undo-2")
    desk.has_next()
    desk.context.set_offline(True)
    desk.vote("1")
    desk.ready()
    desk.page.keyboard.press("2")
    expect(desk.page.locator("#desk-title")).to_contain_text("There is no connection")
    for number in (2, 1):
        desk.page.keyboard.press("u")
        desk.ready()
        expect(desk.page.locator("#today")).to_have_text(str(number - 1))
    desk.page.wait_for_timeout(450)
    desk.page.keyboard.press("u")
    expect(desk.page.get_by_role("alert")).to_have_text("Nothing was undone: there is no connection to the server.")
    expect(_unsaved(desk)).to_be_empty()  # nothing is kept, so nothing is said to be
    desk.context.set_offline(False)
    desk.vote("3")
    desk.vote("4")
    assert _said(desk, 2) == ["tie", "both_bad"]


def test_an_unsaved_answer_from_before_a_reload_is_not_undone_unsaid(desks: Desks) -> None:
    desk = desks("undo-3")
    desk.has_next()
    desk.page.route(SUBMIT, lambda route: route.abort())
    desk.vote("1")
    expect(_unsaved(desk)).to_contain_text("Your answer is kept on this device")
    desk.page.reload()
    expect(_unsaved(desk)).to_contain_text("Your answer is kept on this device")
    desk.page.keyboard.press("u")
    expect(desk.page.get_by_role("alert")).to_have_text(
        "Your last answer is not saved yet. It can be undone once it is."
    )
    desk.page.unroute(SUBMIT)
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#desk .note")).to_contain_text("You chose left.")
    assert _said(desk, 1) == ["left"]


def test_undo_twice_in_a_moment_undoes_once(desks: Desks) -> None:
    desk = desks("double")
    desk.vote("1")
    desk.vote("2")
    desk.arrived(2)
    desk.ready()
    desk.page.keyboard.press("s")
    before = desk.key
    desk.page.keyboard.press("0")
    desk.moved_on(before)
    desk.until(lambda: desk.skips() == [""], "the skip")
    following = desk.key
    desk.page.keyboard.press("u")
    desk.moved_on(following)
    desk.page.keyboard.press("u")
    desk.ready()
    desk.page.wait_for_timeout(450)
    assert desk.skips() == [], "the skip is undone"
    expect(desk.page.locator("#desk .note")).to_have_count(0)
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#desk .note")).to_contain_text("You chose right.")


def test_undo_of_a_skip_that_is_not_sent(desks: Desks) -> None:
    desk = desks("skipped")
    desk.has_next()
    desk.ready()
    text = desk.text("left")
    desk.context.set_offline(True)
    before = desk.key
    desk.page.keyboard.press("s")
    desk.page.keyboard.press("2")
    desk.moved_on(before)
    expect(_unsaved(desk)).to_contain_text("Your answer is kept on this device")
    desk.page.keyboard.press("u")
    desk.ready()
    assert (desk.key, desk.text("left")) == (before, text)
    desk.page.keyboard.press("s")
    desk.page.keyboard.press("1")
    desk.moved_on(before)
    desk.context.set_offline(False)
    desk.until(lambda: desk.skips() == ["unsure"], "the second skip, and no other")
    assert desk.judgements() == []


def test_skipping_a_reopened_pair_says_what_it_withdraws_and_undo_brings_it_back(desks: Desks) -> None:
    desk = desks("reopened")
    warning = desk.page.get_by_text("Skipping it withdraws that answer.")
    desk.ready()
    desk.page.keyboard.press("s")
    expect(warning).to_be_hidden()
    desk.page.keyboard.press("s")
    desk.vote("1")
    desk.arrived(1)
    desk.page.keyboard.press("u")
    desk.ready()
    before = desk.key
    desk.page.keyboard.press("s")
    expect(warning).to_be_visible()
    desk.page.keyboard.press("0")
    desk.moved_on(before)
    desk.until(lambda: not desk.judgements()[0]["is_current"], "the answer is withdrawn")
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#desk .note")).to_contain_text("You chose left.")
    assert _said(desk, 1) == ["left"]


# Kept on the device


def test_a_skip_and_a_reason_without_a_connection_arrive(desks: Desks) -> None:
    desk = desks("reasons")
    desk.has_next()
    desk.context.set_offline(True)
    desk.vote("1")
    strip = desk.page.get_by_role("group", name="Why? For the pair you have just judged")
    strip.get_by_role("button", name="Clearer").click()
    strip.get_by_role("button", name="Safer").click()
    expect(_unsaved(desk)).to_contain_text("Your answer is kept on this device")
    desk.ready()
    desk.page.keyboard.press("s")
    desk.page.keyboard.press("2")
    expect(_unsaved(desk)).to_contain_text("2 answers are kept on this device")
    desk.context.set_offline(False)
    desk.until(lambda: desk.skips() == ["long"], "the skip")
    desk.until(lambda: desk.arrived(1)[0]["reasons"] == '["Clearer", "Safer"]', "the reasons")
    expect(_unsaved(desk)).to_be_empty()


def test_a_reason_of_an_answer_that_is_taken_back_comes_back_with_it(desks: Desks) -> None:
    desk = desks("reasons")
    desk.has_next()
    desk.context.set_offline(True)
    desk.vote("1")
    strip = desk.page.get_by_role("group", name="Why? For the pair you have just judged")
    strip.get_by_role("button", name="Safer").click()
    desk.page.keyboard.press("u")
    desk.ready()
    expect(desk.page.get_by_role("checkbox", name="Safer")).to_be_checked()
    expect(_unsaved(desk)).to_be_empty()
    desk.context.set_offline(False)


FORBIDDEN = """for (const name of ["getItem", "setItem", "removeItem"]) {
  Storage.prototype[name] = () => { throw new DOMException("denied", "SecurityError"); };
}"""


def test_where_nothing_may_be_stored_the_page_says_so_and_goes_on(desks: Desks) -> None:
    desk = desks("forbidden")
    desk.page.add_init_script(FORBIDDEN)
    desk.page.reload()
    desk.has_next()
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("Said.")
    desk.page.locator("#desk-title").focus()
    desk.page.route(SUBMIT, lambda route: route.abort())
    desk.vote("1")
    expect(_unsaved(desk)).to_contain_text("this browser keeps nothing for later. Stay on this page")
    desk.page.once("dialog", lambda dialog: dialog.dismiss())
    with desk.page.expect_event("dialog") as asked:
        desk.page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    desk.page.unroute(SUBMIT)
    (row,) = desk.arrived(1)
    assert (row["said"], row["comment"]) == ("left", "Said.")
    expect(_unsaved(desk)).to_be_empty()


def test_a_page_that_is_older_than_the_session_asks_for_a_reload(desks: Desks) -> None:
    desk = desks("stale")
    desk.has_next()
    desk.page.route(SUBMIT, _answering(403))
    desk.vote("1")
    expect(_unsaved(desk)).to_contain_text("This page was open across a sign-in or sign-out.")
    desk.page.unroute(SUBMIT)
    _unsaved(desk).get_by_role("button", name="Reload").click()
    assert _said(desk, 1) == ["left"]
    expect(_unsaved(desk)).to_be_empty()
    desk.vote("2")
    assert _said(desk, 2) == ["left", "right"]


def _poisoned(desk: Desk, status: int, body: str = "<h1>Error</h1>", kind: str = "text/html") -> str:
    """From now on the server fails at the answer to the pair that is on the screen, and at no other."""
    token = desk.page.locator("#vote [name=token]").input_value()
    fail = _answering(status, body, kind)
    desk.page.route(
        SUBMIT, lambda route: fail(route) if token in (route.request.post_data or "") else route.continue_()
    )
    return desk.key


@pytest.mark.parametrize("status", [500, 413, 404, 502])
def test_an_answer_that_always_fails_holds_up_no_other(desks: Desks, status: int) -> None:
    desk = desks("poison")
    desk.has_next()
    desk.ready()
    _poisoned(desk, status)
    before = len(desk.judgements())
    desk.vote("1")
    desk.vote("2")
    assert [row["said"] for row in desk.arrived(before + 1)][-1] == "right"
    kept = "Your answer is kept on this device and will be sent again."
    expect(_unsaved(desk)).to_contain_text(kept)
    if status != 502:
        expect(_unsaved(desk)).to_contain_text(f"The server answered with error {status}.")
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#desk .note")).to_contain_text("You chose right.")
    desk.page.reload()
    expect(_unsaved(desk)).to_contain_text(kept)
    desk.ready()
    desk.page.unroute(SUBMIT)
    _try_now(desk)
    assert [row["said"] for row in desk.arrived(before + 2)][-1] == "left"
    expect(_unsaved(desk)).to_be_empty()


def test_a_failing_answer_can_be_discarded_and_its_pair_comes_back(desks: Desks) -> None:
    desk = desks("discarded")
    desk.has_next()
    desk.ready()
    text = desk.text("left")
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("Too long, perhaps.")
    desk.page.locator("#desk-title").focus()
    failing = _poisoned(desk, 413)
    desk.vote("1")
    _unsaved(desk).get_by_role("button", name="Discard it").click()
    expect(_unsaved(desk)).to_be_empty()
    expect(desk.page.locator("#desk-notice")).to_contain_text("You will be asked about that pair again.")
    desk.has_next()
    desk.page.unroute(SUBMIT)
    desk.vote("2")
    desk.ready()
    assert (desk.key, desk.text("left")) == (failing, text)
    expect(desk.page.get_by_label("Comment, for the people who review")).to_have_value("Too long, perhaps.")
    desk.vote("3")
    assert _said(desk, 2) == ["right", "tie"]


@pytest.mark.parametrize("status", [200, 202])
def test_a_page_from_something_in_between_swallows_no_answer(desks: Desks, status: int) -> None:
    desk = desks("odd")
    desk.has_next()
    before = len(desk.judgements())
    for address in (SUBMIT, "**/annotate/?*", "**/annotate/renew/"):
        desk.page.route(address, _answering(status, "<h1>Down for maintenance</h1>"))
    desk.vote("1")
    expect(_unsaved(desk)).to_contain_text("Something other than Tiebreak has answered")
    desk.page.unroute_all()
    _try_now(desk)
    assert [row["said"] for row in desk.arrived(before + 1)][-1] == "left"
    expect(_unsaved(desk)).to_be_empty()


def test_an_answer_that_is_led_elsewhere_is_kept(desks: Desks) -> None:
    desk = desks("stopped")
    desk.has_next()
    headers = {"HX-Redirect": "/p/stopped/guidelines/"}
    desk.page.route(SUBMIT, lambda route: route.fulfill(status=200, headers=headers))
    desk.vote("1")
    expect(_unsaved(desk)).to_contain_text("Something else comes first here.")
    desk.page.unroute(SUBMIT)
    _unsaved(desk).get_by_role("button", name="Go on").click()
    desk.page.wait_for_url("**/guidelines/")
    desk.open()
    assert _said(desk, 1) == ["left"]


# Accounts and tabs


def _sign_in(desk: Desk, name: str) -> None:
    desk.page.goto(f"{desk.server.url}/sign-in/")
    desk.page.get_by_label("Username").fill(name)
    desk.page.get_by_label("Password").fill(PASSWORD)
    desk.page.get_by_role("button", name="Sign in").click()
    desk.page.wait_for_url(lambda url: "/sign-in/" not in url)


def test_another_account_neither_sends_nor_undoes_nor_sees_anything(desks: Desks) -> None:
    ada = desks("ada")
    ada.has_next()
    ada.vote("1")
    ada.arrived(1)
    ben = ada.tab()
    ben.slug = "ben"
    ben.context.clear_cookies()
    _sign_in(ben, "ben")
    ben.open()
    ben.vote("2")
    ben.arrived(1)
    ada.vote("3")
    expect(_unsaved(ada)).to_contain_text("Another account is signed in in this browser now.")
    ada.page.keyboard.press("u")
    ada.ready()
    ada.vote("4")
    expect(_unsaved(ada)).to_contain_text("Another account is signed in in this browser now.")
    assert _said(ben, 1) == ["right"]
    assert _said(ada, 1) == ["left"]
    ben.context.clear_cookies()
    _sign_in(ben, "ada")
    _try_now(ada)
    assert _said(ada, 2) == ["left", "both_bad"]
    expect(_unsaved(ada)).to_be_empty()


def test_a_tab_that_closes_leaves_the_other_its_next_pair(desks: Desks) -> None:
    one = desks("two-tabs")
    one.has_next()
    two = one.tab().open()
    two.has_next()
    two.page.goto(f"{two.url}/history/")
    one.page.wait_for_timeout(300)
    assert one.leased() == [False, True]
    one.has_next()
    two.open().has_next()
    one.page.close(run_before_unload=True)
    two.page.wait_for_timeout(300)
    assert two.leased() == [False, True]
    two.page.goto(f"{two.url}/history/")
    two.until(lambda: two.leased() == [False], "the last one gives it back")


# Drafts


def test_what_is_half_typed_survives_a_reload_and_ends_with_the_answer(desks: Desks) -> None:
    desk = desks("drafts")
    desk.ready()
    text = desk.text("right").strip()
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("Half a sen")
    desk.page.get_by_role("button", name="Start from right").click()
    desk.page.reload()
    desk.ready()
    expect(desk.page.get_by_label("Comment, for the people who review")).to_have_value("Half a sen")
    expect(desk.page.locator("#rewrite")).to_have_value(re.compile(re.escape(text)))
    desk.page.locator("#rewrite").fill("")
    desk.page.keyboard.press("Escape")
    desk.vote("1")
    desk.arrived(1)
    desk.ready()
    expect(desk.page.get_by_label("Comment, for the people who review")).to_have_value("")
    desk.page.reload()
    desk.ready()
    expect(desk.page.get_by_label("Comment, for the people who review")).to_have_value("")
    assert "Half a sen" not in desk.page.evaluate("JSON.stringify(sessionStorage)")
    assert desk.arrived(1)[0]["comment"] == "Half a sen"


# Elsewhere


def test_other_pages_say_that_answers_wait(desks: Desks) -> None:
    desk = desks("elsewhere")
    desk.has_next()
    desk.page.route(SUBMIT, lambda route: route.abort())
    desk.vote("1")
    desk.ready()
    desk.page.keyboard.press("2")
    expect(_unsaved(desk)).to_contain_text("2 answers are kept on this device")
    expect(desk.page.locator("#unsent")).to_be_empty()
    waiting = desk.page.locator("#unsent .note")
    desk.page.goto(f"{desk.url}/history/")
    expect(waiting).to_contain_text("2 answers wait on this device and are not saved yet.")
    desk.page.get_by_role("button", name="elsewhere", exact=True).click()
    desk.page.get_by_role("button", name="Sign out").click()
    desk.page.wait_for_url("**/sign-in/**")
    expect(waiting).to_contain_text(
        "2 answers wait on this device and are not saved yet. Sign in as before to save everything."
    )
    _sign_in(desk, "ben")
    expect(waiting).to_have_count(0)
    desk.context.clear_cookies()
    _sign_in(desk, "elsewhere")
    desk.page.unroute(SUBMIT)
    waiting.get_by_role("link", name="Go to elsewhere and send").click()
    assert _said(desk, 2) == ["left", "right"]
    desk.page.goto(f"{desk.url}/history/")
    expect(waiting).to_have_count(0)


# Waiting


POLL = "**/annotate/?*"
A_POLL_LATER = 12_000  # milliseconds: the page asks every five seconds


def _done(desk: Desk) -> None:
    desk.ready()
    desk.page.keyboard.press("1")
    expect(desk.page.get_by_role("heading", level=1)).to_have_text("You have done every pair here")


def test_why_nothing_is_there_is_told_anew_and_read_out_once(desks: Desks) -> None:
    desk = desks("until")
    _done(desk)

    def later(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("Thank you.", "In about 3 minutes."))

    desk.page.evaluate("document.getElementById('announcer').textContent = 'Silence.'")
    desk.page.route(POLL, later)
    expect(desk.page.locator(".waiting")).to_contain_text("In about 3 minutes.", timeout=A_POLL_LATER)
    expect(desk.page.locator("#announcer")).to_have_text("Silence.")


def test_a_failing_poll_speaks_of_no_answers(desks: Desks) -> None:
    desk = desks("poll")
    _done(desk)
    for status in (502, 500):
        desk.page.route(POLL, _answering(status))
        with desk.page.expect_response(lambda answer, status=status: answer.status == status):
            pass
        desk.page.wait_for_timeout(100)
        expect(_unsaved(desk)).to_be_empty()
        desk.page.unroute(POLL)
    desk.page.route("**/annotate/undo/", _answering(502))
    desk.page.keyboard.press("u")
    expect(desk.page.get_by_role("alert")).to_have_text("Nothing was undone: there is no connection to the server.")
    expect(_unsaved(desk)).to_be_empty()
    expect(desk.page.get_by_role("heading", level=1)).to_have_text("You have done every pair here")


def test_a_poll_that_finds_nobody_signed_in_says_so_until_somebody_is(desks: Desks) -> None:
    desk = desks("undo-4")
    desk.ready()
    desk.page.route(POLL, lambda route: route.fulfill(status=200, headers={"HX-Redirect": "/sign-in/"}))
    desk.page.evaluate("document.getElementById('desk').dataset.state = 'moment'")  # so that it asks
    expect(_unsaved(desk)).to_contain_text("You are signed out.", timeout=A_POLL_LATER)
    desk.page.unroute(POLL)
    _try_now(desk)
    expect(_unsaved(desk)).to_be_empty()
