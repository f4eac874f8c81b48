"""The annotate page in a browser: its keys, its next pair, its outbox, on every device and without JavaScript."""

from __future__ import annotations

import statistics

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.desks import ANOTHER_PAIR, PASSWORD, Desks

pytestmark = pytest.mark.browser

LONG = "\n\n".join(f"Paragraph {number} of a text that goes on. " + "And on. " * 30 for number in range(12))
LONGER = "\n\n".join(f"Another {number} of a text that goes on. " + "And on. " * 30 for number in range(24))
ARABIC = ("مرحبا بالعالم، هذا نص من اليمين إلى اليسار.", "هذه إجابة ثانية مكتوبة بالعربية.")
CHIPS = ["More correct", "Clearer", "Safer"]
DEVICES = {
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "zoomed": {"viewport": {"width": 720, "height": 450}, "device_scale_factor": 2, "color_scheme": "dark"},
    "calm": {"viewport": {"width": 1024, "height": 768}, "reduced_motion": "reduce"},
}
FITTED = {
    "texts": [(LONG, LONGER), ("A\n\n```\n" + "wide " * 60 + "\n```", "| a | b |\n|---|---|\n| 1 | 2 |")],
    "settings": {"reason_chips": CHIPS, "criteria": ["Correct", "Kind"]},
}
PROJECTS = {
    "votes": {"pairs": 9},
    "strength": {"pairs": 3},
    "skips": {"pairs": 5},
    "comment": {"pairs": 3},
    "rewrite": {"pairs": 3},
    "views": {"pairs": 2},
    "undo": {"pairs": 5},
    "panels": {"pairs": 3},
    "held": {"pairs": 4},
    "calm": {"pairs": 4},
    "remapped": {
        "pairs": 4,
        "keys": {"left": ["j"], "right": ["k"], "tie": ["space"], "focus": ["1"], "skip": ["x"]},
    },
    "why": {"pairs": 4, "settings": {"reason_chips": CHIPS}},
    "required": {"pairs": 3, "settings": {"reason_chips": CHIPS, "reasons_percent": 100}},
    "hundred": {"pairs": 102},
    "leaving": {"pairs": 4},
    "offline": {"pairs": 5},
    "reloaded": {"pairs": 4},
    "refused": {"pairs": 4},
    "tabs": {"pairs": 4},
    "orphan": {"pairs": 4},
    "signed-out": {"pairs": 4},
    "long": {"texts": [(LONG, LONGER)]},
    "arabic": {"texts": [ARABIC]},
    "waiting": {"pairs": 1},
    "touch": {"pairs": 4},
    "focus": {"pairs": 3, "settings": {"reason_chips": []}},
    "plain": {"pairs": 5},
    **{f"fits-{device}": FITTED for device in DEVICES},
    "around": {"pairs": 4},
    "newcomer": {"items": True},
}


# Keys


def test_each_key_of_a_vote_stores_its_side(desks: Desks) -> None:
    desk = desks("votes")
    keys = {"1": "left", "2": "right", "ArrowLeft": "left", "ArrowRight": "right", "3": "tie", "4": "both_bad"}
    seen = []
    for key in keys:
        desk.ready()
        seen.append(desk.text("left").strip())
        desk.vote(key)
    stored = desk.arrived(6)
    assert [row["said"] for row in stored] == list(keys.values())
    assert [row["left_text"] for row in stored] == seen, "left is what stood on the left"
    assert {row["is_strong"] for row in stored} == {0}
    assert all(0 < row["seconds"] < 60 for row in stored)
    expect(desk.page.locator("#today")).to_have_text("6")


def test_shift_says_much_better(desks: Desks) -> None:
    desk = desks("strength")
    desk.vote("Shift+Digit1")
    desk.vote("Shift+Digit2")
    assert [(row["said"], row["is_strong"]) for row in desk.arrived(2)] == [("left", 1), ("right", 1)]


