"""What counts as a prompt, and which side of the split it falls on."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labeling.prompts import (
    HELD_OUT_PERCENT,
    MAX_PROMPT_CHARACTERS,
    InvalidPrompt,
    content_hash,
    is_held_out,
    normalise,
    parse_prompt,
)


def test_a_text_is_one_user_message():
    assert parse_prompt("Hello") == [{"role": "user", "content": "Hello"}]


def test_a_chat_may_start_with_a_system_message_and_takes_turns():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "مرحبا 👋"},
    ]
    assert parse_prompt(chat) == chat


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ([], "a prompt is a text or a list"),
        (7, "a prompt is a text or a list"),
        ("nul \x00 byte", "NUL"),
        ("half \ud800 pair", "surrogate"),
        ("x" * (MAX_PROMPT_CHARACTERS + 1), "at most 200,000"),
        ([{"role": "user"}], "needs a “role” and a “content”"),
        ([{"role": "robot", "content": "x"}], "role “robot”"),
        ([{"role": "assistant", "content": "x"}], "last message must be the user's"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "take turns"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "only be the first"),
    ],
)
def test_what_is_not_a_prompt_is_refused_with_the_reason(value, reason):
    with pytest.raises(InvalidPrompt, match=reason):
        parse_prompt(value)


def test_a_huge_prompt_within_the_limit_is_kept():
    assert len(parse_prompt("x" * MAX_PROMPT_CHARACTERS)[0]["content"]) == MAX_PROMPT_CHARACTERS


@pytest.mark.parametrize("other", ["what IS it?", " What  is\nit?\t", "Ｗhat is it?"])
def test_prompts_that_read_alike_have_one_hash(other):
    assert content_hash(parse_prompt("What is it?")) == content_hash(parse_prompt(other))


def test_the_roles_are_part_of_the_hash():
    system = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert content_hash(system) != content_hash([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


@settings(deadline=None)
@given(st.text())
@example("\u1c82\u0308")
@example("\u00df\u0301")
@example("\u1e9e\u0323 \u0130")
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def test_the_split_is_frozen_and_near_its_share():
    hashes = [content_hash(parse_prompt(f"Prompt {number}")) for number in range(4000)]
    share = sum(map(is_held_out, hashes)) / len(hashes)
    assert abs(share - HELD_OUT_PERCENT / 100) < 0.03
    # These never change: a prompt that moved across the split would leak what was trained on into the evaluation.
    assert content_hash(parse_prompt("Prompt 0"))[:16] == "a4af4c045697f206"
    assert [number for number in range(12) if is_held_out(hashes[number])] == [6]
