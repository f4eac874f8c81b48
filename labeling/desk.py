"""What the annotate page shows of a lease, and how what comes back reads. By side: A and B stay on the server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from django.db import connection
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import get_language, gettext, ngettext

from labeling import places, queue, rows, sent_back
from labeling.leases import Lease
from labeling.models import Choice, Pair, Preference, Project, Prompt, Response, Slot
from labeling.rendering import raw_text, render_text
from labeling.tokens import lease_key

LEFT, RIGHT, TIE, BOTH_BAD = "left", "right", "tie", "both_bad"
SIDES = (LEFT, RIGHT)
_COLUMNS = [(Pair, "pair"), (Prompt, "prompt"), (Response, "a"), (Response, "b")]
CONTENTS = f"""
SELECT {", ".join(rows.columns(model, alias) for model, alias in _COLUMNS)}
FROM labeling_pair pair
JOIN labeling_prompt prompt ON prompt.id = pair.prompt_id
JOIN labeling_response a ON a.id = pair.response_a_id
JOIN labeling_response b ON b.id = pair.response_b_id
WHERE pair.id = %s
"""  # noqa: S608  (of constants alone)


@dataclass(frozen=True)
class Waiting:
    """Why there is no pair for somebody, and what they can do."""

    title: str
    text: str


def contents(slot: Slot) -> Pair:
    """The slot's pair with its prompt and both responses, by one statement."""
    with connection.cursor() as cursor:
        cursor.execute(CONTENTS, [slot.pair_id])
        row = cursor.fetchone()
    parts: list[Any] = []
    start = 0
    for model in (Pair, Prompt, Response, Response):
        end = start + len(model._meta.concrete_fields)
        parts.append(rows.build(model, row[start:end]))
        start = end
    pair: Pair = parts[0]
    pair.prompt, pair.response_a, pair.response_b = parts[1:]
    return pair


def texts_of(project: Project, token: str, annotator_id: int) -> tuple[str, str]:
    """The texts of the left and of the right response, as the page with this token shows them."""
    lease = queue.read_lease(project, token, annotator_id)
    pair = Pair.objects.select_related("response_a", "response_b").get(slots=lease.slot_id)
    texts = pair.response_a.text, pair.response_b.text
    return texts if lease.shown_left == Slot.Side.A else (texts[1], texts[0])


def show(project: Project, lease: Lease, annotator_id: int) -> dict[str, Any]:
    """The context of one desk: a pair with its sides, and what an undo reopened."""
    slot, pair, previous = lease.slot, contents(lease.slot), lease.previous
    left, right = pair.response_a, pair.response_b
    if slot.shown_left == Slot.Side.B:
        left, right = right, left
    turns = [{"role": turn["role"], "html": render_text(turn["content"])} for turn in pair.prompt.messages]
    return {
        "token": lease.token,
        "key": lease_key(slot),
        "earlier_turns": turns[:-1],
        "last_turn": turns[-1],
        "left": _response(left),
        "right": _response(right),
        "is_repeat": slot.kind == Slot.Kind.REPEAT,
        "asks_reason": queue.asks_for_reason(project, slot, annotator_id),
        "previous": side_of(previous.choice, slot.shown_left) if previous else "",
        "saying": _saying(project, previous, slot.shown_left),
        "note": (note := sent_back.note_of(previous) if previous else ""),
        # Beside the one that lies here.
        "sent_back": sent_back.count_of(project.pk, annotator_id) - bool(note),
    }


def _response(response: Response) -> dict[str, Any]:
    return {
        "html": render_text(response.text),
        "raw": raw_text(response.text),
        "is_cut": response.finish_reason == Response.FinishReason.LENGTH,
    }


def _saying(project: Project, previous: Preference | None, shown_left: str) -> SafeString:
    """The fields for what may go with the choice, filled in where an undo reopened an answer."""
    asked = _Asked(project.asks_strength, project.allows_rewrites, tuple(project.criteria), tuple(project.reason_chips))
    if previous is None:
        return _nothing_said(asked, get_language())
    rewrite = getattr(previous, "rewrite", None)
    return _fields(
        asked,
        {
            "is_strong": previous.is_strong,
            "comment": previous.comment,
            "rewrite": rewrite.response.text if rewrite else "",
            "criteria": {name: side_of(choice, shown_left) for name, choice in previous.criteria.items()},
            "reasons": previous.reasons,
        },
    )


@dataclass(frozen=True)
class _Asked:
    """What a project lets people say beyond the choice."""

    asks_strength: bool
    allows_rewrites: bool
    criteria: tuple[str, ...]
    reason_chips: tuple[str, ...]


@lru_cache(maxsize=64)
def _nothing_said(asked: _Asked, _language: str | None) -> SafeString:
    """Of almost every pair, so it is not written anew for each."""
    return _fields(asked, {"criteria": {}, "reasons": []})


def _fields(asked: _Asked, said: dict[str, Any]) -> SafeString:
    criteria = [{"name": name, "value": said["criteria"].get(name, "")} for name in asked.criteria]
    reasons = [{"name": name, "is_chosen": name in said["reasons"]} for name in asked.reason_chips]
    fields = {"asked": asked, "said": said | {"criteria": criteria, "reasons": reasons}}
    return render_to_string("labeling/_saying.html", fields)


def why_nothing(project: Project, annotator_id: int, now: Any) -> Waiting:
    """Why there is no pair for this person, when there may be one, and what they can do meanwhile."""
    waiting = _why_nothing(project, annotator_id, now)
    name, said = "labeling:history", gettext("Your judgements")
    if count := sent_back.count_of(project.pk, annotator_id):
        name = "labeling:me"
        said = ngettext("%(count)d to look at again", "%(count)d to look at again", count) % {"count": count}
    link = format_html('<a href="{}">{}</a>', reverse(name, args=[project.slug]), said)
    return replace(waiting, text=format_html("{} {}", waiting.text, link))


def _why_nothing(project: Project, annotator_id: int, now: Any) -> Waiting:
    if project.is_paused:
        return Waiting(gettext("Paused"), gettext("An admin has paused this project. Your judgements are safe."))
    if not Prompt.objects.in_use().filter(project=project).exists():
        return Waiting(gettext("No prompts yet"), gettext("Pairs appear here after an admin has imported prompts."))
    if not project.pairs.exists():
        text = gettext("None has been written for this project's prompts so far. They appear here by themselves.")
        return Waiting(gettext("No pairs yet"), text)
    count, until = places.waiting_for(project, annotator_id)
    if until is None:
        text = gettext("Thank you. New pairs appear here by themselves as soon as they are written.")
        return Waiting(gettext("You have done every pair here"), text)
    minutes = max(1, round((until - now).total_seconds() / 60))
    with_others = ngettext("%(count)d pair is with other people.", "%(count)d pairs are with other people.", count) % {
        "count": count
    }
    back = ngettext(
        "The first may come back in about %(minutes)d minute.",
        "The first may come back in about %(minutes)d minutes.",
        minutes,
    ) % {"minutes": minutes}
    return Waiting(gettext("Nothing for you right now"), f"{with_others} {back}")


def choice_of(side_choice: str, shown_left: str) -> str:
    """Translate a vote by side into one by response: A or B."""
    if side_choice not in SIDES:
        return side_choice
    if side_choice == LEFT:
        return shown_left
    return Choice.B if shown_left == Slot.Side.A else Choice.A


def side_of(choice: str, shown_left: str) -> str:
    """The inverse of ``choice_of``: where the chosen response stands on the page."""
    if choice not in Slot.Side.values:
        return choice
    return LEFT if choice == shown_left else RIGHT
