"""Reading prompts from JSONL: streamed, checked line by line, all or nothing."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, Any

from django.utils.translation import gettext

from labeling.exceptions import ImportRejected, LineProblem
from labeling.models import Project
from labeling.prompts import InvalidPrompt, Message, parse_prompt
from labeling.services import ImportReport, add_prompts

MAX_LINE_BYTES = 2 * 2**20
MAX_PROBLEMS = 20


def import_prompts(*, project: Project, file: IO[bytes]) -> ImportReport:
    """Import one prompt a line: a JSON text, a list of messages, or an object with ``prompt`` or ``messages``.

    The file is read twice: every line is checked before the first is stored. Raises ``ImportRejected`` with line
    numbers if any line is bad; nothing is stored then.
    """
    problems: list[LineProblem] = []
    deque(read_prompts(bounded_lines(file), problems), maxlen=0)
    if problems:
        raise ImportRejected(problems[:MAX_PROBLEMS], more=len(problems) > MAX_PROBLEMS)
    file.seek(0)
    return add_prompts(project=project, prompts=read_prompts(bounded_lines(file), []))


def bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines; of one that is too long only the beginning, so that no file can fill the memory."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line


def read_prompts(lines: Iterable[bytes], problems: list[LineProblem]) -> Iterator[list[Message]]:
    """Yield the chats in ``lines`` and append what is wrong to ``problems``; stops after ``MAX_PROBLEMS`` + 1."""
    empty = True
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        empty = False
        try:
            yield parse_prompt(prompt_of(decode_line(line)))
        except (InvalidPrompt, ValueError) as error:
            problems.append(LineProblem(number, str(error)))
            if len(problems) > MAX_PROBLEMS:
                return
    if empty:
        problems.append(LineProblem(1, gettext("the file is empty.")))


def decode_line(line: bytes) -> Any:
    """Return the JSON value of one line; ``InvalidPrompt`` says what is wrong with it."""
    if len(line) > MAX_LINE_BYTES:
        raise InvalidPrompt(gettext("longer than %(most)d MiB.") % {"most": MAX_LINE_BYTES // 2**20})
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidPrompt(gettext("not UTF-8 text (byte %(byte)d).") % {"byte": error.start + 1}) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        told = {"why": error.msg, "place": error.colno}
        raise InvalidPrompt(gettext("not JSON: %(why)s at character %(place)d.") % told) from None
    except RecursionError:
        raise InvalidPrompt(gettext("not a prompt: nested too deeply.")) from None


def prompt_of(value: Any) -> Any:
    """What stands under ``messages`` or ``prompt`` of an object; anything else as it is."""
    if not isinstance(value, dict):
        return value
    for key in ("messages", "prompt"):
        if key in value:
            return value[key]
    raise InvalidPrompt(gettext("the object has neither “prompt” nor “messages”."))
