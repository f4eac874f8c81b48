"""What reviewers decide, and that nothing of it loses anybody's work."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from labeling import places, queue
from labeling.exceptions import Frozen, LabelingError
from labeling.models import Adjudication, Pair, Preference, SentBack, Slot
from labeling.own_places import reserve
from labeling.records import record_skip
from labeling.review import MAX_NOTE_CHARACTERS, adjudicate, end_gold, make_gold, send_back
from labeling.services import freeze_preferences


@pytest.fixture
def judge(project):
    def judge(user, choice="a") -> Preference:
        lease = queue.lease_next(project, user.pk)
        assert lease is not None
        return queue.submit(project, lease.token, user.pk, choice).preference

    return judge


def _states(pair: Pair) -> list[str]:
    return list(pair.slots.order_by("place").values_list("state", flat=True))


@pytest.fixture
def wanted_twice(project):
    project.judgements_per_pair = 2
    project.save()


@pytest.mark.parametrize("verdict", ["a", "b", "tie", "both_bad"])
def test_a_decision_is_what_the_pair_counts_as_and_ends_the_review(make_pair, reviewer, verdict):
    pair = make_pair()
    Pair.objects.filter(pk=pair.pk).update(review="conflict")
    decision = adjudicate(pair=pair, reviewer=reviewer, verdict=verdict, note="  Only this one answers. ")
    pair.refresh_from_db()
    assert (pair.adjudicated_choice, pair.review, pair.is_retired) == (verdict, "", False)
    assert (decision.reviewer, decision.verdict, decision.note) == (reviewer, verdict, "Only this one answers.")


def test_a_decision_ends_the_asking_and_to_leave_the_pair_begins_it_again(make_pair, reviewer):
    pair = make_pair()
    Pair.objects.filter(pk=pair.pk).update(review="flag")
    adjudicate(pair=pair, reviewer=reviewer, verdict="b")
    pair.refresh_from_db()
    assert (pair.adjudicated_choice, pair.review, _states(pair)) == ("b", "", ["closed"])
    adjudicate(pair=pair, reviewer=reviewer, verdict="leave")
    pair.refresh_from_db()
    assert (pair.adjudicated_choice, pair.review, _states(pair)) == ("", "", ["open"]), "nobody had flagged it"
    assert Adjudication.objects.filter(pair=pair).count() == 2, "decisions are added, never overwritten"


@pytest.fixture
def conflict(project, make_pair, annotator, other_annotator, judge, wanted_twice) -> Pair:
    """Two people disagree on it, and nobody else may be asked."""
    project.most_judgements = 2
    project.save()
    pair = make_pair()
    judge(annotator, "a")
    judge(other_annotator, "b")
    pair.refresh_from_db()
    assert pair.review == "conflict"
    return pair


@pytest.mark.parametrize("verdict", ["a", "retire"])
def test_a_decision_that_is_taken_back_leaves_the_conflict_to_a_reviewer(conflict, reviewer, verdict):
    adjudicate(pair=conflict, reviewer=reviewer, verdict=verdict)
    adjudicate(pair=conflict, reviewer=reviewer, verdict="leave")
    conflict.refresh_from_db()
    assert (conflict.adjudicated_choice, conflict.is_retired, conflict.review) == ("", False, "conflict")
    adjudicate(pair=conflict, reviewer=reviewer, verdict="leave")
    conflict.refresh_from_db()
    assert conflict.review == "", "left as it was judged"


def test_a_decision_that_is_taken_back_has_a_conflict_judged_by_more(
    project, make_pair, reviewer, annotator, other_annotator, judge, wanted_twice
):
    """The second answer came when the pair was decided, so nobody had been asked for a third."""
    project.most_judgements = 3
    project.save()
    pair = make_pair()
    judge(annotator, "a")
    late = queue.lease_next(project, other_annotator.pk)
    adjudicate(pair=pair, reviewer=reviewer, verdict="a")
    queue.submit(project, late.token, other_annotator.pk, "b")
    assert _states(pair) == ["done", "done"]
    adjudicate(pair=pair, reviewer=reviewer, verdict="leave")
    pair.refresh_from_db()
    assert (pair.review, pair.judgements_wanted, _states(pair)) == ("", 3, ["done", "done", "open"])


@pytest.mark.parametrize(
    ("reasons", "review"), [(["broken"], "flag"), (["", "long", "unsure"], "skips"), (["long"], "")]
)
def test_a_decision_that_is_taken_back_leaves_what_skips_have_said(project, make_pair, reviewer, reasons, review):
    pair = make_pair()
    for number, reason in enumerate(reasons):
        record_skip(pair.pk, User.objects.create_user(f"skipper-{number}").pk, reason, "")
    for verdict in ("b", "leave"):
        adjudicate(pair=pair, reviewer=reviewer, verdict=verdict)
    pair.refresh_from_db()
    assert pair.review == review


def test_what_a_reviewer_has_left_as_it_was_calls_nobody_again(make_pair, reviewer, annotator):
    pair = make_pair()
    record_skip(pair.pk, annotator.pk, "broken", "")
    for verdict in ("leave", "b", "leave"):
        adjudicate(pair=pair, reviewer=reviewer, verdict=verdict)
    pair.refresh_from_db()
    assert pair.review == ""


def test_a_conflict_is_told_before_a_flag(conflict, reviewer):
    record_skip(conflict.pk, User.objects.create_user("flags").pk, "broken", "")
    for verdict in ("b", "leave"):
        adjudicate(pair=conflict, reviewer=reviewer, verdict=verdict)
    conflict.refresh_from_db()
    assert conflict.review == "conflict"


def test_a_decision_that_is_taken_back_takes_the_probability_with_it(make_pair, reviewer, annotator, judge):
    """It was found with the decision as evidence: nearly certain, of a pair that nobody has decided now."""
    pair = make_pair()
    judge(annotator, "b")
    adjudicate(pair=pair, reviewer=reviewer, verdict="a")
    Pair.objects.filter(pk=pair.pk).update(p_a=0.97)
    adjudicate(pair=pair, reviewer=reviewer, verdict="leave")
    pair.refresh_from_db()
    assert pair.p_a is None


def test_a_verdict_that_there_is_not_is_refused(make_pair, reviewer):
    with pytest.raises(LabelingError, match="not a verdict"):
        adjudicate(pair=make_pair(), reviewer=reviewer, verdict="better")
    with pytest.raises(LabelingError, match="at most 2,000"):
        adjudicate(pair=make_pair(), reviewer=reviewer, verdict="a", note="x" * (MAX_NOTE_CHARACTERS + 1))
    assert not Adjudication.objects.exists()


def test_a_retired_pair_is_given_to_nobody(project, make_pair, reviewer, annotator, wanted_twice):
    pair = make_pair()
    adjudicate(pair=pair, reviewer=reviewer, verdict="retire")
    pair.refresh_from_db()
    assert (pair.is_retired, _states(pair)) == (True, ["closed", "closed"])
    assert queue.lease_next(project, annotator.pk) is None


def test_an_answer_that_is_late_for_a_retired_pair_is_kept(project, make_pair, reviewer, annotator):
    pair = make_pair()
    lease = queue.lease_next(project, annotator.pk)
    assert lease is not None
    adjudicate(pair=pair, reviewer=reviewer, verdict="retire")
    assert _states(pair) == ["leased"], "whoever reads it may finish"
    outcome = queue.submit(project, lease.token, annotator.pk, "b")
    assert (outcome.preference.choice, outcome.preference.is_current) == ("b", True)
    assert not Preference.objects.counted().exists()


def test_so_is_one_whose_lease_had_run_out_before(project, make_pair, reviewer, annotator):
    pair = make_pair()
    lease = queue.lease_next(project, annotator.pk)
    assert lease is not None
    adjudicate(pair=pair, reviewer=reviewer, verdict="retire")
    Slot.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    places.sweep_expired()
    assert _states(pair) == ["closed"], "a pair that was taken out opens no place again"
    outcome = queue.submit(project, lease.token, annotator.pk, "b")
    assert outcome.is_extra
    assert outcome.preference.choice == "b"


def test_one_retired_pair_closes_nothing_of_the_others_that_expire(project, make_pair, reviewer, annotator):
    make_pair()
    kept = queue.lease_next(project, annotator.pk)
    assert kept is not None
    adjudicate(pair=make_pair(), reviewer=reviewer, verdict="retire")
    Slot.objects.filter(state="leased").update(lease_until=timezone.now() - timedelta(seconds=1))
    places.sweep_expired()
    assert _states(kept.slot.pair) == ["open"]


def test_a_pair_that_is_brought_back_wants_what_it_wanted(project, make_pair, reviewer, annotator, judge, wanted_twice):
    pair = make_pair()
    judge(annotator)
    adjudicate(pair=pair, reviewer=reviewer, verdict="retire")
    with pytest.raises(LabelingError, match="Bring it back first"):
        adjudicate(pair=pair, reviewer=reviewer, verdict="a")
    with pytest.raises(LabelingError, match="Bring it back first"):
        make_gold(pair=pair, choice="a")
    adjudicate(pair=pair, reviewer=reviewer, verdict="leave")
    pair.refresh_from_db()
    assert (pair.is_retired, sorted(_states(pair))) == (False, ["done", "open"])
    assert places.bring_back(pair.pk) == 0, "twice is once"


def test_a_judgement_goes_back_to_its_author_once_at_a_time(project, make_pair, reviewer, annotator, judge):
    make_pair()
    preference = judge(annotator)
    back = send_back(preference=preference, reviewer=reviewer, note="The second one invents a source.")
    assert (back.preference, back.note, back.settled_at) == (preference, "The second one invents a source.", None)
    with pytest.raises(LabelingError, match="already"):
        send_back(preference=preference, reviewer=reviewer, note="Again.")
    queue.submit(project, queue.reopen(project, annotator.pk, preference.pk).token, annotator.pk, "b")
    assert SentBack.objects.get().settled_at is not None
    with pytest.raises(LabelingError, match="changed or withdrawn"):
        send_back(preference=preference, reviewer=reviewer, note="Again.")


def test_what_a_dataset_has_used_goes_back_to_nobody(make_pair, reviewer, annotator, judge):
    make_pair()
    preference = judge(annotator)
    freeze_preferences([preference.pk])
    with pytest.raises(Frozen, match="Decide on the pair"):
        send_back(preference=preference, reviewer=reviewer, note="Look again.")
    assert not SentBack.objects.exists()


def test_nor_does_one_without_a_note_a_second_look_or_one_of_a_retired_pair(make_pair, reviewer, annotator, judge):
    pair = make_pair()
    preference = judge(annotator)
    with pytest.raises(LabelingError, match="Write a note"):
        send_back(preference=preference, reviewer=reviewer, note=" \n")
    Preference.objects.update(is_repeat=True)
    with pytest.raises(LabelingError, match="second look"):
        send_back(preference=preference, reviewer=reviewer, note="Look again.")
    Preference.objects.update(is_repeat=False)
    adjudicate(pair=pair, reviewer=reviewer, verdict="retire")
    with pytest.raises(LabelingError, match="taken out"):
        send_back(preference=preference, reviewer=reviewer, note="Look again.")


def test_a_known_answer_grows_no_conflict_and_ends_one(
    project, wanted_twice, make_pair, annotator, other_annotator, judge
):
    pair = make_pair()
    make_gold(pair=pair, choice="a")
    judge(annotator, "a")
    judge(other_annotator, "b")
    pair.refresh_from_db()
    assert (pair.review, pair.judgements_wanted, pair.slots.count()) == ("", 2, 2)
    end_gold(pair=pair)
    queue.submit(project, queue.undo(project, annotator.pk).token, annotator.pk, "tie")
    pair.refresh_from_db()
    assert (pair.judgements_wanted, pair.judgements_asked) == (3, 2), "a pair like the others again"
    for why, left in (("conflict", ""), ("flag", "flag")):
        Pair.objects.filter(pk=pair.pk).update(review=why)
        make_gold(pair=pair, choice="a")
        pair.refresh_from_db()
        assert pair.review == left, "what is wrong with its text is still to be looked at"


def test_gold_is_served_to_those_who_have_not_seen_it(project, make_pair, annotator, other_annotator, judge):
    pair = make_pair()
    judge(annotator, "a")
    project.gold_percent = 100
    project.save()
    make_gold(pair=pair, choice="a")
    reserve(project, other_annotator.pk)
    assert queue.lease_next(project, other_annotator.pk) is None, "known for what it is where nothing else is open"
    make_pair()
    lease = queue.lease_next(project, other_annotator.pk)
    assert lease is not None
    assert (lease.slot.pair, lease.slot.kind) == (pair, Slot.Kind.GOLD)
    end_gold(pair=pair)
    pair.refresh_from_db()
    assert pair.gold_choice == ""
    with pytest.raises(LabelingError, match="not a choice"):
        make_gold(pair=pair, choice="left")


def test_a_pair_that_nobody_has_seen_yet_goes_when_it_is_taken_out(project, make_pair, annotator, reviewer):
    """Pairs are taken out because they are harmful; who was to read it next is spared."""
    make_pair(priority=2)
    bad, good = make_pair(priority=1), make_pair()
    queue.lease_next(project, annotator.pk)
    assert queue.lease_ahead(project, annotator.pk).slot.pair == bad
    adjudicate(pair=bad, reviewer=reviewer, verdict="retire")
    assert queue.lease_ahead(project, annotator.pk).slot.pair == good
    assert bad.slots.get().state == Slot.State.CLOSED


def test_a_skipped_pair_that_was_decided_meanwhile_does_not_come_back(project, make_pair, annotator, reviewer):
    pair = make_pair()
    queue.skip(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "harmful")
    adjudicate(pair=pair, reviewer=reviewer, verdict="retire")
    with pytest.raises(LabelingError, match="Nobody is asked"):
        queue.undo(project, annotator.pk)


def test_a_pair_whose_answer_is_looked_at_again_wants_no_judgement_more_when_it_comes_back(
    project, make_pair, annotator, reviewer, judge
):
    project.judgements_per_pair = 2
    project.save()
    pair = make_pair()
    judge(annotator, "a")
    queue.undo(project, annotator.pk)
    adjudicate(pair=pair, reviewer=reviewer, verdict="retire")
    assert places.bring_back(pair.pk) == 1, "one is given, and one is wanted"
