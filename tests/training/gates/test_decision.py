"""What figures and votes come to: promoted, held, rejected, and why, in words."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from training.gate import Decision, People, decide_measured, decide_watch, decide_with_people, measured_checks
from training.length_control import LengthVote, controlled
from training.sequential import read_votes

EQUAL: dict[str, Any] = {
    "held_out": {
        "pairs": 90,
        "prompts": 60,
        "current_accuracy": 0.55,
        "candidate_accuracy": 0.57,
        "difference": 0.02,
        "difference_interval": [-0.06, 0.1],
    },
    "judge": {"pairs": 90, "accuracy": 0.66, "accuracy_interval": [0.56, 0.76], "usable": True},
    "win_rate": {
        "prompts": 100,
        "raw": 0.52,
        "raw_interval": [0.45, 0.59],
        "length_controlled": 0.51,
        "length_controlled_interval": [0.44, 0.58],
    },
    "on_policy": {
        "prompts": 100,
        "max_new_tokens": 192,
        "current": {"finish_rate": 0.9},
        "candidate": {"finish_rate": 0.91, "kl_first": 12.0, "kl_first_interval": [10.0, 14.0]},
        "change": {
            "prompts": 100,
            "mean_tokens": 1.0,
            "mean_tokens_interval": [-4.0, 6.0],
            "finish_rate": 0.01,
            "finish_rate_interval": [-0.05, 0.07],
        },
    },
    "canaries": {
        "must_refuse": {
            "prompts": 40,
            "current": 0.9,
            "candidate": 0.9,
            "change": 0.0,
            "change_interval": [-0.08, 0.08],
        },
        "must_answer": {
            "prompts": 40,
            "current": 0.95,
            "candidate": 0.93,
            "change": -0.02,
            "change_interval": [-0.1, 0.06],
        },
    },
}
BETTER_HELD_OUT = {"held_out.difference": 0.12, "held_out.difference_interval": [0.03, 0.21]}
PREFERRED = {"win_rate.length_controlled": 0.62, "win_rate.length_controlled_interval": [0.54, 0.7]}
NEAR_BUDGET = {"on_policy.candidate.kl_first": 42.0, "on_policy.candidate.kl_first_interval": [38.0, 46.0]}
LONGER = {"on_policy.change.mean_tokens": 40.0, "on_policy.change.mean_tokens_interval": [30.0, 50.0]}


def report(**changes: Any) -> dict[str, Any]:
    """The report of equal policies, with figures changed, or parts taken out where a value is ``None``."""
    told = deepcopy(EQUAL)
    for path, value in changes.items():
        *parts, last = path.split(".")
        at = told
        for part in parts:
            at = at[part]
        if value is None:
            del at[last]
        else:
            at[last] = value
    return told


def decide(told: dict[str, Any], **values: Any) -> Decision:
    return decide_measured(told, **({"kl_first_budget": 40.0, "asks_people": False} | values))


def outcomes(decision: Decision) -> dict[str, str]:
    return {check.name: check.outcome for check in decision.checks}


# Figures


def test_an_equal_candidate_is_held_and_told_what_would_decide():
    decision = decide(report())
    assert decision.outcome == "hold"
    assert "Nothing shows that the candidate is better" in decision.reasons[0]
    assert "Let people be asked" in decision.reasons[0]


def test_held_out_preferences_promote():
    decision = decide(report(**BETTER_HELD_OUT))
    assert decision.outcome == "promote"
    assert decision.reasons[0].startswith("The candidate is better: ")


@pytest.mark.parametrize("held_out", [{}, {"held_out": None}], ids=["no difference", "none"])
def test_the_judge_alone_promotes_nothing(held_out):
    """It has learnt from the candidate's labels: see ``test_an_equal_candidate_that_learnt_...`` of the judge."""
    decision = decide(report(**PREFERRED, **held_out))
    assert decision.outcome == "hold"
    assert outcomes(decision)["win_rate"] == "pass"
    assert "Only the judge prefers the candidate, and that is not enough" in decision.reasons[0]
    assert "More held-out preferences would decide, or people" in decision.reasons[0]
    assert not any(check.better for check in decision.checks)


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        ({"held_out.difference": -0.1, "held_out.difference_interval": [-0.18, -0.02]}, "held_out"),
        (
            {"win_rate.length_controlled": 0.4, "win_rate.length_controlled_interval": [0.33, 0.48]},
            "win_rate",
        ),
        ({"on_policy.candidate.kl_first": 50.0, "on_policy.candidate.kl_first_interval": [44.0, 56.0]}, "kl_first"),
        (
            {"on_policy.change.finish_rate": -0.2, "on_policy.change.finish_rate_interval": [-0.3, -0.1]},
            "finish_rate",
        ),
        ({"canaries.must_refuse.change": -0.3, "canaries.must_refuse.change_interval": [-0.4, -0.2]}, "must_refuse"),
        ({"canaries.must_answer.change": -0.3, "canaries.must_answer.change_interval": [-0.4, -0.2]}, "must_answer"),
    ],
)
@pytest.mark.parametrize("asks_people", [False, True])
def test_what_is_worse_for_sure_rejects_whatever_else_is_better(worse, name, asks_people):
    decision = decide(report(**(PREFERRED | BETTER_HELD_OUT | worse)), asks_people=asks_people)
    assert decision.outcome == "reject"
    assert outcomes(decision)[name] == "fail"
    assert len(decision.reasons) == 1


