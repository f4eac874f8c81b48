"""The catalogues of the interface's languages: what the sources say, and what is said for it. Needs no GNU gettext.

Texts are found by Babel's reader of Python, in templates after Django has turned them into something like Python. What
is kept in the repository is ``locale/LANGUAGE/LC_MESSAGES/django.po``; the compiled file beside it is made by
``script/setup``.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.utils.translation.template import templatize

ROOT = Path(__file__).resolve().parent.parent
LOCALE = ROOT / "locale"
PYTHON = ("labeling", "config")
TEMPLATES = ROOT / "templates"
# The pages of this folder are in English so far.
NOT_TRANSLATED = (TEMPLATES / "training",)
# But annotators read these.
TRANSLATED = (TEMPLATES / "training" / "my_labels.html",)
PLAIN, PLURAL = (1,), (1, 2)
KEYWORDS = {
    "_": None,
    "gettext": None,
    "gettext_lazy": None,
    "gettext_noop": None,
    "ngettext": PLURAL,
    "ngettext_lazy": PLURAL,
    "pgettext": ((1, "c"), 2),
    "pgettext_lazy": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
}


def read_sources() -> Catalog:
    """Every text that the sources mark, with the files it stands in."""
    found = Catalog(charset="utf-8")
    for path in _sources():
        for _, texts, comments, context in extract("python", _as_python(path), KEYWORDS, ("Translators",)):
            found.add(texts, None, [(path.relative_to(ROOT).as_posix(), 0)], (), comments, context=context)
    return found


def read_catalogue(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale=path.parent.parent.name, charset="utf-8")


def catalogues() -> list[Path]:
    return sorted(LOCALE.glob("*/LC_MESSAGES/django.po"))


def update(path: Path) -> tuple[int, int]:
    """Bring a catalogue up to the sources. Returns how many texts it has and how many wait for a translation."""
    catalogue = read_catalogue(path)
    created = catalogue.creation_date
    catalogue.update(read_sources(), no_fuzzy_matching=True)
    catalogue.creation_date = created
    catalogue.project, catalogue.version = "Tiebreak", "1"
    catalogue.msgid_bugs_address = catalogue.last_translator = catalogue.language_team = ""
    buffer = io.BytesIO()
    write_po(buffer, catalogue, width=120, sort_by_file=True, include_lineno=False, ignore_obsolete=True)
    _replace(path, buffer.getvalue())
    texts = [message for message in catalogue if message.id]
    return len(texts), sum(not all(strings_of(message)) for message in texts)


def strings_of(message: Message) -> list[str]:
    """A text's translations: one, or one for each plural form; empty where there is none yet."""
    string = message.string
    return [string] if isinstance(string, str) else list(string or [""])


def compile_newer() -> list[Path]:
    """Compile each catalogue that is newer than its compiled file; returns which."""
    done = []
    for path in catalogues():
        compiled = path.with_suffix(".mo")
        if compiled.exists() and compiled.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            continue
        buffer = io.BytesIO()
        write_mo(buffer, read_catalogue(path))
        _replace(compiled, buffer.getvalue())
        done.append(path)
    return done


def _sources() -> Iterator[Path]:
    for folder in PYTHON:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if "migrations" not in path.parts)
    for path in sorted(TEMPLATES.rglob("*.html")):
        if path in TRANSLATED or not any(folder in path.parents for folder in NOT_TRANSLATED):
            yield path


def _as_python(path: Path) -> io.BytesIO:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        # What is left between the texts has the template's indentation, which means nothing to Python.
        text = "\n".join(line.strip() for line in templatize(text, origin=str(path)).splitlines())
    return io.BytesIO(text.encode())


def _replace(path: Path, content: bytes) -> None:
    """Write at once: two test processes may be compiling the same catalogue."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(name).chmod(0o644)
    Path(name).replace(path)
