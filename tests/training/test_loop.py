"""The scheduler's rules: when it samples, when it trains, and why not."""

from __future__ import annotations

import errno
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import pytest
from django.utils import timezone

from tests.threads import at_once
from training import loop, services, sweeps
from training.exceptions import Overtaken, Rejected
from training.models import Job, LoopRule, SampleBatch, TrainingRun
from training.recipe import Recipe
from training.rule_changes import pause_end
from training.what_now import known_of, what_now


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


def test_too_little_to_train_on_is_a_condition_and_no_triple_is_derived_to_find_out(
    rule, project, label, make_prompt, monkeypatch
):
    derive = services.freeze_snapshot
    monkeypatch.setattr(services, "freeze_snapshot", lambda **_: pytest.fail("triples were derived"))
    label(12, prompt=make_prompt(held_out=False))
    LoopRule.objects.update(min_new_triples=1)
    words = "There is not enough to train on: 12 triples on 1 prompt, and at least 8 triples on 2 prompts are needed."
    assert _verdict(rule) == words
    now = what_now(project)
    assert (now.decision.starts, now.decision.words) == (False, words)
    label(1)
    monkeypatch.setattr(services, "freeze_snapshot", derive)
    assert what_now(project).decision.starts
    assert _verdict(rule) == "Run 1 started."


def test_a_recipe_that_cannot_be_used_here_is_a_condition_too(rule, project, label, settings, monkeypatch):
    settings.ENGINE_DEVICE = "cpu"
    monkeypatch.setattr(services, "freeze_snapshot", lambda **_: pytest.fail("triples were derived"))
    services.use_recipe(project=project, recipe={"processes": 2})
    label(12)
    assert "Leave GPUs at 1" in _verdict(rule)
    decision = what_now(project).decision
    assert (decision.starts, decision.may_start_at) == (False, None)
    assert "Leave GPUs at 1" in decision.words


def test_a_reference_whose_weights_were_deleted_is_said_before_anything_is_derived(
    rule, policy, project, label, monkeypatch
):
    monkeypatch.setattr(services, "freeze_snapshot", lambda **_: pytest.fail("triples were derived"))
    label(12)
    type(policy).objects.update(removed_at=timezone.now())
    assert "were deleted" in _verdict(rule)
    assert not what_now(project).decision.starts
    assert rule.refused_at is None


def test_what_is_refused_for_another_reason_is_asked_for_again_after_a_while_or_when_the_rule_is_saved(
    rule, project, label, at, monkeypatch
):
    derive, tries, is_full = services.freeze_snapshot, [], True

    def freeze_snapshot(**values):
        tries.append(values)
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return derive(**values)

    monkeypatch.setattr(services, "freeze_snapshot", freeze_snapshot)
    at("12:00")
    label(12)
    assert _verdict(rule).startswith("The snapshot of the labels could not be written: No space left on device")
    at("12:05")
    words = _verdict(rule)
    assert words.startswith("A run was asked for at 12:00 and refused: The snapshot of the labels could not be written")
    assert words.endswith("It is asked for again at 12:10, or when the rule is saved.")
    assert what_now(project).decision.words == words
    assert len(tries) == 1
    at("12:11")
    _verdict(rule)
    assert len(tries) == 2
    is_full = False
    services.change_rule(project=project, min_new_triples=9)
    assert _verdict(rule) == "Run 1 started."
    assert (rule.refused_at, rule.refusal) == (None, "")


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


def test_a_paused_project_is_looked_at_and_left_alone(rule, project, label):
    LoopRule.objects.update(open_pairs_wanted=4)
    label(12)
    project.is_paused = True
    project.save()
    assert _verdict(rule) == "The project is paused: an admin ends that in its settings."
    assert not TrainingRun.objects.exists()
    assert not SampleBatch.objects.exists()
    assert not what_now(project).scheduler_is_late


def test_a_fixed_time_of_a_paused_project_passes_by(rule, project, label, at):
    at("02:00")
    services.change_rule(project=project, fixed_times=["03:00"])
    label(12)
    type(project).objects.update(is_paused=True)
    at("03:00")
    _verdict(rule)
    assert rule.passed_by == "03:00 on 10 Jun passed by without a run. The project was paused."


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