@pytest.mark.parametrize(
    ("doubt", "name", "outcome"),
    [
        (NEAR_BUDGET, "kl_first", "unsure"),
        ({"on_policy.candidate.kl_first": None}, "kl_first", "not_measured"),
        ({"on_policy": None}, "finish_rate", "not_measured"),
        (
            {"on_policy.change.finish_rate": -0.08, "on_policy.change.finish_rate_interval": [-0.2, 0.04]},
            "finish_rate",
            "unsure",
        ),
        ({"canaries": None}, "must_refuse", "not_measured"),
    ],
)  # fmt: skip
def test_a_guard_in_doubt_holds_what_is_better(doubt, name, outcome):
    decision = decide(report(**(BETTER_HELD_OUT | doubt)))
    assert decision.outcome == "hold"
    assert outcomes(decision)[name] == outcome
    assert decision.reasons[0].startswith("The candidate is better")
    assert decision.reasons[-1] == "So it is for a person to decide."


@pytest.mark.parametrize(("lost", "outcome"), [(1, "pass"), (2, "unsure")])
def test_one_prompt_alone_is_no_doubt_and_two_are(lost, outcome):
    """Of sixteen one is more than five points."""
    share = -lost / 16
    figures = {"prompts": 16, "change": share, "change_interval": [share - 0.12, min(0.0, share + 0.12)]}
    told = report(**BETTER_HELD_OUT, **{f"canaries.must_answer.{name}": value for name, value in figures.items()})
    assert outcomes(decide(told))["must_answer"] == outcome


def test_a_small_loss_of_a_guard_is_within_its_tolerance():
    told = report(
        **BETTER_HELD_OUT,
        **{"canaries.must_refuse.change_interval": [-0.04, -0.02], "canaries.must_refuse.change": -0.03},
    )
    assert decide(told).outcome == "promote"


def test_few_prompts_are_no_evidence_for_or_against():
    few = {"held_out.prompts": 12, "win_rate.prompts": 12}
    assert decide(report(**BETTER_HELD_OUT, **PREFERRED, **few)).outcome == "hold"
    worse = {"held_out.difference": -0.3, "held_out.difference_interval": [-0.5, -0.1]}
    assert decide(report(**worse, **few)).outcome == "hold"


def test_what_the_judge_prefers_for_its_length_is_rejected():
    liked = {"win_rate.raw": 0.66, "win_rate.raw_interval": [0.58, 0.74]}
    decision = decide(report(**BETTER_HELD_OUT, **liked, **LONGER))
    assert decision.outcome == "reject"
    assert "preferred for that more than for anything else" in decision.reasons[0]
    assert decide(report(**liked)).outcome == "hold", "it is not longer, so it may be chance"
    both = decide(report(**BETTER_HELD_OUT, **liked, **LONGER, **PREFERRED))
    assert both.outcome == "promote", "it is preferred at equal length as well"
    assert "at equal length the judge has it win" in both.reasons[1]


def test_held_out_accuracy_alone_does_not_promote_what_became_longer():
    decision = decide(report(**BETTER_HELD_OUT, **LONGER))
    assert decision.outcome == "hold"
    assert any("have become longer" in reason for reason in decision.reasons)


def test_a_judge_that_knows_nothing_is_not_asked():
    decision = decide(report(**PREFERRED, **{"judge.usable": False}))
    assert outcomes(decision)["win_rate"] == "not_measured"
    assert decision.outcome == "hold"


def test_withdrawn_labels_hold_the_best_candidate():
    decision = decide(report(**PREFERRED, **BETTER_HELD_OUT), is_tainted=True)
    assert decision.outcome == "hold"
    assert any("withdrawn" in reason for reason in decision.reasons)


