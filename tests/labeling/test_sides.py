"""Which response stands on the left: decided here, balanced for each person and pair, stored, and not given away."""

from __future__ import annotations

import base64

import pytest
from django.contrib.auth.models import User

from labeling import claims, own_places, places, queue
from labeling.models import Preference, Seat, Slot
from labeling.own_places import reserve
from labeling.tokens import read_token


def _work_off(project, user, choice="a") -> list[str]:
    sides = []
    while lease := queue.lease_next(project, user.pk):
        sides.append(lease.slot.shown_left)
        queue.submit(project, lease.token, user.pk, choice)
    return sides


def test_a_persons_sides_are_never_far_apart(project, annotator, make_pair):
    for _ in range(60):
        make_pair()
    sides = _work_off(project, annotator)
    lead = [sum(1 if side == "a" else -1 for side in sides[: end + 1]) for end in range(len(sides))]
    assert max(map(abs, lead)) <= claims.MOST_APART
    assert Seat.objects.get(annotator=annotator).a_left == lead[-1]
    assert len(set(sides[:12])) == 2, "and they do not only take turns"
    assert sides != ["a", "b"] * 30
    assert sides != ["b", "a"] * 30


def test_two_people_see_a_pair_either_way_round(project, annotator, other_annotator, make_pair):
    project.judgements_per_pair = 2
    project.save()
    for _ in range(20):
        make_pair()
    _work_off(project, annotator)
    _work_off(project, other_annotator)
    shown = Preference.objects.order_by("pair_id").values_list("pair_id", "shown_left")
    by_pair: dict[int, set[str]] = {}
    for pair_id, side in shown:
        by_pair.setdefault(pair_id, set()).add(side)
    assert set(map(len, by_pair.values())) == {2}


def test_the_side_stays_when_a_pair_comes_back(project, annotator, make_pair):
    make_pair()
    for _ in range(8):
        lease = queue.lease_next(project, annotator.pk)
        first = lease.slot.shown_left
        Slot.objects.update(lease_until=lease.slot.leased_at)
        places.sweep_expired()
        assert queue.lease_next(project, annotator.pk).slot.shown_left == first


def test_a_late_answer_knows_its_side_whoever_has_the_slot_now(project, annotator, make_pair):
    make_pair()
    lease = queue.lease_next(project, annotator.pk)
    mine = lease.slot.shown_left
    Slot.objects.update(lease_until=lease.slot.leased_at)
    places.sweep_expired()
    for number in range(4):
        other = User.objects.create_user(f"other-{number}")
        queue.lease_next(project, other.pk)
        Slot.objects.filter(annotator=other).update(lease_until=lease.slot.leased_at)
        places.sweep_expired()
    assert queue.submit(project, lease.token, annotator.pk, "a").preference.shown_left == mine


def test_a_token_taken_apart_says_nothing_about_the_side(project, annotator, make_pair):
    for _ in range(60):
        make_pair()
    seen = []
    while lease := queue.lease_next(project, annotator.pk):
        sealed = base64.urlsafe_b64decode(lease.token + "=" * (-len(lease.token) % 4))
        bits = [int(bit) for byte in sealed for bit in f"{byte:08b}"]
        seen.append((bits, read_token(lease.token, annotator.pk).shown_left == "b"))
        queue.submit(project, lease.token, annotator.pk, "a")
    for place in range(len(seen[0][0])):
        same = sum(bits[place] == is_b for bits, is_b in seen)
        assert 8 <= same <= 52, f"bit {place} is no better than a coin"


def test_a_second_look_has_its_sides_changed_and_is_marked(project, annotator, sign_in, make_pair, monkeypatch):
    monkeypatch.setattr(own_places, "REPEAT_AFTER", 0)
    pair = make_pair()
    first = queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a").preference
    project.repeat_percent = 100
    project.save()
    reserve(project, annotator.pk)
    lease = queue.lease_next(project, annotator.pk)
    assert (lease.slot.kind, lease.slot.pair_id) == ("repeat", pair.pk)
    assert lease.slot.shown_left != first.shown_left
    page = sign_in(annotator).get(f"/p/{project.slug}/annotate/").content.decode()
    assert "You have judged this pair before" in page
    again = queue.submit(project, lease.token, annotator.pk, "b").preference
    pair.refresh_from_db()
    assert (again.is_repeat, pair.judgements_count) == (True, 1), "it measures, and is no further judgement"
    assert list(Preference.objects.counted()) == [first]
    assert queue.lease_next(project, annotator.pk) is None, "one second look a pair"


@pytest.mark.parametrize("share", [0, 100])
def test_the_control_is_served_in_random_order_and_the_rest_by_priority(project, annotator, make_pair, share):
    project.control_percent = share
    project.save()
    pairs = [make_pair(priority=-number) for number in range(12)]
    Slot.objects.update(is_control=share == 100)
    if share == 100:
        Slot.objects.update(priority=0)
    order = []
    while lease := queue.lease_next(project, annotator.pk):
        order.append(lease.slot.pair_id)
        queue.submit(project, lease.token, annotator.pk, "a")
    by_chance = list(Slot.objects.order_by("random_key").values_list("pair_id", flat=True))
    assert order == (by_chance if share else [pair.pk for pair in pairs])
