"""The rules of the queue, held against a model of them: whatever people, tabs and clocks do, in any order."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Count, Q
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from labeling import own_places, places, queue
from labeling.exceptions import AlreadyAnswered, Frozen, LabelingError, NothingToUndo
from labeling.models import Choice, Pair, Preference, Project, Seat, Skip, Slot
from labeling.prompts import parse_prompt
from labeling.review import adjudicate, end_gold, make_gold
from labeling.services import NewResponse, add_pair, add_prompts, create_project, freeze_preferences

PEOPLE = 3
CHOICES = st.sampled_from(Choice.values)


@dataclass(frozen=True)
class Page:
    """A pair as it once stood on somebody's screen. Old ones stay: tabs are left open."""

    person: int
    token: str
    pair: int
    is_repeat: bool


@dataclass
class Said:
    """What one person's judgement of one pair must be now, as far as they know."""

    choice: str
    moment: int
    is_frozen: bool = False


@dataclass
class Model:
    said: dict[tuple[int, int, bool], Said] = field(default_factory=dict)  # person, pair, second look
    passed_on: dict[tuple[int, int, bool], int] = field(default_factory=dict)  # with the moment of it
    withdrawn: dict[tuple[int, int, bool], Said] = field(default_factory=dict)
    moments: int = 0

    @property
    def skipped(self) -> set[tuple[int, int]]:
        return {(person, pair) for person, pair, is_repeat in self.passed_on if not is_repeat}

    def now(self) -> int:
        self.moments += 1
        return self.moments

    def says(self, key: tuple[int, int, bool], choice: str) -> None:
        self.said[key] = Said(choice, self.now())
        self.passed_on.pop(key, None)

    def passes_on(self, key: tuple[int, int, bool]) -> None:
        self.passed_on.setdefault(key, self.now())  # twice is once
        if withdrawn := self.said.pop(key, None):
            self.withdrawn[key] = withdrawn

    def acts(self, person: int) -> list[tuple[int, int, bool]]:
        """What an undo may be about: what was passed on since the last judgement, and that one; last first."""
        judged = [(one.moment, key) for key, one in self.said.items() if key[0] == person]
        last = [max(judged)] if judged else []
        since = last[0][0] if last else 0
        passed = [(at, key) for key, at in self.passed_on.items() if key[0] == person and at > since]
        return [key for _, key in sorted(passed, reverse=True) + last]


