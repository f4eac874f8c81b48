"""The curves over the policies in force."""

from __future__ import annotations

import pytest

from tests.training.test_outcome import DETAILS
from training.generations import Figure, read_generations
from training.models import Checkpoint, Gate, Promotion
from training.services import change_rule, promote_checkpoint, roll_back


def _details(accuracy: float, kl: float, tokens: float) -> dict:
    held_out = DETAILS["held_out"] | {"after": {"accuracy": accuracy, "margin": 0.1, "logp_accuracy": 0.5}}
    after = {"kl_first": kl, "kl_first_interval": [kl - 0.5, kl + 0.5], "mean_tokens": tokens}
    return DETAILS | {"held_out": held_out, "on_policy": {"before": {"mean_tokens": 90.0}, "after": after}}


@pytest.fixture
def generation(project, policy, make_checkpoint):
    """Promote one more policy: ``generation(name, **values)``."""

    def make(name: str, *, report: dict | None = None, votes: dict | None = None, **values) -> Checkpoint:
        values.setdefault("parent", policy)
        checkpoint = make_checkpoint(name, project=project, kind="dpo", **values)
        promotion = promote_checkpoint(project=project, checkpoint=checkpoint)
        if report is not None:
            number = Gate.objects.count() + 1
            gate = Gate.objects.create(
                project=project, number=number, candidate=checkpoint, current=policy, rule={}, stage="decided",
                report=report, votes=votes or {},
            )  # fmt: skip
            Promotion.objects.filter(pk=promotion.pk).update(gate=gate)
        return checkpoint

    return make


def test_before_the_first_promotion_there_is_nothing(project):
    found = read_generations(project)
    assert (found.rows, found.charts) == ([], [])


def test_one_generation_is_no_curve(project, policy):
    found = read_generations(project)
    assert [row.number for row in found.rows] == [0]
    assert found.charts == []


def test_each_generation_has_what_was_measured_of_it(project, policy, generation):
    generation("one", details=_details(0.6, 2.0, 80.0))
    generation("two", details=_details(0.7, 3.0, 70.0))
    first, one, two = read_generations(project).rows
    assert first.kl_first == Figure(0.0)
    assert first.mean_tokens == Figure(90.0), "measured by the run that started from it"
    assert first.won_pairs is None
    assert one.won_pairs == Figure(0.6, 0.25, 1.0)
    assert (two.kl_first, two.mean_tokens) == (Figure(3.0, 2.5, 3.5), Figure(70.0))


def test_the_curves_say_values_and_intervals_and_what_they_are_held_against(project, policy, generation):
    change_rule(project=project, kl_first_budget=12.0)
    generation("one", details=_details(0.6, 2.0, 80.0))
    generation("two", details=_details(0.7, 3.0, 70.0))
    won, kl, length = read_generations(project).charts
    assert [line.label for line in sorted(kl.lines, key=lambda line: line.role)] == ["policy", "budget"]
    drawn = {line.label: line for line in kl.lines}
    assert drawn["policy"].dots[2].title == "policy, generation 2: 3.00 (2.50 to 3.50)"
    assert [whisker.x for whisker in drawn["policy"].whiskers] == [dot.x for dot in drawn["policy"].dots[1:]]
    assert {dot.title for dot in drawn["budget"].dots} == {
        "budget, generation 0: 12.00", "budget, generation 2: 12.00",
    }  # fmt: skip
    assert drawn["budget"].role == "muted"
    assert {line.label for line in won.lines} == {"reward", "chance"}, "nobody was asked at a gate"
    assert {line.label for line in length.lines} == {"policy", "first"}


def test_what_was_rolled_back_is_left_out(project, policy, generation):
    generation("one", details=_details(0.6, 2.0, 80.0))
    generation("bad", details=_details(0.4, 30.0, 300.0))
    roll_back(project=project)
    generation("two", details=_details(0.7, 3.0, 70.0))
    assert [row.checkpoint.name for row in read_generations(project).rows] == ["base", "one", "two"]


def test_figures_of_the_gate_stand_beside_those_of_the_run_and_in_for_them(project, policy, generation):
    votes = {"length_controlled": {"value": 0.55, "interval": [0.5, 0.6]}}
    at_gate = {"candidate": {"kl_first": 9.0, "kl_first_interval": [8.0, 10.0], "mean_tokens": 60.0}}
    report = {"win_rate": {"length_controlled": 0.9}, "on_policy": at_gate}
    generation("measured", details=_details(0.6, 2.0, 80.0), report=report, votes=votes)
    generation("brought", report=report)
    _, measured, brought = read_generations(project).rows
    assert measured.won_votes == Figure(0.55, 0.5, 0.6)
    assert measured.kl_first == Figure(2.0, 1.5, 2.5)
    assert (brought.kl_first, brought.mean_tokens) == (Figure(9.0, 8.0, 10.0), Figure(60.0))
    assert brought.won_votes is None, "a judge is no person"
    assert "people" in {line.label for line in read_generations(project).charts[0].lines}


@pytest.mark.parametrize("details", [{}, {"held_out": {"pairs": 0}, "on_policy": {}}, {"on_policy": {"after": None}}])
def test_what_was_not_measured_is_left_out(project, policy, generation, details):
    generation("one", details=details)
    (_, one) = read_generations(project).rows
    assert (one.won_pairs, one.won_votes, one.kl_first, one.mean_tokens) == (None, None, None, None)
    assert read_generations(project).charts == []
