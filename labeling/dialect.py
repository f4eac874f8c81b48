"""The Markdown that language models write, read by markdown-it and told as HTML for people who judge it.

CommonMark with tables and strikethrough, and what models add to it or mean otherwise than its specification:

- formulas in ``$..$``, ``$$..$$``, ``\\(..\\)``, ``\\[..\\]`` and bare ``\\begin{align}``; prices stay prices;
- every line break is one, and blanks inside a paragraph stay: poems and columns keep their shape;
- emphasis next to Chinese and Japanese punctuation, which the specification leaves as asterisks;
- each block has the direction of its own first strong character, and code runs from left to right.

What would act on the person who reads is told instead of done. An image is its alt text and its address. A link is its
text, and after it the address, which alone can be clicked: nothing leads elsewhere than it says. Only whole http, https
and mailto addresses are links, and none with a user name before the host; all others stay as they were written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

from django.utils.translation import gettext
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.emphasis import tokenize as tokenize_emphasis
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from labeling.formulas import MAX_FORMULA_CHARACTERS, mathml
from labeling.highlighting import MAX_HIGHLIGHTED_CHARACTERS, highlighted
from labeling.invisible import mark_invisible

# Of one text, together; what is over it is shown as its source, or without colours.
MAX_FORMULAS_CHARACTERS = 16_000
MAX_CODE_CHARACTERS = 2 * MAX_HIGHLIGHTED_CHARACTERS
MAX_SHOWN_PATH = 48

_LINK = re.compile(
    r"(?:https?://(?P<host>[a-z0-9](?:[a-z0-9.-]{0,98}[a-z0-9])?(?::\d{1,5})?)(?P<path>[/?#].*)?"
    r"|mailto:(?P<mail>[^@?/\s]{1,64}@[a-z0-9.-]{1,100})(?:\?.*)?)",
    re.IGNORECASE | re.DOTALL,
)

_INLINE_FORMULAS = {
    "$$": re.compile(r"\$\$(?P<latex>(?:[^\\$]|\\.|\$(?!\$))++)\$\$", re.DOTALL),
    "$": re.compile(r"\$(?![\s$])(?P<latex>(?:[^\\$`]|\\.)++)(?<!\s)\$(?![\w$])", re.DOTALL),
    r"\(": re.compile(r"\\\((?P<latex>(?:[^\\]|\\[^()\[\]])++)\\\)", re.DOTALL),
    r"\[": re.compile(r"\\\[(?P<latex>(?:[^\\]|\\[^()\[\]])++)\\\]", re.DOTALL),
}
_PRICE = re.compile(r"\d[^\\^_={}+*<>]*(?:\s|[^\W\d_]{2})[^\\^_={}+*<>]*")
_BLOCK_OPENING = re.compile(r"\$\$|\\\[|\\begin\{(?P<environment>(?:equation|align|gather|multline|eqnarray)\*?)\}")
_AFTER_BLOCK = re.compile(r"[\s.,;:]*")
_LANGUAGE = re.compile(r"[\w+#-]{1,20}")
_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u303f\u3040-\u30ff\u3130-\u318f\u31f0-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]"
)
_DIRECTIONS = {"L": "ltr", "R": "rtl", "AL": "rtl"}
_OWN_DIRECTION = {"paragraph_open", "heading_open", "list_item_open", "th_open", "td_open"}
_DIRECTION_OF_CONTENT = {"bullet_list_open", "ordered_list_open", "blockquote_open", "table_open"}


class _Reader(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        """Say whether ``url``, normalised, may be a link or named as an image's."""
        return _LINK.fullmatch(url) is not None


