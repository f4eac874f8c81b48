"""Which characters nobody sees, and how they are shown.

Two responses can look alike and differ, or say to the eye what they do not say to a program, by characters without a
picture: controls, marks that turn the writing direction, zero-width characters, tags, variation selectors. They are
shown, but for those that do their work in the writing they stand in: joiners in Persian, in the scripts of India and in
emoji, selectors after what they select, the tags of the three flags that have them.

The set is C0 and C1, Default_Ignorable_Code_Point of Unicode 16, separators of lines and paragraphs, annotation marks
and halves of surrogate pairs. Blanks of some width (no-break, ideographic, thin) are seen and stay.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from html import escape

from django.utils.safestring import SafeString, mark_safe

ZERO_WIDTH_NON_JOINER, ZERO_WIDTH_JOINER = "\u200c", "\u200d"
# A run of more than these is told by its length.
MAX_NAMED_IN_A_RUN = 4

_UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Characters that have an emoji form, in the blocks that hold them; a few neighbours more do no harm.
_EMOJI = (
    "\xa9\xae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
# Letters and marks of scripts that join or stack: Arabic, Syriac, N'Ko, Mandaic, India to Sri Lanka, Myanmar, Khmer,
# Mongolian, Bali, Java, Adlam.
_JOINING = (
    "\u0610-\u061a\u0620-\u065f\u066e-\u06d3\u06d5-\u06dc\u06df-\u06ef\u06fa-\u08ff\u0900-\u0963\u0971-\u0dff\u1000-\u109f\u1780-\u18af\u1b00-\u1b7f\ua8e0-\ua8ff\ua980-\ua9df"
    "\ufb50-\ufdff\ufe70-\ufefc\U0001e900-\U0001e95f"
)
_VIRAMA = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca\u1039\u17d2"
_SEEN_AT_WORK = "|".join(
    (
        "\r(?=\n)",
        "\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074"
        "|\U000e0077\U000e006c\U000e0073)\U000e007f",  # the flags of England, Scotland and Wales
        f"(?<=[{_EMOJI}0-9#*])[\ufe0e\ufe0f]",  # as text or as a picture
        f"(?<=[{_EMOJI}\ufe0f])\u200d(?=[{_EMOJI}])",  # a family of emoji
        f"(?<=[{_HAN}])[\ufe00-\ufe02\U000e0100-\U000e01ef]",  # the form of a Han character
        "(?<=[\u2190-\u22ff])\ufe00",  # the form of a mathematical sign
        "(?<=[\u1800-\u18af])[\u180b-\u180f]",  # the form of a Mongolian letter
        f"(?<=[{_VIRAMA}])[\u200c\u200d]",
        f"(?<=[{_JOINING}])\u200d",
        f"(?<![\u200c\u200d])\u200d(?=[{_JOINING}])",
        f"(?<=[{_JOINING}])\u200c(?=[{_JOINING}])",
    )
)
_ANY_UNSEEN = re.compile(f"[{_UNSEEN}]")
_C0_C1 = "control character"


def mark_invisible(text: str) -> SafeString:
    """Return ``text`` escaped for HTML, each run of invisible characters as one ``<span class="control">``.

    What the span holds is read aloud as well; its title has the names: ``‹U+202E›``, "RIGHT-TO-LEFT OVERRIDE".
    """
    if not _ANY_UNSEEN.search(text):  # nearly all texts
        return mark_safe(escape(text))  # noqa: S308  (escaped)
    return mark_safe("".join(_marked(text)))  # noqa: S308  (each part is escaped or made here of numbers and names)


def name_invisible(text: str) -> str:
    """Return ``text`` with invisible characters as ``‹U+202E›``, where no element can stand."""
    return _unseen_run().sub(lambda run: run.group() if run["at_work"] else _code_points(run.group()), text)


def has_invisible(text: str) -> bool:
    """Say whether ``text`` holds an invisible character that is shown."""
    return _ANY_UNSEEN.search(text) is not None and any(not run["at_work"] for run in _unseen_run().finditer(text))


@cache
def _unseen_run() -> re.Pattern[str]:
    """Return the pattern of a run of characters to show, or of one at work; 20 ms, for those who meet one."""
    return re.compile(f"(?P<at_work>{_SEEN_AT_WORK})|(?:(?!{_SEEN_AT_WORK})[{_UNSEEN}])+")


def _marked(text: str) -> list[str]:
    parts, done = [], 0
    for run in _unseen_run().finditer(text):
        if run["at_work"]:
            continue
        parts += [escape(text[done : run.start()]), _span_of(run.group())]
        done = run.end()
    return [*parts, escape(text[done:])]


def _span_of(run: str) -> str:
    return _short_span(run) if len(run) <= MAX_NAMED_IN_A_RUN else _span(run)


def _span(run: str) -> str:
    names = ", ".join(dict.fromkeys(unicodedata.name(character, _C0_C1) for character in run[:MAX_NAMED_IN_A_RUN]))
    return f'<span class="control" title="{escape(names)}">{_code_points(run)}</span>'


_short_span = lru_cache(maxsize=1_024)(_span)


def _code_points(run: str) -> str:
    named = " ".join(f"U+{ord(character):04X}" for character in run[:MAX_NAMED_IN_A_RUN])
    return f"‹{named}›" if len(run) <= MAX_NAMED_IN_A_RUN else f"‹{named} … ×{len(run)}›"
