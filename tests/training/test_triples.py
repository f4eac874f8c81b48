"""Preferences to triples: the pure rule, then what is frozen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from labeling import posterior
from labeling.models import Pair, Slot
from labeling.posterior import Parameters, Vote
from labeling.strangers import probability_by_strangers
from training import services, snapshots, store
from training.jobspec import Completion, TripleLine
from training.models import DatasetSnapshot, PairOrigin
from training.recipe import Recipe
from training.triples import (
    MOST_NOISE,
    UNDECIDED,
    Judgement,
    LabelRule,
    TripleCounts,
    as_line,
    derive_triples,
    without_engine_fields,
)

A, B = Completion("A", [1], "stop"), Completion("B", [2], "stop")


def _judgement(number: int, choice: str, pair: int = 1, *, held_out: bool = False) -> Judgement:
    return Judgement(number, pair, pair * 10, choice, held_out, [{"role": "user", "content": "x"}], A, B)


def _derive(*judgements: Judgement, **rule: str) -> tuple[list[TripleLine], TripleCounts]:
    counts = TripleCounts()
    return list(derive_triples(judgements, counts, LabelRule(**{"noise": "none"} | rule))), counts


def _votes(choices: str, *, held_out: bool = False) -> list[Judgement]:
    """Judgements of one pair, a letter each: a, b, t for a tie, x for both bad."""
    named = {"t": "tie", "x": "both_bad"}
    return [_judgement(n, named.get(choice, choice), held_out=held_out) for n, choice in enumerate(choices, start=1)]


@pytest.mark.parametrize(("choice", "chosen", "rejected"), [("a", A, B), ("b", B, A)])
def test_the_preferred_response_is_y_w(choice, chosen, rejected):
    (triple,), counts = _derive(_judgement(1, choice))
    assert (triple.chosen, triple.rejected, triple.preference_ids) == (chosen, rejected, [1])
    assert (counts.train, counts.held_out) == (1, 0)


def test_ties_and_both_bad_are_counted_and_give_no_triple():
    triples, counts = _derive(_judgement(1, "tie", 1), _judgement(2, "both_bad", 2))
    assert not triples
    assert (counts.ties, counts.both_bad) == (1, 1)


def test_the_majority_decides_and_a_split_vote_does_not():
    triples, counts = _derive(
        *[_judgement(1, "a", 1), _judgement(2, "b", 1), _judgement(3, "a", 1)],
        *[_judgement(4, "a", 2), _judgement(5, "b", 2)],
    )
    assert [triple.chosen for triple in triples] == [A]
    assert counts.split_votes == 1


def test_held_out_prompts_are_marked():
    (triple,), counts = _derive(_judgement(1, "a", held_out=True))
    assert triple.split == "held_out"
    assert counts.held_out == 1


@pytest.mark.parametrize("choices", ["t", "tt", "ab", "atb", "tx"])
def test_a_pair_without_a_majority_trains_as_a_tie_when_the_rule_says_so(choices):
    (triple,), counts = _derive(*_votes(choices), ties="half")
    assert (triple.label_noise, triple.weight, triple.chosen, triple.rejected) == (0.5, 1.0, A, B)
    used = [number for number, choice in enumerate(choices, start=1) if choice != "x"]
    assert triple.preference_ids == counts.preference_ids == used
    assert (counts.train, counts.tie_triples, counts.decided, counts.split_votes) == (1, 1, 0, 0)
    assert (counts.ties, counts.ties_used, counts.train_prompts) == (0, choices.count("t"), set())
    assert counts.both_bad == choices.count("x")


@pytest.mark.parametrize("rule", [{}, {"ties": "half"}, {"ties": "half", "noise": "votes"}])
def test_both_bad_alone_is_never_a_triple(rule):
    triples, counts = _derive(*_votes("xx"), **rule)
    assert not triples
    assert (counts.both_bad, counts.split_votes, counts.tie_triples) == (2, 0, 0)


@pytest.mark.parametrize("choices", ["t", "ab"])
def test_a_tie_is_never_held_out_because_it_has_no_better_response(choices):
    triples, counts = _derive(*_votes(choices, held_out=True), ties="half")
    assert not triples
    assert (counts.ties, counts.split_votes, counts.held_out) == (choices.count("t"), "ab" in choices, 0)


def test_a_majority_beside_ties_is_no_tie():
    (triple,), counts = _derive(*_votes("att"), ties="half")
    assert (triple.label_noise, triple.preference_ids) == (0.0, [1])
    assert (counts.ties, counts.ties_used, counts.decided) == (2, 0, 1)


@pytest.mark.parametrize(
    ("choices", "noise", "used"),
    [
        ("a", 0.0, [1]),
        ("aab", 1 / 3, [1, 2, 3]),
        ("bba", 1 / 3, [1, 2, 3]),
        ("at", 1 / 4, [1, 2]),
        ("aabt", 1.5 / 4, [1, 2, 3, 4]),
        ("ax", 0.0, [1]),
        ("tabaxaa", 1.5 / 6, [1, 2, 3, 4, 6, 7]),
        ("a" * 26 + "b" * 25, MOST_NOISE, list(range(1, 52))),
    ],
)
def test_label_noise_is_the_share_of_votes_against_the_majority(choices, noise, used):
    (triple,), counts = _derive(*_votes(choices), noise="votes")
    assert triple.label_noise == pytest.approx(noise)
    assert triple.preference_ids == used
    assert (counts.ties, counts.ties_used) == (0, choices.count("t"))
    assert _derive(*_votes(choices))[0][0].label_noise == 0.0


@pytest.mark.parametrize(
    ("choices", "rule", "weight"),
    [
        ("a", {}, 1.0),
        ("aab", {}, 3.0),
        ("aabt", {}, 4.0),
        ("abtx", {"ties": "half"}, 3.0),
        ("xb", {}, 1.0),
    ],
)
def test_a_pair_counts_as_often_as_it_was_judged_when_the_rule_says_so(choices, rule, weight):
    (triple,), _ = _derive(*_votes(choices), **rule, noise="votes", weight="votes")
    assert triple.weight == weight == len(triple.preference_ids)
    assert _derive(*_votes(choices), **rule, noise="votes")[0][0].weight == 1.0


@given(st.text("abt", min_size=1, max_size=9), st.floats(-4, 4))
def test_with_votes_for_both_the_loss_is_the_likelihood_of_every_judgement(choices, z):
    triples, _ = _derive(*_votes(choices), ties="half", noise="votes", weight="votes")
    (triple,) = triples
    a, b = choices.count("a"), choices.count("b")
    if min(a, b) + choices.count("t") / 2 > MOST_NOISE * len(choices) and a != b:
        return  # noise has its bound
    log_a, log_b = -math.log1p(math.exp(-z)), -math.log1p(math.exp(z))
    single = a * log_a + b * log_b + choices.count("t") * (log_a + log_b) / 2
    chosen, rejected = (log_a, log_b) if triple.chosen == A else (log_b, log_a)
    noise = triple.label_noise
    assert triple.weight * ((1 - noise) * chosen + noise * rejected) == pytest.approx(single)


@given(st.text("abtx", max_size=12), st.sampled_from(["drop", "half"]), st.sampled_from(["none", "votes"]))
def test_no_judgement_is_lost_and_only_a_tie_reaches_a_half(choices, ties, noise):
    triples, counts = _derive(*_votes(choices), ties=ties, noise=noise)
    assert counts.ties + counts.ties_used == choices.count("t")
    assert counts.both_bad == choices.count("x")
    for triple in triples:
        is_tie = choices.count("a") == choices.count("b")
        assert (triple.label_noise == 0.5) == is_tie
        assert is_tie == bool(counts.tie_triples)


@given(st.lists(st.sampled_from(["a", "b", "tie", "both_bad"]), max_size=9))
def test_swapping_the_responses_swaps_the_triple(choices):
    mirror = {"a": "b", "b": "a"}
    plain, _ = _derive(*[_judgement(n, choice) for n, choice in enumerate(choices)])
    swapped, _ = _derive(*[_judgement(n, mirror.get(choice, choice)) for n, choice in enumerate(choices)])
    assert [(t.chosen, t.rejected) for t in plain] == [(t.rejected, t.chosen) for t in swapped]


# A reviewer's verdict


def _with(judgements: list[Judgement], **values) -> list[Judgement]:
    return [dataclasses.replace(judgement, **values) for judgement in judgements]


@pytest.mark.parametrize("choices", ["b", "bba", "t", "x", "abtx"])
@pytest.mark.parametrize("noise", ["none", "votes", "posterior"])
def test_a_verdict_for_one_side_is_the_label_and_certain_whatever_the_votes(choices, noise):
    judged = _with(_votes(choices), verdict="a", p_a=0.1)
    (triple,), counts = _derive(*judged, noise=noise)
    assert (triple.chosen, triple.rejected, triple.label_noise, triple.weight) == (A, B, 0.0, 1.0)
    assert triple.preference_ids == counts.preference_ids == list(range(1, len(choices) + 1))
    assert (counts.ties, counts.ties_used, counts.both_bad, counts.split_votes) == (0, 0, 0, 0)


def test_a_verdict_weighs_as_if_everybody_had_said_so():
    judged = _with(_votes("abb"), verdict="a", p_a=0.2)
    assert _derive(*judged, noise="votes", weight="votes")[0][0].weight == 3
    assert _derive(*judged, weight="posterior")[0][0].weight == 1.0


@pytest.mark.parametrize(("verdict", "counted"), [("tie", (3, 0)), ("both_bad", (0, 3))])
def test_a_verdict_for_neither_gives_no_triple_and_counts_as_such(verdict, counted):
    triples, counts = _derive(*_with(_votes("aab"), verdict=verdict))
    assert not triples
    assert (counts.ties, counts.both_bad) == counted
    half, _ = _derive(*_with(_votes("aab"), verdict=verdict), ties="half")
    assert [triple.label_noise for triple in half] == ([0.5] if verdict == "tie" else [])


def test_answers_to_a_known_pair_add_no_weight():
    served = [dataclasses.replace(vote, as_gold=number > 0) for number, vote in enumerate(_votes("aabta"))]
    (triple,), _ = _derive(*served, noise="votes", weight="votes")
    assert triple.weight == 1.0
    (only,), _ = _derive(*_with(served, as_gold=True), noise="votes", weight="votes")
    assert only.weight == 1.0
    (ordinary,), _ = _derive(*_with(served, as_gold=False), noise="votes", weight="votes")
    assert (ordinary.weight, ordinary.label_noise) == (5.0, triple.label_noise)


def test_a_snapshot_knows_which_judgements_were_answers_to_a_known_pair(project, make_pair, judge, annotator):
    judge(make_pair(held_out=False), annotator, "a")
    assert [each.as_gold for each in snapshots.judgements(project)] == [False]
    Slot.objects.update(kind=Slot.Kind.GOLD)
    assert [each.as_gold for each in snapshots.judgements(project)] == [True]


# The posterior


@pytest.mark.parametrize(
    ("choices", "p_a", "chosen", "noise"),
    [
        ("a", 0.8, A, 0.2),
        ("a", 0.3, B, 0.3),
        ("aab", 0.53, A, MOST_NOISE),
        ("ab", 0.1, B, 0.1),
        ("a", 1.0, A, 0.0),
        ("bx", 0.0, B, 0.0),
    ],
)
def test_with_the_posterior_its_side_is_the_label_and_its_doubt_the_noise(choices, p_a, chosen, noise):
    (triple,), counts = _derive(*_with(_votes(choices), p_a=p_a), noise="posterior")
    assert (triple.chosen, triple.weight) == (chosen, 1.0)
    assert triple.label_noise == pytest.approx(noise)
    assert triple.preference_ids == [n for n, choice in enumerate(choices, start=1) if choice != "x"]
    assert counts.decided == 1
    (plain,), _ = _derive(*_with(_votes("a"), p_a=p_a))
    assert (plain.chosen, plain.label_noise) == (A, 0.0), "other rules do not look at it"


@pytest.mark.parametrize("p_a", [*UNDECIDED, 0.5])
@pytest.mark.parametrize("rule", [{"noise": "posterior"}, {"weight": "posterior"}])
def test_a_posterior_near_one_half_is_no_majority(p_a, rule):
    triples, counts = _derive(*_with(_votes("aa"), p_a=p_a), **rule)
    assert (triples, counts.split_votes) == ([], 1)
    (tie,), counts = _derive(*_with(_votes("aa"), p_a=p_a), **rule, ties="half")
    assert (tie.label_noise, tie.weight, counts.tie_triples) == (0.5, 1.0, 1)
    assert not _derive(*_with(_votes("aa", held_out=True), p_a=p_a), **rule, ties="half")[0]


@pytest.mark.parametrize("lead", [-400, -2, -1, 0, 1, 3, 400])
def test_where_nothing_is_known_of_anybody_the_prior_says_how_far_a_majority_is_believed(lead):
    votes = [Vote(1, person, "a" if lead > 0 else "b", "ab"[person % 2]) for person in range(abs(lead))]
    annotators = np.arange(abs(lead))
    found = posterior.update(Parameters.before_votes(annotators), votes)
    assert probability_by_strangers(lead) == pytest.approx(found.of(1) if lead else 0.5)


@pytest.mark.parametrize(
    ("choices", "p_a", "noise"),
    [
        ("at", 0.9, (0.1 + 0.5) / 2),
        ("btx", 0.1, (0.1 + 0.5) / 2),
        ("aabtt", 0.8, (3 * 0.2 + 1) / 5),
        ("atttt", 0.78, (0.22 + 2) / 5),
        ("at", None, (1 - probability_by_strangers(1) + 0.5) / 2),
        ("bbt", None, (2 * (1 - probability_by_strangers(2)) + 0.5) / 3),
    ],
)
def test_with_the_posterior_a_tie_is_half_a_vote_for_either_side(choices, p_a, noise):
    judged = _with(_votes(choices), p_a=p_a)
    (soft,), counts = _derive(*judged, noise="posterior")
    assert soft.chosen == (A if choices[0] == "a" else B)
    assert soft.label_noise == pytest.approx(noise)
    assert counts.ties_used == choices.count("t")
    (weighted,), _ = _derive(*judged, weight="posterior")
    assert weighted.weight == pytest.approx(1 - 2 * noise)


@pytest.mark.parametrize("p_a", [1.0, 0.0])
@pytest.mark.parametrize("rule", [{"noise": "posterior"}, {"weight": "posterior"}])
def test_a_majority_among_too_many_ties_is_none(p_a, rule):
    """Of 24 ties beside one vote for A that nobody doubts, p is 0.5 + 0.5 / 25."""
    judged = _with(_votes("a" + "t" * 24), p_a=p_a)
    triples, counts = _derive(*judged, **rule)
    assert (triples, counts.ties, counts.split_votes) == ([], 24, 1)
    (tie,), counts = _derive(*judged, **rule, ties="half")
    assert (tie.label_noise, tie.weight, counts.ties_used, counts.tie_triples) == (0.5, 1.0, 24, 1)
    assert len(_derive(*judged[:-2], **rule)[0]) == 1
    assert not _derive(*_votes("a" + "t" * 13), **rule)[0], "the majority of strangers sooner"
    assert _derive(*_votes("a" + "t" * 12), **rule)[0]


def test_a_known_answer_is_a_statement_beside_the_ties():
    """The estimate counts it as a vote, so it has a part in what is shared with the ties."""
    judged = _with(_votes("tt"), p_a=0.95, known_answer="a", as_gold=True)
    (triple,), _ = _derive(*judged, noise="posterior")
    assert triple.chosen == A
    assert triple.label_noise == pytest.approx((0.05 + 1) / 3)
    (triple,), _ = _derive(*_with(_votes("at"), p_a=0.99, known_answer="a"), noise="posterior")
    assert triple.label_noise == pytest.approx((2 * 0.01 + 0.5) / 3)
    assert not _derive(*_with(_votes("tt"), p_a=0.5, known_answer="tie"), noise="posterior")[0]
    assert not _derive(*_with(_votes("xx"), p_a=0.95, known_answer="a"), noise="posterior")[0]


@given(st.text("abtx", max_size=9), st.none() | st.floats(0, 1), st.sampled_from(["", "", "a", "b", "tie"]))
def test_each_tie_brings_a_label_nearer_to_one_half_and_both_bad_does_not(choices, p_a, known_answer):
    def noise(choices: str) -> float:
        triples, _ = _derive(*_with(_votes(choices), p_a=p_a, known_answer=known_answer), weight="posterior")
        return (1 - triples[0].weight) / 2 if triples else 0.5

    assert noise(choices + "x") == noise(choices)
    if {*choices} & {*"abt"}:
        assert noise(choices) <= noise(choices + "t") <= 0.5


@given(st.text("abtx", max_size=9), st.sampled_from(["drop", "half"]))
def test_without_a_posterior_the_majority_decides_with_the_doubt_of_the_prior(choices, ties):
    lead = choices.count("a") - choices.count("b")
    soft, counts = _derive(*_votes(choices), noise="posterior", ties=ties)
    by_votes, counts_by_votes = _derive(*_votes(choices), noise="votes", ties=ties)
    assert [triple.chosen for triple in soft] == [triple.chosen for triple in by_votes]
    assert counts == counts_by_votes
    doubt, decided, ties_cast = (
        1 - probability_by_strangers(abs(lead)),
        len(choices) - choices.count("x"),
        choices.count("t"),
    )
    for triple in soft:
        expected = ((decided - ties_cast) * doubt + ties_cast / 2) / decided
        assert triple.label_noise == (pytest.approx(min(expected, MOST_NOISE)) if lead else 0.5)
    weighted, _ = _derive(*_votes(choices), weight="posterior")
    for one, other in zip(_derive(*_votes(choices), noise="posterior")[0], weighted, strict=True):
        assert (other.chosen, other.label_noise) == (one.chosen, 0.0)
        assert min((1 - other.weight) / 2, MOST_NOISE) == pytest.approx(one.label_noise)


def test_a_judgement_that_was_not_measured_yet_is_doubted_like_one_that_was():
    (measured,), _ = _derive(*_with(_votes("a"), p_a=0.78), noise="posterior")
    (new,), _ = _derive(*_votes("a"), noise="posterior")
    assert new.label_noise == pytest.approx(measured.label_noise, abs=0.01)


def test_exports_say_what_a_run_would_train_on(project, data_dir, make_pair, judge, annotator, capsys):
    pair = make_pair(held_out=False)
    judge(pair, annotator, "a")
    Pair.objects.filter(pk=pair.pk).update(p_a=0.7)
    path = data_dir / "triples.jsonl"
    said = []
    for options in ([], ["--label-noise", "none", "--pair-weight", "posterior"], ["--label-noise", "none"]):
        call_command("export_triples", project.slug, str(path), "--force", *options)
        (line,) = map(json.loads, path.read_text().splitlines())
        said.append((line["label_noise"], line["weight"]))
    assert said == [(pytest.approx(0.3), 1.0), (0.0, pytest.approx(0.4)), (0.0, 1.0)]
    with pytest.raises(CommandError, match="the same doubt"):
        call_command("export_triples", project.slug, str(path), "--force", "--pair-weight", "posterior")


def test_a_verdict_is_certain_whether_its_pair_was_measured_or_not():
    for p_a in (None, 0.4):
        (triple,), _ = _derive(*_with(_votes("ab"), p_a=p_a, verdict="a"), noise="posterior")
        assert (triple.chosen, triple.label_noise) == (A, 0.0)


@given(st.floats(0, 1))
def test_at_the_start_a_weighted_label_pulls_as_hard_as_the_soft_one(p_a):
    """The gradients in z = 0 of both losses for A, and the same for B."""
    judged = _with(_votes("a"), p_a=p_a)
    gradients = []
    for rule in ({"noise": "posterior"}, {"weight": "posterior"}):
        triples, _ = _derive(*judged, **rule)
        gradients.append(sum((1 if t.chosen == A else -1) * -t.weight * (1 - 2 * t.label_noise) / 2 for t in triples))
    soft, weighted = gradients
    if UNDECIDED[0] <= p_a <= UNDECIDED[1]:
        assert soft == weighted == 0
    elif max(p_a, 1 - p_a) >= 1 - MOST_NOISE:
        assert weighted == pytest.approx(soft) == pytest.approx((1 - 2 * p_a) / 2)
    else:
        assert weighted == pytest.approx((1 - 2 * p_a) / 2), "the bound is the noise's alone"


# Rewrites

BETTER = Completion("A, but better")


def _rewritten(number: int, choice: str, **values) -> Judgement:
    return dataclasses.replace(_judgement(number, choice), rewrite=BETTER, **values)


@pytest.mark.parametrize(("choice", "improved"), [("a", A), ("b", B)])
def test_a_rewrite_is_better_than_what_it_improves(choice, improved):
    triples, counts = _derive(_rewritten(1, choice))
    pair, rewrite = triples
    assert (pair.source, pair.chosen) == ("pair", improved)
    assert (rewrite.source, rewrite.chosen, rewrite.rejected) == ("rewrite", BETTER, improved)
    assert (rewrite.split, rewrite.weight, rewrite.label_noise, rewrite.preference_ids) == ("train", 1.0, 0.0, [1])
    assert (counts.train, counts.rewrites, counts.decided, counts.preference_ids) == (2, 1, 2, [1])


def test_a_rewrite_counts_whatever_becomes_of_its_pair():
    triples, counts = _derive(_rewritten(1, "a"), _judgement(2, "b"))
    assert [triple.source for triple in triples] == ["rewrite"]
    assert (counts.split_votes, counts.train, counts.train_prompts) == (1, 1, {10})
    overruled, _ = _derive(*_with([_rewritten(1, "a")], verdict="b", p_a=0.1), noise="posterior", ties="half")
    assert [(triple.chosen, triple.rejected) for triple in overruled] == [(B, A), (BETTER, A)]
    held_out, counts = _derive(_rewritten(1, "a", is_held_out=True))
    assert [triple.split for triple in held_out] == ["held_out", "held_out"]
    assert (counts.held_out, counts.train, counts.rewrites) == (2, 0, 1)


def test_a_rewrite_carries_no_log_probabilities_because_its_own_are_not_known():
    sampled = Completion("A", [1], "stop", [-0.5], "hash")
    (pair, rewrite), _ = _derive(_rewritten(1, "a", response_a=sampled, prompt_token_ids=[4]))
    assert (pair.chosen.logps, pair.prompt_token_ids) == ([-0.5], [4])
    assert (rewrite.rejected, rewrite.prompt_token_ids) == (Completion("A", [1], "stop"), [])


def test_triples_without_rewrites_keep_the_bytes_that_they_always_had():
    """Made by the version before there were rewrites. Another hash would be another snapshot of the same labels."""
    first = Completion("Ein é", [1, 2], "stop", [-0.5, -0.25], "hash")
    second = Completion("B", [2], "length")
    choices = "aba t b. x attbbb ab".replace(" ", "/").split("/")
    judged, number = [], 0
    for pair, said in enumerate(choices, start=1):
        for choice in said.rstrip("."):
            number += 1
            chosen = {"t": "tie", "x": "both_bad"}.get(choice, choice)
            messages = [{"role": "user", "content": "x"}]
            judged.append(
                Judgement(number, pair, pair * 10, chosen, said.endswith("."), messages, first, second, [9, 8])
            )
    for rule, expected in (
        (LabelRule(noise="none"), "d27bfe5c504efcb70f436936843233f021c1d844108fac76d575f2c7cd32dfa2"),
        (LabelRule("half", "votes", "votes"), "bae1199355ea082fb9cdbd6e4eeea6e1134f3935fe1924f628c2e36d2fb4458e"),
    ):
        lines = "".join(as_line(triple) + "\n" for triple in derive_triples(judged, TripleCounts(), rule))
        assert hashlib.sha256(lines.encode()).hexdigest() == expected


@pytest.mark.parametrize("source", ["pair", "rewrite"])
def test_a_line_says_its_source_where_it_is_not_the_usual_one(source):
    (triple, _), _ = _derive(_rewritten(1, "a"))
    triple = dataclasses.replace(triple, source=source)
    line = json.loads(as_line(triple))
    assert as_line(triple) == triple.to_json()
    assert line.get("source") == (None if source == "pair" else source)
    assert TripleLine.from_dict(line) == triple
    assert without_engine_fields(triple)["source"] == source, "people are told either way"


def test_a_triple_goes_to_json_and_back():
    (triple,), _ = _derive(_judgement(1, "a"))
    assert TripleLine.from_dict(json.loads(triple.to_json())) == triple


@given(
    st.text(),
    st.lists(st.integers(0, 10**6), max_size=5),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
    st.floats(0, 0.5),
)
def test_a_line_of_a_snapshot_has_the_bytes_that_the_contract_gives_it(text, ids, logps, noise):
    chosen, rejected = Completion(text, ids, "stop", logps, "hash" if logps else ""), Completion("é", [1], "length")
    messages = [{"role": "user", "content": text}]
    triple = TripleLine("1", "2", "train", messages, chosen, rejected, [3], 1.0, noise, ids)
    assert as_line(triple) == triple.to_json()


def test_a_snapshot_is_an_immutable_file_named_by_its_hash(project, data_dir, label):
    label(3)
    label(1, held_out=True)
    label(1, "tie")
    snapshot, _ = snapshots.freeze_snapshot(project=project)
    path = store.snapshot_path(snapshot.sha256)
    assert store.hash_file(path) == snapshot.sha256
    assert (snapshot.train_triples, snapshot.held_out_triples, snapshot.ties) == (3, 1, 1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(pk for line in lines for pk in line["preference_ids"]) == sorted(
        snapshot.preferences.values_list("pk", flat=True)
    )
    assert lines[0]["chosen"]["token_ids"] == [5, 6, 7]


@pytest.fixture
def sampled(project, policy, make_prompt):
    """A pair as a batch of the policy has written it: ``sampled(**origin)``."""

    def make(make_pair, **kept):
        pair = make_pair(held_out=False)
        batch = project.batches.first() or services.request_samples(project=project, pairs=1)
        PairOrigin.objects.create(pair=pair, batch=batch, policy=policy, prompt=pair.prompt, seed_a=1, seed_b=2, **kept)
        return pair

    return make


def _frozen_lines(project, reference) -> list[dict]:
    snapshot, _ = snapshots.freeze_snapshot(project=project, reference_hash=reference.content_hash)
    return [json.loads(line) for line in store.snapshot_path(snapshot.sha256).read_text().splitlines()]


def test_a_snapshot_carries_what_the_sampler_kept_and_an_export_does_not(
    project, policy, sampled, make_pair, judge, annotator, data_dir
):
    kept = {"prompt_token_ids": [1, 2], "logps_a": [-0.1, -0.2, -0.3], "logps_b": [-1.0, -2.0]}
    judge(sampled(make_pair, **kept), annotator, "b")
    judge(sampled(make_pair, prompt_token_ids=[3]), annotator, "a")
    judge(make_pair(held_out=False), annotator, "a")
    first, without_logps, imported = _frozen_lines(project, policy)
    assert first["prompt_token_ids"] == [1, 2]
    assert (first["chosen"]["logps"], first["rejected"]["logps"]) == ([-1.0, -2.0], [-0.1, -0.2, -0.3])
    assert first["chosen"]["policy_hash"] == first["rejected"]["policy_hash"] == policy.content_hash
    assert (without_logps["prompt_token_ids"], without_logps["chosen"]["policy_hash"]) == ([3], "")
    assert (imported["prompt_token_ids"], imported["chosen"]["logps"]) == ([], [])
    path = data_dir / "triples.jsonl"
    snapshots.write_triples(project=project, path=path)
    exported = json.loads(path.read_text().splitlines()[0])
    assert set(exported["chosen"]) == {"text", "token_ids", "finish_reason"}
    assert "prompt_token_ids" not in exported


def test_log_probabilities_go_along_with_the_policy_that_they_are_of_and_no_other(
    project, policy, sampled, make_pair, judge, label, annotator, make_checkpoint
):
    judge(sampled(make_pair, prompt_token_ids=[1], logps_a=[-0.1] * 3, logps_b=[-1.0] * 2), annotator, "a")
    other = make_checkpoint("other", project=project, kind="dpo", parent=policy)
    (line,) = _frozen_lines(project, other)
    assert (line["prompt_token_ids"], line["chosen"]["logps"], line["chosen"]["policy_hash"]) == ([1], [], "")
    label(9)
    run = services.request_run(project=project, recipe=Recipe())
    lines = [json.loads(line) for line in store.snapshot_path(run.snapshot.sha256).read_text().splitlines()]
    assert [line["chosen"]["policy_hash"] for line in lines[:2]] == [policy.content_hash, ""]


def test_what_the_sampler_kept_costs_one_query_a_chunk(project, sampled, make_pair, judge, annotator, monkeypatch):
    for _ in range(5):
        judge(sampled(make_pair, logps_a=[-0.5] * 3, logps_b=[-0.5] * 2), annotator, "a")

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert len(list(snapshots.judgements(project, reference_hash="any"))) == 5
        return len(captured)

    once = 2  # what is being withdrawn, and the preferences
    assert queries() == once + 1
    monkeypatch.setattr(snapshots, "CHUNK", 2)
    assert queries() == once + 3


def test_the_rule_of_the_recipe_decides_what_is_frozen(project, policy, label, data_dir):
    label(10)
    label(3, "tie")
    label(2, "tie", held_out=True)
    run = services.request_run(project=project, recipe=Recipe(ties="half"))
    snapshot = run.snapshot
    assert (snapshot.train_triples, snapshot.tie_triples, snapshot.ties) == (13, 3, 2)
    assert snapshot.preferences.count() == 13
    plain, _ = snapshots.freeze_snapshot(project=project)
    assert (plain.train_triples, plain.tie_triples, plain.ties) == (10, 0, 5)
    assert plain != snapshot
    assert snapshots.write_triples(project=project, path=data_dir / "t.jsonl").triples == 10, "exports keep their rule"


def test_the_same_triples_are_the_same_snapshot_and_a_new_label_is_another(project, data_dir, label):
    label(2)
    first, _ = snapshots.freeze_snapshot(project=project)
    again, _ = snapshots.freeze_snapshot(project=project)
    label(1)
    other, _ = snapshots.freeze_snapshot(project=project)
    assert first == again
    assert first.sha256 != other.sha256
    assert DatasetSnapshot.objects.count() == 2


def test_only_current_versions_count(project, data_dir, make_pair, judge, annotator):
    from labeling import queue

    pair = make_pair(held_out=False)
    judge(pair, annotator, "a")
    queue.submit(project, queue.undo(project, annotator.pk).token, annotator.pk, "b")
    path = data_dir / "triples.jsonl"
    assert snapshots.write_triples(project=project, path=path).train == 1
    assert json.loads(path.read_text())["chosen"]["text"] == "The second answer."


def test_an_export_that_fails_leaves_no_half_file(project, data_dir, label, monkeypatch):
    label(1)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        snapshots.write_triples(project=project, path=data_dir / "triples.jsonl")
    assert not list(data_dir.glob("*triples*"))


@pytest.mark.django_db(transaction=True)
def test_two_freezes_at_once_do_not_share_a_draft(project, data_dir, label):
    label(3)
    found: list[str] = []
    errors: list[Exception] = []

    def freeze() -> None:
        try:
            found.append(snapshots.freeze_snapshot(project=project)[0].sha256)
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=freeze) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(found) == 4
    assert set(found) == {store.hash_file(store.snapshot_path(found[0]))}
