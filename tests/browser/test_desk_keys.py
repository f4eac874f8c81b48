"""Keys as keyboards send them: with Shift, from the number block, on other layouts, and keys of one's own."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.desks import Desk, Desks

pytestmark = pytest.mark.browser

PROJECTS = {
    "arrows": {"pairs": 4, "settings": {"asks_strength": True}},
    "block": {"pairs": 8},
    "azerty": {"pairs": 4},
    "own": {"pairs": 5, "keys": {"left": ["j", "1"], "right": ["k", "2"], "skip": ["!"]}},
    "chooser": {},
    **{f"layout-{name}": {"pairs": 3} for name in ("russian", "hebrew", "ime")},
}


def _send(desk: Desk, key: str, code: str, *, shift: bool = False, ctrl: bool = False) -> None:
    """A key press as another keyboard's: what it says and where it lies need not agree."""
    session = desk.context.new_cdp_session(desk.page)
    told = {"key": key, "code": code, "modifiers": 2 * ctrl + 8 * shift, "windowsVirtualKeyCode": 0}
    for kind in ("rawKeyDown", "keyUp"):
        session.send("Input.dispatchKeyEvent", {"type": kind} | told)
    session.detach()


def _votes(desk: Desk, *presses: tuple[str, str]) -> list[str]:
    for key, code in presses:
        desk.ready()
        before = desk.key
        _send(desk, key, code)
        desk.moved_on(before)
    return [row["said"] for row in desk.arrived(len(presses))]


def test_shift_and_an_arrow_say_much_better(desks: Desks) -> None:
    desk = desks("arrows")
    for key in ("Shift+ArrowLeft", "Shift+ArrowRight", "ArrowRight"):
        desk.vote(key)
    said = [(row["said"], row["is_strong"]) for row in desk.arrived(3)]
    assert said == [("left", 1), ("right", 1), ("right", 0)]


def test_the_number_block_is_digits_or_arrows(desks: Desks) -> None:
    desk = desks("block")
    digits = [("1", "Numpad1"), ("2", "Numpad2"), ("3", "Numpad3"), ("4", "Numpad4")]
    arrows = [("ArrowLeft", "Numpad4"), ("ArrowRight", "Numpad6")]
    assert _votes(desk, *digits, *arrows) == ["left", "right", "tie", "both_bad", "left", "right"]
    desk.ready()
    shown = desk.key
    for key, code in (("End", "Numpad1"), ("ArrowDown", "Numpad2"), ("PageDown", "Numpad3")):
        _send(desk, key, code)
    desk.page.wait_for_timeout(300)
    assert desk.key == shown, "without NumLock they scroll"


def test_digits_by_their_place_where_the_row_says_something_else(desks: Desks) -> None:
    desk = desks("azerty")
    assert _votes(desk, ("&", "Digit1"), ("é", "Digit2"), ('"', "Digit3")) == ["left", "right", "tie"]


def test_a_key_of_ones_own_with_shift_and_one_that_shares_a_digits_place(desks: Desks) -> None:
    desk = desks("own")
    for key in ("Shift+j", "Shift+K", "Shift+Digit2"):
        desk.vote(key)
    said = [(row["said"], row["is_strong"]) for row in desk.arrived(3)]
    assert said == [("left", 1), ("right", 1), ("right", 1)]
    desk.ready()
    shown = desk.key
    desk.page.keyboard.press("Shift+Digit1")
    expect(desk.page.locator("#skip-menu")).to_be_visible()
    assert desk.key == shown, "it was chosen for skip, and is no vote"


@pytest.mark.parametrize(
    ("layout", "help_key", "letters"),
    [
        ("russian", ("?", "Digit7"), {"KeyS": "ы", "KeyG": "п", "KeyR": "к", "KeyZ": "я"}),
        ("hebrew", ("?", "Slash"), {"KeyS": "ד", "KeyG": "ע", "KeyR": "ר", "KeyZ": "ז"}),
        ("ime", ("?", "Slash"), {"KeyS": "Process", "KeyG": "Process", "KeyR": "Process", "KeyZ": "Process"}),
    ],
)
def test_letters_by_their_place_where_none_is_latin(
    desks: Desks, layout: str, help_key: tuple[str, str], letters: dict[str, str]
) -> None:
    desk = desks(f"layout-{layout}")
    desk.vote("1")
    desk.ready()
    for code, panel in (("KeyS", "#skip-menu"), ("KeyG", "#guidelines-panel")):
        _send(desk, letters[code], code)
        expect(desk.page.locator(panel)).to_be_visible()
        _send(desk, letters[code], code)
        expect(desk.page.locator(panel)).to_be_hidden()
    _send(desk, *help_key, shift=True)
    expect(desk.page.locator("#help")).to_be_visible()
    desk.page.keyboard.press("Escape")
    _send(desk, letters["KeyR"], "KeyR")
    expect(desk.page.locator(".raw").first).to_be_visible()
    _send(desk, letters["KeyZ"], "KeyZ", ctrl=True)
    expect(desk.page.locator("#desk .note")).to_contain_text("You chose left.")


def test_a_latin_letter_means_itself_wherever_it_lies(desks: Desks) -> None:
    desk = desks("azerty")
    desk.ready()
    _send(desk, "q", "KeyS")
    _send(desk, "o", "KeyS")  # where s lies elsewhere
    expect(desk.page.locator("#skip-menu")).to_be_hidden()
    _send(desk, "s", "Semicolon")
    expect(desk.page.locator("#skip-menu")).to_be_visible()


def test_a_digit_with_shift_is_chosen_as_the_digit(desks: Desks) -> None:
    desk = desks("chooser")
    desk.page.goto(f"{desk.server.url}/keys/")
    field = desk.page.get_by_label("Skip the pair, key 1")
    for pressed, shown in (("Shift+Digit1", "1"), ("Shift+Slash", "?"), ("Digit5", "5"), ("Shift+KeyX", "X")):
        field.press(pressed)
        expect(field).to_have_value(shown)
    field.focus()
    for key, code, shown in (("7", "Numpad7", "7"), ("ArrowLeft", "Numpad4", "←"), ("Home", "Numpad7", "←")):
        _send(desk, key, code)
        expect(field).to_have_value(shown)
