"""Keys of the annotate page: the usual ones, one's own, and those that cannot be."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import AnonymousUser
from django.urls import reverse
from django.utils import translation
from hypothesis import given
from hypothesis import strategies as st

from labeling.exceptions import LabelingError
from labeling.keys import ACTIONS, USUAL, KeysRejected, check_key, check_keys, keys_of, name_of, save_keys
from labeling.models import KeyMap


def test_the_usual_keys_are_allowed_and_none_stands_twice():
    assert check_keys(dict(USUAL)) == USUAL == check_keys({})
    assert set(ACTIONS) == set(USUAL)


@pytest.mark.parametrize("name", ["Tab", "enter", "Escape", "F5", "ctrl", "PageUp", "Backspace", "Dead"])
def test_what_belongs_to_the_browser_is_refused(name):
    with pytest.raises(Exception, match="belongs to the browser"):
        check_key(name)


@pytest.mark.parametrize("text", ["ctrl+s", "ab", "\u0301", "\u200b", "ß ß"])
def test_one_key_is_one_key(text):
    with pytest.raises(Exception, match="not one key"):
        check_key(text)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("A", "a"),
        (" ", "space"),
        ("Space", "space"),
        ("←", "ArrowLeft"),
        ("arrowleft", "ArrowLeft"),
        ("", ""),
        ("Ö", "ö"),
    ],
)
def test_keys_as_people_write_them(typed, key):
    assert check_key(typed) == key


@given(st.text(max_size=3))
def test_a_key_is_kept_as_one_word_or_refused(text):
    try:
        key = check_key(text)
    except LabelingError:
        return
    assert key == "" or (len(key.split()) == 1 and check_key(name_of(key)) == key)


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_name_that_is_shown_can_be_typed(language):
    with translation.override(language):
        for keys in USUAL.values():
            assert [check_key(name_of(key)) for key in keys] == list(keys)


def test_a_key_for_two_actions_is_told_at_the_second():
    with pytest.raises(KeysRejected) as refusal:
        check_keys({"comment": ["s"], "skip": ["s"]})
    assert set(refusal.value.problems) == {"comment"}
    assert "Skip the pair" in refusal.value.problems["comment"]
    with pytest.raises(KeysRejected):
        check_keys({"comment": ["u"]})  # the usual one of undo
    with pytest.raises(KeysRejected, match="not an action"):
        check_keys({"explode": ["x"]})
    with pytest.raises(KeysRejected, match="At most"):
        check_keys({"skip": ["x", "y", "z"]})


def test_own_keys_are_kept_by_person(annotator, other_annotator):
    save_keys(user=annotator, keys={"left": ["F", "←"], "focus": ["1"]})
    assert keys_of(annotator)["left"] == ["f", "ArrowLeft"]
    assert keys_of(annotator)["focus"] == ["1"]
    assert KeyMap.objects.get().keys == {"left": ["f", "ArrowLeft"], "focus": ["1"]}
    usual = {action: list(keys) for action, keys in USUAL.items()}
    assert keys_of(other_annotator) == keys_of(AnonymousUser()) == usual


def test_a_usual_key_of_a_later_version_does_not_take_ones_own(annotator):
    KeyMap.objects.create(user=annotator, keys={"comment": ["s"], "gone": ["x"]})
    keys = keys_of(annotator)
    assert (keys["comment"], keys["skip"]) == (["s"], [])
    assert "gone" not in keys


def test_the_page_saves_refuses_and_resets(annotator, sign_in):
    client, address = sign_in(annotator), reverse("keys")
    page = client.get(address).content.decode()
    assert "Left is better, key 1" in page
    fields = {action: [name_of(key) for key in keys] for action, keys in USUAL.items()}
    assert client.post(address, fields | {"skip": ["X", ""]}).status_code == 302
    assert keys_of(annotator)["skip"] == ["x"]
    refused = client.post(address, fields | {"skip": ["Tab", ""]})
    assert refused.status_code == 400
    assert 'value="Tab"' in refused.content.decode()
    assert keys_of(annotator)["skip"] == ["x"]
    client.post(address, {"do": "reset"})
    assert keys_of(annotator)["skip"] == ["s"]
