"""LaTeX of language models as MathML; what cannot be read is None, never an error."""

import re
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.formulas import ATTRIBUTES, MAX_FORMULA_CHARACTERS, mathml

READ = (
    r"x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}",
    r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
    r"\begin{align*} a &= b \label{eq:1} \nonumber \\ c &= d \end{align*}",
    r"\begin{gathered} a \\ b \end{gathered}",
    r"\begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases}",
    r"\left[\begin{array}{cc|c} 1 & 2 & 3 \\ \hline 4 & 5 & 6 \end{array}\right]",
    r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}",
    r"\boxed{42} \cancel{x} \underbrace{a+b}_{n} \xrightarrow{\text{heat}}",
    r"\mathbb{E}_{x \sim p}[\log \sigma(\beta x)] \operatorname{arg\,max}_\theta \arg\max_x \lim_{n \to \infty}",
    r"\mathbf{AB} \boldsymbol{\theta} \mathcal{L} \mathfrak{C} \mathrm{d}x \mathrm{Tr}",
    r"\text{loss\_fn is } 5\% \text{ where $x^2$ holds}",
    r"\lVert x \rVert_2 \lfloor x \rfloor f'(x) 90^\circ \implies \iff \therefore",
    "速度 = \\frac{距離}{時間}",
    r"a \\ b",
)
UNREADABLE = (
    r"\foo{x}",
    r"\ce{H2O}",
    r"\frac{1}",
    r"\left( x",
    "{" * 500,
    "x^" * 400,
    r"\begin{tikzpicture}\end{tikzpicture}",
    r"\newcommand{\a}{bbbbbbbb}\a\a",
    r"\def\a{\b\b}\def\b{\c\c}\a",
    r"\sideset{_1^2}{_3^4}\prod",
    r"\href{javascript:alert(1)}{x}",
    r"\style{position:fixed}{x}",
    r"\class{button-main}{x}",
    r"\unicode{x202E}",
    r"\text{&#x202e;}",
    "x\u202e",
    " ",
    "x" * (MAX_FORMULA_CHARACTERS + 1),
)


@pytest.mark.parametrize("latex", READ)
def test_formulas_that_models_write_are_read(latex):
    html = mathml(latex, is_block=True)
    assert html is not None
    assert html.startswith('<math display="block"')
    assert "\\" not in html
    assert "&amp;" not in html
    assert set(re.findall(r"<(\w+)", html)) <= set(ATTRIBUTES)


@pytest.mark.parametrize("latex", UNREADABLE)
def test_what_cannot_be_read_is_none(latex):
    assert mathml(latex, is_block=False) is None


def test_markup_inside_a_formula_is_text():
    assert mathml(r"\text{<script>alert(1)</script>}", is_block=False) == (
        '<math display="inline"><mrow><mtext>&lt;script&gt;alert(1)&lt;/script&gt;</mtext></mrow></math>'
    )
    assert "<img" not in (mathml(r"\text{&lt;img src=x onerror=alert(1)&gt;}", is_block=False) or "")


def test_colours_and_lengths_cannot_hide_or_push():
    html = mathml(r"\color{white}{x} \hspace{-100em} \hspace{999em} y", is_block=False)
    assert html is not None
    assert "white" not in html
    assert re.findall(r'width="([^"]*)"', html) == ["-0.5em", "4em"]


def test_tables_of_formulas_keep_their_sides_and_rules_as_classes():
    html = mathml(r"\begin{array}{l|r} 1 & 2 \\ \hline 3 & 4 \end{array}", is_block=True) or ""
    assert '<mtr class="ruled"><mtd class="from-left edged"><mn>1</mn></mtd><mtd class="from-right">' in html


def test_letters_of_a_style_are_characters():
    assert "𝐀" in (mathml(r"\mathbf{AB}", is_block=False) or "")
    assert "ℬ" in (mathml(r"\mathscr{B}", is_block=False) or "")
    assert 'mathvariant="normal">d<' in (mathml(r"\mathrm{d}x", is_block=False) or "")


PIECES = r"\frac { } ^ _ x 1 & \\ \left( \right) \begin{cases} \end{cases} \sqrt \text{<b>} \mathbf \limits \not \hat '"


@given(st.lists(st.sampled_from(PIECES.split()), max_size=40))
def test_any_formula_is_read_or_not_and_never_an_error(pieces):
    html = mathml("".join(pieces), is_block=True)
    assert html is None or set(re.findall(r"<(\w+)", html)) <= set(ATTRIBUTES)


@pytest.mark.parametrize(
    "piece", ["'", "{a}'", r"\pod{a}", r"\Tiny{a}", r"\verb|a|", r"\sqrt", "}", "x^2 ", r"\not", "&"]
)
def test_a_formula_of_full_length_takes_less_than_half_a_second(piece):
    mathml("x", is_block=True)
    start = process_time()
    mathml((piece * MAX_FORMULA_CHARACTERS)[:MAX_FORMULA_CHARACTERS], is_block=True)
    assert process_time() - start < 0.5
