"""LaTeX as language models write it, as MathML that browsers draw without fonts or scripts of ours.

``latex2mathml`` reads the LaTeX; its tree is mended here to what MathML Core knows (https://www.w3.org/TR/mathml-core/)
and written with an allowlist of elements and attributes. What cannot be read, or would take long, is no error: the
caller shows the source.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from html import escape, unescape
from itertools import pairwise
from xml.etree.ElementTree import Element

from django.utils.safestring import SafeString, mark_safe

from labeling.invisible import has_invisible

# Reading takes up to 20 microseconds a character where every one is hostile.
MAX_FORMULA_CHARACTERS = 2_000
MAX_DEPTH = 48
# The same few symbols stand all over an answer. Long formulas are rarely met twice and would fill the memory.
CACHED_FORMULAS, MAX_CACHED_CHARACTERS = 2_048, 80

_LENGTHS = frozenset(("width", "height", "depth", "lspace", "rspace", "voffset", "minsize", "maxsize", "linethickness"))
_LENGTH = re.compile(r"([+-]?)(\d{0,3}(?:\.\d{1,4})?)(em|ex|px|pt|mu|)")
_IN_EM = {"em": 1.0, "ex": 0.45, "px": 1 / 16, "pt": 1 / 12, "mu": 1 / 18, "": 1.0}
# A gap or a bracket of hostile size would push a text off its pane, or over the other one.
_SHORTEST_EM, _LONGEST_EM = -0.5, 4.0
_OPERATOR = frozenset(
    ("stretchy", "fence", "form", "largeop", "movablelimits", "accent", "minsize", "maxsize", "lspace", "rspace")
)
ATTRIBUTES: dict[str, frozenset[str]] = {
    "math": frozenset(("display", "class")),
    "mrow": frozenset(("class",)),
    "mi": frozenset(("mathvariant",)),
    "mn": frozenset(),
    "mo": _OPERATOR,
    "mtext": frozenset(("class",)),
    "mspace": frozenset(("width",)),
    "mfrac": frozenset(("linethickness",)),
    "msqrt": frozenset(),
    "mroot": frozenset(),
    "mstyle": frozenset(("displaystyle", "scriptlevel")),
    "mphantom": frozenset(),
    "mpadded": frozenset(("width", "height", "depth")),
    "msub": frozenset(),
    "msup": frozenset(),
    "msubsup": frozenset(),
    "munder": frozenset(("accentunder",)),
    "mover": frozenset(("accent",)),
    "munderover": frozenset(),
    "mtable": frozenset(("displaystyle",)),
    "mtr": frozenset(("class",)),
    "mtd": frozenset(("class",)),
}
CLASSES: dict[str, frozenset[str]] = {
    "math": frozenset(("aligned",)),
    "mrow": frozenset(("boxed", "struck")),
    "mtext": frozenset(("bold", "italic")),
    "mtr": frozenset(("ruled",)),
    "mtd": frozenset(("from-left", "from-right", "edged")),
}
_CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
_WORD_VALUE = re.compile(r"[a-z0-9+-]{1,16}")
_TOKENS = frozenset(("mi", "mn", "mo", "mtext"))

# Definitions can grow without bound, \sideset writes its argument twice, and the others set attributes.
_REFUSED = re.compile(
    r"\\(?:(?:re|provide)?newcommand|newenvironment|DeclareMathOperator|[egx]?def|let|sideset|href|url|class|style"
    r"|cssId|includegraphics|unicode|verb|rule|raise|lower|move(?:left|right)|[lrc]lap|skew)(?![a-zA-Z])"
)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([a-zA-Z]{1,20}\*?)\}")
_ENVIRONMENTS = {name: name for name in ("array", "cases", "smallmatrix", "substack", "equation", "equation*")}
_ENVIRONMENTS |= {
    f"{kind}matrix{star}": f"{kind}matrix" for kind in ("", "p", "b", "B", "v", "V") for star in ("", "*")
}
_ENVIRONMENTS |= dict.fromkeys(("align", "align*", "aligned", "split", "eqnarray", "eqnarray*"), "align*")
_ENVIRONMENTS |= dict.fromkeys(("gather", "gather*", "gathered", "multline", "multline*"), "matrix")
_LABEL = re.compile(r"\\label\s*\{[^{}]*\}|\\(?:nonumber|notag|displaylimits)(?![a-zA-Z])")
_UPRIGHT_LETTER = re.compile(r"\\(mathrm|text|textrm)\{([a-zA-Z])\}")
_TEXT_WITH_FORMULA = re.compile(r"\\text\{([^{}$]*\$[^{}]*)\}")
_OPERATOR_NAME = re.compile(r"\\operatorname\s*(\*?)\s*\{((?:[^{}\\]|\\[,;:! ])*)\}")
_ARGUMENT = re.compile(r"\\(arg|hom|ker|dim|deg)(?![a-zA-Z])")

_LIMIT_WORDS = frozenset(
    ("lim", "max", "min", "sup", "inf", "argmax", "argmin", "lim inf", "lim sup", "det", "gcd", "Pr")
)
_LIMIT_SIGNS = frozenset("∑∏∐⋂⋃⋀⋁⨀⨁⨂⨄⨆")
_UNDER_OVER = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_ACCENTS = frozenset("^~¯‾―˙¨→←↔´`ˇ˘˚⏞⏟⎴⎵_⃗")
_NO_OPERATORS = frozenset("∞∅ℏ°∎")
# The letters that had their style before the mathematical alphabets came carry other names.
_VARIANTS = {
    "bold": ("MATHEMATICAL BOLD",),
    "italic": ("MATHEMATICAL ITALIC",),
    "bold-italic": ("MATHEMATICAL BOLD ITALIC", "MATHEMATICAL BOLD"),
    "double-struck": ("MATHEMATICAL DOUBLE-STRUCK", "DOUBLE-STRUCK"),
    "script": ("MATHEMATICAL SCRIPT", "SCRIPT"),
    "fraktur": ("MATHEMATICAL FRAKTUR", "BLACK-LETTER"),
    "sans-serif": ("MATHEMATICAL SANS-SERIF",),
    "bold-sans-serif": ("MATHEMATICAL SANS-SERIF BOLD",),
    "monospace": ("MATHEMATICAL MONOSPACE",),
}


class Unreadable(Exception):
    """A formula is not shown as one: what stands in it is unknown, refused or too much."""


def mathml(latex: str, *, is_block: bool) -> SafeString | None:
    """Return ``latex``, without its delimiters, as a ``<math>`` element, or None where it cannot be read.

    ``is_block`` sets it as a display. A command or environment that is not known makes the whole formula unreadable:
    half a formula would be judged as the model's mistake.
    """
    return _cached_mathml(latex, is_block) if len(latex) <= MAX_CACHED_CHARACTERS else _mathml(latex, is_block)


def _mathml(latex: str, is_block: bool) -> SafeString | None:
    try:
        tree = _read(latex, is_block)
        _mend(tree)
        return mark_safe("".join(_written(tree)))  # noqa: S308  (elements and attributes of the allowlist, text escaped)
    except Exception:
        return None


_cached_mathml = lru_cache(maxsize=CACHED_FORMULAS)(_mathml)


def _read(latex: str, is_block: bool) -> Element:
    from latex2mathml.converter import Converter  # 0.02 to 0.1 s, for those who meet a formula

    if len(latex) > MAX_FORMULA_CHARACTERS or _REFUSED.search(latex) or not latex.strip():
        raise Unreadable
    tree = Converter(display="block" if is_block else "inline").convert_to_element(_known(latex))
    if _depth(tree) > MAX_DEPTH:
        raise Unreadable
    return tree


def _known(latex: str) -> str:
    """Return ``latex`` in the words that the reader knows."""
    latex = _ENVIRONMENT.sub(_environment, _LABEL.sub("", latex))
    latex = _OPERATOR_NAME.sub(lambda name: rf"\operatorname{name[1]}{{{re.sub(r'[^a-zA-Z]', '', name[2])}}}", latex)
    latex = _ARGUMENT.sub(r"\\operatorname{\1}", latex)
    latex = _UPRIGHT_LETTER.sub(r"\\\1{\2{}}", latex) if "mathrm" in latex else latex
    latex = _TEXT_WITH_FORMULA.sub(r"\\hbox{\1}", latex)
    if r"\\" in latex and r"\begin" not in latex and "stack" not in latex:
        return rf"\begin{{matrix}}{latex}\end{{matrix}}"
    return latex


def _environment(match: re.Match[str]) -> str:
    if match[2] not in _ENVIRONMENTS:
        raise Unreadable
    return rf"\{match[1]}{{{_ENVIRONMENTS[match[2]]}}}"


def _depth(tree: Element) -> int:
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [child for element in level for child in element]
    return depth


# Mending: what the reader leaves to MathML 3, in the words of MathML Core -------------------------------------------


def _mend(element: Element) -> None:
    for child in element:
        _mend(child)
    element.text = unescape(element.text or "")
    if element.tag in _TOKENS:
        _mend_token(element)
    elif element.tag == "menclose":
        is_box = element.get("notation") == "box"
        element.tag, element.attrib = "mrow", {"class": "boxed" if is_box else "struck"}
    elif element.tag in _UNDER_OVER and len(element):
        _mend_limits(element)
    elif element.tag in ("mover", "munder") and len(element) == 2:
        _mend_accent(element)
    elif element.tag == "mtable":
        _mend_lines(element)
    elif element.tag == "math" and any(cell.get("class") == "from-right" for cell in element.iter("mtd")):
        element.set("class", "aligned")
    _space_functions(element)


def _mend_token(token: Element) -> None:
    text = token.text or ""
    if len(token):
        token.tag, token.attrib = "mrow", {}
        return
    if token.tag == "mtext":
        text = re.sub(r"\\([_%$&#{}])", r"\1", text)
    if "\\" in text or has_invisible(text):
        raise Unreadable
    variant = token.attrib.pop("mathvariant", "")
    if token.tag == "mtext":
        token.attrib = {"class": variant} if variant in CLASSES["mtext"] else {}
    elif variant == "normal" and token.tag == "mi":
        token.set("mathvariant", "normal")
    token.text = "".join(_in_variant(character, variant) for character in text) if token.tag != "mtext" else text
    token.tag = _kind(token)


def _kind(token: Element) -> str:
    """Return what ``token`` is: the reader takes some signs for letters, and the names of functions for signs."""
    text = token.text or ""
    if token.tag == "mi" and len(text) == 1 and unicodedata.category(text) == "Sm" and text not in "∞∂∇":
        token.text = "∼" if text == "~" else text
        return "mo"
    if token.tag == "mo" and (text in _NO_OPERATORS or (_is_name(text) and text not in _LIMIT_WORDS)) and text:
        token.attrib = {}
        return "mi"
    if token.tag == "mo" and text in _LIMIT_WORDS:
        token.attrib = {"movablelimits": "true", "lspace": "0em", "rspace": "0.167em"}
    return token.tag


def _is_name(text: str) -> bool:
    return len(text) > 1 and text.replace("\u2009", "").replace("\u2006", "").isalpha()


@lru_cache(maxsize=4_096)
def _in_variant(character: str, variant: str) -> str:
    """Return ``character`` in bold, script and so on: MathML Core has characters for that, and no attribute."""
    plain = re.sub(r"\b(?:LATIN|GREEK|LETTER) ", "", unicodedata.name(character, ""))
    for style in _VARIANTS.get(variant, ()):
        try:
            return unicodedata.lookup(f"{style} {plain}")
        except KeyError:
            continue
    return "ℎ" if (character, variant) == ("h", "italic") else character


def _mend_limits(element: Element) -> None:
    base = element[0]
    if base.tag == "mo" and ((base.text or "") in _LIMIT_SIGNS or (base.text or "") in _LIMIT_WORDS):
        element.tag = _UNDER_OVER[element.tag]


def _mend_accent(element: Element) -> None:
    sign = element[1]
    if sign.tag != "mo" or (sign.text or "") not in _ACCENTS:
        return
    element.set("accent" if element.tag == "mover" else "accentunder", "true")
    if (sign.text or "") in "⏞⏟⎴⎵":
        sign.set("stretchy", "true")
    if sign.text in ("―", "¯"):
        sign.text = "‾" if element.tag == "mover" else "_"
        sign.set("stretchy", "true")


def _mend_lines(table: Element) -> None:
    """Turn the alignment and the rules of a table into classes."""
    columns, rows = (table.get(name, "").split() for name in ("columnlines", "rowlines"))
    for row, rule in zip(table, [*rows, *[""] * len(table)], strict=False):
        row.attrib = {"class": "ruled"} if rule in ("solid", "dashed") else {}
        for cell, edge in zip(row, [*columns, *[""] * len(row)], strict=False):
            side = {"left": "from-left", "right": "from-right"}.get(cell.get("columnalign", ""), "")
            cell.attrib = {"class": " ".join(filter(None, (side, "edged" if edge == "solid" else "")))}


def _space_functions(row: Element) -> None:
    """Set ``sin x`` with its thin space, and ``sin(x)`` without."""
    if row.tag not in ("mrow", "mtd", "mstyle", "math", "msqrt"):
        return
    children: list[Element] = []
    for child, following in pairwise([*row, Element("mspace")]):
        children.append(child)
        if _is_function(child) and following.tag not in ("mo", "mspace"):
            children.append(Element("mspace", {"width": "0.167em"}))
    row[:] = children


def _is_function(element: Element) -> bool:
    while element.tag in ("msub", "msup", "msubsup") and len(element):
        element = element[0]
    return element.tag == "mi" and _is_name(element.text or "") and (element.text or "").isascii()


# Writing ---------------------------------------------------------------------------------------------------------


def _written(element: Element) -> Iterator[str]:
    if element.tag not in ATTRIBUTES or _CHILDREN.get(element.tag, len(element)) != len(element):
        raise Unreadable
    yield f"<{element.tag}{''.join(_attributes(element))}>"
    yield escape(element.text or "")
    for child in element:
        yield from _written(child)
    yield f"</{element.tag}>"


def _attributes(element: Element) -> Iterator[str]:
    for name, value in element.attrib.items():
        if name not in ATTRIBUTES[element.tag]:
            continue
        if name in _LENGTHS:
            value = _length(value)
        elif name == "class":
            value = " ".join(word for word in value.split() if word in CLASSES[element.tag])
        elif not _WORD_VALUE.fullmatch(value):
            value = ""
        if value:
            yield f' {name}="{value}"'


def _length(value: str) -> str:
    """Return a length of LaTeX in em, kept within what a line of text can bear; nothing where it is none."""
    match = _LENGTH.fullmatch(value.replace(" ", ""))
    if match is None or not match[2]:
        return ""
    em = float(match[1] + match[2]) * _IN_EM[match[3]]
    return f"{min(max(em, _SHORTEST_EM), _LONGEST_EM):.3f}".rstrip("0").rstrip(".") + "em"