# What else the rule knows


ZONE = ZoneInfo("Europe/Berlin")


@pytest.fixture
def at(settings, monkeypatch):
    """Let it be a time of 10 June in Berlin, for what the scheduler asks the time of."""
    settings.TIME_ZONE = "Europe/Berlin"

    def at(words: str, *, day: int = 10) -> datetime:
        hour, minute = map(int, words.split(":"))
        now = datetime(2026, 6, day, hour, minute, 1, tzinfo=ZONE)
        monkeypatch.setattr(timezone, "now", lambda: now)
        return now

    return at


def test_a_fixed_time_is_acted_on_once_and_written_with_the_run(rule, project, label, at):
    at("02:00")
    services.change_rule(project=project, fixed_times=["03:00"], min_minutes_between=0)
    label(12)
    assert _verdict(rule) == "The next fixed time is 03:00."
    at("03:00")
    assert _verdict(rule) == "Run 1 started."
    assert (rule.fixed_time_seen_at, rule.passed_by) == (datetime(2026, 6, 10, 3, tzinfo=ZONE), "")
    TrainingRun.objects.update(state=Job.State.SUCCEEDED)
    label(12)
    at("03:01")
    assert _verdict(rule) == "The next fixed time is 03:00 tomorrow."
    assert TrainingRun.objects.count() == 1


def test_a_fixed_time_with_too_few_triples_passes_by_and_it_is_said(rule, project, label, at):
    at("02:00")
    services.change_rule(project=project, fixed_times=["03:00", "15:00"])
    label(9)
    at("03:00")
    assert _verdict(rule).startswith("9 of 10 new triples")
    assert rule.passed_by == "03:00 on 10 Jun passed by without a run. 9 of 10 triples were new."
    label(1)
    at("03:05")
    assert _verdict(rule) == f"The next fixed time is 15:00. {rule.passed_by}"
    at("16:30")
    _verdict(rule)
    assert rule.passed_by == "15:00 on 10 Jun was missed: the scheduler was down then."
    assert not TrainingRun.objects.exists()


def test_a_fixed_time_with_too_little_to_train_on_passes_by(rule, project, label, make_prompt, at):
    at("02:00")
    services.change_rule(project=project, fixed_times=["03:00"])
    label(12, prompt=make_prompt(held_out=False))
    LoopRule.objects.update(min_new_triples=1)
    at("03:00")
    assert "not enough to train on" in _verdict(rule)
    assert rule.passed_by == (
        "03:00 on 10 Jun passed by without a run. There was not enough to train on: 12 triples on 1 prompt."
    )
    at("03:01")
    assert _verdict(rule).startswith("The next fixed time is 03:00 tomorrow.")


def test_turning_it_on_after_a_fixed_time_starts_nothing(rule, project, label, at):
    label(12)
    at("03:10")
    services.change_rule(project=project, retrains=False)
    services.change_rule(project=project, retrains=True, fixed_times=["03:00"])
    assert _verdict(rule) == "The next fixed time is 03:00 tomorrow."


def test_a_failed_run_starts_no_circle(rule, label):
    LoopRule.objects.update(min_new_triples=1, min_minutes_between=0)
    label(12)
    assert _verdict(rule) == "Run 1 started."
    TrainingRun.objects.update(state=Job.State.FAILED, finished_at=timezone.now())
    label(12)
    assert _verdict(rule).startswith("Run 1 failed, so the rule waits until")
    TrainingRun.objects.update(finished_at=timezone.now() - timedelta(hours=1))
    assert _verdict(rule) == "Run 2 started."
    TrainingRun.objects.update(state=Job.State.FAILED, finished_at=timezone.now())
    label(1)
    assert _verdict(rule).startswith("The last 2 runs failed")
    TrainingRun.objects.filter(number=2).update(state=Job.State.SUCCEEDED)
    assert _verdict(rule) == "Run 3 started.", "somebody has resumed it"


