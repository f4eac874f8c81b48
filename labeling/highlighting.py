"""Code of a response in colours: four roles, told by class, and a bound on what it may cost.

Pygments reads the code. Of its many token types four roles are kept, so that code stays calm and a style sheet can
know them all: ``code-comment``; ``code-keyword`` (words of the language, tags); ``code-literal`` (strings, numbers,
constants, added lines); ``code-name`` (what is defined or decorates: functions, classes, attributes, headings).

The lexers are regular expressions over text that a model wrote, and some need quadratic time, or worse, for long lines
and long blanks. So only the languages below are read, only blocks without those, and only until the time is spent;
between two tokens the clock is looked at. Measured on hostile text of 8,000 characters no single token took over 40 ms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

from labeling.invisible import mark_invisible

if TYPE_CHECKING:
    from pygments.lexer import Lexer

MAX_HIGHLIGHTED_CHARACTERS = 8_000
# What is left of a block after that stays plain.
MAX_SECONDS = 0.1
_COSTLY = re.compile(r"[^\n]{301}|\s{60}")

# What a fence may say, and the lexer that reads it. Lexers found slow on hostile text (Markdown, Makefile, shell
# sessions) are not here.
_ALIASES = {
    "python": "py python3 python",
    "javascript": "js javascript node mjs",
    "typescript": "ts typescript",
    "jsx": "jsx",
    "tsx": "tsx",
    "java": "java",
    "c": "c h",
    "cpp": "cpp c++ cc hpp",
    "csharp": "csharp c# cs",
    "go": "go golang",
    "rust": "rust rs",
    "ruby": "ruby rb",
    "php": "php",
    "swift": "swift",
    "kotlin": "kotlin kt",
    "scala": "scala",
    "dart": "dart",
    "r": "r",
    "julia": "julia jl",
    "matlab": "matlab octave",
    "haskell": "haskell hs",
    "lisp": "lisp common-lisp elisp",
    "lua": "lua",
    "perl": "perl pl",
    "bash": "bash sh shell zsh",
    "powershell": "powershell ps1",
    "sql": "sql postgresql mysql sqlite",
    "html": "html htm",
    "xml": "xml svg",
    "css": "css",
    "scss": "scss",
    "json": "json jsonc",
    "yaml": "yaml yml",
    "toml": "toml",
    "ini": "ini cfg conf",
    "dockerfile": "dockerfile docker",
    "diff": "diff patch",
    "latex": "latex tex",
}
LANGUAGES = {alias: language for language, aliases in _ALIASES.items() for alias in aliases.split()}
CLASSES = frozenset(("code-comment", "code-keyword", "code-literal", "code-name"))

_preparing = Lock()


def highlighted(code: str, language: str) -> str:
    """Return ``code`` as escaped HTML with ``<span class="code-…">``, invisible characters marked.

    ``language`` is the word behind the fence; one that is not known, and code over the bounds, give no spans. Code that
    is not read after ``MAX_SECONDS`` stays without spans as well.
    """
    name = LANGUAGES.get(language.lower())
    if name is None or len(code) > MAX_HIGHLIGHTED_CHARACTERS or _COSTLY.search(code):
        return mark_invisible(code)
    try:
        parts = list(_pieces(code, _lexer(name)))
    except Exception:  # a lexer that trips over hostile code has no say in whether it is shown
        return mark_invisible(code)
    read = "".join(text for text, _role in parts)
    if not code.startswith(read):
        return mark_invisible(code)
    return "".join(_span(text, role) for text, role in [*parts, (code[len(read) :], "")])


def _pieces(code: str, lexer: Lexer) -> Iterator[tuple[str, str]]:
    deadline = perf_counter() + MAX_SECONDS
    roles = ((text, _role(token_type)) for _place, token_type, text in lexer.get_tokens_unprocessed(code))
    return _until(deadline, roles)


def _until(deadline: float, pieces: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield neighbours of one role as one piece, until the deadline."""
    held, held_role = "", ""
    for text, role in pieces:
        if role != held_role and not (text.isspace() and held):
            yield held, held_role
            held, held_role = "", role
        held += text
        if perf_counter() > deadline:
            break
    yield held, held_role


def _span(text: str, role: str) -> str:
    return f'<span class="{escape(role)}">{mark_invisible(text)}</span>' if role and text else mark_invisible(text)


def _lexer(name: str) -> Lexer:
    from pygments.lexers import get_lexer_by_name  # 3 MB; 17 with every language met

    with _preparing:  # the first use of a lexer builds its tables, which two threads must not do at once
        lexer = get_lexer_by_name(name)
        next(iter(lexer.get_tokens_unprocessed("\n")), None)
        return lexer


@lru_cache(maxsize=512)
def _role(token_type: Any) -> str:
    from pygments.token import Token

    if token_type in Token.Comment or token_type in Token.Generic.Deleted:
        return "code-comment"
    if token_type in Token.Literal or token_type in Token.Keyword.Constant or token_type in Token.Generic.Inserted:
        return "code-literal"
    if token_type in Token.Keyword or token_type in Token.Operator.Word or token_type in Token.Name.Tag:
        return "code-keyword"
    return "code-name" if any(token_type in named for named in _named()) else ""


def _named() -> tuple[Any, ...]:
    from pygments.token import Token

    name, generic = Token.Name, Token.Generic
    return (
        name.Function,
        name.Class,
        name.Decorator,
        name.Attribute,
        name.Namespace,
        generic.Heading,
        generic.Subheading,
    )
