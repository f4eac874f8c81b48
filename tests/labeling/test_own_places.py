"""Pairs with a known answer and second looks: made ahead of need, given out like any other pair, and never lost."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling import own_places, places, queue
from labeling.models import Pair, Preference, Slot
from labeling.own_places import RESERVED_FOR, reserve, reserve_all
from labeling.queue import Standing
from labeling.review import adjudicate, end_gold, make_gold
from labeling.tasks import reserve_places
from tests.threads import at_once


@pytest.fixture
def golden(project, make_pair) -> Pair:
    """A pair with a known answer, served at every turn while others are open."""
    for _ in range(4):
        make_pair()
    pair = make_pair()
    Slot.objects.filter(pair=pair).update(state=Slot.State.CLOSED)
    make_gold(pair=pair, choice="a")
    project.gold_percent = 100
    project.save()
    return pair


@pytest.fixture
def own_place(project, annotator, golden) -> Slot:
    assert reserve(project, annotator.pk) == 1
    return Slot.objects.get(pair=golden, kind="gold")


def test_the_job_makes_places_for_those_who_work(project, annotator, other_annotator, golden):
    queue.lease_next(project, annotator.pk)
    reserve_places()
    assert list(golden.slots.filter(kind="gold").values_list("annotator", "state")) == [(annotator.pk, "done")]
    assert reserve_all() == 0, "once"


def test_there_are_places_for_as_many_pairs_as_somebody_judges_meanwhile(project, annotator, make_pair):
    for _ in range(9):
        make_gold(pair=make_pair(), choice="a")
    project.gold_percent = 10
    project.save()
    assert reserve(project, annotator.pk) == RESERVED_FOR * 10 // 100
    assert reserve(project, annotator.pk) == 0


def test_a_known_answer_takes_the_statements_that_any_pair_takes(project, annotator, golden):
    """Who counts milliseconds must not find the pairs that somebody is tested with."""
    kinds: list[str] = []

    def statements(gold_percent: int) -> list[str]:
        project.gold_percent = gold_percent
        with CaptureQueriesContext(connection) as queries:
            lease = queue.lease_next(project, annotator.pk)
            queue.submit(project, lease.token, annotator.pk, "a")
        kinds.append(lease.slot.kind)
        return [" ".join(query["sql"].split()[:3]) for query in queries if "SAVEPOINT" not in query["sql"]]

    reserve(project, annotator.pk)
    statements(0)  # the first time a seat is looked at
    plain, gold = statements(0), statements(100)
    assert kinds == ["planned", "planned", "gold"]
    assert gold == plain


@pytest.mark.parametrize("end", ["given back", "expired", "undo"])
def test_a_place_that_its_person_did_not_answer_is_given_again(project, annotator, own_place, end):
    project.gold_percent = 0
    if end == "undo":
        queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
    queue.lease_next(project, annotator.pk)
    project.gold_percent = 100
    ahead = queue.lease_ahead(project, annotator.pk)
    assert ahead.slot == own_place
    if end == "given back":
        queue.give_back_ahead(project, annotator.pk)
    elif end == "undo":
        queue.undo(project, annotator.pk)
        queue.give_back_ahead(project, annotator.pk)  # the pair that was on the screen waits behind the reopened one
    else:
        Slot.objects.filter(pk=own_place.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
        places.sweep_expired()
    again = queue.lease_ahead(project, annotator.pk)
    assert again.slot == own_place
    assert again.token != ahead.token
    assert again.slot.shown_left == ahead.slot.shown_left, "it looks as it did"
    assert queue.submit(project, ahead.token, annotator.pk, "b").preference.slot == own_place, "an old page may answer"


def test_a_page_of_a_place_that_ran_out_is_told_what_the_page_of_any_pair_is_told(project, annotator, own_place):
    golden = queue.lease_next(project, annotator.pk)
    assert golden.slot == own_place
    Slot.objects.filter(pk=own_place.pk).update(lease_until=timezone.now() - timedelta(seconds=1))
    places.sweep_expired()
    project.gold_percent = 0
    plain = queue.lease_next(project, annotator.pk)
    assert queue.renew(project, golden.token, annotator.pk) == Standing.OPEN
    queue.submit(project, plain.token, annotator.pk, "a")
    assert queue.renew(project, golden.token, annotator.pk) == Standing.KEPT
    assert queue.lease_next(project, annotator.pk).slot == own_place, "leased again"


def test_a_second_look_that_was_skipped_does_not_come_again(project, annotator, make_pair, monkeypatch):
    monkeypatch.setattr(own_places, "REPEAT_AFTER", 0)
    make_pair()
    queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
    project.repeat_percent = 100
    project.save()
    reserve(project, annotator.pk)
    lease = queue.lease_next(project, annotator.pk)
    assert lease.slot.kind == "repeat"
    queue.skip(project, lease.token, annotator.pk)
    assert queue.lease_next(project, annotator.pk) is None
    assert reserve(project, annotator.pk) == 0
    assert Preference.objects.get().is_current


def test_a_pair_that_is_gold_no_more_is_open_to_all_again(project, annotator, golden, own_place):
    Slot.objects.filter(pair=golden, kind="planned").update(state=Slot.State.OPEN, priority=9)
    end_gold(pair=golden)
    lease = queue.lease_next(project, annotator.pk)
    assert (lease.slot.pair, lease.slot.kind) == (golden, "planned")


def test_a_golden_pair_that_was_taken_out_is_not_served(project, annotator, reviewer, golden, own_place):
    adjudicate(pair=golden, reviewer=reviewer, verdict="retire")
    assert queue.lease_next(project, annotator.pk).slot.kind == "planned"


@pytest.mark.django_db(transaction=True)
def test_places_are_made_while_their_pairs_are_judged(project, annotator, other_annotator, make_pair):
    """Two people judge the known pairs that places are made of for the other one, all at once."""
    project.gold_percent = 50
    project.save()
    for number in range(20):
        pair = make_pair()
        if number % 2:
            make_gold(pair=pair, choice="a")

    def work(person) -> None:
        for _ in range(8):
            if lease := queue.lease_next(project, person.pk):
                queue.turn(project, lease.token, person.pk, "a")

    def supply(person) -> None:
        for _ in range(8):
            reserve(project, person.pk)

    people = (annotator, other_annotator)
    acts = [lambda act=act, person=person: act(person) for act in (work, supply) for person in people]
    assert at_once(*acts) == []
    assert Preference.objects.filter(is_current=True).count() == 16
