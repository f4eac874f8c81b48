"""What two texts have in common and what not, word by word, on their source.

Words, blanks and punctuation are compared as they are written; Chinese, Japanese and the scripts without blanks by
character. The comparison is difflib's (Ratcliff and Obershelp: the longest common run, then the same on both sides of
it), whose worst case is cubic in the number of words. So it has a budget: each search for a common run costs what
difflib will look at, the largest gaps are searched first, and when it is spent the gaps left over are called changed.
Long texts are first compared by sentences, then by words where the sentences differ.

Two responses to one prompt share small words by chance. A common run shorter than the changes on both sides of it is
called changed as well, so that what is left can be read (the clean-up of Google's diff-match-patch).
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import NamedTuple

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from labeling.invisible import mark_invisible

# Looks at a word of the other text: 0.1 to 0.4 s on one core.
MAX_LOOKS = 1_000_000
# Longer texts are not compared by words at once.
MAX_WORDS_AT_ONCE = 3_000
# Longer ones together are told apart by their beginning and end alone.
MAX_COMPARED_CHARACTERS = 400_000

_ALONE = (  # scripts without blanks between words: a character, with what stands on it, is a word
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af]"
)
_ON_IT = (
    "[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b6-\u17d3\u3099\u309a"
    "\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_SIGN = (
    "[!-/:-@\\[-^`{-~\xa1-\xbf\xd7\xf7\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965\u2010-\u2027\u2030-\u205e"
    "\u2190-\u23ff\u3000-\u3004\u3008-\u3030\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
_UNSEEN = "[\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
_IN_WORD = rf"(?:(?!{_ALONE}|{_SIGN}|{_UNSEEN})\S)"
_WORD = re.compile(rf"{_ALONE}{_ON_IT}*|{_IN_WORD}+(?:['’]{_IN_WORD}+)*|\n|[^\S\n]+|.", re.DOTALL)
_SENTENCE = re.compile(r"[^\n.!?。！？]*(?:\n|[.!?]+(?:[^\S\n]+|\n|(?=\S))|[。！？]+|\Z)")


@dataclass(frozen=True, slots=True)
class Difference:
    """Two texts with what the other has not: ``<del>`` on the left, ``<ins>`` on the right, to be put behind ``<pre>``
    and a new line. ``is_bounded``: the budget ended the comparison, and more may be marked than differs.
    ``same_share``: the share of characters that are not marked, of both texts together; 1.0 for two empty ones.
    """

    left_html: SafeString
    right_html: SafeString
    is_bounded: bool
    same_share: float


class Run(NamedTuple):
    """A common run: where it begins in both sequences, and how many items it has."""

    left: int
    right: int
    size: int


class _Gap(NamedTuple):
    left: int
    left_end: int
    right: int
    right_end: int


class _Budget:
    """How many looks are left, and whether they were enough."""

    def __init__(self, looks: int) -> None:
        self.left, self.is_spent = looks, False

    def pay(self, looks: int) -> bool:
        """Take ``looks`` if there are as many, and say whether."""
        if looks > self.left:
            self.is_spent = True
            return False
        self.left -= looks
        return True


def difference(left: str, right: str) -> Difference:
    """Return what differs between the sources of two responses.

    Whatever two texts of 100,000 characters hold, it takes about a second at most; two of 2,000 tokens some 50 ms.
    """
    budget = _Budget(MAX_LOOKS)
    runs = _cleaned(_common_characters(left, right, budget), len(left), len(right))
    same = sum(run.size for run in runs)
    whole = len(left) + len(right)
    return Difference(
        _marked(left, [(run.left, run.left + run.size) for run in runs], "del"),
        _marked(right, [(run.right, run.right + run.size) for run in runs], "ins"),
        budget.is_spent,
        2 * same / whole if whole else 1.0,
    )


# Comparing -------------------------------------------------------------------------------------------------------


def _common_characters(left: str, right: str, budget: _Budget) -> list[Run]:
    if len(left) + len(right) > MAX_COMPARED_CHARACTERS:
        budget.is_spent |= left != right
        return _ends(left, right)
    words = _WORD.findall(left), _WORD.findall(right)
    if max(map(len, words)) <= MAX_WORDS_AT_ONCE:
        return _in_characters(*words, budget)
    runs = _in_characters(_sentences(left), _sentences(right), budget)
    for gap in _gaps(runs, len(left), len(right)):
        inner = _WORD.findall(left[gap.left : gap.left_end]), _WORD.findall(right[gap.right : gap.right_end])
        runs += [Run(run.left + gap.left, run.right + gap.right, run.size) for run in _in_characters(*inner, budget)]
    return sorted(runs)


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE.findall(text) if sentence]


def _in_characters(left: Sequence[str], right: Sequence[str], budget: _Budget) -> list[Run]:
    """Return the common runs of two lists of pieces, by characters of the texts they are pieces of."""
    left_starts, right_starts = ([0, *accumulate(map(len, pieces))] for pieces in (left, right))
    return [
        Run(left_starts[run.left], right_starts[run.right], left_starts[run.left + run.size] - left_starts[run.left])
        for run in _common(left, right, budget)
    ]


def _common(left: Sequence[str], right: Sequence[str], budget: _Budget) -> list[Run]:
    """Return the common runs of two sequences in order, the largest gaps searched first."""
    ends = _ends(left, right)
    matcher = SequenceMatcher(_is_no_word, left, right, autojunk=False)
    counts = Counter(piece for piece in right if not _is_no_word(piece))
    looks = [0, *accumulate(counts[piece] + 1 for piece in left)]
    runs, waiting = list(ends), [(_size(gap), gap) for gap in _gaps(ends, len(left), len(right))]
    heapq.heapify(waiting)
    while waiting:
        gap = heapq.heappop(waiting)[1]
        if not budget.pay(looks[gap.left_end] - looks[gap.left]):
            continue
        match = matcher.find_longest_match(gap.left, gap.left_end, gap.right, gap.right_end)
        if match.size:
            run = Run(match.a, match.b, match.size)
            runs.append(run)
            for part in _around(gap, run):
                heapq.heappush(waiting, (_size(part), part))
    return sorted(runs)


def _is_no_word(piece: str) -> bool:
    """Blanks and signs are everywhere; they are common where the words beside them are."""
    return piece.isspace() or (len(piece) == 1 and re.fullmatch(_SIGN, piece) is not None)


def _ends(left: Sequence[str], right: Sequence[str]) -> list[Run]:
    """Return what two sequences have in common at their beginning and at their end."""
    shorter = min(len(left), len(right))
    start = next((place for place in range(shorter) if left[place] != right[place]), shorter)
    rest = shorter - start
    end = next((place for place in range(rest) if left[-1 - place] != right[-1 - place]), rest)
    return [run for run in (Run(0, 0, start), Run(len(left) - end, len(right) - end, end)) if run.size]


def _gaps(runs: Sequence[Run], left_end: int, right_end: int) -> list[_Gap]:
    """Return what lies between ``runs``, where both sides have something."""
    fenced = [Run(0, 0, 0), *runs, Run(left_end, right_end, 0)]
    gaps = (_Gap(one.left + one.size, two.left, one.right + one.size, two.right) for one, two in pairwise(fenced))
    return [gap for gap in gaps if gap.left < gap.left_end and gap.right < gap.right_end]


def _around(gap: _Gap, run: Run) -> list[_Gap]:
    before = _Gap(gap.left, run.left, gap.right, run.right)
    after = _Gap(run.left + run.size, gap.left_end, run.right + run.size, gap.right_end)
    return [part for part in (before, after) if part.left < part.left_end and part.right < part.right_end]


def _size(gap: _Gap) -> int:
    return -(gap.left_end - gap.left + gap.right_end - gap.right)


def _cleaned(runs: list[Run], left_end: int, right_end: int) -> list[Run]:
    """Return ``runs`` without those that are shorter than the changes on both sides of them."""
    kept = [Run(0, 0, 0)]
    for run in [*_joined(runs), Run(left_end, right_end, 0)]:
        while len(kept) > 1 and kept[-1].size < min(_change(kept[-2], kept[-1]), _change(kept[-1], run)):
            kept.pop()
        kept.append(run)
    return kept[1:-1]


def _joined(runs: list[Run]) -> list[Run]:
    joined: list[Run] = []
    for run in runs:
        if joined and _change(joined[-1], run) == 0:
            joined[-1] = joined[-1]._replace(size=joined[-1].size + run.size)
        else:
            joined.append(run)
    return joined


def _change(before: Run, after: Run) -> int:
    """Return the characters of the longer side between two runs."""
    return max(after.left - before.left - before.size, after.right - before.right - before.size)


# Marking ---------------------------------------------------------------------------------------------------------


def _marked(text: str, same: list[tuple[int, int]], element: str) -> SafeString:
    parts, done = [], 0
    for start, end in [*same, (len(text), len(text))]:
        if done < start:
            parts.append(format_html("<{0}>{1}</{0}>", mark_safe(element), mark_invisible(text[done:start])))  # noqa: S308
        parts.append(mark_invisible(text[start:end]))
        done = end
    return mark_safe("".join(parts))  # noqa: S308  (each part is escaped)