def test_s_asks_why_and_a_digit_skips(desks: Desks) -> None:
    desk = desks("skips")
    menu = desk.page.locator("#skip-menu")
    for digit, count in (("2", 1), ("0", 2)):
        desk.ready()
        before = desk.key
        desk.page.keyboard.press("s")
        expect(menu).to_be_visible()
        desk.page.keyboard.press(digit)
        desk.moved_on(before)
        expect(menu).to_be_hidden()
        desk.until(lambda count=count: len(desk.skips()) == count, "the skip")
    desk.ready()
    before = desk.key
    desk.page.keyboard.press("s")
    expect(menu.get_by_role("button", name="I cannot judge this")).to_be_focused()
    desk.page.keyboard.press("Tab")
    desk.page.keyboard.press("Enter")  # by the focus alone
    desk.moved_on(before)
    desk.until(lambda: len(desk.skips()) == 3, "the third skip")
    assert desk.skips() == ["long", "", "long"]
    desk.ready()
    desk.page.keyboard.press("s")
    desk.page.keyboard.press("s")
    expect(menu).to_be_hidden()
    assert desk.judgements() == []


def test_digits_in_a_comment_are_text(desks: Desks) -> None:
    desk = desks("comment")
    desk.ready()
    before = desk.key
    desk.page.keyboard.press("c")
    comment = desk.page.get_by_label("Comment, for the people who review")
    expect(comment).to_be_focused()
    desk.page.keyboard.type("1 is ok, 2 is not. s u ?")
    desk.page.keyboard.press("Escape")
    expect(desk.page.locator("#desk-title")).to_be_focused()
    assert desk.key == before
    desk.vote("2")
    (row,) = desk.arrived(1)
    assert (row["said"], row["comment"]) == ("right", "1 is ok, 2 is not. s u ?")


def test_e_improves_the_better_one(desks: Desks) -> None:
    desk = desks("rewrite")
    desk.ready()
    text = desk.text("left").strip()
    desk.page.keyboard.press("e")
    field = desk.page.locator("#rewrite")
    expect(field).to_be_focused()
    desk.page.get_by_role("button", name="Start from left").click()
    assert field.input_value().strip() == text
    expect(field).to_be_focused()
    desk.page.keyboard.press("Control+End")
    desk.page.keyboard.type(" Better.")
    desk.page.keyboard.press("Escape")
    desk.page.keyboard.press("3")
    expect(desk.page.get_by_role("alert")).to_contain_text("A rewrite improves one response")
    desk.vote("1")
    (row,) = desk.arrived(1)
    assert (row["said"], row["rewrite"]) == ("left", f"{text} Better.")


def test_d_r_and_space_look_at_it_otherwise(desks: Desks) -> None:
    desk = desks("views")
    desk.ready()
    press, show = desk.page.keyboard.press, desk.page.locator
    press("d")
    expect(show(".difference")).to_have_count(2)
    expect(show(".difference ins, .difference del")).not_to_have_count(0)
    expect(show(".panes .reading").first).to_be_hidden()
    press("r")
    expect(show(".raw").nth(1)).to_be_visible()
    expect(show(".difference").first).to_be_hidden()
    press("r")
    expect(show(".panes .reading").first).to_be_visible()
    press("d")
    expect(show(".difference").first).to_be_visible()
    press("d")
    expect(show(".panes .reading").nth(1)).to_be_visible()
    for side in ("left", "right", "left"):
        press("Space")
        expect(show(f'[data-side="{side}"] [data-scrolls]')).to_be_focused()
    assert desk.judgements() == []


def test_undo_shows_the_old_answer_and_keeps_the_new_one(desks: Desks) -> None:
    desk = desks("undo")
    pressed = desk.page.locator('.votes [aria-pressed="true"]')
    for first, second, undo, said in (("1", "2", "u", "left"), ("3", "1", "Control+z", "equally good")):
        desk.ready()
        text = desk.text("left")
        desk.vote(first)
        desk.ready()
        following = desk.text("left")
        desk.page.keyboard.press(undo)
        expect(desk.page.locator("#desk .note")).to_contain_text(f"You chose {said}.")
        expect(pressed).to_have_count(1)
        assert desk.text("left") == text, "the sides are as they were"
        desk.vote(second)
        expect(pressed).to_have_count(0)
        assert desk.text("left") == following, "what was on the screen comes after it"
    stored = desk.arrived(4)
    assert [(row["said"], row["version"]) for row in stored if row["is_current"]] == [("right", 2), ("left", 2)]
    expect(desk.page.locator("#today")).to_have_text("2")