def _end(state: Job.State, *, number: int, **values) -> None:
    TrainingRun.objects.filter(number=number).update(state=state, finished_at=timezone.now(), **values)


def test_what_a_failed_run_was_to_train_on_is_new_again_and_tried_after_ever_longer_waits(rule, project, label, at):
    LoopRule.objects.update(min_minutes_between=0)
    at("01:00")
    label(10)
    assert _verdict(rule) == "Run 1 started."
    at("01:10")
    _end(Job.State.FAILED, number=1)
    assert _verdict(rule) == (
        "Run 1 failed, so the rule waits until 02:10, for somebody to look. "
        "Triples that only failed runs have used count as new."
    )
    assert what_now(project).known.new_triples == 10
    at("02:11")
    assert _verdict(rule) == "Run 2 started."
    assert TrainingRun.objects.get(number=2).snapshot.train_triples == 10
    at("02:20")
    _end(Job.State.FAILED, number=2)
    assert _verdict(rule).startswith("The last 2 runs failed, so the rule waits until 04:20")
    at("04:21")
    assert _verdict(rule) == "Run 3 started."
    _end(Job.State.SUCCEEDED, number=3)
    assert _verdict(rule) == "0 of 10 new triples."


def test_what_a_later_run_was_trained_on_does_not_come_back_with_the_failed_one(rule, project, label):
    LoopRule.objects.update(min_minutes_between=0)
    label(10)
    _verdict(rule)
    _end(Job.State.FAILED, number=1)
    label(1)
    services.request_run(project=project, recipe=Recipe())
    _end(Job.State.SUCCEEDED, number=2)
    assert _verdict(rule) == "0 of 10 new triples."
    label(10)
    assert _verdict(rule) == "Run 3 started."
    _end(Job.State.FAILED, number=3)
    _verdict(rule)
    assert rule.new_triples == 10, "not those of Run 1"


def test_what_a_cancelled_run_was_to_train_on_stays_used_and_it_is_said(rule, label):
    LoopRule.objects.update(min_minutes_between=0)
    label(10)
    _verdict(rule)
    services.cancel_job(job=TrainingRun.objects.get())
    said = "are not new any more, because somebody has cancelled it."
    assert _verdict(rule) == f"0 of 10 new triples. Those of Run 1 {said}"
    label(10)
    assert _verdict(rule) == "Run 2 started."
    _end(Job.State.FAILED, number=2, cancel_requested_at=timezone.now())
    assert _verdict(rule) == f"0 of 10 new triples. Those of Run 2 {said}", "it failed before it heard of that"


def test_a_failed_run_that_is_resumed_takes_its_triples_back(rule, project, label):
    LoopRule.objects.update(min_minutes_between=0)
    label(10)
    _verdict(rule)
    _end(Job.State.FAILED, number=1)
    _verdict(rule)
    assert rule.new_triples == 10
    services.resume_job(job=TrainingRun.objects.get())
    assert _verdict(rule) == "Run 1 is going on."
    _end(Job.State.FAILED, number=1)
    _verdict(rule)
    assert rule.new_triples == 10
    stale = LoopRule.objects.get()
    _end(Job.State.SUCCEEDED, number=1)  # resumed and done while a scheduler decided
    with pytest.raises(Overtaken, match="was resumed"):
        services.request_run(project=project, recipe=Recipe(), rule=stale)
    assert _verdict(rule) == "0 of 10 new triples."


def test_a_sweep_that_failed_gives_nothing_back(rule, project, label):
    LoopRule.objects.update(min_minutes_between=0)
    label(10)
    sweeps.request_sweep(project=project, recipe=Recipe(), betas=(0.1, 0.5))
    TrainingRun.objects.update(state=Job.State.FAILED, finished_at=timezone.now())
    assert _verdict(rule) == "0 of 10 new triples."


