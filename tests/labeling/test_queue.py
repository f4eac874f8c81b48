"""The rules of the queue: who gets which pair, and that no answer is lost."""

from __future__ import annotations

import re
import threading
import time
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.utils import timezone

from labeling import leases, places, queue
from labeling.answers import Details
from labeling.exceptions import LabelingError, LeaseGone
from labeling.models import Pair, Preference, Project, Skip, Slot
from labeling.queue import Standing
from labeling.services import create_project
from labeling.tokens import TokenContent, make_token
from labeling.turns import transaction_at_desk
from tests.threads import at_once


def _lease(project: Project, user: User) -> queue.Lease:
    lease = queue.lease_next(project, user.pk)
    assert lease is not None
    return lease


def _content(lease: queue.Lease) -> TokenContent:
    """What a token says; the token itself also carries the second in which it was signed."""
    assert lease.slot.annotator_id is not None
    return queue.read_token(lease.token, lease.slot.annotator_id)


def _take(slot: Slot, user: User) -> None:
    now = timezone.now()
    leases.take(slot, user.pk, "a", now, now + timedelta(minutes=15))


def _expire(slot: Slot) -> None:
    Slot.objects.filter(pk=slot.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def test_two_annotators_never_get_the_same_slot(project, annotator, other_annotator, make_pair):
    make_pair()
    make_pair()
    assert _lease(project, annotator).slot.pair_id != _lease(project, other_annotator).slot.pair_id


def test_a_second_tab_gets_the_same_lease(project, annotator, make_pair):
    make_pair()
    make_pair()
    assert _content(_lease(project, annotator)) == _content(_lease(project, annotator))


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
    assert (
        again.slot.shown_left
        == lease.slot.shown_left
        == queue.read_lease(project, lease.token, annotator.pk).shown_left
    )


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
    places.sweep_expired()
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
    assert sorted(Slot.objects.values_list("place", "kind")) == [
        (1, "planned"),
        (2, "extra"),
        (3, "planned"),
    ], "the two disagree, so a third is asked"


def test_an_expired_lease_goes_to_the_next_person_without_a_sweep(project, annotator, other_annotator, make_pair):
    make_pair()
    _expire(_lease(project, annotator).slot)
    assert queue.lease_next(project, other_annotator.pk) is not None


def test_renewing_works_until_somebody_else_has_the_pair(project, annotator, other_annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    _expire(lease.slot)
    assert queue.renew(project, lease.token, annotator.pk) == Standing.KEPT
    assert queue.lease_next(project, other_annotator.pk) is None
    _expire(lease.slot)
    _lease(project, other_annotator)
    assert queue.renew(project, lease.token, annotator.pk) == Standing.TAKEN
    assert queue.submit(project, lease.token, annotator.pk, "a").is_extra, "as the page was told"


def test_a_lease_that_ran_out_is_taken_back_if_nobody_has_the_pair(project, annotator, other_annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    _expire(lease.slot)
    places.sweep_expired()
    assert queue.renew(project, lease.token, annotator.pk) == Standing.KEPT
    assert queue.lease_next(project, other_annotator.pk) is None
    assert _content(_lease(project, annotator)) == _content(lease)
    assert not queue.submit(project, lease.token, annotator.pk, "a").is_extra


def test_a_pair_that_came_back_from_somebody_else_is_taken_back_too(project, annotator, other_annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    _expire(lease.slot)
    queue.skip(project, _lease(project, other_annotator).token, other_annotator.pk)
    assert queue.renew(project, lease.token, annotator.pk) == Standing.KEPT
    assert not queue.submit(project, lease.token, annotator.pk, "a").is_extra
    assert queue.renew(project, lease.token, annotator.pk) == Standing.ANSWERED


def test_nobody_holds_two_pairs_by_leaving_pages_open(project, annotator, other_annotator, make_pair):
    make_pair(priority=2)
    make_pair(priority=1)
    old = _lease(project, annotator)
    _expire(old.slot)
    places.sweep_expired()
    assert _lease(project, other_annotator).slot == old.slot
    _lease(project, annotator)
    Slot.objects.filter(pk=old.slot.pk).update(state=Slot.State.OPEN, annotator=None)
    assert queue.renew(project, old.token, annotator.pk) == Standing.OPEN
    old.slot.refresh_from_db()
    assert old.slot.state == Slot.State.OPEN


def test_an_old_page_learns_that_its_pair_was_answered_or_skipped(project, annotator, make_pair):
    make_pair(priority=1)
    make_pair()
    answered = _lease(project, annotator)
    queue.submit(project, answered.token, annotator.pk, "a")
    skipped = _lease(project, annotator)
    queue.skip(project, skipped.token, annotator.pk)
    assert queue.renew(project, answered.token, annotator.pk) == Standing.ANSWERED
    assert queue.renew(project, skipped.token, annotator.pk) == Standing.SKIPPED
    reopened = queue.undo(project, annotator.pk)
    assert queue.renew(project, answered.token, annotator.pk) == Standing.ANSWERED
    assert queue.renew(project, reopened.token, annotator.pk) == Standing.KEPT
    _expire(reopened.slot)
    places.sweep_expired()
    assert queue.renew(project, reopened.token, annotator.pk) == Standing.KEPT
    assert not queue.submit(project, reopened.token, annotator.pk, "b").is_repeat


def test_a_page_keeps_the_slot_that_another_tab_was_given_of_its_pair(project, annotator, other_annotator, make_pair):
    project.judgements_per_pair = 2
    project.save()
    make_pair()
    old = _lease(project, annotator)
    _expire(old.slot)
    places.sweep_expired()
    Slot.objects.exclude(pk=old.slot.pk).update(random_key=2.0)
    assert _lease(project, other_annotator).slot == old.slot
    new = _lease(project, annotator)
    assert (new.slot.pair_id, new.slot.pk) == (old.slot.pair_id, Slot.objects.exclude(pk=old.slot.pk).get().pk)
    assert queue.renew(project, old.token, annotator.pk) == Standing.KEPT
    assert not queue.submit(project, old.token, annotator.pk, "a").is_extra
    assert queue.submit(project, new.token, annotator.pk, "b").is_repeat


def test_a_skipped_pair_goes_to_somebody_else_and_never_comes_back(project, annotator, other_annotator, make_pair):
    pair = make_pair()
    queue.skip(project, _lease(project, annotator).token, annotator.pk, "unsure", "I do not know this")
    assert queue.lease_next(project, annotator.pk) is None
    assert _lease(project, other_annotator).slot.pair == pair
    assert Skip.objects.values_list("reason", "note").get() == ("unsure", "I do not know this")
    assert not Preference.objects.exists()


def test_a_skip_gives_back_what_another_tab_was_given_of_the_pair(project, annotator, other_annotator, make_pair):
    project.judgements_per_pair = 2
    project.save()
    make_pair()
    old = _lease(project, annotator)
    _expire(old.slot)
    _lease(project, other_annotator)
    _lease(project, annotator)
    queue.skip(project, old.token, annotator.pk)
    assert queue.lease_next(project, annotator.pk) is None


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
    queue.submit(project, _lease(project, annotator).token, annotator.pk, "a")  # the first lease makes a seat
    with django_assert_max_num_queries(8):
        queue.lease_next(project, annotator.pk)


@pytest.fixture
def slot_queries(project, annotator, make_pair):
    """A large project, mostly done; returns the plans of what ``act`` reads from the slots, the analysed way."""
    template = make_pair()
    many = Pair.objects.bulk_create(
        Pair(project=project, prompt=template.prompt, response_a=a, response_b=b, judgements_wanted=1)
        for a, b in _responses(template, 1500)
    )
    Slot.objects.bulk_create(
        Slot(project=project, pair=pair, place=1, **({} if number % 3 else {"state": "done", "annotator": annotator}))
        for number, pair in enumerate(many)
    )

    def plans(act) -> list[str]:
        seen: list[tuple[str, object]] = []

        def note(execute, sql, params, many, context):
            if "labeling_slot" in sql and sql.lstrip().startswith(("SELECT", "UPDATE labeling_slot")):
                seen.append((sql, params))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(note):
            act()
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("ANALYZE")
            return [_plan(cursor, sql, params) for sql, params in seen]

    return plans


def _responses(template: Pair, count: int):
    response = type(template.response_a)
    made = response.objects.bulk_create(response(prompt=template.prompt, text=str(n)) for n in range(2 * count))
    return zip(made[::2], made[1::2], strict=True)


def _plan(cursor, sql: str, params) -> str:
    explain = "EXPLAIN QUERY PLAN " if connection.vendor == "sqlite" else "EXPLAIN "
    cursor.execute(explain + sql, params)
    return "\n".join(str(row[-1]) for row in cursor.fetchall())


def test_a_lease_reads_no_more_slots_than_it_must(project, other_annotator, slot_queries):
    held, following = plans = slot_queries(lambda: queue.lease_next(project, other_annotator.pk))
    if connection.vendor == "sqlite":
        assert "slot_held" in held
        assert "slot_next" in following
        assert "TEMP B-TREE" not in following
    else:  # of two indexes that serve as well PostgreSQL takes now the one and now the other
        for plan in plans:
            assert "Seq Scan on labeling_slot" not in plan


def test_a_sweep_and_the_waiting_page_read_leased_slots_alone(project, other_annotator, slot_queries):
    for act in (places.sweep_expired, lambda: places.waiting_for(project, other_annotator.pk)[1]):
        assert re.search("slot_(expiring|held)", slot_queries(act)[0]), "an index of leased slots alone"


@pytest.mark.django_db(transaction=True)
def test_many_tabs_at_once_give_no_duplicate(project, make_pair):
    project.judgements_per_pair = 2
    project.save()
    for _ in range(12):
        make_pair()
    # The two slots of a pair side by side in the queue: two tabs of one person reach for both of them.
    Slot.objects.update(random_key=F("pair_id"))
    users = [User.objects.create_user(f"user-{number}") for number in range(4)]
    taken: list[tuple[int, int, int]] = []

    def tab(user: User) -> None:
        while lease := queue.lease_next(project, user.pk):
            taken.append((user.pk, lease.slot.pair_id, lease.slot.pk))
            queue.submit(project, lease.token, user.pk, "a")

    assert at_once(*[lambda user=user: tab(user) for user in users for _ in range(3)]) == []
    assert len({(user, pair) for user, pair, _ in taken}) == len(set(taken)), "one slot of a pair each"
    assert len({slot for _, _, slot in taken}) == len(set(taken)) == 24, "each slot to one person"
    assert Preference.objects.filter(is_current=True).count() == Preference.objects.count() == 24
    assert set(Pair.objects.values_list("judgements_count", flat=True)) == {2}
    assert not Slot.objects.exclude(state=Slot.State.DONE).exists()


@pytest.mark.django_db(transaction=True)
def test_a_slot_that_is_taken_back_and_taken_at_once_has_one_holder(project, annotator, other_annotator, make_pair):
    for _ in range(15):
        make_pair()
        mine = _lease(project, annotator)
        _expire(mine.slot)
        places.sweep_expired()
        got: dict[str, object] = {}
        errors = at_once(
            lambda token=mine.token, got=got: got.update(mine=queue.renew(project, token, annotator.pk)),
            lambda got=got: got.update(theirs=queue.lease_next(project, other_annotator.pk)),
        )
        assert errors == []
        assert got["mine"] in (Standing.KEPT, Standing.TAKEN)
        if got["mine"] == Standing.TAKEN:
            assert got["theirs"].slot == mine.slot
            queue.submit(project, got["theirs"].token, other_annotator.pk, "a")
        else:
            assert got["theirs"] is None
            queue.submit(project, mine.token, annotator.pk, "a")
    assert Preference.objects.count() == Slot.objects.count() == 15


@pytest.mark.django_db(transaction=True)
def test_late_answers_to_slots_that_changed_hands_do_not_wait_for_each_other(
    project, annotator, other_annotator, make_pair
):
    project.judgements_per_pair = 2
    project.save()
    for _ in range(10):
        pair = make_pair()
        first, second = pair.slots.order_by("place")
        _take(first, annotator)
        _take(second, other_annotator)
        old = make_token(first), make_token(second)
        Slot.objects.filter(pair=pair).update(state=Slot.State.OPEN, annotator=None)
        for slot, user in ((first, other_annotator), (second, annotator)):
            slot.refresh_from_db()
            _take(slot, user)
        errors = at_once(
            lambda token=old[0]: queue.submit(project, token, annotator.pk, "a"),
            lambda token=old[1]: queue.submit(project, token, other_annotator.pk, "b"),
        )
        assert errors == []
    assert Preference.objects.count() == Slot.objects.filter(state=Slot.State.DONE).count() == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [("lease_minutes", 0), ("lease_minutes", 1), ("lease_minutes", 1441), ("judgements_per_pair", 0)],
)
def test_a_project_keeps_its_numbers_in_range(project, field, value):
    setattr(project, field, value)
    with pytest.raises(ValidationError, match=field):
        project.full_clean()
    with pytest.raises(IntegrityError), transaction.atomic():
        project.save()


def test_a_token_is_good_in_its_project_only(project, annotator, make_pair):
    other = create_project(name="Other", slug="other", admin=annotator)
    make_pair()
    token = _lease(project, annotator).token
    for act in (queue.skip, queue.read_lease, queue.renew):
        with pytest.raises(LeaseGone):
            act(other, token, annotator.pk)
    with pytest.raises(LeaseGone):
        queue.submit(other, token, annotator.pk, "a")
    assert not Preference.objects.exists()


def test_the_time_of_an_extra_vote_counts_from_its_own_lease(project, annotator, other_annotator, make_pair):
    make_pair()
    lease = _lease(project, annotator)
    lease.slot.leased_at -= timedelta(hours=1)
    token = make_token(lease.slot)
    _expire(lease.slot)
    _lease(project, other_annotator)
    assert queue.submit(project, token, annotator.pk, "a").preference.seconds > 3599


def test_what_divides_opinions_most_is_asked_about_first(project, make_pair, annotator):
    project.judgements_per_pair, project.most_judgements = 2, 5
    project.save()
    people = [User.objects.create_user(f"voter-{number}") for number in range(4)]
    for person in people:
        project.memberships.create(user=person)
    pairs = [make_pair(), make_pair()]
    for pair, choices in zip(pairs, (("a", "a", "b", "b"), ("a", "b", "tie", "both_bad")), strict=True):
        for person, choice in zip(people, choices, strict=True):
            slot = pair.slots.filter(state="open").first() or Slot.objects.create(
                project=project, pair=pair, place=pair.slots.count() + 1
            )
            _take(slot, person)
            queue.submit(project, make_token(slot), person.pk, choice)
    assert _lease(project, annotator).slot.pair == pairs[1], "four opinions before two and two"


def test_a_pair_that_was_read_offline_took_the_time_its_page_measured(project, make_pair, annotator):
    """The answer before it arrives late, and its turn comes on the server in the moment of its own answer."""
    make_pair()
    make_pair()
    first, ahead = _lease(project, annotator), queue.lease_ahead(project, annotator.pk)
    assert ahead is not None
    earlier = timezone.now() - timedelta(minutes=10)
    Slot.objects.filter(pk=ahead.slot.pk).update(leased_at=earlier)
    ahead.slot.refresh_from_db()
    token = make_token(ahead.slot)
    queue.turn(project, first.token, annotator.pk, "a", Details(seconds=3))
    said = queue.turn(project, token, annotator.pk, "b", Details(seconds=40)).submission
    assert said is not None
    assert said.preference.seconds == 40


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="says something about SQLite alone")
def test_on_sqlite_whoever_comes_first_is_served_first():
    """SQLite has whoever waits sleep, the longer the longer they wait, while others that come later slip in."""
    served: list[int] = []
    is_busy = threading.Event()

    def keep_busy() -> None:
        with transaction_at_desk():
            is_busy.set()
            time.sleep(0.7)

    def come(number: int) -> None:
        is_busy.wait()
        time.sleep(number * 0.05)
        with transaction_at_desk():
            served.append(number)
            time.sleep(0.02)

    assert at_once(keep_busy, *[lambda number=number: come(number) for number in range(12)]) == []
    assert served == sorted(served)
