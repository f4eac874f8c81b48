"""Undo: what somebody did last, a judgement or a skip, is open again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone

from labeling import own_places, places, queue
from labeling.answers import Details
from labeling.exceptions import AlreadyAnswered, NothingToUndo
from labeling.models import Pair, Preference, Project, Seat, Skip, Slot
from labeling.own_places import reserve
from labeling.queue import Standing
from labeling.review import adjudicate


def _lease(project: Project, user: User) -> queue.Lease:
    lease = queue.lease_next(project, user.pk)
    assert lease is not None
    return lease


def _expire(slot: Slot) -> None:
    Slot.objects.filter(pk=slot.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


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
    places.sweep_expired()
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


def test_undoing_the_skip_of_a_reopened_pair_brings_the_answer_back(project, annotator, other_annotator, make_pair):
    pair = make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a", Details(comment="Kept."))
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk, "long")
    lease = queue.undo(project, annotator.pk)
    assert lease.previous == Preference.objects.get(is_current=True)
    assert (lease.previous.choice, lease.previous.comment) == ("a", "Kept.")
    pair.refresh_from_db()
    assert (pair.judgements_count, pair.skips_count) == (1, 0)
    queue.submit(project, lease.token, annotator.pk, "b")
    assert [row.choice for row in Preference.objects.filter(is_current=True)] == ["b"]
    assert queue.lease_next(project, other_annotator.pk) is None, "its place is filled"


def test_a_withdrawn_answer_whose_place_is_taken_stays_withdrawn(project, annotator, other_annotator, make_pair):
    project.judgements_per_pair = 2
    project.save()
    pair = make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk)
    taken = _lease(project, other_annotator)
    assert taken.slot.pk == Preference.objects.get().slot_id
    lease = queue.undo(project, annotator.pk)
    assert lease.previous is None
    assert not queue.submit(project, lease.token, annotator.pk, "b").is_repeat
    pair.refresh_from_db()
    assert pair.judgements_count == 1
    assert [row.choice for row in Preference.objects.filter(is_current=True)] == ["b"]


def test_skipping_on_a_page_older_than_the_answer_withdraws_nothing(project, annotator, make_pair):
    pair = make_pair()
    old = _lease(project, annotator)
    queue.submit(project, old.token, annotator.pk, "a")
    with pytest.raises(AlreadyAnswered, match="Undo"):
        queue.skip(project, old.token, annotator.pk)
    queue.submit(project, queue.undo(project, annotator.pk).token, annotator.pk, "b")
    with pytest.raises(AlreadyAnswered):
        queue.skip(project, old.token, annotator.pk)
    pair.refresh_from_db()
    assert (pair.judgements_count, Skip.objects.count()) == (1, 0)
    assert Preference.objects.get(is_current=True).choice == "b"


def test_skipping_a_reopened_pair_works_after_its_lease_was_swept(project, annotator, other_annotator, make_pair):
    pair = make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    lease = queue.undo(project, annotator.pk)
    _expire(lease.slot)
    places.sweep_expired()
    queue.skip(project, lease.token, annotator.pk)
    pair.refresh_from_db()
    assert (pair.judgements_count, Preference.objects.filter(is_current=True).count()) == (0, 0)
    assert _lease(project, other_annotator).slot.pair == pair


def test_an_extra_vote_that_is_withdrawn_leaves_no_place_to_fill(project, annotator, other_annotator, make_pair):
    pair = make_pair()
    lease = _lease(project, annotator)
    _expire(lease.slot)
    queue.submit(project, _lease(project, other_annotator).token, other_annotator.pk, "a")
    assert queue.submit(project, lease.token, annotator.pk, "b").is_extra
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk)
    pair.refresh_from_db()
    assert pair.judgements_count == 1
    assert not Slot.objects.filter(state=Slot.State.OPEN).exists()


def test_there_must_be_something_to_undo(project, annotator):
    with pytest.raises(NothingToUndo):
        queue.undo(project, annotator.pk)


def test_a_pair_that_comes_back_after_somebody_else_saw_it_is_shown_by_the_coin(
    project, make_pair, annotator, other_annotator
):
    sides = set()
    for _ in range(24):
        pair = make_pair()
        queue.skip(project, _lease(project, annotator).token, annotator.pk)
        theirs = _lease(project, other_annotator)
        assert theirs.slot.pair == pair
        _expire(theirs.slot)
        places.sweep_expired()
        back = queue.undo(project, annotator.pk)
        sides.add(back.slot.shown_left)
        queue.submit(project, back.token, annotator.pk, "a")
    assert sides == {"a", "b"}


def test_a_judgement_that_is_withdrawn_and_given_again_counts_once_for_its_author(project, annotator, make_pair):
    make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk)
    assert Seat.objects.get(annotator=annotator).judged == 0
    queue.submit(project, queue.undo(project, annotator.pk).token, annotator.pk, "b")
    assert Seat.objects.get(annotator=annotator).judged == 1


def test_undo_steps_over_a_skipped_pair_that_has_gone_to_somebody_else(project, annotator, other_annotator, make_pair):
    first = make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    make_pair()
    queue.skip(project, _lease(project, annotator).token, annotator.pk)
    taken = _lease(project, other_annotator)
    lease = queue.undo(project, annotator.pk)
    assert (lease.slot.pair, lease.previous) == (first, Preference.objects.get())
    assert "gone to somebody else" in lease.notice
    assert Skip.objects.count() == 1
    queue.submit(project, lease.token, annotator.pk, "b")
    _expire(taken.slot)
    places.sweep_expired()
    again = queue.undo(project, annotator.pk)
    assert (again.slot.pair, again.notice) == (first, ""), "the judgement is the last thing now"


def test_undo_steps_over_skipped_pairs_that_nobody_is_asked_about(project, annotator, reviewer, make_pair):
    for verdict in ("", "a", "retire"):
        pair = make_pair()
        queue.skip(project, _lease(project, annotator).token, annotator.pk)
        if verdict:
            adjudicate(pair=pair, reviewer=reviewer, verdict=verdict)
    lease = queue.undo(project, annotator.pk)
    assert lease.slot.pair == Pair.objects.order_by("pk")[0], "the skip before both"
    assert "Nobody is asked" in lease.notice


def test_undo_says_why_when_there_is_nothing_before_the_skip(project, annotator, other_annotator, make_pair):
    make_pair()
    queue.skip(project, _lease(project, annotator).token, annotator.pk)
    _lease(project, other_annotator)
    with pytest.raises(NothingToUndo, match="gone to somebody else"):
        queue.undo(project, annotator.pk)


def test_the_page_says_that_undo_stepped_over_a_skip(project, annotator, other_annotator, make_pair, sign_in):
    make_pair()
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")
    make_pair()
    queue.skip(project, _lease(project, annotator).token, annotator.pk)
    _lease(project, other_annotator)
    url, client = reverse("labeling:undo", args=[project.slug]), sign_in(annotator)
    shown = client.post(url, headers={"HX-Request": "true"}).content.decode()
    assert "gone to somebody else" in shown
    assert "gone to somebody else" in client.post(url, follow=True).content.decode()


@pytest.fixture
def second_look(project, annotator, make_pair, monkeypatch) -> Slot:
    """Two pairs are judged, and a second look at one of them lies on the desk."""
    monkeypatch.setattr(own_places, "REPEAT_AFTER", 1)
    for choice in "ab":
        make_pair()
        queue.submit(project, _lease(project, annotator).token, annotator.pk, choice)
    project.repeat_percent = 100
    project.save()
    assert reserve(project, annotator.pk) == 1
    slot = _lease(project, annotator).slot
    assert slot.kind == Slot.Kind.REPEAT
    return slot


def _skip(project: Project, user: User) -> None:
    queue.skip(project, _lease(project, user).token, user.pk)


def test_undoing_the_skip_of_a_second_look_reopens_it(project, annotator, second_look):
    _skip(project, annotator)
    lease = queue.undo(project, annotator.pk)
    assert (lease.slot, lease.previous, lease.notice) == (second_look, None, "")
    assert lease.slot.shown_left == second_look.shown_left
    assert _lease(project, annotator).slot == second_look, "a reload shows it"
    queue.submit(project, lease.token, annotator.pk, "tie")
    assert Preference.objects.filter(is_current=True).count() == 3


def test_a_second_look_can_be_skipped_and_reopened_again(project, annotator, second_look):
    for _ in range(2):
        _skip(project, annotator)
        assert queue.lease_next(project, annotator.pk) is None
        assert queue.undo(project, annotator.pk).slot == second_look


def test_undo_of_a_skip_that_withdrew_a_second_look_brings_its_answer_back(project, annotator, second_look):
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "tie")
    queue.skip(project, queue.undo(project, annotator.pk).token, annotator.pk)
    assert Seat.objects.get(annotator=annotator).judged == 2
    lease = queue.undo(project, annotator.pk)
    assert (lease.slot, lease.previous.choice) == (second_look, "tie")
    assert Seat.objects.get(annotator=annotator).judged == 3
    second_look.pair.refresh_from_db()
    assert second_look.pair.judgements_count == 1, "a second look counts for nothing but steadiness"


def test_what_came_after_the_skip_of_a_second_look_is_undone_first(project, annotator, second_look, make_pair):
    _skip(project, annotator)
    make_pair()
    said = queue.submit(project, _lease(project, annotator).token, annotator.pk, "a").preference
    assert queue.undo(project, annotator.pk).previous == said


def test_a_second_look_that_an_old_page_skips_once_more_was_skipped_the_first_time(
    project, annotator, second_look, make_pair
):
    old = _lease(project, annotator)
    _skip(project, annotator)
    make_pair()
    said = queue.submit(project, _lease(project, annotator).token, annotator.pk, "a").preference
    queue.skip(project, old.token, annotator.pk)
    assert queue.undo(project, annotator.pk).previous == said


def test_a_skipped_second_look_at_a_pair_that_was_taken_out_is_stepped_over(project, annotator, reviewer, second_look):
    _skip(project, annotator)
    adjudicate(pair=second_look.pair, reviewer=reviewer, verdict="retire")
    lease = queue.undo(project, annotator.pk)
    assert lease.previous == Preference.objects.order_by("-pk")[0]
    assert "Nobody is asked" in lease.notice


def test_an_old_page_learns_that_its_second_look_was_skipped_and_may_answer(project, annotator, second_look):
    old = _lease(project, annotator)
    _skip(project, annotator)
    assert queue.renew(project, old.token, annotator.pk) == Standing.SKIPPED
    queue.submit(project, old.token, annotator.pk, "tie")
    second_look.refresh_from_db()
    assert second_look.passed_on_at is None
