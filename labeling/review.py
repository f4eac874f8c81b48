"""What reviewers decide: what a pair counts as, which judgement its author looks at again, which answers are known."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.translation import gettext

from labeling import own_places, places
from labeling.exceptions import Frozen, LabelingError
from labeling.models import Adjudication, Choice, Pair, Preference, Prompt, SentBack
from labeling.records import call_reviewer_again
from labeling.templatetags.formatting import count

MAX_NOTE_CHARACTERS = 2_000
Verdict = Adjudication.Verdict


@transaction.atomic
def adjudicate(*, pair: Pair, reviewer: User, verdict: str, note: str = "") -> Adjudication:
    """Write a decision down and let the pair count as it says; the newest decision holds.

    A choice becomes what the pair counts as, and nobody else is asked. ``retire`` takes the pair out; judgements that
    are still on their way are kept. ``leave`` ends the review with the pair as its annotators have it. Of one that was
    decided or taken out it takes that back: what is still wanted is asked for, and what still speaks for a reviewer,
    such as judgements that conflict, calls one again. Raises ``LabelingError`` for a verdict that there is not, and for
    a choice on a pair that was taken out.
    """
    if verdict not in Verdict.values:
        told = {"verdict": verdict[:40], "known": ", ".join(Verdict.values)}
        raise LabelingError(gettext("“%(verdict)s” is not a verdict; use one of %(known)s.") % told)
    note = _checked_note(note)
    locked = Pair.objects.select_for_update(no_key=True).get(pk=pair.pk)
    if locked.is_retired and verdict in Choice.values:
        raise LabelingError(gettext("This pair was taken out. Bring it back first, then decide."))
    if not Prompt.objects.in_use().filter(pk=locked.prompt_id).exists():
        raise LabelingError(gettext("The prompt of this pair was withdrawn, so nothing is decided of it any more."))
    is_taken_back = verdict == Verdict.LEAVE and (bool(locked.adjudicated_choice) or locked.is_retired)
    if verdict in Choice.values:
        locked.adjudicated_choice = verdict
        places.close_places(pair.pk)
    elif verdict == Verdict.RETIRE:
        places.retire(pair.pk)
    else:
        locked.adjudicated_choice = ""
        places.bring_back(pair.pk)
    locked.review = ""
    locked.save(update_fields=["adjudicated_choice", "review"])
    if is_taken_back:
        Pair.objects.filter(pk=pair.pk).update(p_a=None)  # what was found knew of the decision
        locked.refresh_from_db()
        call_reviewer_again(locked.project, locked)
    return Adjudication.objects.create(pair=locked, reviewer=reviewer, verdict=verdict, note=note)


@transaction.atomic
def send_back(*, preference: Preference, reviewer: User, note: str) -> SentBack:
    """Ask the author of a judgement to look at it again; their next version settles it.

    Raises ``LabelingError`` where there is nothing to look at again, ``Frozen`` where a dataset has used it.
    """
    note = _checked_note(note)
    if not note:
        raise LabelingError(gettext("Write a note: its author sees the pair again and your reason, nothing else."))
    # The author may be answering at this moment; the queue locks the pair as well.
    pair = Pair.objects.select_for_update(no_key=True).get(pk=preference.pair_id)
    current = Preference.objects.select_for_update(of=("self",)).get(pk=preference.pk)
    _check_can_go_back(current, pair)
    if SentBack.objects.filter(preference=current, settled_at=None).exists():
        raise LabelingError(gettext("This judgement was sent back already, and its author has not looked at it yet."))
    return SentBack.objects.create(preference=current, reviewer=reviewer, note=note)


@transaction.atomic
def make_gold(*, pair: Pair, choice: str) -> None:
    """Serve a pair to everybody now and then as one whose answer is known. Annotators cannot tell it from others.

    Judgements that conflict need no reviewer any more: whoever knows the answer has decided. Its probability is found
    anew, and with it the project's figures.
    """
    if choice not in Choice.values:
        told = {"choice": choice[:40], "known": ", ".join(Choice.values)}
        raise LabelingError(gettext("“%(choice)s” is not a choice; use one of %(known)s.") % told)
    changed = Pair.objects.filter(pk=pair.pk, is_retired=False).update(gold_choice=choice, p_a=None)
    if not changed:
        raise LabelingError(gettext("This pair was taken out, so it is served to nobody. Bring it back first."))
    Pair.objects.filter(pk=pair.pk, review=Pair.Review.CONFLICT).update(review="")


def end_gold(*, pair: Pair) -> None:
    """Serve it as any other pair. What was answered while it was gold stays a judgement like the others."""
    Pair.objects.filter(pk=pair.pk).update(gold_choice="", p_a=None)
    own_places.forget_unseen(pair.pk)


def _check_can_go_back(preference: Preference, pair: Pair) -> None:
    if not preference.is_current:
        told = gettext("Its author has changed or withdrawn this judgement. Reload the page to see the newest.")
        raise LabelingError(told)
    if preference.frozen_at:
        raise Frozen(gettext("A dataset has used this judgement, so it stays as it is. Decide on the pair instead."))
    if preference.is_repeat:
        told = gettext("This is a second look. It measures how steady somebody is, so nobody corrects it.")
        raise LabelingError(told)
    if pair.is_retired:
        raise LabelingError(gettext("This pair was taken out, so there is nothing to look at again."))


def _checked_note(note: str) -> str:
    note = note.strip()
    if len(note) > MAX_NOTE_CHARACTERS:
        told = {"count": count(len(note)), "most": count(MAX_NOTE_CHARACTERS)}
        raise LabelingError(gettext("The note has %(count)s characters; at most %(most)s are kept.") % told)
    return note