def test_panels_open_by_their_key_and_nothing_votes_behind_them(desks: Desks) -> None:
    desk = desks("panels")
    desk.ready()
    for key, panel, text in (("g", "#guidelines-panel", "Be kind."), ("?", "#help", "Read both responses")):
        shown = desk.page.locator(panel)
        desk.page.keyboard.press(key)
        expect(shown).to_contain_text(text)
        desk.page.keyboard.press("1")
        desk.page.keyboard.press("ArrowLeft")
        desk.page.keyboard.press("Escape")
        expect(shown).to_be_hidden()
        desk.page.keyboard.press(key)
        expect(shown).to_be_visible()
        desk.page.keyboard.press(key)
        expect(shown).to_be_hidden()
        desk.page.keyboard.press(key)
        shown.get_by_role("button", name="Close").press("Enter")
        expect(shown).to_be_hidden()
    desk.vote("3")
    assert [row["said"] for row in desk.arrived(1)] == ["tie"]


def test_a_held_key_votes_once(desks: Desks) -> None:
    desk = desks("held")
    desk.ready()
    before = desk.key
    desk.page.keyboard.down("1")
    desk.moved_on(before)
    desk.ready()
    shown = desk.key
    desk.page.keyboard.down("1")
    desk.page.keyboard.down("1")
    desk.page.keyboard.up("1")
    assert desk.key == shown
    desk.vote("2")
    assert [row["said"] for row in desk.arrived(2)] == ["left", "right"]


PRESS_AT_THE_SWAP = """() => new Promise((resolve) => {
  const told = (key) => ({ key, code: `Digit${key}`, bubbles: true });
  const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", told(key)));
  const before = document.getElementById("desk").dataset.key;
  new MutationObserver((_, observer) => {
    if (document.getElementById("desk").dataset.key === before) return;
    observer.disconnect();
    press("2");
    setTimeout(() => press("2"), 100);
    setTimeout(() => resolve(press("2")), 350);
  }).observe(document.getElementById("place"), { childList: true });
  press("1");
})"""


def test_nothing_is_taken_for_an_answer_right_after_the_swap(desks: Desks) -> None:
    desk = desks("calm")
    desk.ready()
    desk.has_next()
    desk.page.evaluate(PRESS_AT_THE_SWAP)
    shown = desk.key
    desk.ready()
    assert desk.key == shown
    desk.vote("4")
    assert [row["said"] for row in desk.arrived(2)] == ["left", "both_bad"]


def test_keys_of_ones_own_are_on_the_buttons(desks: Desks) -> None:
    desk = desks("remapped")
    desk.ready()
    caps = {"left": "J", "right": "K", "tie": "␣", "both_bad": "4", "skip": "X"}
    for action, cap in caps.items():
        expect(desk.page.locator(f'.bar [data-action="{action}"] kbd')).to_have_text(cap)
    expect(desk.page.locator('[data-action="left"]')).to_have_attribute("aria-keyshortcuts", "J")
    shown = desk.key
    desk.page.keyboard.press("1")
    expect(desk.page.locator('[data-side="left"] [data-scrolls]')).to_be_focused()
    desk.page.keyboard.press("2")
    desk.page.keyboard.press("s")
    assert desk.key == shown
    for key in ("k", "j", "Space"):
        desk.vote(key)
    assert [row["said"] for row in desk.arrived(3)] == ["right", "left", "tie"]


# Reasons


