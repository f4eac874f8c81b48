"""How a judgement is written down: its version, what hangs on it, the pair's counters, and places added by conflict.

Part of the queue, which holds the locks: callers have locked the annotator, the pair and the slot.
"""

from __future__ import annotations

from datetime import datetime

from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext

from labeling.answers import AnswerRejected, Details, is_same_text
from labeling.claims import next_place
from labeling.models import Choice, Pair, Preference, Project, Response, Rewrite, Seat, SentBack, Skip, Slot
from labeling.quality import has_majority, judgements_needed
from labeling.tokens import TokenContent

# Pairs that divide opinions come before everything that training finds uncertain, which is at most 0.
CONFLICT_PRIORITY = 1.0
SKIPS_TO_REVIEW = 3


def record_preference(
    project: Project, slot: Slot, lease: TokenContent, annotator_id: int, choice: str, details: Details
) -> Preference:
    """Fill the slot with a new version of this person's judgement, and count it."""
    now = timezone.now()
    current = current_preference(slot, annotator_id)
    _fill(slot, lease, annotator_id)
    if current:
        Preference.objects.filter(pk=current.pk).update(is_current=False)
        SentBack.objects.filter(preference__slot=slot, settled_at=None).update(settled_at=now)
    preference = Preference.objects.create(
        project=project,
        pair_id=slot.pair_id,
        slot=slot,
        annotator_id=annotator_id,
        choice=choice,
        is_strong=details.is_strong,
        criteria=details.criteria,
        reasons=list(details.reasons),
        comment=details.comment,
        shown_left=lease.shown_left,
        seconds=_seconds(details.seconds, slot.leased_at, now),
        guidelines_version=project.guidelines_version,
        version=slot.versions,
        lease_number=slot.lease_number,
        is_repeat=slot.kind == Slot.Kind.REPEAT,
    )
    if details.rewrite:
        _add_rewrite(preference, details.rewrite)
    if current is None:
        Seat.objects.filter(project=project, annotator_id=annotator_id).update(judged=F("judged") + 1)
    if slot.kind != Slot.Kind.REPEAT:
        forget_skip(slot.pair_id, annotator_id)
        _count(project, slot.pair_id, 1 if current is None else 0)
    return preference


def current_preference(slot: Slot, annotator_id: int) -> Preference | None:
    """What this person says of the slot's pair now; a second look is apart from the first."""
    mine = Preference.objects.filter(pair_id=slot.pair_id, annotator_id=annotator_id, is_current=True)
    return mine.filter(is_repeat=slot.kind == Slot.Kind.REPEAT).select_related("slot").first()


def withdraw(project: Project, preference: Preference) -> None:
    """Let a judgement count no more; nothing takes its place."""
    Preference.objects.filter(pk=preference.pk).update(is_current=False)
    if not preference.is_repeat:
        _count(project, preference.pair_id, -1)


def record_skip(pair_id: int, annotator_id: int, reason: str, note: str) -> None:
    """Write a skip down once, and call a reviewer where it says that something is wrong with the pair."""
    _, is_new = Skip.objects.get_or_create(
        pair_id=pair_id, annotator_id=annotator_id, defaults={"reason": reason, "note": note}
    )
    if not is_new:
        return
    Pair.objects.filter(pk=pair_id).update(skips_count=F("skips_count") + 1)
    unseen = Pair.objects.filter(pk=pair_id, review="")
    if reason in Skip.FLAGS:
        unseen.update(review=Pair.Review.FLAG)
    else:
        unseen.filter(skips_count__gte=SKIPS_TO_REVIEW).update(review=Pair.Review.SKIPS)


def forget_skip(pair_id: int, annotator_id: int) -> None:
    gone, _ = Skip.objects.filter(pair_id=pair_id, annotator_id=annotator_id).delete()
    if gone:
        Pair.objects.filter(pk=pair_id).update(skips_count=F("skips_count") - 1)


def _fill(slot: Slot, lease: TokenContent, annotator_id: int) -> None:
    slot.state = Slot.State.DONE
    slot.annotator_id = annotator_id
    slot.lease_until = None
    slot.is_ahead = False
    slot.shown_left, slot.shown_to = lease.shown_left, annotator_id
    slot.versions += 1
    slot.save()


def _seconds(on_screen: float | None, leased_at: datetime | None, now: datetime) -> float:
    """The time that the page measured, but never more than has passed since the lease. Clocks may disagree."""
    passed = max(0.0, (now - leased_at).total_seconds()) if leased_at else 0.0
    return passed if on_screen is None else min(max(0.0, on_screen), passed)


def _add_rewrite(preference: Preference, text: str) -> None:
    pair = Pair.objects.select_related("response_a", "response_b").get(pk=preference.pair_id)
    better = pair.response_a if preference.choice == Choice.A else pair.response_b
    if is_same_text(text, better.text):
        raise AnswerRejected(gettext("The rewrite is the same as the response. Change it, or answer without it."))
    response = Response.objects.create(prompt_id=pair.prompt_id, text=text)
    Rewrite.objects.create(preference=preference, response=response)


def _count(project: Project, pair_id: int, more: int) -> None:
    if more:
        Pair.objects.filter(pk=pair_id).update(judgements_count=F("judgements_count") + more)
    pair = Pair.objects.get(pk=pair_id)
    # One judgement contradicts nobody, unless another one has just been withdrawn.
    if (pair.judgements_count > 1 or more < 0) and not pair.is_retired:
        _look_for_conflict(project, pair)


def _look_for_conflict(project: Project, pair: Pair) -> None:
    """Ask for more judgements while none has a majority; where no more may be asked for, call a reviewer."""
    said = list(Preference.objects.counted().filter(pair=pair).values_list("choice", flat=True))
    needed = judgements_needed(said, pair.judgements_wanted, project.most_judgements)
    if needed > pair.judgements_wanted:
        _add_places(pair, needed, judged=len(said))
    if has_majority(said):
        _remove_places(pair)
        Pair.objects.filter(pk=pair.pk, review=Pair.Review.CONFLICT).update(review="")
    elif len(said) >= needed and not pair.adjudicated_choice:
        Pair.objects.filter(pk=pair.pk, review="").update(review=Pair.Review.CONFLICT)


def _add_places(pair: Pair, wanted: int, *, judged: int) -> None:
    """Late answers fill places as well, so there may be fewer to add than the pair wants more."""
    coming = Slot.objects.filter(pair=pair, kind=Slot.Kind.PLANNED, state__in=[Slot.State.OPEN, Slot.State.LEASED])
    first = next_place(pair.pk)
    Slot.objects.bulk_create(
        Slot(
            project_id=pair.project_id,
            pair=pair,
            place=first + number,
            is_control=pair.is_control,
            priority=CONFLICT_PRIORITY,
        )
        for number in range(wanted - judged - coming.count())
    )
    Pair.objects.filter(pk=pair.pk).update(judgements_wanted=wanted)


def _remove_places(pair: Pair) -> None:
    """A conflict that somebody's change of mind has ended needs nobody else."""
    added = Slot.objects.filter(pair=pair, state=Slot.State.OPEN, priority=CONFLICT_PRIORITY)
    if closed := added.update(state=Slot.State.CLOSED):
        Pair.objects.filter(pk=pair.pk).update(judgements_wanted=F("judgements_wanted") - closed)