class Desk(RuleBasedStateMachine):
    pages = Bundle("pages")

    def __init__(self) -> None:
        super().__init__()
        self.sandbox = transaction.atomic()
        self.sandbox.__enter__()
        self.model = Model()
        self.project = create_project(name="Rules", slug="rules")
        Project.objects.filter(pk=self.project.pk).update(
            calibration_percent=30, control_percent=30, repeat_percent=20, gold_percent=30
        )
        self.project.refresh_from_db()
        self.reviewer = User.objects.create_user("reviewer")
        self.people = [User.objects.create_user(f"person-{number}").pk for number in range(PEOPLE)]
        self.pairs = 0

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.sandbox.__exit__(None, None, None)

    def _page(self, lease: queue.Lease, person: int) -> Page:
        return Page(person, lease.token, lease.slot.pair_id, lease.slot.kind == Slot.Kind.REPEAT)

    def _check_new(self, lease: queue.Lease, held: set[int]) -> None:
        slot = lease.slot
        person = slot.annotator_id
        if slot.pk in held or lease.previous:
            return
        if slot.kind == Slot.Kind.REPEAT:
            assert (person, slot.pair_id, False) in self.model.said, "a second look needs a first"
            assert (person, slot.pair_id, True) not in self.model.said
        else:
            assert (person, slot.pair_id, False) not in self.model.said, "nobody is served a pair twice"
            assert (person, slot.pair_id) not in self.model.skipped

    def _may_be_undone(self, key: tuple[int, int, bool]) -> bool:
        """A judgement always; a second look is nobody else's; a skipped pair may have gone to somebody else."""
        person, number, is_repeat = key
        if key in self.model.said:
            return True
        pair = Pair.objects.get(pk=number)
        if is_repeat or pair.is_retired or pair.adjudicated_choice:
            return is_repeat and not pair.is_retired
        places = pair.slots.exclude(kind="repeat")
        return any(slot.state == "open" or slot.annotator_id == person for slot in places)

    def _held(self, person: int) -> set[int]:
        rows = Slot.objects.filter(annotator_id=person, state="leased", lease_until__gt=timezone.now())
        return set(rows.values_list("pk", flat=True))

    # What happens

    @rule(wanted=st.integers(1, 3), gold=st.booleans())
    def a_pair_arrives(self, wanted: int, gold: bool) -> None:
        self.pairs += 1
        self.project.judgements_per_pair = wanted
        add_prompts(project=self.project, prompts=[parse_prompt(f"Question {self.pairs}?")])
        prompt = self.project.prompts.order_by("-pk")[0]
        prompt.project = self.project
        pair = add_pair(prompt=prompt, responses=(NewResponse("One"), NewResponse("Two")))
        if gold and self.pairs % 3 == 0:
            Pair.objects.filter(pk=pair.pk).update(gold_choice="a")

    @rule(target=pages, number=st.integers(0, PEOPLE - 1))
    def somebody_opens_the_page(self, number: int):
        person = self.people[number]
        held = self._held(person)
        lease = queue.lease_next(self.project, person)
        if lease is None:
            return multiple()
        self._check_new(lease, held)
        again = queue.lease_next(self.project, person)
        assert again is not None
        assert again.slot.pk == lease.slot.pk, "a second tab gets the same lease"
        return self._page(lease, person)

    @rule(target=pages, number=st.integers(0, PEOPLE - 1))
    def a_page_fetches_ahead(self, number: int):
        person = self.people[number]
        held = self._held(person)
        lease = queue.lease_ahead(self.project, person)
        if lease is None:
            return multiple()
        self._check_new(lease, held)
        assert len(self._held(person)) <= 2, "one ahead of the one that is looked at"
        return self._page(lease, person)

    @rule(number=st.integers(0, PEOPLE - 1))
    def a_page_goes(self, number: int) -> None:
        queue.give_back_ahead(self.project, self.people[number])
        kept = Slot.objects.filter(pk__in=self._held(self.people[number]), is_ahead=True)
        assert not kept.exists()

    @rule(page=pages, choice=CHOICES)
    def somebody_answers(self, page: Page, choice: str) -> None:
        try:
            outcome = queue.submit(self.project, page.token, page.person, choice)
        except Frozen:
            assert self.model.said[page.person, page.pair, page.is_repeat].is_frozen
            return
        key = (page.person, page.pair, page.is_repeat)
        if outcome.is_repeat:
            assert outcome.preference.choice == self.model.said[key].choice, "the first answer counts"
            return
        assert not (key in self.model.said and self.model.said[key].is_frozen)
        self.model.says(key, choice)

    @rule(target=pages, page=pages, choice=CHOICES)
    def somebody_answers_and_goes_on(self, page: Page, choice: str):
        before = self._held(page.person)
        key = (page.person, page.pair, page.is_repeat)
        try:
            turn = queue.turn(self.project, page.token, page.person, choice)
        except Frozen:
            assert self.model.said[key].is_frozen
            return multiple()
        assert turn.submission
        if turn.submission.is_repeat:
            assert turn.submission.preference.choice == self.model.said[key].choice, "the first answer counts"
        else:
            self.model.says(key, choice)
        leases = [lease for lease in (turn.now, turn.ahead) if lease]
        for lease in leases:
            self._check_new(lease, before)
        assert len({lease.slot.pair_id for lease in leases if lease.slot.kind != "repeat"}) == len(
            [lease for lease in leases if lease.slot.kind != "repeat"]
        )
        return multiple(*[self._page(lease, page.person) for lease in leases])

    @rule(page=pages)
    def somebody_skips(self, page: Page) -> None:
        key = (page.person, page.pair, page.is_repeat)
        try:
            queue.skip(self.project, page.token, page.person, "unsure")
        except (AlreadyAnswered, Frozen):
            assert key in self.model.said
            return
        self.model.passes_on(key)

    @rule(target=pages, number=st.integers(0, PEOPLE - 1))
    def somebody_undoes(self, number: int):
        person = self.people[number]
        acts = self.model.acts(person)
        possible = [key for key in acts if self._may_be_undone(key)]
        try:
            lease = queue.undo(self.project, person)
        except NothingToUndo:
            assert not possible
            return multiple()
        except Frozen:
            assert self.model.said[possible[0]].is_frozen
            return multiple()
        page = self._page(lease, person)
        key = (person, page.pair, page.is_repeat)
        assert key == possible[0], "what was done last, of what can be done again"
        assert bool(lease.notice) == (key != acts[0]), "a skip is stepped over, and it is said"
        if self.model.passed_on.pop(key, None) and lease.previous:
            self.model.said[key] = self.model.withdrawn.pop(key)
        if lease.previous:
            assert lease.previous.choice == self.model.said[key].choice
        shown = queue.lease_next(self.project, person)
        assert shown is not None
        assert shown.slot.pk == lease.slot.pk, "a reload shows the pair that was reopened"
        return page

    @rule(target=pages, number=st.integers(0, PEOPLE - 1), back=st.integers(0, 5))
    def somebody_opens_an_answer_of_before(self, number: int, back: int):
        person = self.people[number]
        own = Preference.objects.filter(annotator_id=person, is_current=True).order_by("-pk")
        if not (preference := own[back:].first()):
            return multiple()
        try:
            lease = queue.reopen(self.project, person, preference.pk)
        except Frozen:
            assert self.model.said[person, preference.pair_id, preference.is_repeat].is_frozen
            return multiple()
        assert lease.previous == preference
        return self._page(lease, person)

    @rule(page=pages)
    def a_page_renews(self, page: Page) -> None:
        queue.renew(self.project, page.token, page.person)

    @rule(number=st.integers(0, PEOPLE - 1))
    def time_passes_for_somebody(self, number: int) -> None:
        leased = Slot.objects.filter(annotator_id=self.people[number], state="leased")
        leased.update(lease_until=timezone.now() - timedelta(seconds=1))

    @rule()
    def the_sweep_comes(self) -> None:
        places.sweep_expired()

    @rule()
    def places_are_reserved(self) -> None:
        own_places.reserve_all()

    @rule(number=st.integers(0, 50), verdict=st.sampled_from(["a", "tie", "retire", "leave"]))
    def a_reviewer_decides(self, number: int, verdict: str) -> None:
        if pair := Pair.objects.order_by("pk")[number % max(1, self.pairs) :].first():
            with suppress(LabelingError):  # a choice on a pair that was taken out
                adjudicate(pair=pair, reviewer=self.reviewer, verdict=verdict)
            unseen = pair.slots.filter(state="leased", is_ahead=True)
            pair.refresh_from_db()
            assert not (unseen.exists() and (pair.is_retired or pair.adjudicated_choice))

    @rule(number=st.integers(0, 50), is_gold=st.booleans())
    def a_known_answer_changes(self, number: int, is_gold: bool) -> None:
        if pair := Pair.objects.filter(is_retired=False).order_by("pk")[number % max(1, self.pairs) :].first():
            make_gold(pair=pair, choice="b") if is_gold else end_gold(pair=pair)

    @rule(is_paused=st.booleans())
    def the_project_is_paused_or_goes_on(self, is_paused: bool) -> None:
        self.project.is_paused = is_paused
        self.project.save(update_fields=["is_paused"])

    @rule()
    def a_dataset_is_frozen(self) -> None:
        newest = Preference.objects.counted().order_by("-pk").first()
        if newest:
            freeze_preferences([newest.pk])
            self.model.said[newest.annotator_id, newest.pair_id, False].is_frozen = True

    # What always holds

    @invariant()
    def no_judgement_is_lost_or_doubled(self) -> None:
        rows = Preference.objects.filter(is_current=True)
        now = {(row.annotator_id, row.pair_id, row.is_repeat): row.choice for row in rows}
        assert now == {key: said.choice for key, said in self.model.said.items()}
        assert len(now) == len(rows)

    @invariant()
    def the_counters_are_right(self) -> None:
        now = Q(preferences__is_current=True, preferences__is_repeat=False)
        counted = Count("preferences", filter=now, distinct=True)
        for pair in Pair.objects.annotate(counted=counted, skipped=Count("skips", distinct=True)):
            assert (pair.judgements_count, pair.skips_count) == (pair.counted, pair.skipped)
        assert set(Skip.objects.values_list("annotator_id", "pair_id")) == self.model.skipped
        said = Counter(person for person, _, _ in self.model.said)
        assert dict(Seat.objects.filter(judged__gt=0).values_list("annotator_id", "judged")) == said

    @invariant()
    def no_place_is_filled_twice_and_no_pair_over_filled(self) -> None:
        current = Count("preferences", filter=Q(preferences__is_current=True))
        for slot in Slot.objects.annotate(current=current):
            assert slot.current <= 1
            assert slot.current == 0 or slot.state in ("done", "leased")
        planned = Q(slots__kind="planned", slots__preferences__is_current=True)
        for pair in Pair.objects.annotate(filled=Count("slots", filter=planned, distinct=True)):
            assert pair.filled <= pair.judgements_wanted

    @invariant()
    def every_wanted_judgement_has_its_place(self) -> None:
        """Open, with somebody, or given; late answers are judgements as well. Of a decided pair nothing is wanted."""
        for pair in Pair.objects.filter(is_retired=False, adjudicated_choice=""):
            slots = pair.slots.all()
            places = sum(slot.kind == "planned" and slot.state != "closed" for slot in slots)
            late = sum(slot.kind in ("extra", "gold") for slot in slots)
            story = [(slot.kind, slot.state, slot.priority, slot.versions) for slot in slots]
            assert places <= pair.judgements_wanted <= places + late, story

    @invariant()
    def nobody_holds_more_than_the_pair_they_look_at_and_the_next(self) -> None:
        for person in self.people:
            rows = Slot.objects.filter(annotator_id=person, state="leased", lease_until__gt=timezone.now())
            ahead = list(rows.values_list("is_ahead", flat=True))
            assert ahead.count(True) <= 1
            assert ahead.count(False) <= 1


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Desk,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[
                Phase.explicit,
                Phase.reuse,
                Phase.generate,
            ],  # a story is read as it was; making it short takes hours
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(autouse=True)
def early_second_looks(monkeypatch):
    monkeypatch.setattr(own_places, "REPEAT_AFTER", 1)


@pytest.mark.django_db
def test_the_rules_hold_whatever_happens():
    _run(examples=25, steps=30)


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.timeout(600)
def test_the_rules_hold_in_long_stories():
    _run(examples=30, steps=70)