def test_reasons_after_the_vote(desks: Desks) -> None:
    desk = desks("why")
    desk.vote("1")
    strip = desk.page.get_by_role("group", name="Why? For the pair you have just judged")
    expect(strip).to_contain_text("You chose left.")
    for name in ("More correct", "Safer", "Clearer", "Safer"):
        strip.get_by_role("button", name=name).click()
    expect(strip.get_by_role("button", name="Clearer")).to_have_attribute("aria-pressed", "true")
    desk.until(lambda: desk.judgements()[0]["reasons"] == '["More correct", "Clearer"]', "the reasons")
    desk.vote("2")
    expect(strip.locator('[aria-pressed="true"]')).to_have_count(0)
    assert [(row["said"], row["reasons"]) for row in desk.arrived(2)] == [
        ("left", '["More correct", "Clearer"]'),
        ("right", "[]"),
    ]
    strip.get_by_role("button", name="Hide").click()
    expect(strip).to_be_hidden()


def test_a_required_reason_keeps_the_vote_back(desks: Desks) -> None:
    desk = desks("required")
    desk.ready()
    before = desk.key
    desk.page.keyboard.press("2")
    expect(desk.page.get_by_role("alert")).to_have_text("This pair needs a reason. Choose one, then press Enter.")
    desk.page.keyboard.press("Enter")
    assert desk.key == before
    for digit in ("1", "3", "1", "2"):
        desk.page.keyboard.press(digit)
    expect(desk.page.get_by_role("checkbox", name="Safer")).to_be_checked()
    expect(desk.page.get_by_role("checkbox", name="More correct")).not_to_be_checked()
    desk.page.keyboard.press("Enter")
    desk.moved_on(before)
    (row,) = desk.arrived(1)
    assert (row["said"], row["reasons"]) == ("right", '["Clearer", "Safer"]')
    desk.ready()
    desk.page.keyboard.press("1")
    expect(desk.page.get_by_role("alert")).not_to_be_empty()
    desk.page.keyboard.press("Escape")
    expect(desk.page.get_by_role("alert")).to_be_empty()  # and there, so that what it says next is read out


# The next pair

LABEL = """async (count) => {
  const desk = () => document.getElementById("desk");
  const root = document.documentElement;
  const until = (node, options, holds) => new Promise((resolve) => {
    if (holds()) return resolve();
    new MutationObserver((_, observer) => holds() && (observer.disconnect(), resolve())).observe(node, options);
  });
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  for (let number = 0; number < count; number += 1) {
    await until(root, { attributes: true }, () => root.dataset.ready === desk().dataset.key);
    const old = desk().dataset.key;
    const key = String((number % 4) + 1);
    const start = performance.now();
    document.dispatchEvent(new KeyboardEvent("keydown", { key, code: `Digit${key}`, bubbles: true }));
    const place = document.getElementById("place");
    const isNext = () => desk().dataset.key !== old && desk().dataset.state === "pair";
    await until(place, { childList: true, subtree: true }, isNext);
    await frame();
    await frame();
    times.push(performance.now() - start);
  }
  return times;
}"""


@pytest.mark.slow
def test_the_next_of_a_hundred_pairs_is_there_at_once(desks: Desks) -> None:
    desk = desks("hundred")
    desk.ready()
    desk.has_next()
    times = []
    for _ in range(5):
        times += desk.page.evaluate(LABEL, 20)
        assert sum(desk.leased()) <= 1, "one pair is held ahead, and no more"
    median = statistics.median(times)
    print(f"\nfrom the key to the next pair: median {median:.0f} ms, longest {max(times):.0f} ms")
    stored = desk.arrived(100)
    assert [row["said"] for row in stored] == ["left", "right", "tie", "both_bad"] * 25
    assert median <= 100


@pytest.mark.parametrize("leave", ["close", "navigate"])
def test_a_page_that_goes_gives_back_what_nobody_has_seen(desks: Desks, leave: str) -> None:
    desk = desks("leaving")
    desk.has_next()
    assert desk.leased() == [False, True]
    stays = desk.context.new_page()
    if leave == "close":
        desk.page.close(run_before_unload=True)
    else:
        desk.page.goto(f"{desk.url}/history/")
    desk.until(lambda: desk.leased() == [False], "what was held ahead is given back")
    stays.close()


