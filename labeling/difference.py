"""Placeholder: the words of two texts compared."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from django.utils.html import escape


@dataclass(frozen=True)
class Difference:
    left_html: str
    right_html: str


def difference(left: str, right: str) -> Difference:
    a, b = re.findall(r"\s+|\w+|[^\w\s]", left), re.findall(r"\s+|\w+|[^\w\s]", right)
    one, two = "", ""
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        x, y = escape("".join(a[i:j])), escape("".join(b[k:m]))
        one += x if tag == "equal" or not x else f"<del>{x}</del>"
        two += y if tag == "equal" or not y else f"<ins>{y}</ins>"
    return Difference(one, two)
