"""What people and the training side ask of labeling, beside the queue. The only writers of these rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db import transaction

from labeling.exceptions import LabelingError
from labeling.models import Membership, Pair, Project, Prompt, Response, Slot
from labeling.prompts import Message, content_hash, is_held_out, normalise

BATCH_SIZE = 500


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

    Raises ``LabelingError`` for two texts that a reader could not tell apart.
    """
    first, second = responses
    if normalise(first.text) == normalise(second.text):
        raise LabelingError("The two responses are the same; there is nothing to compare.")
    a, b = (
        Response.objects.create(
            prompt=prompt, text=new.text, token_ids=list(new.token_ids), finish_reason=new.finish_reason
        )
        for new in responses
    )
    project = prompt.project
    pair = Pair.objects.create(
        project=project, prompt=prompt, response_a=a, response_b=b, judgements_wanted=project.judgements_per_pair
    )
    Slot.objects.bulk_create(
        Slot(project=project, pair=pair, place=place, priority=priority)
        for place in range(1, pair.judgements_wanted + 1)
    )
    return pair
