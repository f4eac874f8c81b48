"""Two checkpoints side by side: what may be asked of them, of whom, and on which held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q, QuerySet

from labeling.models import Project, Prompt
from labeling.prompts import InvalidPrompt, Message, content_hash, parse_prompt
from training import registry, services
from training.exceptions import Rejected
from training.models import Checkpoint, Gate, GatePair, SideBySide, new_seed
from training.recipe import AnswerDecoding
from training.tasks import hint_on_commit

MOST_PROMPTS = 8
MOST_PROMPT_CHARACTERS = 20_000  # of one chat: more than most models read at once
Requester = User | None


def comparable_checkpoints(project: Project) -> QuerySet[Checkpoint]:
    """Those of the project, and of all projects, that can answer: their files are there, and they write text."""
    usable: QuerySet[Checkpoint] = services.usable_checkpoints(project)
    there = usable.filter(removed_at__isnull=True).exclude(base__removed_at__isnull=False)
    return there.exclude(kind=Checkpoint.Kind.REWARD)


def usual_sides(project: Project) -> tuple[Checkpoint | None, Checkpoint | None]:
    """What somebody most likely wants to compare: the policy with the newest candidate, else its parent with it."""
    policy = services.current_policy(project)
    newest = comparable_checkpoints(project).filter(project=project, kind=Checkpoint.Kind.DPO).first()
    if policy is not None and newest is not None and newest.pk > policy.pk:
        return policy, newest
    return (policy.parent, policy) if policy is not None else (None, newest)


def usual_opposite(project: Project, checkpoint: Checkpoint) -> Checkpoint | None:
    """What to put beside a checkpoint: the policy, or for the policy what it was trained from, if that can answer."""
    policy = services.current_policy(project)
    other = checkpoint.parent if policy == checkpoint else policy
    both = [one.pk for one in (checkpoint, other) if one is not None]
    return other if comparable_checkpoints(project).filter(pk__in=both).count() == 2 else None


def request_side_by_side(
    *,
    project: Project,
    left: Checkpoint,
    right: Checkpoint,
    prompts: Sequence[Any],
    decoding: AnswerDecoding | None = None,
    seed: int | None = None,
    by: Requester = None,
) -> SideBySide:
    """Let both answer the same prompts; ``Rejected`` with the reason if they cannot. A person may ask one at a time.

    ``prompts``: texts, or chats as lists of messages.
    """
    _refuse_unlike_sides(project, left, right)
    chats = _chats(prompts)
    decoding = decoding or AnswerDecoding()
    decoding.check()
    with transaction.atomic():
        services.lock(project)
        registry.refuse_removed(left, right)
        _refuse_asked_about(project, chats)
        if by is not None:
            _refuse_second(project, by)
        asked = SideBySide.objects.create(
            project=project,
            left=left,
            right=right,
            prompts=chats,
            decoding=decoding.to_dict(),
            seed=new_seed() if seed is None else seed,
            requested_by=by,
        )
        hint_on_commit(asked)
    return asked


def _refuse_unlike_sides(project: Project, left: Checkpoint, right: Checkpoint) -> None:
    for side in (left, right):
        if side.project_id not in (None, project.pk):
            raise Rejected(f"{side} belongs to another project.")
        if side.kind == Checkpoint.Kind.REWARD:
            raise Rejected(f"{side} is a reward model: it scores text and writes none. Choose a policy.")
        if gone := next((one for one in (side, side.base) if one is not None and one.removed_at), None):
            raise Rejected(f"The files of {gone} were removed, so {side} cannot answer any more. Choose another one.")
    if left.content_hash == right.content_hash:
        raise Rejected("Both sides are the same weights, so both would answer the same. Choose two checkpoints.")


def _chats(prompts: Sequence[Any]) -> list[list[Message]]:
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise Rejected(f"Ask 1 to {MOST_PROMPTS} prompts at a time, not {len(prompts)}.")
    try:
        chats = [parse_prompt(prompt) for prompt in prompts]
    except InvalidPrompt as error:
        raise Rejected(f"The prompt cannot be asked: {error}") from error
    longest = max(sum(len(message["content"]) for message in chat) for chat in chats)
    if longest > MOST_PROMPT_CHARACTERS:
        raise Rejected(
            f"The prompt has {longest:,} characters; at most {MOST_PROMPT_CHARACTERS:,} are asked here. Shorten it."
        )
    return chats


def _refuse_asked_about(project: Project, chats: Sequence[list[Message]]) -> None:
    """No way round the draw: who types such a prompt would know both answers. The lock keeps a new gate apart."""
    hashes = [content_hash(chat) for chat in chats]
    same = Prompt.objects.filter(project=project, content_hash__in=hashes)
    if same.filter(pk__in=_in_open_gates(project)).exists():
        which = "this prompt" if len(chats) == 1 else "one of these prompts"
        raise Rejected(
            f"A gate that is open asks people about {which}, blind, or is about to, so no answers to it are shown side "
            "by side. Ask another, or wait until the gate is decided."
        )


def _refuse_second(project: Project, by: User) -> None:
    """The worker answers one after the other, so nobody fills its line. The lock keeps two clicks apart."""
    User.objects.select_for_update().get(pk=by.pk)
    if active := SideBySide.objects.active().filter(requested_by=by).select_related("project").first():
        where = "" if active.project_id == project.pk else f" in {active.project}"
        raise Rejected(f"Your last comparison{where} is still being answered. Wait until it is done, or cancel it.")


# Held-out prompts


def held_out_prompts(project: Project, count: int) -> list[list[Message]]:
    """Some held-out prompts by chance, none that a gate is asking people about.

    Whoever has read both policies' answers to a prompt side by side could tell them apart when labeling it blind.
    """
    if not 1 <= count <= MOST_PROMPTS:
        raise Rejected(f"Ask 1 to {MOST_PROMPTS} prompts at a time, not {count}.")
    held_out = Prompt.objects.in_use().filter(project=project, is_held_out=True)
    free = held_out.exclude(pk__in=_in_open_gates(project)).order_by("?")
    chosen = [prompt.messages for prompt in free[:count]]
    if not chosen:
        raise Rejected(_why_none(held_out.exists()))
    return chosen


def _in_open_gates(project: Project) -> set[int]:
    """Prompts of pairs that annotators see, and of those that they are about to see."""
    gates = Gate.objects.filter(project=project).exclude(stage=Gate.Stage.DECIDED)
    asked = set(GatePair.objects.filter(gate__in=gates).values_list("prompt_id", flat=True))
    to_come = gates.filter(stage__in=[Gate.Stage.MEASURING, Gate.Stage.ASKING])
    return asked.union(*to_come.filter(_asks_people()).values_list("prompt_ids", flat=True))


def _asks_people() -> Q:
    return Q(kind=Gate.Kind.WATCH) | Q(rule__asks_people=True)


def _why_none(there_are_some: bool) -> str:
    if there_are_some:
        return (
            "People are being asked about every held-out prompt just now, blind, so none is shown side by side. "
            "Type a prompt, or wait until the gate is decided."
        )
    return "The project has no held-out prompts. Type a prompt, or import more: one in five is held out."
