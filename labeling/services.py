"""What people and the training side ask of labeling, beside the queue. The only writers of these rows."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext

from labeling.exceptions import GuidelinesChanged, LabelingError
from labeling.models import Guidelines, Membership, Pair, Preference, Project, Prompt, Response, Slot
from labeling.models.projects import MAX_GUIDELINES_CHARACTERS
from labeling.prompts import Message, clean_text, content_hash, is_held_out, normalise
from labeling.records import note_arrival

BATCH_SIZE = 500
# Two opinions show whether there is a question; where they differ, the queue asks for a third.
CALIBRATION_JUDGEMENTS = 2


@dataclass(frozen=True)
class ImportReport:
    """What an import did: rows stored, and rows that the project, or the import itself, already had."""

    added: int
    duplicates: int


@dataclass(frozen=True)
class NewResponse:
    """A response about to be stored."""

    text: str
    token_ids: Sequence[int] = ()
    finish_reason: str = ""


@transaction.atomic
def create_project(*, name: str, slug: str, guidelines: str = "", admin: User | None = None) -> Project:
    project = Project.objects.create(name=name, slug=slug, guidelines=guidelines)
    Guidelines.objects.create(project=project, version=1, text=guidelines, author=admin)
    if admin is not None:
        add_member(project=project, user=admin, role=Membership.Role.ADMIN)
    return project


def add_member(*, project: Project, user: User, role: str) -> Membership:
    membership, _ = Membership.objects.update_or_create(project=project, user=user, defaults={"role": role})
    return membership


def add_prompts(*, project: Project, prompts: Iterable[Sequence[Message]]) -> ImportReport:
    """Store chats that are not yet in the project.

    In batches, each a short transaction of its own, so that nobody who labels waits for a large import. Adding the same
    chats again adds what is missing.
    """
    added = duplicates = 0
    batch: dict[str, Prompt] = {}
    for messages in prompts:
        digest = content_hash(messages)
        if digest in batch:
            duplicates += 1
            continue
        batch[digest] = Prompt(
            project=project, messages=list(messages), content_hash=digest, is_held_out=is_held_out(digest)
        )
        if len(batch) == BATCH_SIZE:
            new = _store_new(project, batch)
            added, duplicates, batch = added + new, duplicates + len(batch) - new, {}
    new = _store_new(project, batch)
    return ImportReport(added + new, duplicates + len(batch) - new)


@transaction.atomic
def _store_new(project: Project, batch: dict[str, Prompt]) -> int:
    known = set(Prompt.objects.filter(project=project, content_hash__in=batch).values_list("content_hash", flat=True))
    new = [prompt for digest, prompt in batch.items() if digest not in known]
    Prompt.objects.bulk_create(new, ignore_conflicts=True)  # another import may be adding the same prompt
    return len(new)


@transaction.atomic
def add_pair(*, prompt: Prompt, responses: tuple[NewResponse, NewResponse], priority: float = 0.0) -> Pair:
    """Store two responses as a pair and open its slots. Slots of higher ``priority`` are served first.

    Its whole part is the round: later rounds come first. Within a round the rest decides; a pair of the control has
    none, so that its round is served in random order. Raises ``LabelingError`` for two texts that
    a reader could not tell apart.
    """
    first, second = responses
    if normalise(first.text) == normalise(second.text):
        raise LabelingError(gettext("The two responses are the same; there is nothing to compare."))
    a, b = (
        Response.objects.create(
            prompt=prompt, text=new.text, token_ids=list(new.token_ids), finish_reason=new.finish_reason
        )
        for new in responses
    )
    # Locked, so that a prompt that is withdrawn at this moment takes the pair along, or is given none.
    if Prompt.objects.in_use().select_for_update(no_key=True).filter(pk=prompt.pk).first() is None:
        raise LabelingError(gettext("The prompt was withdrawn, so it is given no pair."))
    project = prompt.project
    is_calibration = _falls(project.calibration_percent)
    wanted = max(project.judgements_per_pair, CALIBRATION_JUDGEMENTS if is_calibration else 1)
    pair = Pair.objects.create(
        project=project,
        prompt=prompt,
        response_a=a,
        response_b=b,
        judgements_asked=wanted,
        judgements_wanted=wanted,
        is_calibration=is_calibration,
        is_control=_falls(project.control_percent),
    )
    place_in_order = float(math.floor(priority)) if pair.is_control else priority
    Slot.objects.bulk_create(
        Slot(
            project=project,
            pair=pair,
            place=place,
            priority=place_in_order,
            is_control=pair.is_control,
            is_shared=wanted > 1,
        )
        for place in range(1, wanted + 1)
    )
    note_arrival(project)
    return pair


def _falls(percent: int) -> bool:
    return random.random() * 100 < percent  # noqa: S311  (a sample, not a secret)


def freeze_preferences(preference_ids: Iterable[int]) -> None:
    """Note that a dataset uses these judgements from now on: their authors change them no more."""
    ids = list(preference_ids)
    for start in range(0, len(ids), BATCH_SIZE):
        batch = Preference.objects.filter(pk__in=ids[start : start + BATCH_SIZE], frozen_at=None)
        batch.update(frozen_at=timezone.now())


@transaction.atomic
def set_guidelines(
    *, project: Project, text: str, author: User | None, note: str = "", based_on: int | None = None
) -> Guidelines:
    """Write a new version of the guidelines; the same text again is the version that there is.

    ``based_on`` is the version that the author had before them. If there is a newer one by now, nothing is written,
    for the text would undo what somebody else has just saved: ``GuidelinesChanged``.
    """
    text = _checked_guidelines(text)
    locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    newest = Guidelines.objects.filter(project=project).first()
    if newest and newest.text == text:
        return newest
    if newest and based_on is not None and newest.version != based_on:
        raise GuidelinesChanged(newest.version)
    version = (newest.version if newest else 0) + 1
    locked.guidelines, locked.guidelines_version = text, version
    locked.save(update_fields=["guidelines", "guidelines_version"])
    project.guidelines, project.guidelines_version = text, version
    return Guidelines.objects.create(project=project, version=version, text=text, author=author, note=note.strip())


def _checked_guidelines(text: str) -> str:
    if len(text) > MAX_GUIDELINES_CHARACTERS:
        told = {"count": len(text), "most": MAX_GUIDELINES_CHARACTERS}
        raise LabelingError(gettext("The guidelines have %(count)d characters; at most %(most)d are kept.") % told)
    return clean_text(text)
