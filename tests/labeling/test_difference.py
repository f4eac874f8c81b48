"""What two responses have in common, word by word, and what comparing hostile ones costs."""

import random
import re
from html import unescape
from time import process_time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labeling.difference import difference
from labeling.invisible import name_invisible

words = st.lists(
    st.sampled_from(["the ", "cat ", "sat", ".", "\n", "今日は", "<b>", "&", "don't ", "हिन्दी ", "  ", "A. B? "]),
    max_size=40,
).map("".join)


def plain(html):
    return unescape(re.sub(r"<[^>]*>", "", html))


def unmarked(html):
    return plain(re.sub(r"<(del|ins)>.*?</\1>", "", html, flags=re.DOTALL))


@settings(deadline=None)
@given(st.one_of(words, st.text()), st.one_of(words, st.text()))
@example("", "")
@example("a", "")
def test_without_marks_the_texts_are_themselves_and_without_the_marked_parts_they_are_equal(left, right):
    told = difference(left, right)
    assert name_invisible(plain(told.left_html)) == name_invisible(left) or "\u200c" in left or "\u200d" in left
    assert name_invisible(plain(told.right_html)) == name_invisible(right) or "\u200c" in right or "\u200d" in right
    assert unmarked(told.left_html) == unmarked(told.right_html)
    assert 0.0 <= told.same_share <= 1.0
    assert (told.same_share == 1.0) == (left == right)
    assert not told.is_bounded


@given(words)
def test_a_text_does_not_differ_from_itself(text):
    told = difference(text, text)
    assert told.left_html == told.right_html
    assert "<del>" not in told.left_html
    assert told.same_share == 1.0


def test_words_are_marked_whole():
    told = difference("The quick brown fox doesn't jump.", "The quick red fox didn't jump.")
    assert told.left_html == "The quick <del>brown</del> fox <del>doesn&#x27;t</del> jump."
    assert told.right_html == "The quick <ins>red</ins> fox <ins>didn&#x27;t</ins> jump."


def test_words_of_india_are_not_torn_at_their_vowels():
    assert "<del>हिन्दी</del>" in difference("मुझे हिन्दी पसंद है", "मुझे मराठी पसंद है").left_html


def test_japanese_is_compared_by_character():
    told = difference("今日は天気がいいです。", "今日は天気が悪いです。")
    assert told.left_html == "今日は天気が<del>い</del>いです。"
    assert told.right_html == "今日は天気が<ins>悪</ins>いです。"


def test_a_hidden_character_is_a_difference_that_is_seen():
    told = difference("pay alice", "pay ali\u200bce")
    assert "‹U+200B›" in told.right_html
    assert "<ins>" in told.right_html


def test_markup_is_text():
    assert difference("<script>", "<img>").left_html == "&lt;<del>script</del>&gt;"


def test_small_words_shared_by_chance_are_not_called_the_same():
    left = "Photosynthesis converts sunlight into the chemical energy of sugars in green plants."
    right = "Your question concerns how leaves feed themselves; the answer lies with chlorophyll."
    assert difference(left, right).same_share < 0.1


def test_long_texts_are_compared_by_sentences_first():
    sentences = [f"Sentence number {place} says what it says." for place in range(800)]
    changed = [*sentences[:300], "This one is new.", *sentences[300:500], *sentences[501:]]
    told = difference(" ".join(sentences), " ".join(changed))
    assert told.same_share > 0.99
    assert re.findall(r"<ins>(.*?)</ins>", told.right_html)
    assert not told.is_bounded


chance = random.Random(8)
HOSTILE = {
    "one word": ("a " * 50_000, "b " + "a " * 49_000),
    "two words": tuple(" ".join(chance.choice("ab") for _ in range(50_000)) for _ in range(2)),
    "signs": (". " * 50_000, "! " * 50_000),
    "alternating": ("a." * 50_000, "b.a." * 25_000),
    "nothing but blanks": (" " * 100_000, "\n" * 100_000),
    "one character": ("日" * 50_000 + "x", "月" + "日" * 49_000),
    "every second word": (" ".join(map(str, range(20_000))), " ".join(str(2 * number) for number in range(20_000))),
    "hidden characters": ("a\u200b" * 50_000, "b\u200b" * 50_000),
    "noise": tuple("".join(chance.choice("abc \n.") for _ in range(100_000)) for _ in range(2)),
}


@pytest.mark.parametrize(("left", "right"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_bounded(left, right):
    start = process_time()
    told = difference(left, right)
    assert process_time() - start < 2.0
    assert unmarked(told.left_html) == unmarked(told.right_html)


def test_a_spent_budget_is_told():
    assert difference(*HOSTILE["two words"]).is_bounded
    assert not difference("a b", "a c").is_bounded