# Kept answers


def test_answers_without_a_connection_are_kept_and_arrive(desks: Desks) -> None:
    desks.is_network_cut = True
    desk = desks("offline")
    desk.has_next()
    desk.context.set_offline(True)
    desk.vote("1")
    desk.ready()
    desk.page.keyboard.press("2")
    said = desk.page.locator("#desk-outbox")
    expect(said).to_contain_text("2 answers are kept on this device")
    expect(desk.page.locator("#desk-title")).to_contain_text("There is no connection")
    assert desk.judgements() == []
    desk.context.set_offline(False)
    assert [row["said"] for row in desk.arrived(2)] == ["left", "right"]
    expect(said).to_be_empty()
    desk.vote("3")
    assert [row["said"] for row in desk.arrived(3)] == ["left", "right", "tie"]
    expect(desk.page.locator("#today")).to_have_text("3")


def test_a_kept_answer_survives_a_reload(desks: Desks) -> None:
    desks.is_network_cut = True
    desk = desks("reloaded")
    desk.has_next()
    desk.page.route("**/annotate/submit/", lambda route: route.abort())
    desk.vote("1")
    said = desk.page.locator("#desk-outbox")
    expect(said).to_contain_text("Your answer is kept on this device")
    desk.page.reload()
    expect(said).to_contain_text("Your answer is kept on this device")
    assert desk.judgements() == []
    desk.page.unroute("**/annotate/submit/")
    assert [row["said"] for row in desk.arrived(1)] == ["left"]
    expect(said).to_be_empty()
    desk.vote("2")
    assert [row["said"] for row in desk.arrived(2)] == ["left", "right"]


def test_what_the_server_refuses_is_said_and_asked_again(desks: Desks) -> None:
    desks.is_network_cut = True  # a refusal is a red line in the console
    desk = desks("refused")
    desk.has_next()
    desk.ready()
    text = desk.text("left")
    desk.page.keyboard.press("c")
    desk.page.keyboard.type("With much care.")
    desk.page.get_by_role("checkbox", name="Clearer").check()
    desk.page.locator("#vote [name=token]").evaluate("(field) => { field.value = 'nonsense'; }")
    desk.page.locator("#desk-title").focus()
    desk.vote("1")
    expect(desk.page.get_by_role("alert")).to_contain_text("This pair could not be recognised.")
    assert desk.judgements() == []
    desk.vote("2")
    desk.ready()
    assert desk.text("left") == text, "it comes back, with what was said of it"
    desk.vote("3")
    said = [(row["said"], row["comment"], row["reasons"]) for row in desk.arrived(2)]
    assert said == [("right", "", "[]"), ("tie", "With much care.", '["Clearer"]')]


def test_two_tabs_show_one_pair_and_both_votes_are_one_judgement(desks: Desks) -> None:
    one = desks("tabs")
    two = one.tab().open()
    one.ready()
    two.ready()
    assert one.key == two.key
    one.vote("1")
    one.arrived(1)
    two.vote("2")
    expect(two.page.get_by_text("That pair was answered already; it counts once.")).to_be_visible()
    assert [row["said"] for row in one.arrived(1)] == ["left"]


def test_an_answer_whose_tab_is_gone_arrives_by_the_next(desks: Desks) -> None:
    desks.is_network_cut = True
    gone = desks("orphan")
    stays = gone.tab()
    gone.page.route("**/annotate/submit/", lambda route: route.abort())
    gone.vote("1")
    expect(gone.page.locator("#desk-outbox")).to_contain_text("Your answer is kept on this device")
    gone.page.close()
    stays.page.clock.install()
    stays.open()
    stays.page.clock.fast_forward(25_000)
    assert [row["said"] for row in stays.arrived(1)] == ["left"]