def reader() -> MarkdownIt:
    """Return a markdown-it that reads this dialect and writes its HTML, to be cleaned all the same."""
    markdown = _Reader("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    markdown.inline.ruler.before("escape", "formula", _read_formula)
    markdown.inline.ruler.at("newline", _read_newline)
    markdown.inline.ruler.at("emphasis", _read_emphasis)
    markdown.block.ruler.before("fence", "formula", _read_formula_block, {"alt": ["paragraph", "blockquote", "list"]})
    markdown.core.ruler.push("addresses", _tell_addresses)
    markdown.core.ruler.push("directions", _set_directions)
    for name, rule in _RULES.items():
        markdown.add_render_rule(name, rule)
    return markdown


def budget() -> dict[str, int]:
    """Return the environment of one rendering: the characters of formulas and of code that may be worked on."""
    return {"formulas": MAX_FORMULAS_CHARACTERS, "code": MAX_CODE_CHARACTERS}


def _spend(env: EnvType, kind: str, characters: int) -> bool:
    env[kind] = env.get(kind, 0) - characters
    return bool(env[kind] >= 0)


# Reading ---------------------------------------------------------------------------------------------------------


def _read_formula(state: StateInline, silent: bool) -> bool:
    opening = next((mark for mark in _INLINE_FORMULAS if state.src.startswith(mark, state.pos)), None)
    if opening is None or (opening == "$" and state.pos and _is_in_word(state.src[state.pos - 1])):
        return False
    end = min(state.posMax, state.pos + MAX_FORMULA_CHARACTERS + 4)
    match = _INLINE_FORMULAS[opening].match(state.src, state.pos, end)
    if match is None or (opening == "$" and _PRICE.fullmatch(match["latex"])) or not match["latex"].strip():
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup = match["latex"], match.group()
        token.info = "display" if opening in ("$$", r"\[") else ""
    state.pos = match.end()
    return True


def _is_in_word(character: str) -> bool:
    return character.isalnum() or character in "$_"


def _read_formula_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    place = state.bMarks[start_line] + state.tShift[start_line]
    opening = _BLOCK_OPENING.match(state.src, place, state.eMarks[start_line])
    if opening is None or state.is_code_block(start_line):
        return False
    closing = {"$$": "$$", r"\[": r"\]"}.get(opening.group(), rf"\end{{{opening['environment']}}}")
    found = _lines_until(state, closing, opening, start_line, end_line)
    if found is None:
        return False
    latex, after = found
    if not silent:
        state.line = after
        token = state.push("formula_block", "math", 0)
        token.markup = opening.group() + latex + closing
        token.content = token.markup if opening["environment"] else latex
        token.map, token.block = [start_line, after], True
    return True


def _lines_until(
    state: StateBlock, closing: str, opening: re.Match[str], start_line: int, end_line: int
) -> tuple[str, int] | None:
    """Return what stands before ``closing`` and the line after it; None where a blank or a new opening is first."""
    latex = ""
    for line in range(start_line, end_line):
        first = opening.end() if line == start_line else state.bMarks[line] + state.tShift[line]
        text = state.src[first : state.eMarks[line]]
        before, mark, after = text.partition(closing)
        latex += before
        if mark:
            whole = _AFTER_BLOCK.fullmatch(after) and latex.strip() and len(latex) <= MAX_FORMULA_CHARACTERS
            return (latex, line + 1) if whole else None
        is_left = line > start_line and (state.isEmpty(line) or state.sCount[line] < state.blkIndent)
        if is_left or opening.group() in text or len(latex) > MAX_FORMULA_CHARACTERS:
            return None
        latex += "\n"
    return None


def _read_newline(state: StateInline, silent: bool) -> bool:
    """Read a line break, and leave the blanks of the next line: the shape of a poem is in them."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        state.pending = state.pending.rstrip(" ")
        state.push("hardbreak", "br", 0)
    state.pos += 1
    return True


def _read_emphasis(state: StateInline, silent: bool) -> bool:
    """Read runs of ``*`` and ``_`` as CommonMark does, but next to Chinese, Japanese and Korean any ``*`` may open or
    close, as https://github.com/tats-u/markdown-cjk-friendly proposes.
    """
    start, known = state.pos, len(state.delimiters)
    if not tokenize_emphasis(state, silent):
        return False
    before, after = state.src[start - 1 : start], state.src[state.pos : state.pos + 1]
    if state.src[start] == "*" and (_CJK.match(before) or _CJK.match(after)):
        for delimiter in state.delimiters[known:]:
            delimiter.open |= bool(after.strip())
            delimiter.close |= bool(before.strip())
    return True


# After reading ---------------------------------------------------------------------------------------------------


def _tell_addresses(state: StateCore) -> None:
    """Leave out the text of links that say nothing but their address, which is shown anyway."""
    for token in state.tokens:
        if token.type == "inline" and any(child.type == "link_open" for child in token.children or ()):
            token.children = _with_addresses(token.children or [])


def _with_addresses(children: list[Token]) -> list[Token]:
    told: list[Token] = []
    opened = -1
    for child in children:
        told.append(child)
        if child.type == "link_open":
            opened = len(told) - 1
        elif child.type == "link_close" and opened >= 0:  # links hold no links
            href = str(told[opened].attrGet("href") or "")
            child.attrSet("href", href)
            text = "".join(part.content for part in told[opened + 1 : -1])
            if _plain(text) in (_plain(href), ""):
                told[opened:] = [child]
            else:
                child.info = "told"
    return told


def _plain(address: str) -> str:
    return re.sub(r"^(?:https?://|mailto:)", "", address.strip().lower()).rstrip("/")


def _set_directions(state: StateCore) -> None:
    """Give each block its direction; lists and tables, whose marks stand outside of their text, that of their content.

    ``dir="auto"`` looks past elements that have a direction of their own, and so finds none in a list.
    """
    upcoming = "auto"
    for token in reversed(state.tokens):
        if token.type == "inline":
            upcoming = _direction(token.children or ()) or upcoming
        elif token.type in _DIRECTION_OF_CONTENT:
            token.attrSet("dir", upcoming)
        elif token.type in _OWN_DIRECTION:
            token.attrSet("dir", "auto")
            if alignment := str(token.attrs.pop("style", "")):
                token.attrSet("class", "align-" + alignment.removeprefix("text-align:"))


def _direction(tokens: Iterable[Token]) -> str:
    characters = (character for token in tokens if token.type == "text" for character in token.content)
    return next((_DIRECTIONS[kind] for kind in map(unicodedata.bidirectional, characters) if kind in _DIRECTIONS), "")


# Writing ---------------------------------------------------------------------------------------------------------


def _text(_self: RendererHTML, tokens: Sequence[Token], place: int, _options: OptionsDict, _env: EnvType) -> str:
    return mark_invisible(tokens[place].content)


def _line_break(
    _self: RendererHTML, _tokens: Sequence[Token], _place: int, _options: OptionsDict, _env: EnvType
) -> str:
    return "<br>"


def _code(_self: RendererHTML, tokens: Sequence[Token], place: int, _options: OptionsDict, _env: EnvType) -> str:
    return f'<code dir="ltr">{mark_invisible(tokens[place].content)}</code>'


def _code_block(_self: RendererHTML, tokens: Sequence[Token], place: int, _options: OptionsDict, env: EnvType) -> str:
    token = tokens[place]
    word = _LANGUAGE.match(token.info.strip())
    is_read = word is not None and _spend(env, "code", len(token.content))
    code = highlighted(token.content, word.group()) if word and is_read else mark_invisible(token.content)
    return f'<pre dir="ltr"><code>{code}</code></pre>\n'


def _formula(_self: RendererHTML, tokens: Sequence[Token], place: int, _options: OptionsDict, env: EnvType) -> str:
    token = tokens[place]
    is_read = _spend(env, "formulas", len(token.content))
    is_display = token.info == "display"
    formula = mathml(token.content, is_block=is_display) if is_read else None
    if formula is None:
        return f'<code class="source" dir="ltr">{mark_invisible(token.markup)}</code>'
    return f'<span class="formula" dir="ltr" tabindex="0">{formula}</span>' if is_display else formula


def _formula_block(
    _self: RendererHTML, tokens: Sequence[Token], place: int, _options: OptionsDict, env: EnvType
) -> str:
    token = tokens[place]
    formula = mathml(token.content, is_block=True) if _spend(env, "formulas", len(token.content)) else None
    if formula is None:
        return f'<pre class="source" dir="ltr"><code>{mark_invisible(token.markup)}</code></pre>\n'
    return f'<div class="formula" dir="ltr" tabindex="0">{formula}</div>\n'


def _image(_self: RendererHTML, tokens: Sequence[Token], place: int, _options: OptionsDict, _env: EnvType) -> str:
    alt, address = tokens[place].content, mark_invisible(str(tokens[place].attrGet("src") or ""))
    label = escape(gettext("Image, not shown"))
    told = f"{label}: {mark_invisible(alt)}" if alt.strip() else label
    return f'<span class="image">{told} <code dir="ltr">{address}</code></span>'


def _link_open(_self: RendererHTML, _tokens: Sequence[Token], _place: int, _options: OptionsDict, _env: EnvType) -> str:
    return '<span class="linked">'


def _link_close(_self: RendererHTML, tokens: Sequence[Token], place: int, _options: OptionsDict, _env: EnvType) -> str:
    """Return the one thing that can be clicked: an address that shows its whole host."""
    address = str(tokens[place].attrGet("href") or "")
    match = _LINK.fullmatch(address)
    href = f"mailto:{match['mail']}" if match and match["mail"] else address
    link = f'<a href="{escape(href)}" target="_blank" dir="ltr">{escape(_shown(address))}</a>'
    return f"</span> {link}" if tokens[place].info == "told" else link


def _shown(address: str) -> str:
    match = _LINK.fullmatch(address)
    if match is None:
        return address
    path = (match["path"] or "").rstrip("/")
    return match["mail"] or match["host"] + (path if len(path) <= MAX_SHOWN_PATH else path[: MAX_SHOWN_PATH - 1] + "…")


def _table_open(self: RendererHTML, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType) -> str:
    direction = escape(str(tokens[place].attrGet("dir") or "auto"))
    return f'<div class="table-box" dir="{direction}" tabindex="0">{self.renderToken(tokens, place, options, env)}'


def _table_close(self: RendererHTML, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType) -> str:
    return f"{self.renderToken(tokens, place, options, env)}</div>\n"


_RULES = {
    "text": _text,
    "hardbreak": _line_break,
    "softbreak": _line_break,
    "code_inline": _code,
    "code_block": _code_block,
    "fence": _code_block,
    "formula": _formula,
    "formula_block": _formula_block,
    "image": _image,
    "link_open": _link_open,
    "link_close": _link_close,
    "table_open": _table_open,
    "table_close": _table_close,
}
