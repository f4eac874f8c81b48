"""Labels taken back for good: what counts afterwards, what is asked for again, and what nobody can undo."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils import timezone

from labeling import measure, own_places, places, queue, withdrawals
from labeling.answers import Details
from labeling.exceptions import LabelingError, LeaseGone, NothingToUndo
from labeling.filters import judgements_search
from labeling.models import Pair, Preference, QualityReport, Seat, SentBack, Skip, Slot, Withdrawal
from labeling.records import reinstate
from labeling.review import adjudicate, send_back
from labeling.services import NewResponse, add_pair, add_prompts
from tests.labeling import crowd


@pytest.fixture
def answer(project):
    """Let somebody answer the pair that comes next to them."""

    def answer(user, choice: str = "a", details: Details | None = None) -> Preference:
        lease = queue.lease_next(project, user.pk)
        assert lease is not None
        return queue.submit(project, lease.token, user.pk, choice, details or Details()).preference

    return answer


def _withdraw(kind: str, *, project, by=None, reason: str = "", **target) -> Withdrawal:
    """As the training side does it, which marks in between what was made of the judgements."""
    unsaved = Withdrawal(project=project, kind=kind, by=by, reason=reason, **target)
    return withdrawals.carry_out(withdrawals.begin(unsaved))


withdraw_annotator = partial(_withdraw, "annotator")
withdraw_prompt = partial(_withdraw, "prompt")
withdraw_preference = partial(_withdraw, "preference")


def _fresh(row):
    row.refresh_from_db()
    return row


# Somebody


def test_nothing_of_somebody_counts_any_more_and_their_places_open_again(
    project, annotator, other_annotator, project_admin, make_pair, answer
):
    first, second, others = make_pair(priority=3), make_pair(priority=2), make_pair(priority=1)
    answer(annotator, "a")
    answer(annotator, "b")
    answer(other_annotator)
    withdrawal = withdraw_annotator(project=project, annotator=annotator, by=project_admin, reason=" They asked. ")
    assert (withdrawal.judgements, withdrawal.reason, withdrawal.by) == (2, "They asked.", project_admin)
    assert withdrawal.finished_at is not None
    mine = Preference.objects.filter(annotator=annotator)
    assert set(mine.values_list("is_current", "withdrawal")) == {(False, withdrawal.pk)}
    assert Preference.objects.counted().get().annotator == other_annotator
    for pair in (first, second):
        assert (_fresh(pair).judgements_count, pair.p_a) == (0, None)
        assert pair.slots.get().state == Slot.State.OPEN
    assert _fresh(others).judgements_count == 1
    assert Seat.objects.get(annotator=annotator).judged == 0
    assert {queue.lease_next(project, other_annotator.pk).slot.pair} <= {first, second}, "they are asked instead"


def test_former_versions_and_second_looks_go_along_and_what_comes_later_stays(
    project, annotator, make_pair, answer, monkeypatch
):
    monkeypatch.setattr(own_places, "REPEAT_AFTER", 0)
    make_pair()
    answer(annotator, "a")
    queue.undo(project, annotator.pk)
    answer(annotator, "b")
    type(project).objects.update(repeat_percent=100)
    project.refresh_from_db()
    own_places.reserve(project, annotator.pk)
    assert answer(annotator, "b").is_repeat
    withdrawal = withdraw_annotator(project=project, annotator=annotator)
    assert Preference.objects.filter(withdrawal=withdrawal).count() == 3
    assert withdrawal.judgements == 2, "a former version is no judgement of its own"
    assert Seat.objects.get(annotator=annotator).judged == 0
    type(project).objects.update(repeat_percent=0)
    project.refresh_from_db()
    make_pair(priority=9)
    later = answer(annotator, "tie")
    assert (later.is_current, later.withdrawal) == (True, None)
    assert withdrawals.covered(_fresh(withdrawal)).count() == 0


def test_a_conflict_ends_with_the_judgement_that_made_it(project, annotator, other_annotator, make_pair, judge):
    pair = make_pair()
    Slot.objects.create(project=project, pair=pair, place=2, is_shared=True)
    Pair.objects.filter(pk=pair.pk).update(judgements_wanted=2)
    judge(pair, annotator, "a")
    judge(pair, other_annotator, "b")
    assert pair.slots.filter(state="open").count() == 1, "a third is asked"
    assert _fresh(pair).judgements_wanted == 3
    withdraw_annotator(project=project, annotator=annotator)
    assert _fresh(pair).judgements_wanted == 2
    assert pair.judgements_count == 1
    assert pair.slots.filter(state="open").count() == 1, "one in place of the one that was taken, and no more"


def test_a_reviewer_who_was_called_for_a_conflict_waits_for_what_is_asked_again(project, make_pair):
    type(project).objects.update(most_judgements=2)
    project.refresh_from_db()
    users = crowd.people(project, 2)
    Seat.objects.update(judged=5)
    (pair,) = crowd.judge(project, users, 1, review="conflict")
    withdraw_annotator(project=project, annotator=users[0])
    assert (_fresh(pair).review, pair.judgements_count) == ("", 1)
    withdraw_annotator(project=project, annotator=users[1])
    assert (_fresh(pair).review, pair.judgements_count) == ("", 0)
    assert pair.slots.filter(state="open").count() == 2


def test_an_extra_vote_takes_no_place_with_it(project, annotator, other_annotator, make_pair):
    pair = make_pair()
    late = queue.lease_next(project, annotator.pk)
    Slot.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    places.sweep_expired()
    queue.submit(project, queue.lease_next(project, other_annotator.pk).token, other_annotator.pk, "a")
    assert queue.submit(project, late.token, annotator.pk, "a").is_extra
    withdraw_annotator(project=project, annotator=other_annotator)
    assert _fresh(pair).judgements_count == 1
    assert not pair.slots.filter(state="open").exists(), "the pair has what it wants"
    withdraw_annotator(project=project, annotator=annotator)
    assert pair.slots.filter(state="open").count() == 1


def test_a_decided_pair_and_one_that_was_taken_out_ask_nobody(project, annotator, reviewer, make_pair, answer):
    for verdict in ("a", "retire"):
        pair = make_pair()
        answer(annotator)
        adjudicate(pair=pair, reviewer=reviewer, verdict=verdict)
    withdraw_annotator(project=project, annotator=annotator)
    assert set(Slot.objects.values_list("state", flat=True)) == {"closed"}


def test_what_was_sent_back_is_settled_and_a_second_look_is_not_asked_for(
    project, annotator, reviewer, make_pair, answer
):
    make_pair()
    preference = answer(annotator)
    send_back(preference=preference, reviewer=reviewer, note="Look again.")
    look = Slot.objects.create(project=project, pair=preference.pair, place=2, kind="repeat", state="done",
                               annotator=annotator)  # fmt: skip
    withdraw_annotator(project=project, annotator=annotator)
    assert SentBack.objects.get().settled_at is not None
    assert not Slot.objects.filter(pk=look.pk).exists()


def test_a_page_that_an_undo_had_reopened_may_be_answered_anew(project, annotator, make_pair, answer):
    pair = make_pair()
    answer(annotator, "a")
    token = queue.undo(project, annotator.pk).token
    withdraw_annotator(project=project, annotator=annotator)
    assert pair.slots.get().state == Slot.State.LEASED
    assert queue.submit(project, token, annotator.pk, "b").preference.is_current
    assert _fresh(pair).judgements_count == 1


# No way back


def test_an_undo_never_brings_back_what_was_withdrawn(project, annotator, make_pair, answer):
    pair = make_pair()
    answer(annotator)
    withdraw_annotator(project=project, annotator=annotator)
    with pytest.raises(NothingToUndo):
        queue.undo(project, annotator.pk)
    with pytest.raises(NothingToUndo):
        queue.reopen(project, annotator.pk, Preference.objects.get().pk)
    reinstate(project, Preference.objects.get())
    assert not Preference.objects.get().is_current
    assert _fresh(pair).judgements_count == 0


def test_a_skip_that_had_taken_a_judgement_back_gives_it_back_no_more(project, annotator, make_pair, answer):
    """Answered, reopened, skipped: an undo of the skip would let the answer count again."""
    pair = make_pair()
    answer(annotator)
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk)
    withdraw_annotator(project=project, annotator=annotator)
    lease = queue.undo(project, annotator.pk)
    assert (lease.slot.pair, lease.previous) == (pair, None)
    assert not Preference.objects.get().is_current
    assert (_fresh(pair).judgements_count, Skip.objects.count()) == (0, 0)


def test_a_second_look_that_was_skipped_gives_back_none_either(project, annotator, make_pair, answer):
    pair = make_pair()
    answer(annotator)
    own = {"annotator": annotator, "shown_left": "a"}
    look = Slot.objects.create(project=project, pair=pair, place=2, kind="repeat", state="done", shown_to=annotator.pk,
                               lease_number=1, versions=1, passed_on_at=timezone.now(), **own)  # fmt: skip
    look_said = Preference.objects.create(project=project, pair=pair, slot=look, annotator=annotator, choice="a",
                                          shown_left="a", seconds=1, lease_number=1, is_repeat=True,
                                          is_current=False)  # fmt: skip
    withdraw_annotator(project=project, annotator=annotator)
    Slot.objects.filter(pk=look.pk).update(passed_on_at=timezone.now())
    assert queue.undo(project, annotator.pk).previous is None
    assert not _fresh(look_said).is_current


def test_the_database_lets_nothing_withdrawn_count(project, annotator, make_pair, answer):
    make_pair()
    answer(annotator)
    withdraw_annotator(project=project, annotator=annotator)
    with pytest.raises(IntegrityError), transaction.atomic():
        Preference.objects.update(is_current=True)


# A prompt


def test_a_withdrawn_prompt_is_asked_of_nobody_for_ever(
    project, annotator, other_annotator, reviewer, make_prompt, make_pair, answer
):
    prompt = make_prompt()
    judged, waiting = make_pair("1", "2", prompt=prompt, priority=2), make_pair("3", "4", prompt=prompt, priority=1)
    answer(annotator)
    withdrawal = withdraw_prompt(project=project, prompt=prompt)
    assert (withdrawal.judgements, withdrawal.kind) == (1, "prompt")
    assert _fresh(prompt).withdrawn_at is not None
    for pair in (judged, waiting):
        assert _fresh(pair).is_retired
    assert not Slot.objects.filter(state="open").exists()
    assert queue.lease_next(project, other_annotator.pk) is None
    with pytest.raises(LabelingError, match="was withdrawn"):
        adjudicate(pair=judged, reviewer=reviewer, verdict="leave")
    with pytest.raises(LabelingError, match="is given no pair"):
        add_pair(prompt=prompt, responses=(NewResponse("5"), NewResponse("6")))
    with pytest.raises(LabelingError, match="withdrawn before"):
        withdraw_prompt(project=project, prompt=prompt)
    assert add_prompts(project=project, prompts=[prompt.messages]).added == 0, "nor does an import bring it back"
    assert _fresh(prompt).withdrawn_at is not None


@pytest.mark.parametrize("is_retired", [False, True])
def test_a_page_of_a_withdrawn_prompt_is_refused_and_the_next_pair_comes(
    project, annotator, make_prompt, make_pair, sign_in, is_retired
):
    prompt = make_prompt()
    make_pair(prompt=prompt, priority=2)
    other = make_pair(priority=1)
    token = queue.lease_next(project, annotator.pk).token
    assert queue.lease_ahead(project, annotator.pk).slot.pair == other
    if is_retired:
        places.retire(prompt.pairs.get().pk)
    withdraw_prompt(project=project, prompt=prompt)
    with pytest.raises(LeaseGone, match="This pair was withdrawn"):
        queue.submit(project, token, annotator.pk, "a")
    url = reverse("labeling:submit", args=[project.slug])
    page = sign_in(annotator).post(url, {"token": token, "choice": "left"}, headers={"HX-Request": "true"})
    assert page.status_code < 500
    assert "This pair was withdrawn" in page.content.decode()
    assert Preference.objects.count() == 0
    assert queue.lease_next(project, annotator.pk).slot.pair == other


# One judgement


def test_one_judgement_takes_its_versions_and_leaves_the_rest(project, annotator, other_annotator, make_pair, answer):
    make_pair(priority=2)
    make_pair(priority=1)
    answer(annotator, "a")
    queue.undo(project, annotator.pk)
    second = answer(annotator, "b")
    kept = answer(annotator, "a")
    withdrawal = withdraw_preference(project=project, preference=second)
    assert Preference.objects.filter(withdrawal=withdrawal).count() == 2
    assert _fresh(kept).is_current
    with pytest.raises(LabelingError, match="withdrawn before"):
        withdraw_preference(project=project, preference=second)
    assert queue.lease_next(project, other_annotator.pk).slot.pair_id == second.pair_id


def test_there_must_be_something_to_withdraw(project, annotator):
    with pytest.raises(LabelingError, match="no judgement to withdraw"):
        withdraw_annotator(project=project, annotator=annotator)
    assert not Withdrawal.objects.exists()


# In parts


def test_what_was_interrupted_goes_on_and_is_not_done_before_all_of_it_is(project, monkeypatch):
    users = crowd.people(project, 2)
    crowd.judge(project, users, 7)
    Seat.objects.update(judged=7)
    begun = withdrawals.begin(Withdrawal(project=project, kind="annotator", annotator=users[0]))
    assert withdrawals.carry_out(begun, most=3).finished_at is None
    assert begun.judgements == 3
    counted = Preference.objects.counted()
    assert counted.filter(annotator=users[0]).count() == 4
    assert not withdrawals.without_unfinished(project, counted).filter(annotator=users[0]).exists()
    assert withdrawals.without_unfinished(project, counted).count() == 7
    real, calls = withdrawals.withdraw, []

    def dies(project, preference):
        calls.append(preference)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(project, preference)

    monkeypatch.setattr(withdrawals, "withdraw", dies)
    with pytest.raises(KeyboardInterrupt):
        withdrawals.carry_out_unfinished()
    assert (_fresh(begun).judgements, begun.finished_at) == (5, None)
    monkeypatch.setattr(withdrawals, "withdraw", real)
    assert withdrawals.carry_out_unfinished() == 1
    assert _fresh(begun).judgements == 7
    assert withdrawals.carry_out_unfinished() == 0
    assert Seat.objects.get(annotator=users[0]).judged == 0
    assert set(Pair.objects.values_list("judgements_count", flat=True)) == {1}


def test_each_pair_is_a_transaction_of_its_own(project, django_assert_max_num_queries):
    users = crowd.people(project, 2)
    crowd.judge(project, users, 12)
    Seat.objects.update(judged=12)
    with django_assert_max_num_queries(12 * 30):
        withdraw_annotator(project=project, annotator=users[0])


# What is measured and shown


def test_what_is_known_of_the_others_is_found_anew(project):
    users = crowd.people(project, 4)
    crowd.judge(project, users, 30, each=3)
    Seat.objects.update(judged=30)
    measure.measure(project)
    assert not measure.measure(project), "nothing is new"
    withdraw_annotator(project=project, annotator=users[0])
    measure.measure(project)
    report = QualityReport.objects.get()
    assert str(users[0].pk) not in report.data["annotators"]
    assert report.data["reach"]["whole"]["judgements"] == Preference.objects.counted().count() < 90
    assert not measure.measure(project)


def test_lists_show_what_was_withdrawn_as_withdrawn(project, annotator, reviewer, make_pair, answer, sign_in):
    make_pair()
    answer(annotator)
    withdraw_annotator(project=project, annotator=annotator)
    assert list(judgements_search(project, {}).everything()) == []
    (found,) = judgements_search(project, {"withdrawn": True}).everything()
    assert found.annotator == annotator
    own = sign_in(annotator).get(reverse("labeling:history", args=[project.slug])).content.decode()
    assert "An admin has withdrawn this one" in own
    assert "Open it again" not in own
    page = sign_in(reviewer).get(reverse("labeling:judgements", args=[project.slug]), {"withdrawn": "on"})
    assert '<span class="badge">withdrawn</span>' in page.content.decode()
    pair = sign_in(reviewer).get(reverse("labeling:pair", args=[project.slug, found.pair_id])).content.decode()
    assert '<span class="badge">withdrawn</span>' in pair