def test_signed_out_elsewhere(desks: Desks) -> None:
    desk = desks("signed-out")
    desk.has_next()
    other = desk.tab()
    other.page.goto(f"{desk.server.url}/")
    other.page.get_by_role("button", name="signed-out").click()
    other.page.get_by_role("button", name="Sign out").click()
    other.page.wait_for_url("**/sign-in/**")
    desk.vote("1")
    said = desk.page.locator("#desk-outbox")
    expect(said).to_contain_text("You are signed out. Sign in again in another tab")
    assert desk.judgements() == []
    other.page.get_by_label("Username").fill("signed-out")
    other.page.get_by_label("Password").fill(PASSWORD)
    other.page.get_by_role("button", name="Sign in").click()
    other.page.wait_for_url(lambda url: "/sign-in/" not in url)
    assert [row["said"] for row in desk.arrived(1)] == ["left"]
    expect(said).to_be_empty()
    desk.vote("2")
    assert [row["said"] for row in desk.arrived(2)] == ["left", "right"]


# Texts


def test_long_texts_are_cut_together_and_scroll_together(desks: Desks) -> None:
    desk = desks("long")
    desk.ready()
    left, right = (desk.page.locator(f'[data-side="{side}"] [data-scrolls]') for side in ("left", "right"))
    hidden = "(pane) => pane.scrollHeight - pane.clientHeight"
    heights = [pane.evaluate("(pane) => pane.clientHeight") for pane in (left, right)]
    assert heights[0] == heights[1] < 900
    assert min(left.evaluate(hidden), right.evaluate(hidden)) > 100
    left.evaluate("(pane) => { pane.scrollTop = (pane.scrollHeight - pane.clientHeight) / 2; }")
    share = "(pane) => pane.scrollTop / (pane.scrollHeight - pane.clientHeight)"
    desk.until(lambda: right.evaluate(share) == pytest.approx(0.5, abs=0.01), "the other follows")
    right.evaluate("(pane) => { pane.scrollTop = pane.scrollHeight; }")
    desk.until(lambda: left.evaluate(share) == pytest.approx(1, abs=0.01), "and the other way round")
    desk.page.get_by_role("button", name="Show all of both").click()
    assert [pane.evaluate(hidden) for pane in (left, right)] == [0, 0]
    desk.page.get_by_role("button", name="Show less of both").click()
    assert min(left.evaluate(hidden), right.evaluate(hidden)) > 100


def test_right_to_left_text_has_its_direction(desks: Desks) -> None:
    desk = desks("arabic")
    desk.ready()
    direction = "(element) => getComputedStyle(element).direction"
    for side in ("left", "right"):
        assert desk.page.locator(f'[data-side="{side}"] .reading p').evaluate(direction) == "rtl"
    desk.page.keyboard.press("r")
    assert desk.page.locator('[data-side="left"] .raw').evaluate(direction) == "rtl"
    boxes = [desk.page.locator(f'[data-side="{side}"]').bounding_box() for side in ("left", "right")]
    assert boxes[0]["x"] < boxes[1]["x"], "left stays left"


def test_waiting_goes_on_by_itself(desks: Desks) -> None:
    desk = desks("waiting")
    desk.ready()
    desk.page.keyboard.press("1")
    title = desk.page.get_by_role("heading", level=1)
    expect(title).to_have_text("You have done every pair here")
    expect(title).to_be_focused()
    expect(desk.page.locator("#announcer")).to_contain_text("You have done every pair here")
    expect(desk.page.locator(".votes")).to_be_hidden()
    desk.server.shell(ANOTHER_PAIR, "waiting")
    desk.ready()
    desk.page.keyboard.press("2")
    assert [row["said"] for row in desk.arrived(2)] == ["left", "right"]


# Everybody, on every device


def _fits(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    worst = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in worst] == []
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], "nothing to scroll sideways"


