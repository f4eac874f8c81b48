"""Text of models and people as safe HTML. All of it is hostile until it has been through here."""

from __future__ import annotations

import re
from functools import lru_cache

import nh3
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

# Hostile Markdown costs more than linear time; longer text is shown as it is.
MAX_MARKDOWN_CHARACTERS = 64_000
# A look back and a second annotator find a text rendered. Long ones are rare and would fill the memory.
CACHED_TEXTS, MAX_CACHED_CHARACTERS = 512, 4_000
TAGS = {
    *("p", "br", "hr", "em", "strong", "del", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
# Controls that reorder or hide what follows, and C0/C1 controls: visible, or two texts could look like each other.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)

_markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])


def render_text(text: str) -> SafeString:
    """Return ``text``, read as Markdown, as HTML without images, scripts, styles or raw markup."""
    return _render_cached(text) if len(text) <= MAX_CACHED_CHARACTERS else _render(text)


def _render(text: str) -> SafeString:
    visible = show_controls(text)
    if len(visible) > MAX_MARKDOWN_CHARACTERS:
        return format_html('<pre class="plain">{}</pre>', visible)
    html = nh3.clean(
        _markdown.render(visible),
        tags=TAGS,
        attributes={"a": {"href"}, "ol": {"start"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow ugc",
    )
    return mark_safe(html)  # noqa: S308  (nh3 has just removed everything outside the allowlist)


_render_cached = lru_cache(maxsize=CACHED_TEXTS)(_render)


def show_controls(text: str) -> str:
    """Replace invisible control characters by their code point in angle quotes."""
    return INVISIBLE.sub(lambda match: f"‹U+{ord(match.group()):04X}›", text)


def raw_text(text: str) -> SafeString:
    """The source as it is, with controls made visible."""
    return format_html("{}", show_controls(text))
