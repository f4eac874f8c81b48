"""How a judgement is written down: its version, what hangs on it, the pair's counters, and places added by conflict.

Part of the queue, which holds the locks: callers have locked the annotator, the pair and the slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, F, OuterRef
from django.utils import timezone
from django.utils.translation import gettext

from labeling import rows
from labeling.answers import AnswerRejected, Details, is_same_text
from labeling.models import Adjudication, Choice, Pair, Preference, Project, Response, Rewrite, SentBack, Skip, Slot
from labeling.places import next_place
from labeling.quality import disagreement, has_majority, judgements_needed
from labeling.tokens import TokenContent

CONFLICT_PRIORITY = 1e6  # pairs that divide opinions come before all that anybody asks for first
SKIPS_TO_REVIEW = 3
FILLED = (
    *("state", "annotator", "lease_until", "is_ahead", "shown_left", "shown_to", "versions"),
    *("lease_number", "leased_at", "passed_on_at"),
)
COUNT_BY_PERSON = "UPDATE labeling_seat SET judged = judged + %s WHERE project_id = %s AND annotator_id = %s"
# A seat that was made after its judgements has never counted them.
COUNT_ONE_LESS = """UPDATE labeling_seat SET judged = judged - 1
WHERE project_id = %s AND annotator_id = %s AND judged > 0"""
# What was found of the pair is of other judgements than it has now: it has no probability until it is measured again.
COUNT_JUDGEMENT = "UPDATE labeling_pair SET judgements_count = judgements_count + %s, p_a = NULL WHERE id = %s"


@dataclass(frozen=True)
class Judged:
    """What is about to be written: who says what, under which lease, in place of which former judgement."""

    project: Project
    annotator_id: int
    lease: TokenContent
    choice: str
    details: Details
    current: Preference | None


def record_preference(slot: Slot, judged: Judged) -> Preference:
    """Fill the slot, whose pair is loaded and locked, with a new version of this person's judgement, and count it."""
    is_new, is_counted = judged.current is None, slot.kind != Slot.Kind.REPEAT
    _fill(slot, judged.lease, judged.annotator_id)
    if judged.current:
        Preference.objects.filter(pk=judged.current.pk).update(is_current=False)
        SentBack.objects.filter(preference__slot=slot, settled_at=None).update(settled_at=timezone.now())
    with rows.pipelined():
        rows.update(slot, FILLED)
        if is_new:
            rows.execute(COUNT_BY_PERSON, [1, judged.project.pk, judged.annotator_id])
        if is_counted:
            _count(slot.pair, int(is_new))
        inserted = rows.insert(_preference(slot, judged))
    preference = inserted()
    if judged.details.rewrite:
        _add_rewrite(preference, judged.details.rewrite)
    if is_counted:
        forget_skip(slot.pair, judged.annotator_id)
        if slot.pair.judgements_count > 1:  # one judgement contradicts nobody
            _look_for_conflict(judged.project, slot.pair)
    return preference


def _preference(slot: Slot, judged: Judged) -> Preference:
    project, details, lease = judged.project, judged.details, judged.lease
    return Preference(
        project=project,
        pair_id=slot.pair_id,
        slot=slot,
        annotator_id=judged.annotator_id,
        choice=judged.choice,
        is_strong=details.is_strong,
        criteria=details.criteria,
        reasons=list(details.reasons),
        comment=details.comment,
        shown_left=lease.shown_left,
        seconds=_seconds(details.seconds, slot.leased_at, lease.began, timezone.now()),
        guidelines_version=_version_read(project, details.guidelines_version),
        version=slot.versions,
        lease_number=slot.lease_number,
        is_repeat=slot.kind == Slot.Kind.REPEAT,
    )


def withdraw(project: Project, preference: Preference) -> None:
    """Let a judgement count no more; nothing takes its place."""
    Preference.objects.filter(pk=preference.pk).update(is_current=False)
    rows.execute(COUNT_ONE_LESS, [project.pk, preference.annotator_id])
    if not preference.is_repeat:
        pair = Pair.objects.get(pk=preference.pair_id)
        _count(pair, -1)
        _look_for_conflict(project, pair)


def reinstate(project: Project, preference: Preference) -> None:
    """Let a judgement count again that its author had passed on. What was withdrawn for good stays so."""
    if not Preference.objects.filter(pk=preference.pk, withdrawal=None).update(is_current=True):
        return
    preference.is_current = True
    rows.execute(COUNT_BY_PERSON, [1, project.pk, preference.annotator_id])
    if not preference.is_repeat:
        pair = Pair.objects.get(pk=preference.pair_id)
        _count(pair, 1)
        _look_for_conflict(project, pair)


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