def test_of_a_failed_run_two_schedulers_make_one_new_try(rule, label):
    LoopRule.objects.update(min_minutes_between=0)
    label(10)
    _verdict(rule)
    _end(Job.State.FAILED, number=1)
    TrainingRun.objects.update(finished_at=timezone.now() - timedelta(hours=2))
    seen = [LoopRule.objects.select_related("project").get() for _ in range(2)]
    assert loop.retrain(seen[0]).number == 2
    TrainingRun.objects.filter(number=2).update(state=Job.State.SUCCEEDED)
    before = LoopRule.objects.values().get()
    assert loop.retrain(seen[1]) is None
    assert LoopRule.objects.values().get() == before


def test_a_scheduler_that_comes_late_overwrites_nothing_of_what_another_has_seen_since(rule, label):
    label(3)
    stale = LoopRule.objects.select_related("project").get()
    loop.retrain(LoopRule.objects.select_related("project").get())
    before = LoopRule.objects.values().get()
    label(1)
    assert loop.retrain(stale) is None
    assert LoopRule.objects.values().get() == before


def test_what_is_new_is_counted_by_the_recipe_of_the_rule(rule, project, label):
    label(9)
    label(1, "tie")
    assert _verdict(rule).startswith("9 of 10 new triples")
    services.use_recipe(project=project, recipe={"ties": "half"})
    assert _verdict(rule) == "Run 1 started."


def test_the_budget_counts_what_the_rule_started_since_midnight_here(rule, project, policy, label, at):
    at("00:30")
    LoopRule.objects.update(most_runs_a_day=1, min_minutes_between=0)
    label(12)
    services.request_run(project=project, recipe=Recipe())  # what people start is not of the budget
    TrainingRun.objects.update(state=Job.State.SUCCEEDED)
    for day in (10, 11):
        at("00:40", day=day)
        label(12)
        assert _verdict(rule).startswith("Run ")
        TrainingRun.objects.update(state=Job.State.SUCCEEDED)
        label(12)
        at("23:59", day=day)
        assert _verdict(rule) == "1 of 1 runs of today are used up; the next may start at midnight."


def test_a_pause_holds_back_what_starts_by_itself_and_nothing_else(rule, project, label, project_admin):
    services.pause_rule(project=project, by=project_admin)
    label(12)
    assert _verdict(rule) == f"Paused by {project_admin.username} until somebody ends it."
    assert services.request_run(project=project, recipe=Recipe()).state == Job.State.QUEUED
    TrainingRun.objects.update(state=Job.State.SUCCEEDED)
    services.end_pause(project=project)
    LoopRule.objects.update(trained_at=None)
    label(12)
    assert _verdict(rule) == "Run 2 started."


def test_a_pause_until_yesterday_is_refused_and_those_of_the_page_end(project, at):
    now = at("15:00")
    assert pause_end("hour") == now + timedelta(hours=1)
    assert pause_end("midnight") == datetime(2026, 6, 11, tzinfo=ZONE)
    assert pause_end("open") is None
    with pytest.raises(Rejected, match="no pause"):
        pause_end("for ever")
    with pytest.raises(Rejected, match="in the future"):
        services.pause_rule(project=project, by=None, until=now)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fixed_times": ["3 pm"]}, "no time of day"),
        ({"fixed_times": "03:00"}, "a list of times"),
        ({"min_new_triples": 0}, "min_new_triples must be at least 1"),
        ({"min_new_triples": "many"}, "min_new_triples cannot be 'many'"),
        ({"kl_first_budget": 0}, "kl_first_budget cannot be 0"),
        ({"reference": "newest"}, "reference cannot be 'newest'"),
        ({"most_runs_a_day": -1}, "most_runs_a_day cannot be -1"),
        ({"trained_preference_id": 0}, "no setting “trained_preference_id”"),
    ],
)
def test_what_a_rule_cannot_be_is_refused_and_nothing_is_written(rule, project, values, words):
    before = LoopRule.objects.values().get()
    with pytest.raises(Rejected, match=words):
        services.change_rule(project=project, open_pairs_wanted=7, **values)
    assert LoopRule.objects.values().get() == before


