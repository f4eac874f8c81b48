"""Which characters are shown although nobody sees them, and which are left to do their work."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.invisible import has_invisible, mark_invisible, name_invisible

AT_WORK = {
    "Persian": "می\u200cخواهم خانه\u200cها را ببینم",
    "the abbreviation of the Hijri year": "۱۴۰۳ ه\u200d.ق",
    "Hindi": "क\u094d\u200dष और क\u094d\u200cष",
    "Bengali": "র\u200d\u09cdযাব",
    "Malayalam": "അവന\u0d4d\u200d",
    "Sinhala": "ශ\u0dca\u200dරී ලංකා",
    "a family": "👨\u200d👩\u200d👧\u200d👦",
    "a doctor of dark skin": "👩🏽\u200d⚕\ufe0f",
    "a heart on fire": "❤\ufe0f\u200d🔥",
    "a rainbow flag": "🏳\ufe0f\u200d🌈",
    "a key cap": "1\ufe0f\u20e3",
    "the flag of Scotland": "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "a name in Japanese": "葛\U000e0100城",
    "new lines of another system": "one\r\ntwo\ttabbed\xa0\u3000",
}
UNSEEN = {
    "right-to-left override": ("a\u202eb", "‹U+202E›"),
    "zero-width space": ("pass\u200bword", "‹U+200B›"),
    "byte order mark inside": ("a\ufeffb", "‹U+FEFF›"),
    "soft hyphen": ("co\xadop", "‹U+00AD›"),
    "joiner between Latin letters": ("a\u200db", "‹U+200D›"),
    "non-joiner at the end of a Persian word": ("می\u200c ", "‹U+200C›"),
    "a second joiner": ("م\u200d\u200dم", "‹U+200D›"),
    "joiner after an emoji and before a letter": ("👨\u200da", "‹U+200D›"),
    "tags": ("hi\U000e0068\U000e0069", "‹U+E0068 U+E0069›"),
    "tags behind a flag that says something else": ("🏴\U000e0068\U000e007f", "‹U+E0068 U+E007F›"),
    "selector after a letter": ("a\ufe0f", "‹U+FE0F›"),
    "bytes hidden behind an emoji": ("😀\U000e0101\U000e0102", "‹U+E0101 U+E0102›"),
    "C0": ("\x00\x1b[31m", "‹U+0000 U+001B›"),
    "C1": ("\x85", "‹U+0085›"),
    "a carriage return alone": ("shown\rhidden", "‹U+000D›"),
    "line separator": ("a\u2028b", "‹U+2028›"),
    "Hangul filler": ("\u3164", "‹U+3164›"),
    "half a pair": ("\ud800", "‹U+D800›"),
    "many": ("\u200b" * 500, "‹U+200B U+200B U+200B U+200B … ×500›"),
}


@pytest.mark.parametrize("text", AT_WORK.values(), ids=AT_WORK)
def test_joiners_and_selectors_at_work_stay_as_they_are(text):
    assert mark_invisible(text) == name_invisible(text) == text
    assert not has_invisible(text)


@pytest.mark.parametrize(("text", "shown"), UNSEEN.values(), ids=UNSEEN)
def test_what_nobody_sees_is_shown(text, shown):
    assert shown in name_invisible(text)
    assert f">{shown}</span>" in mark_invisible(text)
    assert has_invisible(text)


def test_a_mark_has_the_names_of_its_characters():
    assert mark_invisible("\u202e") == '<span class="control" title="RIGHT-TO-LEFT OVERRIDE">‹U+202E›</span>'


@given(st.text())
def test_nothing_that_directs_or_hides_passes(text):
    shown = name_invisible(text)
    for character in shown:
        if character not in "\n\t\r\u200c\u200d":
            assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
            assert unicodedata.bidirectional(character) not in (
                "RLO",
                "LRO",
                "RLE",
                "LRE",
                "PDF",
                "RLI",
                "LRI",
                "FSI",
                "PDI",
            )


@given(st.text(alphabet=st.sampled_from("aם😀🏴<&\"'\xad\u200b\u202e\u2066\U000e0067\x07")))
def test_what_is_shown_has_nothing_left_to_show(text):
    assert not has_invisible(name_invisible(text))
    assert set(re.findall(r"<[^ >]*", mark_invisible(text))) <= {"<span", "</span"}