def call_reviewer_again(project: Project, pair: Pair) -> None:
    """What speaks for a reviewer once a decision is taken back: judgements that conflict, else what skips have said.

    Only skips since a reviewer last left the pair as it was: those before were looked at then. A conflict asks for
    further judgements, where more may be asked for.
    """
    _look_for_conflict(project, pair)
    left = Adjudication.objects.filter(pair=pair, verdict=Adjudication.Verdict.LEAVE).order_by("-pk").first()
    since = Skip.objects.filter(pair=pair, created_at__gt=left.created_at) if left else Skip.objects.filter(pair=pair)
    unseen = Pair.objects.filter(pk=pair.pk, review="")
    if since.filter(reason__in=Skip.FLAGS).exists():
        unseen.update(review=Pair.Review.FLAG)
    elif since.count() >= SKIPS_TO_REVIEW:
        unseen.update(review=Pair.Review.SKIPS)


def forget_skip(pair: Pair, annotator_id: int) -> None:
    if pair.skips_count and Skip.objects.filter(pair=pair, annotator_id=annotator_id).delete()[0]:
        Pair.objects.filter(pk=pair.pk).update(skips_count=F("skips_count") - 1)


def _fill(slot: Slot, lease: TokenContent, annotator_id: int) -> None:
    slot.state = Slot.State.DONE
    slot.annotator_id = annotator_id
    slot.lease_until = None
    slot.is_ahead = False
    slot.passed_on_at = None
    slot.shown_left, slot.shown_to = lease.shown_left, annotator_id
    slot.versions += 1
    if slot.pk is None:
        slot.save()


def _seconds(on_screen: float | None, leased_at: datetime | None, began: datetime, now: datetime) -> float:
    """The time that the page measured, or else what has passed since its turn came; never more than since the lease.

    Clocks may disagree. A page that was offline reads a pair before the server knows that its turn has come, so what it
    measured is held against the moment in its token.
    """
    if on_screen is None:
        return max(0.0, (now - (leased_at or began)).total_seconds())
    return min(max(0.0, on_screen), max(0.0, (now - began).total_seconds()))


def _version_read(project: Project, shown: int | None) -> int:
    """The version of the guidelines that the page showed. A page may be older than they are, and never newer."""
    return project.guidelines_version if shown is None else max(1, min(shown, project.guidelines_version))


def _add_rewrite(preference: Preference, text: str) -> None:
    pair = Pair.objects.select_related("response_a", "response_b").get(pk=preference.pair_id)
    better = pair.response_a if preference.choice == Choice.A else pair.response_b
    if is_same_text(text, better.text):
        raise AnswerRejected(gettext("The rewrite is the same as the response. Change it, or answer without it."))
    response = Response.objects.create(prompt_id=pair.prompt_id, text=text)
    Rewrite.objects.create(preference=preference, response=response)


def _count(pair: Pair, more: int) -> None:
    rows.execute(COUNT_JUDGEMENT, [more, pair.pk])
    pair.judgements_count += more


def _look_for_conflict(project: Project, pair: Pair) -> None:
    """Ask for more judgements while none has a majority; where no more may be asked for, call a reviewer.

    Not of a pair whose answer is known: who differs from it says something of themselves, and everybody is asked.
    """
    if pair.is_retired or pair.adjudicated_choice or pair.gold_choice:
        return
    said = list(Preference.objects.counted().filter(pair=pair).values_list("choice", flat=True))
    needed = judgements_needed(said, pair.judgements_wanted, project.most_judgements)
    if needed > pair.judgements_wanted:
        _add_places(pair, needed, said)
    if has_majority(said):
        _remove_places(pair)
        Pair.objects.filter(pk=pair.pk, review=Pair.Review.CONFLICT).update(review="")
    elif len(said) >= needed:
        Pair.objects.filter(pk=pair.pk, review="").update(review=Pair.Review.CONFLICT)


def _add_places(pair: Pair, wanted: int, said: list[str]) -> None:
    """Ask first about what divides opinions most. Late answers fill places as well, so there may be fewer to add."""
    expected = Slot.objects.filter(pair=pair, kind=Slot.Kind.PLANNED, state__in=[Slot.State.OPEN, Slot.State.LEASED])
    # Whoever looks at an answer again still gives it.
    coming = expected.exclude(Exists(Preference.objects.filter(slot=OuterRef("pk"), is_current=True)))
    first = next_place(pair.pk)
    Slot.objects.bulk_create(
        Slot(
            project_id=pair.project_id,
            pair=pair,
            place=first + number,
            is_control=pair.is_control,
            is_shared=True,
            priority=CONFLICT_PRIORITY + disagreement(said),
        )
        for number in range(wanted - len(said) - coming.count())
    )
    Pair.objects.filter(pk=pair.pk).update(judgements_wanted=wanted)
    note_arrival(pair.project_id)


def note_arrival(project: Project | int) -> None:
    """Let everybody look at the whole order again: something may have come in front of where they are."""
    Project.objects.filter(pk=project if isinstance(project, int) else project.pk).update(arrivals=F("arrivals") + 1)


def _remove_places(pair: Pair) -> None:
    """A conflict that somebody's change of mind has ended needs nobody else."""
    added = Slot.objects.filter(pair=pair, state=Slot.State.OPEN, priority__gte=CONFLICT_PRIORITY)
    if closed := added.update(state=Slot.State.CLOSED):
        Pair.objects.filter(pk=pair.pk).update(judgements_wanted=F("judgements_wanted") - closed)
