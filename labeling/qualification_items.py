"""Writing a project's qualification set: items one by one, from a file, or from a pair. Answers keep their text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max
from django.utils.translation import gettext

from labeling.exceptions import ImportRejected, LabelingError, LineProblem
from labeling.importers import MAX_PROBLEMS, bounded_lines, decode_line, prompt_of
from labeling.models import Choice, Pair, Project, QualificationItem
from labeling.onboarding import set_of
from labeling.own_places import forget_second_looks
from labeling.prompts import MAX_PROMPT_CHARACTERS, InvalidPrompt, Message, clean_text, normalise, parse_prompt
from labeling.review import adjudicate, end_gold

MAX_ITEMS = 200
MAX_EXPLANATION_CHARACTERS = 10_000


class InvalidItem(LabelingError):
    """An item that cannot be asked as it is; the sentence says what to change."""


@dataclass(frozen=True)
class ItemContent:
    """What an item says. ``choice`` is the expected answer, one of ``Choice``; ``explanation`` is Markdown."""

    messages: list[Message]
    response_a: str
    response_b: str
    choice: str
    explanation: str


def parse_item(value: Any) -> ItemContent:
    """Return the item in a JSON object with ``prompt`` or ``messages``, the responses, ``choice``, ``explanation``.

    Raises ``InvalidItem`` with a sentence for the person who wrote it.
    """
    if not isinstance(value, dict):
        raise InvalidItem(gettext("an item is a JSON object."))
    texts = {name: _text(value, name) for name in ("response_a", "response_b", "choice", "explanation")}
    try:
        messages = parse_prompt(prompt_of(value))
    except InvalidPrompt as error:
        raise InvalidItem(gettext("its prompt cannot be used: %(why)s") % {"why": error}) from None
    return check_item(ItemContent(messages=messages, **texts))


def check_item(content: ItemContent) -> ItemContent:
    """Return the item as it is stored, or raise ``InvalidItem``."""
    if content.choice not in Choice.values:
        told = {"choice": content.choice[:40], "known": ", ".join(Choice.values)}
        raise InvalidItem(gettext("“%(choice)s” is not a choice; use one of %(known)s.") % told)
    cleaned = ItemContent(
        messages=content.messages,
        response_a=_cleaned("response_a", content.response_a, MAX_PROMPT_CHARACTERS),
        response_b=_cleaned("response_b", content.response_b, MAX_PROMPT_CHARACTERS),
        choice=content.choice,
        explanation=_cleaned("explanation", content.explanation, MAX_EXPLANATION_CHARACTERS),
    )
    if normalise(cleaned.response_a) == normalise(cleaned.response_b):
        raise InvalidItem(gettext("the two responses are the same; there is nothing to compare."))
    return cleaned


@transaction.atomic
def add_items(*, project: Project, contents: Iterable[ItemContent]) -> list[QualificationItem]:
    """Put items at the end of the set, all or none."""
    _lock(project)
    last = set_of(project).aggregate(last=Max("position"))["last"] or 0
    new = [
        QualificationItem(project=project, position=last + number, **asdict(check_item(content)))
        for number, content in enumerate(contents, 1)
    ]
    if (items := set_of(project).count() + len(new)) > MAX_ITEMS:
        told = {"items": items, "most": MAX_ITEMS}
        raise InvalidItem(gettext("The set would have %(items)d items; at most %(most)d make sense.") % told)
    return QualificationItem.objects.bulk_create(new)


@transaction.atomic
def add_item_of_pair(*, pair: Pair, choice: str, explanation: str, admin: User) -> QualificationItem:
    """Use a pair of the project as an item: its texts are copied, and it counts as decided by the expected answer.

    Newcomers are told that answer, so nobody is asked about the pair any more, not as one whose answer is known and not
    for a second look. The judgements that it has stay. A reviewer can still have it asked again: by taking the decision
    back, or by making it gold. Raises ``LabelingError`` for a pair that was taken out.
    """
    # Before its project, as the queue locks them.
    locked = Pair.objects.select_for_update(no_key=True).get(pk=pair.pk)
    if locked.is_retired:
        raise LabelingError(gettext("This pair was taken out. Bring it back first, then use it."))
    content = ItemContent(pair.prompt.messages, pair.response_a.text, pair.response_b.text, choice, explanation)
    item = add_items(project=pair.project, contents=[content])[0]
    if locked.gold_choice:
        end_gold(pair=locked)
    adjudicate(pair=locked, reviewer=admin, verdict=choice)
    forget_second_looks(pair.pk)
    return item


@transaction.atomic
def change_item(*, item: QualificationItem, content: ItemContent) -> QualificationItem:
    """Change an item; where somebody has answered it, a new one takes its place and the old one keeps its answers."""
    content = check_item(content)
    locked = _locked(item)
    values = {"project_id": locked.project_id, "position": locked.position, **asdict(content)}
    if all(getattr(locked, name) == value for name, value in values.items()):
        return locked
    if not locked.answers.exists():
        QualificationItem.objects.filter(pk=locked.pk).update(**values)
        locked.refresh_from_db()
        return locked
    _retire(locked)
    return QualificationItem.objects.create(**values)


@transaction.atomic
def remove_item(*, item: QualificationItem) -> None:
    """Take an item out of the set. One that somebody has answered is kept for its answers."""
    locked = _locked(item)
    if locked.answers.exists():
        _retire(locked)
    else:
        locked.delete()


@transaction.atomic
def move_item(*, item: QualificationItem, by: int) -> None:
    """Move an item up (``by`` < 0) or down in the order; at an end it stays."""
    _lock(item.project)
    items = list(set_of(item.project))
    places = {other.pk: place for place, other in enumerate(items)}
    if item.pk not in places:
        raise LabelingError(gettext("That item is no longer part of the set. Reload the page to see what is."))
    moved = items.pop(places[item.pk])
    items.insert(min(max(0, places[item.pk] + by), len(items)), moved)
    for position, other in enumerate(items, 1):
        other.position = position
    QualificationItem.objects.bulk_update(items, ["position"])


def import_items(*, project: Project, file: IO[bytes]) -> int:
    """Import one item a line, as JSON objects; all or nothing. Returns how many.

    Raises ``ImportRejected`` with line numbers if any line is bad.
    """
    problems: list[LineProblem] = []
    deque(_read(file, problems), maxlen=0)
    if problems:
        raise ImportRejected(problems[:MAX_PROBLEMS], more=len(problems) > MAX_PROBLEMS)
    file.seek(0)
    return len(add_items(project=project, contents=_read(file, [])))


def _read(file: IO[bytes], problems: list[LineProblem]) -> Iterator[ItemContent]:
    items = 0
    for number, line in enumerate(bounded_lines(file), 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        items += 1
        try:
            if items > MAX_ITEMS:
                raise InvalidItem(gettext("more than %(most)d items; that many make no sense.") % {"most": MAX_ITEMS})
            yield parse_item(decode_line(line))
        except (LabelingError, ValueError) as error:
            problems.append(LineProblem(number, str(error)))
            if len(problems) > MAX_PROBLEMS or items > MAX_ITEMS:
                return
    if not items:
        problems.append(LineProblem(1, gettext("the file is empty.")))


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise InvalidItem(gettext("“%(name)s” is missing, or is not a text.") % {"name": name})
    return text


def _cleaned(name: str, text: str, most: int) -> str:
    if len(text) > most:
        told = {"name": name, "count": len(text), "most": most}
        raise InvalidItem(gettext("“%(name)s” has %(count)d characters; at most %(most)d are kept.") % told)
    try:
        cleaned = clean_text(text)
    except InvalidPrompt as error:
        raise InvalidItem(gettext("“%(name)s” cannot be kept: %(why)s") % {"name": name, "why": error}) from None
    if not cleaned:
        raise InvalidItem(gettext("“%(name)s” is empty.") % {"name": name})
    return cleaned


def _lock(project: Project) -> None:
    """Whoever orders the set waits for the others who do."""
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)


def _locked(item: QualificationItem) -> QualificationItem:
    """The row as it is now, so that no answer comes between a look and a change."""
    locked = QualificationItem.objects.select_for_update().filter(pk=item.pk, is_active=True).first()
    if locked is None:
        raise LabelingError(gettext("That item is no longer part of the set. Reload the page to see what is."))
    return locked


def _retire(item: QualificationItem) -> None:
    QualificationItem.objects.filter(pk=item.pk).update(is_active=False)
