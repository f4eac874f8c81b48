"""Which judgements count, and that everything which counts triples counts the same ones."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from labeling import queue
from labeling.exceptions import Frozen
from labeling.models import Pair, Preference, Response, Rewrite, Slot
from training import services, snapshots
from training.exceptions import Rejected
from training.models import DatasetSnapshot
from training.preflight import count_triples, longest_pair
from training.recipe import Recipe
from training.triples import UNDECIDED, TripleCounts, derive_triples

_numbers = itertools.count(1)
MOST_VOTES = 26  # one for a side beside so many ties that the side is none


@dataclass(frozen=True)
class Vote:
    choice: str
    is_current: bool = True
    is_repeat: bool = False
    is_rewritten: bool = False


@dataclass(frozen=True)
class Judged:
    """A pair as its judgements, a reviewer and the background job have left it."""

    prompt: int
    votes: list[Vote]
    verdict: str = ""
    is_retired: bool = False
    p_a: float | None = None
    known_answer: str = ""


@pytest.fixture
def prompts(make_prompt):
    return [make_prompt(held_out=held_out) for held_out in (False, False, False, True, True)]


@pytest.fixture
def people(db):
    return [User.objects.create_user(f"person {number}") for number in range(MOST_VOTES)]


@pytest.fixture
def write(project, prompts, people):
    """Write a pair down as it is described."""

    def write(judged: Judged) -> Pair:
        prompt = prompts[judged.prompt]
        a, b = (Response.objects.create(prompt=prompt, text=f"Text {next(_numbers)}") for _ in "ab")
        pair = Pair.objects.create(
            project=project,
            prompt=prompt,
            response_a=a,
            response_b=b,
            judgements_wanted=1,
            judgements_count=sum(vote.is_current and not vote.is_repeat for vote in judged.votes),
            adjudicated_choice=judged.verdict,
            is_retired=judged.is_retired,
            p_a=judged.p_a,
            gold_choice=judged.known_answer,
        )
        for place, vote in enumerate(judged.votes, start=1):
            _vote(pair, place, people[place - 1], vote)
        return pair

    return write


def _vote(pair: Pair, place: int, person: User, vote: Vote) -> None:
    kind = Slot.Kind.REPEAT if vote.is_repeat else Slot.Kind.PLANNED
    slot = Slot.objects.create(
        project=pair.project, pair=pair, place=place, kind=kind, state=Slot.State.DONE, annotator=person
    )
    preference = Preference.objects.create(
        project=pair.project,
        pair=pair,
        slot=slot,
        annotator=person,
        choice=vote.choice,
        shown_left="a",
        seconds=1,
        lease_number=1,
        is_current=vote.is_current,
        is_repeat=vote.is_repeat,
    )
    if vote.is_rewritten and vote.choice in ("a", "b"):
        text = Response.objects.create(prompt=pair.prompt, text=f"Rewrite {next(_numbers)}")
        Rewrite.objects.create(preference=preference, response=text)


CHOICES = ["a", "b", "tie", "both_bad"]
VOTES = st.builds(
    Vote, st.sampled_from(CHOICES), st.sampled_from([True, True, True, False]), st.booleans(), st.booleans()
)
# One or two for a side among ties: where a majority ends depends on p_a and on how many there are of each.
AMONG_TIES = st.builds(
    lambda decided, ties: [Vote(choice) for choice in (*decided, *["tie"] * ties)],
    st.lists(st.sampled_from(["a", "b", "both_bad"]), max_size=3),
    st.integers(0, MOST_VOTES - 3),
)
JUDGED = st.builds(
    Judged,
    prompt=st.integers(0, 4),
    votes=st.lists(VOTES, max_size=6) | AMONG_TIES,
    verdict=st.sampled_from(["", "", "", *CHOICES]),
    is_retired=st.sampled_from([False, False, False, True]),
    p_a=st.none() | st.floats(0, 1) | st.sampled_from([0.0, 0.48, 0.4799, 0.5, 0.52, 0.5201, 1.0]),
    known_answer=st.sampled_from(["", "", "", *CHOICES]),
)
RECIPES = st.sampled_from(
    [
        Recipe(),
        Recipe(ties="half"),
        Recipe(label_noise="none", ties="half"),
        Recipe(label_noise="votes", pair_weight="votes", ties="half"),
        Recipe(label_noise="none", pair_weight="posterior", ties="half"),
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JUDGED, max_size=8), RECIPES)
@example([Judged(0, [Vote("a")], p_a=p_a) for p_a in (*UNDECIDED, 0.4799, 0.5201)], Recipe())
@example([Judged(0, [Vote("b"), *[Vote("tie")] * ties], p_a=p_a) for ties in (23, 24) for p_a in (0, 1)], Recipe())
@example([Judged(0, [Vote("b"), *[Vote("tie")] * ties]) for ties in range(11, 15)], Recipe(ties="half"))
@example([Judged(0, [Vote("a"), Vote("tie")], p_a=p_a) for p_a in (0.46, 0.54, 0.5399, 0.4601)], Recipe())
@example([Judged(0, [Vote("tie")] * ties, p_a=0.95, known_answer="a") for ties in (1, 21, 22)], Recipe(ties="half"))
@example([Judged(0, [Vote("tie"), Vote("a")], verdict=verdict, p_a=0.9) for verdict in CHOICES], Recipe(ties="half"))
def test_the_database_counts_what_a_run_would_derive(project, write, pairs, recipe):
    with transaction.atomic():
        for judged in pairs:
            write(judged)
        counts, rule = TripleCounts(), recipe.label_rule
        triples = list(derive_triples(snapshots.judgements(project), counts, rule))
        found = count_triples(project, recipe)
        assert (found.train, found.held_out, found.ties) == (counts.train, counts.held_out, counts.tie_triples)
        assert (found.rewrites, found.train_prompts) == (counts.rewrites, len(counts.train_prompts))
        behind = {number for triple in triples for number in triple.preference_ids}
        assert sorted(behind) == sorted(counts.preference_ids)
        assert set(Preference.objects.counted().values_list("pk", flat=True)) >= behind
        assert services.count_new_triples(project, 0, rule) == counts.train
        said = {"tie": counts.ties + counts.ties_used, "both_bad": counts.both_bad}
        for choice, number in said.items():
            counted = Preference.objects.counted().select_related("pair")
            assert number == sum((each.pair.adjudicated_choice or each.choice) == choice for each in counted)
        transaction.set_rollback(True)


def test_it_is_one_query_whatever_there_is_to_count(project, write):
    for number in range(4):
        write(Judged(number, [Vote("a", is_rewritten=True), Vote("b")], verdict="a", p_a=0.9))
    with CaptureQueriesContext(connection) as captured:
        count_triples(project, Recipe())
    assert len(captured) == 1


def test_second_looks_and_pairs_that_were_taken_out_count_nowhere(project, write, data_dir):
    write(Judged(0, [Vote("a"), Vote("b", is_repeat=True), Vote("b", is_current=False)]))
    out = write(Judged(0, [Vote("a"), Vote("a", is_rewritten=True)], is_retired=True))
    counts = snapshots.write_triples(project=project, path=data_dir / "triples.jsonl")
    assert (counts.train, counts.rewrites, len(counts.preference_ids)) == (1, 0, 1)
    assert services.count_new_triples(project, 0) == 1
    page = snapshots.triple_page(project, 0, 10)
    assert [triple.pair_id for triple in page.triples] == [str(out.pk - 1)]


def test_a_pair_that_was_taken_out_does_not_say_how_long_pairs_are(project, write):
    out = write(Judged(0, [Vote("a")], is_retired=True))
    Response.objects.filter(pk=out.response_a_id).update(text="long " * 900)
    kept = write(Judged(0, [Vote("a", is_rewritten=True)]))
    short = longest_pair(project, 4000).completion_tokens
    assert short < 20
    Response.objects.filter(rewrite__isnull=False).update(text="r" * 300)
    length = {"a": len(kept.response_a.text), "b": len(kept.response_b.text)}
    assert longest_pair(project, 4000).completion_tokens == 101 + max(length.values()) // 3 + 1


def test_new_triples_are_those_after_the_watermark(project, write):
    write(Judged(0, [Vote("a", is_rewritten=True)]))
    mark = Preference.objects.latest("pk").pk
    assert services.count_new_triples(project, mark) == 0
    write(Judged(0, [Vote("tie")]))
    write(Judged(0, [Vote("tie")], verdict="b"))
    write(Judged(1, [Vote("b", is_rewritten=True), Vote("a")]))
    write(Judged(3, [Vote("b", is_rewritten=True)]))
    assert services.count_new_triples(project, mark) == 2, (
        "a tie that a reviewer decided, and a rewrite of a split pair"
    )


# What a snapshot has used is frozen


def test_what_a_snapshot_used_can_be_changed_no_more_and_the_rest_can(
    project, policy, label, make_pair, judge, annotator, other_annotator
):
    label(10)
    spare = make_pair(held_out=False)
    judge(spare, other_annotator, "both_bad")
    assert not Preference.objects.exclude(frozen_at=None).exists()
    services.request_run(project=project, recipe=Recipe())
    snapshot = DatasetSnapshot.objects.get()
    frozen = Preference.objects.exclude(frozen_at=None)
    assert set(frozen) == set(snapshot.preferences.all())
    assert frozen.count() == 10
    with pytest.raises(Frozen):
        queue.undo(project, annotator.pk)
    lease = queue.undo(project, other_annotator.pk)
    queue.submit(project, lease.token, other_annotator.pk, "a")


def test_a_run_that_is_refused_freezes_nothing_and_leaves_no_snapshot(project, policy, label, data_dir):
    label(3)
    with pytest.raises(Rejected, match="not enough to train on"):
        services.request_run(project=project, recipe=Recipe())
    assert not Preference.objects.exclude(frozen_at=None).exists()
    assert not DatasetSnapshot.objects.exists()
    assert not list((data_dir / "snapshots").iterdir())


def test_a_snapshot_that_cannot_be_recorded_freezes_nothing(project, label, data_dir, monkeypatch):
    label(2)

    def fails(ids):
        raise RuntimeError("the database went away")

    monkeypatch.setattr(snapshots, "freeze_preferences", fails)
    with pytest.raises(RuntimeError):
        snapshots.freeze_snapshot(project=project)
    assert not DatasetSnapshot.objects.exists(), "recorded and frozen in one transaction"
