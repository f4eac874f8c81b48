"""Code in four roles, and what a hostile fence costs."""

import re
from html import unescape
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.highlighting import CLASSES, LANGUAGES, MAX_HIGHLIGHTED_CHARACTERS, highlighted

PIECES = ["a.", "a ", "'", "/*", "<!--", "{!", "a\n", "a<"]


def text_of(html):
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_roles_of_python():
    html = highlighted("@cached\ndef f(x):\n    return 'a' + 1  # why\n", "python")
    assert '<span class="code-keyword">def </span><span class="code-name">f</span>' in html
    assert '<span class="code-literal">&#x27;a&#x27;' in html
    assert '<span class="code-comment"># why' in html
    assert '<span class="code-name">@cached' in html


@pytest.mark.parametrize("language", sorted(set(LANGUAGES.values())))
def test_every_language_gives_back_its_code_in_known_classes(language):
    code = "x = 1 # <b>\nfunction f() { return \"é\" }\n/* a */ 'b'\n\n"
    html = highlighted(code, language)
    assert text_of(html) == code
    assert set(re.findall(r'class="([^"]*)"', html)) <= CLASSES


@pytest.mark.parametrize("language", ["", "nonsense", "brainfuck", "../x", "__init__"])
def test_an_unknown_language_is_plain(language):
    assert highlighted("if x: <b>", language) == "if x: &lt;b&gt;"


@pytest.mark.parametrize(
    "code", ["x = 1\n" * (MAX_HIGHLIGHTED_CHARACTERS // 6 + 1), "x = " + "1" * 400, "x = 1" + "\n" * 100 + "y = 2"]
)
def test_code_that_could_be_slow_is_plain(code):
    assert "<span" not in highlighted(code, "python")


def test_controls_in_code_are_shown():
    assert "‹U+202E›" in highlighted("x = 'a\u202e' # b\n", "python")


@pytest.mark.parametrize("language", sorted(set(LANGUAGES.values())))
def test_hostile_code_takes_less_than_half_a_second(language):
    """``MAX_SECONDS`` ends a block between tokens; the rest is what one token, the marks and a busy machine may add."""
    highlighted("x", language)
    for piece in PIECES:
        line = (piece * 200)[:200]
        code = (f"{line}\n" * 50)[:MAX_HIGHLIGHTED_CHARACTERS]
        start = process_time()
        html = highlighted(code, language)
        assert process_time() - start < 0.5, piece
        assert text_of(html) == code


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from(sorted(set(LANGUAGES.values()))))
def test_no_code_is_lost(code, language):
    shown = highlighted(code, language)
    assert text_of(re.sub(r'<span class="control"[^>]*>[^<]*</span>', "", shown)) == text_of(
        re.sub(r'<span class="control"[^>]*>[^<]*</span>', "", highlighted(code, ""))
    )
