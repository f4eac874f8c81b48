"""Taking labels back for good: all of somebody's, those on a prompt, or one. The only writer of these rows.

First the withdrawal is written down; from then on no dataset takes what it covers. Then each pair is put right in a
transaction of its own, so that nobody who labels waits for somebody's ten thousand judgements: counters, probability,
conflict, places. What was interrupted goes on where it stopped, and ``finished_at`` says when all of it was done.

The judgements stay as rows, for the checkpoints that were made from them are still there, and so must be what says so.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext

from labeling import places
from labeling.exceptions import LabelingError
from labeling.models import Pair, Preference, Project, Prompt, SentBack, Slot, Withdrawal
from labeling.records import note_arrival, withdraw
from labeling.turns import take_turn

BATCH = 200  # pairs that are looked up together
Kind = Withdrawal.Kind


@transaction.atomic
def begin(withdrawal: Withdrawal) -> Withdrawal:
    """Write an unsaved withdrawal down, to be carried out. Raises ``LabelingError`` where there is nothing to take."""
    project = Project.objects.select_for_update(no_key=True).get(pk=withdrawal.project_id)
    withdrawal.reason = withdrawal.reason.strip()[: Withdrawal.REASON_LENGTH]
    if withdrawal.kind == Kind.PROMPT:
        now = timezone.now()
        here = Prompt.objects.in_use().filter(pk=withdrawal.prompt_id or 0, project=project)
        if not here.update(withdrawn_at=now):
            raise LabelingError(gettext("That prompt was withdrawn before, or is not of this project."))
    elif not covered(withdrawal).exists():
        raise LabelingError(gettext("There is no judgement to withdraw, or all of them were withdrawn before."))
    withdrawal.save()
    return withdrawal


def carry_out(withdrawal: Withdrawal, *, most: int | None = None) -> Withdrawal:
    """Put right what is left to be, at most ``most`` pairs of it. Harmless to call again, and by two at once."""
    left = most
    while left is None or left > 0:
        pair_ids = _pairs_left(withdrawal, BATCH if left is None else min(BATCH, left))
        if not pair_ids:
            if _finish(withdrawal):
                break
            continue
        for pair_id in pair_ids:
            _take_out(withdrawal, pair_id)
        note_arrival(withdrawal.project_id)  # some places may have opened in front of where people are
        left = None if left is None else left - len(pair_ids)
    withdrawal.refresh_from_db()
    return withdrawal


def carry_out_unfinished() -> int:
    """Go on with what was interrupted, oldest first; returns how many were finished."""
    unfinished = Withdrawal.objects.filter(finished_at=None).order_by("pk")
    return sum(carry_out(withdrawal).finished_at is not None for withdrawal in unfinished)


# What it covers


def covered(withdrawal: Withdrawal) -> QuerySet[Preference]:
    """The judgements that it takes and has not taken yet, former versions and second looks among them."""
    return Preference.objects.filter(covered_by(withdrawal), project=withdrawal.project_id, withdrawal=None)


def covered_by(withdrawal: Withdrawal) -> Q:
    """What somebody judges after the withdrawal is new, and stays. On a prompt nothing new can come."""
    if withdrawal.kind == Kind.PROMPT:
        return Q(pair__prompt=withdrawal.prompt_id)
    until = withdrawal.created_at or timezone.now()
    if withdrawal.kind == Kind.ANNOTATOR:
        return Q(annotator=withdrawal.annotator_id, created_at__lte=until)
    one = withdrawal.preference
    assert one is not None
    same = Q(pair=one.pair_id, annotator=one.annotator_id, created_at__lte=until)
    return same & Q(is_repeat=True) if one.is_repeat else same


def without_unfinished(project: Project, rows: QuerySet[Preference]) -> QuerySet[Preference]:
    """``rows`` less what a withdrawal that is still being carried out will take."""
    for withdrawal in Withdrawal.objects.filter(project=project, finished_at=None).select_related("preference"):
        rows = rows.exclude(covered_by(withdrawal))
    return rows


# Pair by pair


def _pairs_left(withdrawal: Withdrawal, most: int) -> list[int]:
    left = Q(pk__in=covered(withdrawal).order_by().values("pair"))
    if withdrawal.kind == Kind.PROMPT:
        held = Slot.objects.filter(pair=OuterRef("pk"), state=Slot.State.LEASED)
        left |= Q(Q(is_retired=False) | Q(Exists(held)), prompt=withdrawal.prompt_id)
    rows = Pair.objects.filter(left, project=withdrawal.project_id).order_by("pk")
    return list(rows.values_list("pk", flat=True)[:most])


@transaction.atomic
def _take_out(withdrawal: Withdrawal, pair_id: int) -> None:
    """Take the judgements of one pair. Its people and the pair are locked in the order of every other lock of them."""
    here = covered(withdrawal).filter(pair=pair_id)
    annotator_ids = sorted(set(here.values_list("annotator", flat=True)))
    for annotator_id in annotator_ids:
        take_turn(annotator_id)
    pair = Pair.objects.select_for_update(no_key=True).get(pk=pair_id)
    found = list(here.select_for_update(of=("self",)).order_by("pk"))
    current = [preference for preference in found if preference.is_current]
    for preference in current:
        withdraw(withdrawal.project, preference)
    taken = [preference.pk for preference in found]
    Preference.objects.filter(pk__in=taken).update(is_current=False, withdrawal=withdrawal)
    SentBack.objects.filter(preference__in=taken, settled_at=None).update(settled_at=timezone.now())
    Slot.objects.filter(pair=pair, annotator__in=annotator_ids, **places.UNSEEN_SECOND_LOOK).delete()
    if withdrawal.kind == Kind.PROMPT:
        places.end(pair.pk)
    else:
        places.ask_again(pair.pk)
    Withdrawal.objects.filter(pk=withdrawal.pk).update(judgements=F("judgements") + len(current))


@transaction.atomic
def _finish(withdrawal: Withdrawal) -> bool:
    """Note that all of it is done; ``False`` where an answer that was on its way has come in since."""
    if withdrawal.kind == Kind.ANNOTATOR:
        take_turn(withdrawal.annotator_id or 0)
    if _pairs_left(withdrawal, 1):
        return False
    Withdrawal.objects.filter(pk=withdrawal.pk, finished_at=None).update(finished_at=timezone.now())
    return True
