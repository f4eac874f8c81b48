"""Text of models and people as safe HTML. All of it is hostile until it has been through here.

``dialect`` reads the Markdown and writes HTML, ``formulas`` and ``highlighting`` what stands inside; whatever they
write, only the elements, attributes, classes and schemes below come out of the cleaning.
"""

from __future__ import annotations

from functools import lru_cache
from html import escape

import nh3
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import get_language, ngettext

from labeling import dialect, formulas, highlighting
from labeling.invisible import mark_invisible, name_invisible

# Hostile Markdown costs more than linear time; longer text is shown as it is.
MAX_MARKDOWN_CHARACTERS = 32_000
# What is behind that nobody reads to judge it; it is counted instead.
MAX_SHOWN_CHARACTERS = 200_000
# A mark takes 80 characters of HTML for one character; text full of them loses the names of the marks.
MAX_HTML_CHARACTERS = 1_000_000
# A look back and a second annotator find a text rendered. Long ones are rare and would fill the memory.
CACHED_TEXTS, MAX_CACHED_CHARACTERS = 256, 16_000

_BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "table", "th", "td", "pre", "div")
TAGS = {*_BLOCKS, "br", "hr", "em", "strong", "s", "code", "span", "a", "thead", "tbody", "tr", *formulas.ATTRIBUTES}
CLASSES: dict[str, set[str]] = {
    "div": {"table-box", "formula"},
    "pre": {"plain", "source"},
    "code": {"source"},
    "span": {"control", "formula", "image", "linked", *highlighting.CLASSES},
    "th": {"align-left", "align-center", "align-right"},
    "td": {"align-left", "align-center", "align-right"},
    **{tag: set(classes) for tag, classes in formulas.CLASSES.items()},
}
ATTRIBUTES: dict[str, set[str]] = {
    "a": {"href"},
    "ol": {"start"},
    "span": {"title"},
    **{tag: set(names - {"class", "display"}) for tag, names in formulas.ATTRIBUTES.items()},
}
ATTRIBUTE_VALUES: dict[str, dict[str, set[str]]] = {
    **{tag: {"dir": {"auto", "ltr", "rtl"}} for tag in (*_BLOCKS, "code")},
    # What is too wide scrolls in its own box, and a box that scrolls can be reached by keyboard.
    "div": {"dir": {"auto", "ltr", "rtl"}, "tabindex": {"0"}},
    "span": {"dir": {"ltr"}, "tabindex": {"0"}},
    "a": {"dir": {"ltr"}, "target": {"_blank"}},
    "math": {"display": {"block", "inline"}},
}
URL_SCHEMES = {"http", "https", "mailto"}
LINK_REL = "noopener noreferrer nofollow ugc"

_reader = dialect.reader()


def render_text(text: str) -> SafeString:
    """Return ``text``, read as Markdown, as HTML without images, scripts, styles or raw markup.

    To be put into an element of the class ``reading``. Text over ``MAX_MARKDOWN_CHARACTERS`` comes as one
    ``<pre class="plain">``.
    """
    language = get_language() or ""
    return _render_cached(text, language) if len(text) <= MAX_CACHED_CHARACTERS else _render(text, language)


def raw_text(text: str) -> SafeString:
    """Return the source of ``text`` with invisible characters made visible, to be put behind ``<pre>`` and a new line.

    (A browser leaves out a new line that comes first in a ``<pre>``; without one of the template's, it would be the
    text's own.) What is behind ``MAX_SHOWN_CHARACTERS`` is counted, not shown.
    """
    shown, left_out = text[:MAX_SHOWN_CHARACTERS], len(text) - MAX_SHOWN_CHARACTERS
    html = mark_invisible(shown)
    if len(html) > MAX_HTML_CHARACTERS:
        html = mark_safe(escape(name_invisible(shown)))  # noqa: S308  (escaped)
    return format_html("{}\n\n{}", html, _left_out(left_out)) if left_out > 0 else html


def clean(html: str) -> SafeString:
    """Return ``html`` with nothing in it but what the allowlists of this module name."""
    return mark_safe(_cleaner.clean(html))  # noqa: S308  (everything outside the allowlist has been removed)


def _render(text: str, _language: str) -> SafeString:
    if len(text) <= MAX_MARKDOWN_CHARACTERS:
        html = _reader.render(text.replace("\0", "␀"), dialect.budget())
        if len(html) <= MAX_HTML_CHARACTERS:
            return clean(html)
    return format_html('<pre class="plain" dir="auto">\n{}</pre>', raw_text(text))


_render_cached = lru_cache(maxsize=CACHED_TEXTS)(_render)


def _left_out(characters: int) -> str:
    return ngettext(
        "[%(count)s more character is not shown.]", "[%(count)s more characters are not shown.]", characters
    ) % {"count": f"{characters:,}"}


_cleaner = nh3.Cleaner(  # reading the allowlists takes as long as cleaning a response
    tags=TAGS,
    attributes=ATTRIBUTES,
    tag_attribute_values=ATTRIBUTE_VALUES,
    allowed_classes=CLASSES,
    url_schemes=URL_SCHEMES,
    url_relative="deny",
    link_rel=LINK_REL,
)
