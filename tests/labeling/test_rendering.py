"""Text of models as HTML: what annotators see of it, what never comes through, what it costs and what is kept."""

import re
from html.parser import HTMLParser
from time import process_time

import pytest
from django.utils import translation
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling import formulas, rendering
from labeling.dialect import MAX_FORMULAS_CHARACTERS
from labeling.rendering import clean, raw_text, render_text

# Published ways around sanitizers and through MathML, and the usual ones.
PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    '<svg></p><style><a id="</style><img src=1 onerror=alert(1)>">',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">',
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    '<math><mtext><table><mglyph><style><math><table id="</table>"><img src onerror=alert(1)">',
    '<math><annotation-xml encoding="text/html"><style><img title="</style><img src onerror=alert(1)>"></style>',
    "<math><annotation-xml encoding='application/xhtml+xml'><script>alert(1)</script></annotation-xml></math>",
    "<math><semantics><mi>x</mi><annotation encoding='text/html'><iframe srcdoc='<script>alert(1)</script>'>",
    "<math><maction actiontype='statusline#http://evil' xlink:href='javascript:alert(1)'>CLICK</maction></math>",
    '<math href="javascript:alert(1)">CLICK</math>',
    '<math xlink:href="javascript:alert(1)"><mi>x</mi></math>',
    '<math><mi xlink:href="data:x,<script>alert(1)</script>">x</mi></math>',
    "<math><malignmark><style><!--</style><img src=x onerror=alert(1)>",
    '<math><mtext><h1><a><h6></a></h6><mglyph><svg><mtext><style><a title="</style><img src onerror=alert(1)>">',
    "<math><mi><p><style><!--</style></p><img src onerror=alert(1)></mi></math>",
    "<svg><foreignObject><math><mi><script>alert(1)</script></mi></math></foreignObject></svg>",
    '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
    "<template><script>alert(1)</script></template>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    '<a href="java&#10;script:alert(1)">x</a>',
    '<a href=" javascript:alert(1)">x</a>',
    "<a href='/annotate'>x</a><base href='https://evil.example/'>",
    "<p style='position:fixed;inset:0'>x</p><span class='button-main bar'>x</span>",
    "<div class='formula'><input autofocus onfocus=alert(1)></div>",
    "<table><tr><td><plaintext>",
    "<xmp><script>alert(1)</script>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](//evil.example)",
    "[x](/sign-out)",
    "[x](https:evil.example)",
    "[x](https://user:pass@evil.example)",
    "<javascript:alert(1)>",
    "![x](javascript:alert(1))",
    '![x]("onerror=alert(1))',
    '![x](https://e.example/"onload=alert(1))',
    "[x]: javascript:alert(1)\n\n[x]",
    '```"><script>alert(1)</script>\ncode\n```',
    "```html\n<script>alert(1)</script>\n```",
    r"$\text{<script>alert(1)</script>}$",
    r"$\text{</mtext></math><img src=x onerror=alert(1)>}$",
    r"$$\href{javascript:alert(1)}{x}$$",
    r"$\style{background:url(https://evil.example)}{x}$",
    r"\(\unicode{x3c}script\unicode{x3e}\)",
    "|<script>|\n|-|\n|<img src=x onerror=alert(1)>|",
)
PIECES = (
    *(
        "<math>",
        "</math>",
        "<mtext>",
        "<mglyph>",
        "<annotation-xml encoding='text/html'>",
        "<style>",
        "</style>",
        "<!--",
    ),
    *("-->", "<svg>", "<table>", "<p>", "</p>", "<a href='javascript:alert(1)'>", "<img src=x onerror=alert(1)>", "<b"),
    *("[a](javascript:1)", "[a](https://e.example)", "![a](https://e.example/i)", "$x^2$", r"\(\frac12\)", "$$", r"\["),
    *(
        "`",
        "```html\n",
        "\n",
        "\n\n",
        "- ",
        "> ",
        "|a|b|\n|-|-|\n",
        "**",
        "_",
        "&lt;",
        "&#x202e;",
        "\u202e",
        "א",
        "日",
        "\0",
    ),
    *(
        "<div class='formula' tabindex=0>",
        "<mo lspace='9em' onclick='x'>",
        "<mi>",
        "</mi>",
        "\\",
        '"',
        "'>",
        "~~",
        "# ",
    ),
)


