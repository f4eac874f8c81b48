"""Votes at a gate: which count, what they decide, and that nobody can know its pairs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from labeling import queue
from labeling.models import Pair, Preference, Prompt, Response, Skip, Slot, Withdrawal
from labeling.review import adjudicate
from labeling.services import NewResponse
from labeling.withdrawals import begin, carry_out
from tests.training.gates.steps import LONG, SHORT, open_places, turned
from training import gate_pairs, gates, services
from training.models import (
    Gate,
    GatePair,
    PairOrigin,
    Promotion,
    SampleBatch,
)

pytestmark = pytest.mark.usefixtures("nobody_measures")


def test_people_promote_by_their_votes_and_are_asked_no_more(project, ask, vote, candidate):
    gate = turned(ask(asks_people=True, decides="gate"))
    assert (gate.stage, gate.votes["asked"]) == ("asking", 32)
    vote(gate, 8, "candidate")
    vote(gate, 1, "current")
    vote(gate, 1, "both_bad")
    turned(gate)
    assert (gate.stage, gate.votes["for_candidate"], gate.votes["for_current"], gate.votes["ties"]) == (
        "asking",
        8,
        1,
        1,
    )
    assert gate.votes["both_bad"] == 1
    assert open_places(gate) == 22
    vote(gate, 20, "candidate")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "promote")
    assert services.current_policy(project) == candidate
    assert open_places(gate) == 0
    assert gate.votes["better"] == "candidate"
    assert gate.votes["series"][-1]["votes"] == 30


def test_people_reject_by_their_votes(project, ask, vote, policy):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "current")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("decided", "reject")
    assert services.current_policy(project) == policy


def test_when_everybody_was_asked_it_is_held(ask, vote):
    gate = turned(ask(asks_people=True, most_votes=20))
    vote(gate, 9, "candidate")
    vote(gate, 9, "current")
    assert turned(gate).stage == "asking"
    vote(gate, 2, "tie")
    turned(gate)
    assert (gate.stage, gate.outcome) == ("waiting", "hold")


@pytest.fixture
def disputed(ask, judge, annotator, other_annotator, project) -> Gate:
    """Of one pair two people have said different things: first for the candidate, then against it."""
    project.judgements_per_pair = 2
    project.save()
    gate = turned(ask(asks_people=True))
    one = gate.pairs.first()
    other = "b" if one.candidate_side == "a" else "a"
    judge(one.pair, annotator, one.candidate_side)
    judge(one.pair, other_annotator, other)
    return gate


def test_only_the_first_judgement_of_a_pair_counts(disputed, annotator):
    assert gate_pairs.votes_of(disputed).outcomes == [1.0]
    Preference.objects.filter(annotator=annotator).update(is_current=False)
    assert gate_pairs.votes_of(disputed).outcomes == [0.0], "withdrawn"


def test_votes_that_are_taken_back_count_no_more(ask, vote, reviewer):
    gate = turned(ask(asks_people=True))
    vote(gate, 5, "candidate")
    assert turned(gate).votes["votes"] == 5
    Preference.objects.filter(pk=Preference.objects.order_by("-pk")[0].pk).update(is_current=False)
    assert turned(gate).votes["votes"] == 4
    adjudicate(pair=gate.pairs.get(pair=Preference.objects.first().pair).pair, reviewer=reviewer, verdict="retire")
    assert turned(gate).votes["votes"] == 3


@pytest.fixture
def change_mind(project) -> Callable[[Preference, str], None]:
    def change_mind(preference: Preference, choice: str) -> None:
        lease = queue.reopen(project, preference.annotator_id, preference.pk)
        queue.submit(project, lease.token, preference.annotator_id, choice)

    return change_mind


def test_a_change_of_mind_counts_in_the_place_of_what_was_said(ask, vote, change_mind):
    gate = turned(ask(asks_people=True))
    vote(gate, 3, "candidate")
    assert turned(gate).votes["for_candidate"] == 3
    change_mind(Preference.objects.order_by("pk")[0], "tie")
    assert turned(gate).votes["votes"] == Preference.objects.counted().count() == 3
    assert (gate.votes["for_candidate"], gate.votes["for_current"], gate.votes["ties"]) == (2, 0, 1)
    assert gate_pairs.votes_of(gate).outcomes == [0.5, 1.0, 1.0]


def test_a_change_of_mind_leaves_the_order_of_the_votes(ask, vote, change_mind):
    """The test looks after every vote: one that moved to the end would have it read another path."""
    gate = turned(ask(asks_people=True))
    vote(gate, 1, "current")
    vote(gate, 3, "candidate")
    first = Preference.objects.order_by("pk")[0]
    change_mind(first, "both_bad")
    assert gate_pairs.votes_of(gate).outcomes == [0.5, 1.0, 1.0, 1.0]
    change_mind(Preference.objects.get(pair=first.pair, is_current=True), first.choice)
    assert gate_pairs.votes_of(gate).outcomes == [0.0, 1.0, 1.0, 1.0], "as if nothing had been changed"


def test_who_judged_a_pair_first_stays_the_first_who_did(disputed, change_mind, annotator):
    change_mind(Preference.objects.get(annotator=annotator), "tie")
    assert gate_pairs.votes_of(disputed).outcomes == [0.5]


def test_what_is_judged_again_after_a_withdrawal_is_a_vote_of_then(ask, vote, annotator, judge, project):
    gate = turned(ask(asks_people=True))
    vote(gate, 1, "current")
    vote(gate, 2, "candidate")
    first = Preference.objects.order_by("pk")[0]
    carry_out(begin(Withdrawal(project=project, kind="preference", preference=first)))
    judge(first.pair, annotator, first.choice)
    assert gate_pairs.votes_of(gate).outcomes == [1.0, 1.0, 0.0]


def test_a_decision_stands_that_a_worker_died_before_acting_on(ask, vote, monkeypatch, project, candidate):
    gate = turned(ask(asks_people=True, decides="gate"))
    vote(gate, 21, "candidate")
    with monkeypatch.context() as patched:
        patched.setattr(gates, "_conclude", lambda *args: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            gates.turn_gates()
    assert turned(gate).outcome == "promote"
    assert services.current_policy(project) == candidate


def test_places_that_a_worker_died_before_closing_are_closed(ask, vote, monkeypatch):
    gate = turned(ask(asks_people=True))
    vote(gate, 21, "current")
    with monkeypatch.context() as patched:
        patched.setattr(gate_pairs, "close_pairs", lambda gate_id: 0)
        turned(gate)
    assert (gate.stage, open_places(gate)) == ("decided", 11)
    gates.turn_gates()
    assert open_places(gate) == 0


def test_an_admin_may_end_the_asking(ask, vote, project_admin):
    gate = turned(ask(asks_people=True))
    vote(gate, 3, "candidate")
    gates.admin_decides(gate=gate, verdict="hold", by=project_admin)
    gate.refresh_from_db()
    assert (gate.stage, gate.outcome, open_places(gate)) == ("decided", "hold", 0)


def test_length_is_learnt_from_pairs_that_one_policy_wrote(
    project, policy, make_pair, judge, annotator, ask, make_prompt
):
    gate = turned(ask(asks_people=True))
    batch = SampleBatch.objects.create(project=project, policy=policy, prompt_ids=[], decoding={})
    for number in range(4):
        pair = make_pair(LONG, SHORT)
        judge(pair, annotator, "a" if number < 3 else "both_bad")
        if number:
            PairOrigin.objects.create(pair=pair, batch=batch, policy=policy, prompt=pair.prompt, seed_a=1, seed_b=2)
    found = gate_pairs.ordinary_votes(project)
    assert [(vote.outcome, vote.is_compared) for vote in found] == [(1.0, False)] * 2
    assert all(vote.doublings > 0.5 for vote in found)
    assert gate_pairs.votes_of(gate).outcomes == []


def test_a_longer_candidate_is_longer_on_whichever_side_it_stands(project, candidate, prompts, vote):
    gates.change_release_rule(project=project, asks_people=True)
    gate = gates.request_gate(project=project, candidate=candidate)
    for prompt in prompts[:20]:
        gate_pairs.add_gate_pair(gate, prompt, NewResponse(LONG), NewResponse(SHORT))
    vote(gate, 20, "candidate")
    assert {one.candidate_side for one in gate.pairs.all()} == {"a", "b"}
    votes = gate_pairs.votes_of(gate)
    assert votes.outcomes == [1.0] * 20
    assert all(one.doublings > 0.5 for one in votes.lengths)


def test_a_pair_of_a_gate_is_a_pair_like_any_other(project, ask, make_pair, prompts):
    """Its rows in labeling have no value that those of an ordinary pair could not have."""
    ordinary = make_pair(LONG, SHORT, prompt=prompts[0], priority=1.5)
    gate = turned(ask(asks_people=True))
    special = gate.pairs.first().pair
    for model, of in ((Pair, lambda pair: pair), (Slot, lambda pair: pair.slots.get())):
        names = [field.attname for field in model._meta.concrete_fields]
        own = {"id", "pair_id", "prompt_id", "response_a_id", "response_b_id", "priority", "random_key", "created_at"}
        for name in set(names) - own:
            assert getattr(of(special), name) == getattr(of(ordinary), name), name
    assert not [field.name for field in Response._meta.get_fields() if "gate" in field.name]


def test_its_place_in_the_queue_is_among_the_pairs_of_the_newest_round(ask, make_pair):
    gate = turned(ask(asks_people=True))
    places = sorted(Slot.objects.filter(pair__in=gate.pairs.values("pair")).values_list("priority", flat=True))
    rounds = Promotion.objects.count()
    assert all(rounds <= place < rounds + 1 for place in places)
    assert places[3] < rounds + 0.5 < places[28], "spread over it"


def test_asking_twice_for_a_pair_makes_one_and_no_more_than_the_rule_wants(project, candidate, prompts):
    gates.change_release_rule(project=project, asks_people=True, most_votes=20)
    gate = gates.request_gate(project=project, candidate=candidate)
    new, old = NewResponse("New."), NewResponse("Old.")
    assert gate_pairs.add_gate_pair(gate, prompts[0], new, NewResponse("New.")) is None, "nothing to compare"
    assert gate_pairs.add_gate_pair(gate, prompts[0], new, old) is not None
    assert gate_pairs.add_gate_pair(gate, prompts[0], new, old) is None
    Prompt.objects.filter(pk=prompts[1].pk).update(withdrawn_at=timezone.now())
    assert gate_pairs.add_gate_pair(gate, prompts[1], new, old) is None
    made = [gate_pairs.add_gate_pair(gate, prompt, new, old) for prompt in prompts[2:30]]
    assert sum(pair is not None for pair in made) == 19


def test_what_two_people_pass_on_is_not_waited_for(ask, vote, annotator, other_annotator):
    gate = turned(ask(asks_people=True, most_votes=20))
    pairs = GatePair.objects.filter(gate=gate).order_by("pk")
    left = pairs.last()
    vote(gate, pairs.count() - 1, "tie")
    assert not gate_pairs.is_over(gate)
    Skip.objects.create(pair=left.pair, annotator=annotator)
    assert turned(gate).stage == "asking", "the other one may still come"
    Skip.objects.create(pair=left.pair, annotator=other_annotator)
    assert (turned(gate).stage, gate.outcome) == ("waiting", "hold")


def test_votes_of_a_withdrawal_that_goes_on_count_no_more(project, ask, vote, annotator):
    gate = turned(ask(asks_people=True))
    vote(gate, 5, "candidate")
    assert len(gate_pairs.votes_of(gate).outcomes) == 5
    Withdrawal.objects.create(project=project, kind="annotator", annotator=annotator)
    assert gate_pairs.votes_of(gate).outcomes == []
    assert gate_pairs.ordinary_votes(project) == []


def test_places_of_a_gate_that_waits_are_closed_however_they_opened(ask, vote):
    gate = turned(ask(asks_people=True, most_votes=20))
    assert open_places(gate) > 0
    Gate.objects.filter(pk=gate.pk).update(stage=Gate.Stage.WAITING, created_at=timezone.now() - timedelta(days=40))
    gates.turn_gates()
    assert open_places(gate) == 0
