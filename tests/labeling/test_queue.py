"""The rules of the queue: who gets which pair, and that no answer is lost."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from labeling import queue
from labeling.exceptions import LabelingError, LeaseGone, NothingToUndo
from labeling.models import Preference, Project, Skip, Slot
from labeling.services import create_project


def _lease(project: Project, user: User) -> queue.Lease:
    lease = queue.lease_next(project, user.pk)
    assert lease is not None
    return lease


def _expire(slot: Slot) -> None:
    Slot.objects.filter(pk=slot.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def test_two_annotators_never_get_the_same_slot(project, annotator, other_annotator, make_pair):
    make_pair()
    make_pair()
    assert _lease(project, annotator).slot.pair_id != _lease(project, other_annotator).slot.pair_id


def test_a_second_tab_gets_the_same_lease(project, annotator, make_pair):
    make_pair()
    make_pair()
    assert _lease(project, annotator).token == _lease(project, annotator).token


def test_higher_priority_comes_first(project, annotator, make_pair):
    make_pair(priority=0)
    newer = make_pair(priority=1)
    make_pair(priority=0)
    assert _lease(project, annotator).slot.pair == newer


def test_nobody_judges_a_pair_twice_even_when_it_has_more_slots(project, annotator, make_pair):
    project.judgements_per_pair = 2
    project.save()
    make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    assert queue.lease_next(project, annotator.pk) is None


def test_a_pair_is_judged_as_often_as_wanted(project, annotator, other_annotator, make_pair):
    project.judgements_per_pair = 2
    project.save()
    pair = make_pair()
    for user in (annotator, other_annotator):
        queue.submit(project, _lease(project, user).token, user.pk, "a")
    pair.refresh_from_db()
    assert pair.judgements_count == 2


def test_the_side_is_stored_and_a_second_look_shows_the_same(project, annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    _expire(lease.slot)
    again = _lease(project, annotator)
    assert again.slot.shown_left == lease.slot.shown_left == queue.shown_left_of(project, lease.token, annotator.pk)


def test_sides_are_fair():
    left = [queue.side_shown_left(annotator, pair) for annotator in range(20) for pair in range(200)]
    assert 0.46 < left.count("a") / len(left) < 0.54


def test_a_paused_project_gives_nothing_new(project, annotator, make_pair):
    make_pair()
    project.is_paused = True
    assert queue.lease_next(project, annotator.pk) is None


def test_submit_records_choice_side_and_time(project, annotator, make_pair):
    pair = make_pair()
    lease = _lease(project, annotator)
    preference = queue.submit(project, lease.token, annotator.pk, "tie").preference
    assert (preference.choice, preference.pair, preference.shown_left) == ("tie", pair, lease.slot.shown_left)
    assert preference.seconds >= 0
    lease.slot.refresh_from_db()
    assert lease.slot.state == Slot.State.DONE


def test_a_double_submit_counts_once(project, annotator, make_pair):
    pair = make_pair()
    token = _lease(project, annotator).token
    first = queue.submit(project, token, annotator.pk, "a")
    second = queue.submit(project, token, annotator.pk, "b")
    assert second.is_repeat
    assert second.preference == first.preference
    assert Preference.objects.count() == 1
    pair.refresh_from_db()
    assert pair.judgements_count == 1


def test_an_expired_lease_that_nobody_took_is_honoured(project, annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    _expire(lease.slot)
    queue.sweep_expired()
    outcome = queue.submit(project, lease.token, annotator.pk, "a")
    assert not outcome.is_extra
    assert Slot.objects.get().state == Slot.State.DONE


def test_an_answer_after_somebody_else_took_over_is_an_extra_vote_and_counts_once(
    project, annotator, other_annotator, make_pair
):
    pair = make_pair()
    lease = _lease(project, annotator)
    _expire(lease.slot)
    other = _lease(project, other_annotator)
    assert other.slot.pair == pair
    outcome = queue.submit(project, lease.token, annotator.pk, "a")
    assert outcome.is_extra
    assert queue.submit(project, lease.token, annotator.pk, "b").is_repeat
    queue.submit(project, other.token, other_annotator.pk, "b")
    pair.refresh_from_db()
    assert pair.judgements_count == 2
    assert sorted(Slot.objects.values_list("place", "is_extra")) == [(1, False), (2, True)]


def test_an_expired_lease_goes_to_the_next_person_without_a_sweep(project, annotator, other_annotator, make_pair):
    make_pair()
    _expire(_lease(project, annotator).slot)
    assert queue.lease_next(project, other_annotator.pk) is not None


def test_renewing_works_until_somebody_else_has_the_pair(project, annotator, other_annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    assert queue.renew(project, lease.token, annotator.pk)
    _expire(lease.slot)
    _lease(project, other_annotator)
    assert not queue.renew(project, lease.token, annotator.pk)


def test_a_skipped_pair_goes_to_somebody_else_and_never_comes_back(project, annotator, other_annotator, make_pair):
    pair = make_pair()
    queue.skip(project, _lease(project, annotator).token, annotator.pk, "I do not know this")
    assert queue.lease_next(project, annotator.pk) is None
    assert _lease(project, other_annotator).slot.pair == pair
    assert Skip.objects.get().reason == "I do not know this"
    assert not Preference.objects.exists()


def test_undo_reopens_the_latest_answer_and_a_new_one_is_a_new_version(project, annotator, make_pair):
    pair = make_pair()
    make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    held = _lease(project, annotator)
    lease = queue.undo(project, annotator.pk)
    assert lease.previous is not None
    assert lease.previous.choice == "a"
    assert _lease(project, annotator).slot == lease.slot, "the reopened pair comes before the one that is held"
    queue.submit(project, lease.token, annotator.pk, "b")
    versions = Preference.objects.filter(pair=lease.slot.pair).order_by("version")
    assert [(p.version, p.choice, p.is_current) for p in versions] == [(1, "a", False), (2, "b", True)]
    assert _lease(project, annotator).slot == held.slot
    pair.refresh_from_db()
    assert pair.judgements_count <= 1


def test_an_undo_that_is_not_answered_keeps_the_old_answer(project, annotator, other_annotator, make_pair):
    make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    _expire(queue.undo(project, annotator.pk).slot)
    queue.sweep_expired()
    assert Slot.objects.get().state == Slot.State.DONE
    assert Preference.objects.get().is_current
    assert queue.lease_next(project, other_annotator.pk) is None


def test_skipping_a_reopened_pair_withdraws_the_answer(project, annotator, other_annotator, make_pair):
    pair = make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk)
    pair.refresh_from_db()
    assert pair.judgements_count == 0
    assert not Preference.objects.get().is_current
    assert _lease(project, other_annotator).slot.pair == pair


def test_there_must_be_something_to_undo(project, annotator):
    with pytest.raises(NothingToUndo):
        queue.undo(project, annotator.pk)


def test_a_token_is_good_for_its_holder_only(project, annotator, other_annotator, make_pair):
    make_pair()
    token = _lease(project, annotator).token
    for bad in (token + "x", "", "a:b:c"):
        with pytest.raises(LeaseGone):
            queue.submit(project, bad, annotator.pk, "a")
    with pytest.raises(LeaseGone, match="another account"):
        queue.submit(project, token, other_annotator.pk, "a")
    assert not Preference.objects.exists()


def test_an_unknown_choice_is_refused(project, annotator, make_pair):
    make_pair()
    with pytest.raises(LabelingError, match="not a choice"):
        queue.submit(project, _lease(project, annotator).token, annotator.pk, "neither")


def test_leasing_costs_the_same_however_many_pairs_are_open(
    project, annotator, make_pair, django_assert_max_num_queries
):
    for _ in range(30):
        make_pair()
    with django_assert_max_num_queries(8):
        queue.lease_next(project, annotator.pk)


@pytest.mark.django_db(transaction=True)
def test_many_tabs_at_once_give_no_duplicate(project, make_pair):
    for _ in range(12):
        make_pair()
    project.judgements_per_pair = 2
    users = [User.objects.create_user(f"user-{number}") for number in range(4)]
    taken: list[tuple[int, int]] = []
    errors: list[Exception] = []

    def tab(user: User) -> None:
        try:
            while lease := queue.lease_next(project, user.pk):
                taken.append((user.pk, lease.slot.pk))
                queue.submit(project, lease.token, user.pk, "a")
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=tab, args=(user,)) for user in users for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert Preference.objects.filter(is_current=True).count() == 12
    assert Preference.objects.values("pair").distinct().count() == 12


def test_a_token_is_good_in_its_project_only(project, annotator, make_pair):
    other = create_project(name="Other", slug="other", admin=annotator)
    make_pair()
    token = _lease(project, annotator).token
    for act in (queue.skip, queue.shown_left_of):
        with pytest.raises(LeaseGone):
            act(other, token, annotator.pk)
    with pytest.raises(LeaseGone):
        queue.submit(other, token, annotator.pk, "a")
    assert not queue.renew(other, token, annotator.pk)
    assert not Preference.objects.exists()


def test_the_time_of_an_extra_vote_counts_from_its_own_lease(project, annotator, other_annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    lease.slot.leased_at -= timedelta(hours=1)
    token = queue.make_token(lease.slot)
    _expire(lease.slot)
    _lease(project, other_annotator)
    assert queue.submit(project, token, annotator.pk, "a").preference.seconds > 3599