def test_an_empty_report_is_held_and_says_that_nothing_was_measured():
    decision = decide({})
    assert decision.outcome == "hold"
    assert set(outcomes(decision).values()) == {"not_measured"}


def test_where_people_are_asked_figures_alone_do_not_promote():
    assert decide(report(**BETTER_HELD_OUT), asks_people=True).outcome == ""


def test_checks_are_plain_data_with_words():
    for check in decide(report(**BETTER_HELD_OUT)).checks_as_json:
        assert set(check) == {"name", "title", "outcome", "words", "figures"}
        assert check["words"].endswith(".")


# People


def people(
    won: int, lost: int, tied: int = 0, *, longer: float = 0.0, is_over: bool = False, worth: float = 0.0
) -> People:
    """So many votes, shuffled; ``worth``: of 1,000 ordinary votes on pairs with the same length apart."""
    votes = [1.0] * won + [0.0] * lost + [0.5] * tied
    random.Random(1).shuffle(votes)
    lengths = [LengthVote(vote, longer + 0.2 * (number % 3 - 1), number, True) for number, vote in enumerate(votes)]
    ordinary = [
        LengthVote(float(number % 100 < 50 + 100 * worth), 1.0, 10**6 + number, False) for number in range(1000)
    ]
    return People(read_votes(votes), controlled([*lengths, *ordinary]), is_over)


def passing() -> list[Any]:
    return measured_checks(EQUAL, kl_first_budget=40.0)


def test_people_who_prefer_the_candidate_promote_it():
    decision = decide_with_people(passing(), people(80, 30, 10))
    assert decision.outcome == "promote"
    assert "People prefer the candidate, shown by vote" in decision.reasons[0]
    assert "At equal length the candidate wins" in decision.reasons[1]


def test_people_who_prefer_the_current_policy_reject_it():
    decision = decide_with_people(passing(), people(30, 80, 10))
    assert decision.outcome == "reject"
    assert "People prefer the current policy" in decision.reasons[0]


def test_people_are_asked_on_while_nothing_is_shown():
    decision = decide_with_people(passing(), people(12, 10, 3))
    assert decision.outcome == ""
    assert decide_with_people(passing(), people(1, 0)).outcome == ""


def test_when_all_are_asked_it_is_held_with_a_forecast():
    decision = decide_with_people(passing(), people(75, 60, 15, is_over=True))
    assert decision.outcome == "hold"
    assert "votes more would tell. Raise the number of pairs in the release rule and" in decision.reasons[-1]
    few = decide_with_people(passing(), replace(people(75, 60, 15, is_over=True), of_few_prompts=True))
    assert "votes more would tell. All held-out prompts were used: import more and compare again" in few.reasons[-1]
    even = decide_with_people(passing(), people(60, 60, 10, is_over=True))
    assert "as good as equal" in even.reasons[-1]


def test_a_candidate_that_is_only_longer_is_rejected():
    """It wins as often as any response that is as much longer."""
    decision = decide_with_people(passing(), people(140, 60, longer=1.0, is_over=True, worth=0.2))
    assert decision.outcome == "reject"
    assert "longer, and preferred for that more than for anything else" in decision.reasons[0]


def test_before_the_last_vote_only_what_is_clear_is_called_only_longer():
    assert decide_with_people(passing(), people(140, 60, longer=1.0, worth=0.25)).outcome == "reject"
    assert decide_with_people(passing(), people(65, 29, longer=1.0, worth=0.25)).outcome == "", "few votes yet"


def test_a_candidate_that_is_longer_and_better_is_promoted():
    assert decide_with_people(passing(), people(160, 40, longer=0.3, worth=0.1)).outcome == "promote"


def test_what_people_prefer_is_held_where_a_guard_is_in_doubt():
    doubtful = measured_checks(report(canaries=None), kl_first_budget=40.0)
    decision = decide_with_people(doubtful, people(80, 30, 10))
    assert decision.outcome == "hold"
    assert decision.reasons[-1] == "So it is for a person to decide."


# After a promotion


def test_a_watch_finds_a_regression():
    decision = decide_watch(people(20, 70, 10))
    assert decision.outcome == "reject"
    assert "People prefer the one before it" in decision.reasons[0]


def test_a_watch_ends_early_where_the_new_policy_is_preferred_and_at_its_last_vote():
    assert decide_watch(people(70, 20, 10)).outcome == "promote"
    assert decide_watch(people(22, 20, 4)).outcome == ""
    over = decide_watch(people(22, 20, 4, is_over=True))
    assert (over.outcome, over.reasons[0]) == ("hold", "No regression was found, so the policy stays.")
