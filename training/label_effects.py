"""After a promotion: which judged pairs are looked at, so that people see what became of what they said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from labeling.models import Choice, Preference, Project, Slot
from training.models import Checkpoint, GatePair, Job, LabelEffects, Promotion
from training.tasks import hint_on_commit

MOST = 60  # pairs of all people together, unless there are more people than that: everybody has one
LOOKED_AT = 5000  # of the newest judgements: a promotion does not wait for all that were ever made


def request(promotion: Promotion, before: Checkpoint | None, each: int) -> LabelEffects | None:
    """Ask for what the promotion has moved, on up to ``each`` pairs of each person.

    ``None`` if none are wanted, nothing was before the promotion, nothing can be measured or nothing was judged.

    Only the newest promotion is of interest, so what still waits for an earlier one is dropped. The caller has the
    project locked and has read ``before`` under that lock, so the retention rule does not come between.
    """
    project = promotion.project
    if before is None or before.removed_at or not _comparable(project, before, promotion.checkpoint):
        return None
    waiting = LabelEffects.objects.filter(project=project, state=Job.State.QUEUED)
    waiting.update(state=Job.State.CANCELLED, finished_at=timezone.now(), cancel_requested_at=timezone.now())
    pair_ids = choose_pairs(project, each)
    if not pair_ids:
        return None
    effects = LabelEffects.objects.create(project=project, promotion=promotion, before=before, pair_ids=pair_ids)
    hint_on_commit(effects)
    return effects


def _comparable(project: Project, *policies: Checkpoint) -> bool:
    """Whether all were made from the first policy: one of another family has other tokens."""
    first = Promotion.first_checkpoint(project)
    return first is not None and all(
        policy.content_hash == first.content_hash or policy.descends_from(first) for policy in policies
    )


def own_judgements(project: Project) -> QuerySet[Preference]:
    """For one side, counted, and on pairs of which their author may see what a policy makes of them.

    Not those with a known answer, nor what their author has before them or is to be given once more; and of prompts
    none that is held out, withdrawn, or asked about in an open gate: answers to these could tell sides apart that are
    still to be judged.
    """
    counted = Preference.objects.counted().filter(
        project=project,
        choice__in=[Choice.A, Choice.B],
        withdrawal=None,
        pair__gold_choice="",
        pair__prompt__is_held_out=False,
        pair__prompt__withdrawn_at=None,
    )
    own = Slot.objects.filter(pair=OuterRef("pair"), annotator=OuterRef("annotator"))
    held, promised = own.filter(state=Slot.State.LEASED), own.filter(state=Slot.State.DONE, versions=0)
    asked_about = GatePair.objects.filter(prompt=OuterRef("pair__prompt")).exclude(gate__stage="decided")
    return counted.exclude(slot__kind=Slot.Kind.GOLD).filter(~Exists(held), ~Exists(promised), ~Exists(asked_about))


def choose_pairs(project: Project, each: int) -> list[int]:
    newest = own_judgements(project).order_by("-created_at", "-pk").values_list("annotator_id", "pair_id")
    return fair_choice(newest[:LOOKED_AT], each)


def fair_choice(judged: Iterable[tuple[int, int]], each: int, most: int = MOST) -> list[int]:
    """Of ``judged``, (person, pair) from new to old: everybody's newest, and up to ``most`` with everybody's next."""
    turns: list[list[int]] = [[] for _ in range(each)]
    had: Counter[int] = Counter()
    for person, pair_id in judged:
        if had[person] < each:
            turns[had[person]].append(pair_id)
            had[person] += 1
    chosen = dict.fromkeys(pair_id for turn in turns for pair_id in turn)
    return list(chosen)[: max(most, len(set(turns[0])) if turns else 0)]
