"""When the rule starts a run, over many clocks; what it says when it does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import fixed_times
from training.exceptions import Rejected
from training.models import LoopRule
from training.retraining import CATCH_UP, WAIT_AFTER_REFUSAL, Decision, Failure, Known, Trainable, decide

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = [*map(ZoneInfo, ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu"))]
NOON = datetime(2026, 6, 10, 12, tzinfo=BERLIN)

zones = st.sampled_from(ZONES)
times = st.lists(st.times().map(lambda at: f"{at:%H:%M}"), min_size=1, max_size=4, unique=True)
moments = st.datetimes(datetime(2015, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))
spans = st.timedeltas(timedelta(0), timedelta(days=2))


def _rule(**values) -> LoopRule:
    return LoopRule(**{"retrains": True, "min_new_triples": 50, "most_runs_a_day": 0} | values)


def _known(**values) -> Known:
    return Known(**{"now": NOON, "zone": BERLIN, "new_triples": 60} | values)


def _unmet(decision: Decision) -> list[str]:
    return [condition.name for condition in decision.conditions if not condition.is_met]


def _words(decision: Decision, name: str) -> str:
    (found,) = [condition.words for condition in decision.conditions if condition.name == name]
    return found


# Fixed times


def test_times_are_put_in_order_and_what_is_none_is_named():
    assert fixed_times.parse_times(["15:00", " 3:00", "03:00"]) == ["03:00", "15:00"]
    for wrong in ("24:00", "3", "03:60", "noon", "", 300, "03:00:10", "3:0٣"):
        with pytest.raises(Rejected, match="no time of day"):
            fixed_times.parse_times(["03:00", wrong])
    with pytest.raises(Rejected, match="too many"):
        fixed_times.parse_times([f"{hour:02}:{minute}" for hour in range(24) for minute in (10, 20)])


@given(times, zones, moments)
def test_between_the_newest_and_the_following_time_is_now_and_no_other_time(words, zone, now):
    newest, following = fixed_times.newest(words, zone, now), fixed_times.following(words, zone, now)
    assert newest <= now < following
    between = newest + (following - newest) / 2
    assert fixed_times.newest(words, zone, between) == newest
    assert fixed_times.following(words, zone, newest) == following
    assert following - newest <= timedelta(hours=26)


@given(times, zones, moments)
def test_the_clock_shows_that_time_unless_the_day_does_not_have_it(words, zone, now):
    local = fixed_times.following(words, zone, now).astimezone(zone)
    if f"{local:%H:%M}" not in words:
        before = (local.astimezone(UTC) - timedelta(hours=3)).astimezone(zone)
        assert local.utcoffset() > before.utcoffset(), "the clock was put forward"


@given(zones, moments)
def test_a_day_goes_from_midnight_to_midnight(zone, now):
    start, end = fixed_times.midnight_before(zone, now), fixed_times.midnight_after(zone, now)
    assert start <= now < end
    assert timedelta(hours=22) < end - start < timedelta(hours=26)
    assert fixed_times.midnight_before(zone, end) == end
    assert start.astimezone(zone).date() == now.astimezone(zone).date()


def test_a_time_that_a_day_does_not_have_is_later_on_that_day_and_one_that_comes_twice_counts_once():
    spring = datetime(2026, 3, 29, 1, 30, tzinfo=BERLIN)
    assert fixed_times.following(["02:30"], BERLIN, spring) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # 03:30 there
    autumn = datetime(2026, 10, 25, 1, 30, tzinfo=BERLIN)
    first = fixed_times.following(["02:30"], BERLIN, autumn)
    assert first == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert fixed_times.following(["02:30"], BERLIN, first) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


# One decision


def test_a_run_starts_when_every_condition_holds():
    decision = decide(_rule(), _known())
    assert decision.starts
    assert all(condition.is_met for condition in decision.conditions)
    assert decision.words == "60 triples are new, and nothing stands in the way."
    assert decision.may_start_at == NOON


def test_all_that_stands_in_the_way_is_said_not_only_the_first():
    rule = _rule(retrains=False, paused_at=NOON, trained_at=NOON - timedelta(minutes=10), most_runs_a_day=3)
    rule.fixed_times, rule.fixed_time_seen_at = ["03:00"], NOON
    rule.refused_at, rule.refusal = NOON, "The disk is full."
    failure = Failure("Run 7", NOON - timedelta(minutes=20))
    known = _known(new_triples=1, active_run="Run 8", runs_today=3, failure=failure, has_policy=False)
    known = replace(known, recipe_refusal="There is no field “gamma”.", trainable=Trainable(1, 1, 8, 2))
    decision = decide(rule, known)
    assert len(_unmet(decision)) == len(decision.conditions) == 12
    assert decision.words == "Training by itself is off."
    assert decision.may_start_at is None


@pytest.mark.parametrize(
    ("rule", "known", "words"),
    [
        ({}, {"new_triples": 38}, "38 of 50 new triples."),
        (
            {},
            {"new_triples": 38, "triples_an_hour": 4.0},
            "38 of 50 new triples; at today’s pace the rest comes in about 3 hours.",
        ),
        (
            {"min_new_triples": 39},
            {"new_triples": 38, "triples_an_hour": 3.0},
            "38 of 39 new triples; at today’s pace the rest comes in about 20 minutes.",
        ),
        ({}, {"active_run": "Run 4"}, "Run 4 is going on."),
        ({}, {"has_policy": False}, "There is no policy to train from yet: add a model and promote it."),
        ({}, {"project_is_paused": True}, "The project is paused: an admin ends that in its settings."),
        ({"paused_at": NOON}, {"paused_by": "ada"}, "Paused by ada until somebody ends it."),
        (
            {"paused_at": NOON, "paused_until": NOON + timedelta(hours=1)},
            {"paused_by": "ada"},
            "Paused by ada until 13:00.",
        ),
        (
            {"trained_at": NOON - timedelta(minutes=59)},
            {},
            "The next run may start in 1 minute, at 12:01.",
        ),
        (
            {"most_runs_a_day": 3},
            {"runs_today": 3},
            "3 of 3 runs of today are used up; the next may start at midnight.",
        ),
        (
            {"fixed_times": ["03:00", "15:30"], "fixed_time_seen_at": NOON},
            {},
            "The next fixed time is 15:30.",
        ),
        (
            {"fixed_times": ["03:00"], "fixed_time_seen_at": NOON},
            {},
            "The next fixed time is 03:00 tomorrow.",
        ),
    ],
)
def test_what_is_said_when_nothing_starts(rule, known, words):
    decision = decide(_rule(**rule), _known(**known))
    assert (decision.starts, decision.words) == (False, words)


def test_a_pause_ends_by_itself():
    rule = _rule(paused_at=NOON, paused_until=NOON + timedelta(hours=1))
    waiting = decide(rule, _known(now=NOON + timedelta(minutes=59)))
    assert (waiting.starts, waiting.may_start_at) == (False, NOON + timedelta(hours=1))
    assert decide(rule, _known(now=NOON + timedelta(hours=1))).starts


def test_after_each_failure_in_a_row_the_wait_is_twice_as_long_and_a_day_at_most():
    for in_a_row, hours in [(1, 1), (2, 2), (3, 4), (5, 16), (6, 24), (1000, 24)]:
        failure = Failure("Run 9", NOON, in_a_row)
        waiting = decide(_rule(), _known(failure=failure))
        assert waiting.may_start_at == NOON + timedelta(hours=hours)
        assert not decide(_rule(), _known(failure=failure, now=NOON + timedelta(hours=hours, seconds=-1))).starts
        assert decide(_rule(), _known(failure=failure, now=NOON + timedelta(hours=hours))).starts
    one, several = (decide(_rule(), _known(failure=Failure("Run 9", NOON, n))).words for n in (1, 3))
    assert one == (
        "Run 9 failed, so the rule waits until 13:00, for somebody to look. "
        "Triples that only failed runs have used count as new."
    )
    assert several == (
        "The last 3 runs failed, so the rule waits until 16:00, for somebody to look. Triples that only failed runs "
        "have used count as new."
    )


def test_with_fixed_times_what_was_refused_waits_for_the_next_of_them():
    rule = _rule(refused_at=NOON, refusal="The disk is full.", fixed_times=["12:00"], fixed_time_seen_at=NOON)
    words = decide(rule, _known(now=NOON + timedelta(minutes=1))).words
    assert "The disk is full." in words
    assert "asked for again" not in words


def test_what_was_refused_is_asked_for_again_after_a_while():
    rule = _rule(refused_at=NOON, refusal="The disk is full.")
    waiting = decide(rule, _known(now=NOON + timedelta(minutes=1)))
    assert (waiting.starts, waiting.may_start_at) == (False, NOON + WAIT_AFTER_REFUSAL)
    assert waiting.words == (
        "A run was asked for at 12:00 and refused: The disk is full. It is asked for again at 12:10, or when the rule "
        "is saved."
    )
    assert decide(rule, _known(now=NOON + WAIT_AFTER_REFUSAL)).starts


@pytest.mark.parametrize(("triples", "prompts", "starts"), [(8, 2, True), (7, 2, False), (8, 1, False)])
def test_there_must_be_enough_to_train_on(triples, prompts, starts):
    decision = decide(_rule(), _known(trainable=Trainable(triples, prompts, 8, 2)))
    assert decision.starts == starts
    assert _words(decision, "enough to train on").startswith(
        "There is enough to train on" if starts else "There is not enough to train on"
    )


def test_the_earliest_moment_is_that_of_the_last_thing_to_give_way():
    rule = _rule(trained_at=NOON, most_runs_a_day=2, fixed_times=["01:00", "13:00"], fixed_time_seen_at=NOON)
    assert decide(rule, _known()).may_start_at == NOON + timedelta(hours=1), "at the very moment is early enough"
    midnight = datetime(2026, 6, 11, tzinfo=BERLIN)
    assert decide(rule, _known(runs_today=2)).may_start_at == midnight + timedelta(hours=1)
    rule.paused_at = NOON
    assert decide(rule, _known()).may_start_at is None
    too_few = decide(_rule(), _known(new_triples=1))
    assert too_few.may_start_at == NOON, "time does not stand in the way"


def test_a_fixed_time_is_caught_up_within_an_hour_and_then_missed():
    rule = _rule(fixed_times=["03:00"], fixed_time_seen_at=NOON - timedelta(days=1))
    three = NOON.replace(hour=3)
    late = decide(rule, _known(now=three + CATCH_UP))
    assert (late.starts, late.fixed_time, late.passed_by) == (True, three, "")
    missed = decide(rule, _known(now=three + CATCH_UP + timedelta(seconds=1)))
    assert (missed.starts, missed.fixed_time) == (False, three)
    assert missed.passed_by == "03:00 on 10 Jun was missed: the scheduler was down then."
    assert missed.may_start_at == three + timedelta(days=1)


def test_a_fixed_time_that_passes_by_says_why_and_is_over():
    rule = _rule(fixed_times=["12:00"], fixed_time_seen_at=NOON - timedelta(days=1))
    passes = decide(rule, _known(new_triples=38, triples_an_hour=4.0))
    assert (passes.starts, passes.fixed_time) == (False, NOON)
    assert passes.passed_by == "12:00 on 10 Jun passed by without a run. 38 of 50 triples were new."
    rule.fixed_time_seen_at, rule.passed_by = passes.fixed_time, passes.passed_by
    after = decide(rule, _known(now=NOON + timedelta(minutes=5)))
    assert (after.starts, after.fixed_time) == (False, None)
    assert _words(after, "fixed time") == f"The next fixed time is 12:00 tomorrow. {passes.passed_by}"


# Many decisions, one after the other


@given(times, zones, moments, spans, st.integers(30, 50 * 60))
def test_with_triples_enough_each_fixed_time_that_somebody_looks_in_time_starts_one_run(words, zone, begin, span, tick):
    rule = _rule(fixed_times=words, fixed_time_seen_at=begin, min_minutes_between=0)
    starts: list[datetime] = []
    now = begin
    while now < begin + span:
        now += timedelta(seconds=tick)
        decision = decide(rule, Known(now=now, zone=zone, new_triples=60))
        if decision.starts:
            starts.append(decision.fixed_time)
            rule.fixed_time_seen_at = decision.fixed_time
    expected, moment = [], fixed_times.following(words, zone, begin)
    while moment <= now:
        expected.append(moment)
        moment = fixed_times.following(words, zone, moment)
    # Of several that come between two looks there is one run, at the newest.
    newest_of_each_look = {fixed_times.newest(words, zone, started) for started in starts}
    assert set(starts) <= set(expected)
    assert len(starts) == len(newest_of_each_look) == len(set(starts))
    for missed in set(expected) - set(starts):
        assert any(missed < started <= missed + timedelta(seconds=tick) for started in starts)


@given(
    zones,
    moments,
    st.integers(1, 4),
    st.integers(0, 300),
    st.lists(st.timedeltas(timedelta(seconds=10), timedelta(hours=7)), max_size=40),
)
def test_no_day_has_more_runs_than_its_budget_and_no_two_are_too_close(zone, begin, most, minutes, waits):
    rule = _rule(most_runs_a_day=most, min_minutes_between=minutes)
    starts: list[datetime] = []
    now = begin
    for wait in waits:
        now += wait
        today = sum(started >= fixed_times.midnight_before(zone, now) for started in starts)
        decision = decide(rule, Known(now=now, zone=zone, new_triples=60, runs_today=today))
        if decision.starts:
            starts.append(now)
            rule.trained_at = now
        else:
            assert decision.may_start_at > now
    days = [started.astimezone(zone).date() for started in starts]
    assert all(days.count(day) <= most for day in days)
    assert all(later - earlier >= timedelta(minutes=minutes) for earlier, later in pairwise(starts))


@given(
    st.builds(
        _rule,
        retrains=st.booleans(),
        paused_at=st.none() | st.just(NOON),
        paused_until=st.none() | spans.map(lambda span: NOON + span),
        trained_at=st.none() | spans.map(lambda span: NOON - span),
        most_runs_a_day=st.integers(0, 3),
        fixed_times=st.just([]) | times,
        fixed_time_seen_at=st.none() | spans.map(lambda span: NOON - span),
        refused_at=st.none() | spans.map(lambda span: NOON - span),
        refusal=st.just("The disk is full."),
    ),
    st.builds(
        _known,
        new_triples=st.integers(0, 100),
        triples_an_hour=st.floats(0, 1e4),
        active_run=st.sampled_from(["", "Run 1"]),
        runs_today=st.integers(0, 4),
        failure=st.none() | spans.map(lambda span: Failure("Run 2", NOON - span)),
        has_policy=st.booleans(),
        cancelled_run=st.sampled_from(["", "Run 3"]),
        recipe_refusal=st.sampled_from([None, "", "The recipe cannot be used."]),
        trainable=st.none() | st.builds(Trainable, st.integers(0, 20), st.integers(0, 4), st.just(8), st.just(2)),
        project_is_paused=st.booleans(),
    ),
)
def test_a_run_starts_exactly_when_nothing_is_unmet_and_everything_has_words(rule, known):
    decision = decide(rule, known)
    assert decision.starts == (not _unmet(decision))
    assert decide(rule, known) == decision
    assert all(condition.words.endswith(".") for condition in decision.conditions)
    assert decision.fixed_time is None or decision.starts != bool(decision.passed_by)
    if decision.may_start_at is not None:
        assert decision.may_start_at >= NOON
        waits = {"on", "not paused", "no failure", "no refusal", "time since the last run", "runs of the day"}
        later = decide(rule, _at(known, decision.may_start_at))
        assert not {*waits, "fixed time"} & set(_unmet(later)), "what was said of time holds"


def _at(known: Known, now: datetime) -> Known:
    """The same some time later, with the runs of a new day."""
    same_day = fixed_times.midnight_before(known.zone, now) <= known.now
    return Known(**vars(known) | {"now": now, "runs_today": known.runs_today if same_day else 0})
