"""The scheduler's rules: when it samples, when it trains, and why not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from training import loop, services
from training.models import Job, LoopRule, SampleBatch, TrainingRun


@pytest.fixture
def rule(project, policy) -> LoopRule:
    rule = services.loop_rule(project)
    rule.retrains = True
    rule.min_new_triples = 10
    rule.open_pairs_wanted = 0
    rule.save()
    return rule


def _verdict(rule: LoopRule) -> str:
    loop.evaluate_rules()
    rule.refresh_from_db()
    return rule.verdict


def test_it_trains_when_enough_is_new_and_once(rule, label):
    label(9)
    assert _verdict(rule).startswith("9 of 10 new triples; at today’s pace")
    label(1)
    assert _verdict(rule) == "Run 1 started."
    assert _verdict(rule) == "Run 1 is going on."
    assert TrainingRun.objects.get().is_automatic


def test_it_waits_between_runs(rule, label):
    label(10)
    loop.evaluate_rules()
    TrainingRun.objects.update(state=Job.State.SUCCEEDED)
    label(10)
    assert "The next run may start in 60 minutes" in _verdict(rule)
    LoopRule.objects.update(trained_at=timezone.now() - timedelta(hours=2))
    assert _verdict(rule) == "Run 2 started."


def test_of_two_schedulers_one_is_refused(rule, label):
    """The second has read the rule before the first has started a run, and decides when that run has ended."""
    label(10)
    stale = LoopRule.objects.select_related("project").get()
    assert loop.retrain(rule) is not None
    TrainingRun.objects.update(state=Job.State.SUCCEEDED)
    label(1)
    assert loop.retrain(stale) is None
    assert TrainingRun.objects.count() == 1


def test_a_person_who_saves_the_rule_while_a_run_starts_does_not_start_another(rule, label, project):
    label(10)
    before = LoopRule.objects.get()
    loop.evaluate_rules()
    services.change_rule(project=project, retrains=True, min_new_triples=before.min_new_triples)
    assert LoopRule.objects.get().trained_preference_id > before.trained_preference_id


def test_off_means_off(rule, label):
    LoopRule.objects.update(retrains=False)
    label(12)
    assert "off" in _verdict(rule)
    assert not TrainingRun.objects.exists()


def test_a_refusal_is_shown_and_not_fatal(rule, label, make_prompt):
    label(12, prompt=make_prompt(held_out=False))
    LoopRule.objects.update(min_new_triples=1)
    assert "not enough to train on" in _verdict(rule)


def test_it_keeps_pairs_open(rule, project, make_prompt):
    for _ in range(5):
        make_prompt()
    LoopRule.objects.update(open_pairs_wanted=4)
    loop.evaluate_rules()
    loop.evaluate_rules()
    batch = SampleBatch.objects.get()
    assert batch.wanted == 4


def test_it_does_not_hammer_after_a_failure(rule, make_prompt):
    make_prompt()
    LoopRule.objects.update(open_pairs_wanted=4)
    loop.evaluate_rules()
    SampleBatch.objects.update(state=Job.State.FAILED, finished_at=timezone.now())
    loop.evaluate_rules()
    assert SampleBatch.objects.count() == 1
    SampleBatch.objects.update(finished_at=timezone.now() - timedelta(hours=1))
    loop.evaluate_rules()
    assert SampleBatch.objects.count() == 2


def test_a_paused_project_is_left_alone(rule, project, label):
    label(12)
    project.is_paused = True
    project.save()
    loop.evaluate_rules()
    assert not TrainingRun.objects.exists()


def test_pairs_that_are_open_to_nobody_do_not_count(rule, project, make_pair, annotator, judge):
    project.judgements_per_pair = 2
    project.save()
    LoopRule.objects.update(open_pairs_wanted=4)
    for _ in range(4):
        judge(make_pair(), annotator, "a")
    loop.evaluate_rules()
    assert SampleBatch.objects.count() == 1


def test_a_rule_that_wants_too_much_gets_what_is_allowed_and_still_trains(rule, label):
    LoopRule.objects.update(open_pairs_wanted=5000)
    label(12)
    assert _verdict(rule) == "Run 1 started."
    assert SampleBatch.objects.exists()