@pytest.mark.parametrize("device", DEVICES)
def test_everybody_can_read_it_and_it_fits(desks: Desks, device: str) -> None:
    desk = desks(f"fits-{device}", **DEVICES[device])
    page = desk.page
    desk.ready()
    _fits(page)
    page.get_by_text("Say more about this pair").click()
    _fits(page)
    for button, panel in (("Skip", "#skip-menu"), ("Guidelines", "#guidelines-panel"), ("Help", "#help")):
        page.locator(".bar").get_by_role("button", name=button).click()
        expect(page.locator(panel)).to_be_visible()
        _fits(page)
        page.keyboard.press("Escape")
        expect(page.locator(panel)).to_be_hidden()
    desk.has_next()
    desk.vote("1")
    expect(page.locator("#why")).to_be_visible()
    _fits(page)
    desk.ready()
    page.keyboard.press("2")
    expect(page.locator('#desk[data-state="waiting"]')).to_be_visible()
    _fits(page)


@pytest.mark.parametrize("device", ["phone", "zoomed"])
def test_the_pages_around_it_fit(desks: Desks, device: str) -> None:
    desk = desks("around", **DEVICES[device])
    desk.vote("1")
    for path in ("history/", "", "me/", "guidelines/"):
        desk.page.goto(f"{desk.url}/{path}")
        _fits(desk.page)
    newcomer = desks("newcomer", **DEVICES[device])
    newcomer.page.goto(f"{newcomer.url}/qualify/")
    _fits(newcomer.page)


def test_votes_by_touch(desks: Desks) -> None:
    desk = desks("touch", **DEVICES["phone"])
    for name in ("First is better", "Both bad"):
        desk.ready()
        before = desk.key
        desk.page.get_by_role("button", name=name).tap()
        desk.moved_on(before)
    desk.ready()
    before = desk.key
    desk.page.locator(".bar").get_by_role("button", name="Skip").tap()
    desk.page.get_by_role("button", name="Too long to read").tap()
    desk.moved_on(before)
    assert [row["said"] for row in desk.arrived(2)] == ["left", "both_bad"]
    desk.until(lambda: desk.skips() == ["long"], "the skip")


FOCUSED = """() => {
  const at = document.activeElement;
  const side = at.closest("[data-side]")?.dataset.side;
  const does = at.dataset.action || at.dataset.viewAs;
  return at.id || side || does || at.className || at.closest("details")?.className || at.tagName;
}"""


def test_the_focus_goes_through_the_page_in_order(desks: Desks) -> None:
    desk = desks("focus")
    desk.vote("1")
    expect(desk.page.locator("#desk-title")).to_be_focused()
    expect(desk.page.locator("#announcer")).to_have_text("You chose left. Next pair.")
    order = []
    for _ in range(15):
        desk.page.keyboard.press("Tab")
        order.append(desk.page.evaluate(FOCUSED))
    start = ["difference", "raw", "prompt", "prompt-text", "left", "right", "saying"]
    assert order[:7] == start
    assert order[7:] == [
        *("left", "right", "tie", "both_bad"),
        *("skip", "undo", "guidelines-button", "help-button"),
    ]


def test_without_javascript(desks: Desks) -> None:
    desk = desks("plain", java_script_enabled=False)
    page = desk.page
    page.get_by_text("Say more about this pair").click()
    page.get_by_label("Comment, for the people who review").fill("By hand.")
    page.get_by_role("button", name="Right is better").click()
    (row,) = desk.arrived(1)
    assert (row["said"], row["comment"]) == ("right", "By hand.")
    page.locator(".bar").get_by_role("button", name="Skip").click()
    page.get_by_role("button", name="Too long to read").click()
    desk.until(lambda: desk.skips() == ["long"], "the skip")
    page.get_by_role("button", name="Equally good").click()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("You chose equally good.")).to_be_visible()
    page.get_by_role("button", name="Left is better").click()
    stored = desk.arrived(3)
    assert [(row["said"], row["version"], row["is_current"]) for row in stored] == [
        ("right", 1, 1),
        ("tie", 1, 0),
        ("left", 2, 1),
    ]