def test_runs_of_the_rule_have_its_recipe(rule, project, label, project_admin):
    services.use_recipe(project=project, recipe=Recipe(beta=0.3).to_dict(), by=project_admin)
    rule.refresh_from_db()
    assert (rule.recipe, rule.recipe_by) == ({"beta": 0.3}, project_admin), "what differs alone"
    label(12)
    _verdict(rule)
    assert TrainingRun.objects.get().recipe["beta"] == 0.3
    services.use_recipe(project=project, recipe={}, by=project_admin)
    rule.refresh_from_db()
    assert (rule.recipe, rule.recipe_by) == ({}, None)
    with pytest.raises(Rejected, match="beta is -1"):
        services.use_recipe(project=project, recipe={"beta": -1}, by=project_admin)


def test_a_recipe_of_another_version_starts_nothing_and_is_said(rule, label):
    LoopRule.objects.update(recipe={"gamma": 1})
    label(12)
    assert "There is no field “gamma”" in _verdict(rule)
    assert not TrainingRun.objects.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"fixed_times": ["03:00"]},
        {"most_runs_a_day": 1},
        {"paused_at": timezone.now()},
        {"recipe": {"beta": 0.3}},
        {"reference": "promoted"},
        {"kl_first_budget": 1.0},
        {"fixed_time_seen_at": timezone.now()},
    ],
)
def test_a_rule_that_was_changed_while_it_was_looked_at_starts_nothing(rule, label, change):
    label(12)
    stale = LoopRule.objects.select_related("project").get()
    LoopRule.objects.update(**change)
    assert loop.retrain(stale) is None
    assert not TrainingRun.objects.exists()
    assert LoopRule.objects.get().refused_at is None, "it is looked at again at once"


def test_a_project_that_is_paused_while_its_run_is_asked_for_starts_nothing(rule, project, label):
    label(12)
    stale = LoopRule.objects.select_related("project").get()
    type(project).objects.update(is_paused=True)
    assert loop.retrain(stale) is None
    assert not TrainingRun.objects.exists()
    assert LoopRule.objects.get().verdict == "The project is paused: an admin ends that in its settings."


@pytest.mark.django_db(transaction=True)
def test_schedulers_at_the_same_moment_start_one_run_at_a_fixed_time(rule, project, label, settings):
    settings.CELERY_TASK_ALWAYS_EAGER = False
    now = timezone.now()
    LoopRule.objects.update(fixed_times=[f"{now:%H:%M}"], fixed_time_seen_at=now - timedelta(hours=2))
    label(12)
    seen = [LoopRule.objects.select_related("project", "paused_by").get() for _ in range(4)]
    assert at_once(*[partial(loop.retrain, one) for one in seen]) == []
    assert TrainingRun.objects.count() == 1
    after = LoopRule.objects.get()
    assert after.fixed_time_seen_at == now.replace(second=0, microsecond=0)
    assert after.passed_by == ""
    # Whoever comes later with what was true before lets nothing pass that has been acted on.
    TrainingRun.objects.update(state=Job.State.SUCCEEDED)
    assert loop.retrain(seen[0]) is None
    assert LoopRule.objects.get().passed_by == ""
    assert TrainingRun.objects.count() == 1


# What is known


def test_todays_pace_is_that_of_pairs_decided_since_the_last_run(rule, project, label, at):
    at("09:00", day=9)
    label(12)
    at("10:00")
    label(4)
    at("12:00")
    assert known_of(LoopRule.objects.get(), timezone.now()).triples_an_hour == 0, "too few to speak of"
    label(1)
    label(3, "tie")
    label(3, held_out=True)
    assert known_of(LoopRule.objects.get(), timezone.now()).triples_an_hour == pytest.approx(5 / 2)
    _verdict(rule)
    assert known_of(LoopRule.objects.get(), timezone.now()).triples_an_hour == 0


def test_a_page_believes_the_schedulers_count_for_half_a_minute_and_says_when_it_is_late(rule, project, label):
    label(3)
    assert what_now(project).scheduler_is_late
    _verdict(rule)
    label(2)
    now = what_now(project)
    assert (now.known.new_triples, now.scheduler_is_late) == (3, False)
    LoopRule.objects.update(evaluated_at=timezone.now() - timedelta(minutes=3))
    now = what_now(project)
    assert (now.known.new_triples, now.scheduler_is_late) == (5, True)