class Found(HTMLParser):
    """The elements and attributes of a page, as the standard library reads them."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def assert_is_clean(html):
    assert_is_allowed(html)
    assert clean(html) == html


def assert_is_allowed(html):
    for tag, attributes in Found(html).elements:
        assert tag in rendering.TAGS
        for name, value in attributes.items():
            values = rendering.ATTRIBUTE_VALUES.get(tag, {})
            known = name in rendering.ATTRIBUTES.get(tag, ()) or value in values.get(name, ())
            classes = name == "class" and set((value or "").split()) <= rendering.CLASSES.get(tag, set())
            assert known or classes or (tag, name, value) == ("a", "rel", rendering.LINK_REL), (tag, name, value)
            assert name != "href" or (value or "").startswith(("http://", "https://", "mailto:"))


@pytest.mark.parametrize("text", PAYLOADS)
def test_published_payloads_do_not_come_through(text):
    assert_is_clean(render_text(text))
    assert_is_allowed(clean(text))
    assert_is_allowed(clean(clean(text)))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_no_text_brings_anything_outside_the_allowlist(text):
    assert_is_clean(render_text(text))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_whatever_the_markdown_would_write_the_cleaning_ends_it(html):
    """The second wall on its own: fragments as if the reader of Markdown had let them through, read twice."""
    once = clean(html)
    assert_is_allowed(once)
    assert_is_allowed(clean(once))
    assert not re.search(r"<(?:script|style|img|svg|annotation-xml|mglyph|iframe|form|input)\b", once, re.IGNORECASE)
    assert not re.search(r"<[^>]*\b(?:on\w+|style|xlink:href)\s*=", re.sub(r'"[^"]*"', '""', once))


def test_the_elements_of_mathml_are_these_and_no_more():
    for tag in ("maction", "annotation", "annotation-xml", "semantics", "mglyph", "malignmark", "merror", "menclose"):
        assert tag not in rendering.TAGS
    assert "href" not in set().union(*formulas.ATTRIBUTES.values())


# What is read ----------------------------------------------------------------------------------------------------


def test_tables_keep_the_sides_of_their_columns_and_scroll_in_their_box():
    html = render_text("|a|b|\n|:-|-:|\n|1|2|")
    assert '<div class="table-box" dir="ltr" tabindex="0"><table dir="ltr">' in html
    assert '<th dir="auto" class="align-right">b</th>' in html


def test_task_lists_are_text_and_strikethrough_is_struck():
    html = render_text("- [ ] open\n- [x] done\n\n~~gone~~")
    assert '<li dir="auto">[ ] open</li>' in html
    assert '<li dir="auto">[x] done</li>' in html
    assert "<s>gone</s>" in html


def test_the_shape_of_a_poem_stays():
    assert render_text("roses  are\n    red") == '<p dir="auto">roses  are<br>    red</p>\n'


def test_raw_html_is_text():
    assert "&lt;b&gt;bold&lt;/b&gt;" in render_text("<b>bold</b>")


def test_emphasis_next_to_japanese_and_chinese_marks_is_emphasis():
    assert "<strong>「強調」</strong>の" in render_text("これは**「強調」**の文")
    assert "<strong>重点：</strong>内容" in render_text("**重点：**内容")
    assert "2 * 3 * 4" in render_text("2 * 3 * 4")


def test_code_is_highlighted_and_runs_from_left_to_right():
    html = render_text("```python\ndef f(): pass\n```\n\n`x`")
    assert '<pre dir="ltr"><code><span class="code-keyword">def' in html
    assert '<code dir="ltr">x</code>' in html


@pytest.mark.parametrize(
    "text",
    ["$x^2$", "$$x^2$$", r"\(x^2\)", r"\[x^2\]", "$$\nx^2\n$$", "text\n\\[\nx^2\n\\]\nmore", "- a\n  $$\n  x^2\n  $$"],
)
def test_formulas_in_every_delimiter_of_models(text):
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in render_text(text)


def test_a_display_may_hold_lines_that_look_like_a_list_and_stands_without_dollars():
    assert "<mn>1</mn><mo>−</mo><mn>2</mn>" in render_text("$$\n1\n- 2\n$$")
    assert '<math display="block" class="aligned">' in render_text("\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}")


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $10.",
        "$5-$10 or $5/$6",
        "US$5 and CA$7",
        "5$ and 6$",
        "costs $10; or 5$.",
        "$20/month plan, or 30 dollars$",
        "echo $HOME/bin:$PATH",
        "a `$x` b $ c",
        r"\$5 and \$6",
        "$ x $",
    ],
)
def test_money_and_shells_are_left_alone(text):
    html = render_text(text)
    assert "<math" not in html
    assert "source" not in html


def test_a_formula_that_cannot_be_read_is_shown_as_its_source():
    assert '<code class="source" dir="ltr">$\\foo{x}$</code>' in render_text("$\\foo{x}$")
    assert '<pre class="source" dir="ltr"><code>$$\n\\foo\n$$</code></pre>' in render_text("$$\n\\foo\n$$")


def test_formulas_of_one_text_are_bounded_together():
    html = render_text("$" + "x+" * 400 + "y$\n\n" + ("$" + "x+" * 400 + "y$\n\n") * 22)
    assert html.count("<math") == MAX_FORMULAS_CHARACTERS // 801
    assert 'class="source"' in html


# What is told instead of done ------------------------------------------------------------------------------------


def test_an_image_is_its_alt_text_and_its_address():
    html = render_text("![a *cat* asleep](https://example.org/cat.png)")
    assert "<img" not in html
    assert 'Image, not shown: a *cat* asleep <code dir="ltr">https://example.org/cat.png</code>' in html
    assert "![a](data:image/png;base64,xx)" in render_text("![a](data:image/png;base64,xx)")


def test_only_the_written_address_of_a_link_can_be_clicked():
    html = render_text("[https://bank.example](https://evil.example/login)")
    assert re.search(r'<span class="linked">https://bank.example</span> <a href="https://evil.example/login"', html)
    assert ">evil.example/login</a>" in html
    assert 'rel="noopener noreferrer nofollow ugc"' in html
    assert 'target="_blank"' in html


def test_an_address_is_not_told_twice():
    for text in ("<https://example.org/a>", "[example.org/a](https://example.org/a)"):
        assert re.sub(r"<[^>]*>", "", render_text(text)) == "example.org/a\n"


def test_of_an_address_the_host_is_always_whole_and_as_the_network_knows_it():
    html = render_text("[x](https://exämple.org/" + "a" * 99 + ")")
    assert ">xn--exmple-cua.org/aaaa" in html
    assert "aaa…</a>" in html
    assert render_text("[x](https://" + "a." * 80 + "evil.example/)").count("<a ") == 0


@pytest.mark.parametrize(
    "address",
    ["/logout", "//evil.example", "ftp://e.example", "https://good.example@evil.example/", "file:///etc/passwd"],
)
def test_other_addresses_stay_as_they_were_written(address):
    assert render_text(f"[x]({address})") == f'<p dir="auto">[x]({address})</p>\n'


def test_mail_addresses_bring_no_subject_of_the_models():
    html = render_text("[write](mailto:a@example.org?bcc=evil@example.org)")
    assert 'href="mailto:a@example.org"' in html
    assert ">a@example.org</a>" in html


def test_controls_are_shown_wherever_they_come_from():
    for text in (
        "a\u202eb",
        "a&#x202e;b",
        "`a\u202eb`",
        "```\na\u202eb\n```",
        "**a\u202e**",
        "![\u202e](https://e.example)",
    ):
        html = render_text(text)
        assert '<span class="control" title="RIGHT-TO-LEFT OVERRIDE">‹U+202E›</span>' in html
        assert "\u202e" not in html


def test_joiners_of_persian_and_of_families_stay():
    assert "می\u200cخواهم" in render_text("می\u200cخواهم")
    assert "👨\u200d👩\u200d👧" in render_text("👨\u200d👩\u200d👧")


# Directions ------------------------------------------------------------------------------------------------------


def test_every_block_has_a_direction():
    html = render_text("# שלום\n\n- פריט\n\n> ציטוט\n\nabc\n\n|א|\n|-|\n|b|\n\n```\nx\n```")
    for tag in ("h1", "ul", "li", "blockquote", "p", "table", "th", "td", "pre"):
        assert re.search(rf"<{tag} [^>]*dir=", html), tag
    assert '<ul dir="rtl">' in html
    assert '<blockquote dir="rtl">' in html
    assert '<table dir="rtl">' in html


def test_a_list_looks_past_code_for_its_direction():
    assert '<ul dir="rtl">' in render_text("- `code` פריט")


# Source ----------------------------------------------------------------------------------------------------------


def test_the_source_is_shown_as_it_is_but_for_what_nobody_sees():
    assert raw_text("# <b>\n\ta\u202e") == (
        '# &lt;b&gt;\n\ta<span class="control" title="RIGHT-TO-LEFT OVERRIDE">‹U+202E›</span>'
    )


def test_of_an_endless_text_the_rest_is_counted():
    shown = raw_text("x" * 201_234)
    assert shown.endswith("x\n\n[1,234 more characters are not shown.]")
    assert "1,234 more" in render_text("x" * 201_234)


# Cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "[",
            "![",
            "*a ",
            "**a_",
            "_*",
            "`",
            "``a`",
            "<a",
            "](",
            "[a](",
            "\\",
            "> ",
            "- a\n  ",
            "|a|b\n|-|-\n",
            "~a~",
            "$",
        ),
        *(
            "$$",
            "$x",
            "\\[",
            "\\(",
            "$$\n",
            "\\[\n",
            "\\[a\n",
            "$x$",
            "$x'$ ",
            "\\begin{align}\n",
            "a\u200b",
            "**日",
            "```py\n",
        ),
        *("```python\na.\n```\n", "[a](https://e.example) ", "![a](https://e.example)"),
    ],
)
def test_hostile_markdown_takes_less_than_three_seconds(piece):
    text = (piece * rendering.MAX_MARKDOWN_CHARACTERS)[: rendering.MAX_MARKDOWN_CHARACTERS]
    start = process_time()
    html = render_text(text)
    assert process_time() - start < 3.0
    assert len(html) < 4 * rendering.MAX_HTML_CHARACTERS


def test_a_second_look_at_a_short_text_renders_nothing():
    rendering._render_cached.cache_clear()
    assert render_text("*short*") == render_text("*short*") == '<p dir="auto"><em>short</em></p>\n'
    assert rendering._render_cached.cache_info().hits == 1


def test_what_is_kept_is_kept_by_language():
    rendering._render_cached.cache_clear()
    with translation.override("en"):
        render_text("![a](https://e.example)")
    with translation.override("de"):
        render_text("![a](https://e.example)")
    assert rendering._render_cached.cache_info().currsize == 2


def test_long_texts_do_not_stay_in_memory():
    rendering._render_cached.cache_clear()
    assert "<p" in render_text("word " * 4_000)
    assert '<pre class="plain" dir="auto">' in render_text("x" * 200_000)
    assert rendering._render_cached.cache_info().currsize == 0
