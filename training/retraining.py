"""Whether the rule of a project would start a run now, and why. Pure: what is known in, a decision in words out.

Every condition is looked at, whatever the ones before it say, so that a person sees all that stands in the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from training import fixed_times
from training.models import LoopRule

# A fixed time that came while nobody looked is still acted on for so long.
CATCH_UP = timedelta(hours=1)
# After a failed run the rule leaves people time to look: so long, twice as long after the next, and so on.
WAIT_AFTER_FAILURE = timedelta(hours=1)
LONGEST_WAIT_AFTER_FAILURE = timedelta(days=1)
# What was refused for a reason that no condition knows of is not asked for again every ten seconds: each attempt writes
# all triples into a file.
WAIT_AFTER_REFUSAL = timedelta(minutes=10)
FIXED_TIME = "fixed time"


@dataclass(frozen=True)
class Failure:
    """The newest run has failed, and so have the ``in_a_row`` newest ones."""

    run: str
    at: datetime
    in_a_row: int = 1


@dataclass(frozen=True)
class Trainable:
    """Triples that say which response is better, held-out ones not among them, and how many a run needs at least."""

    triples: int
    prompts: int
    least_triples: int
    least_prompts: int

    @property
    def is_enough(self) -> bool:
        return self.triples >= self.least_triples and self.prompts >= self.least_prompts


@dataclass(frozen=True)
class Known:
    """What a decision follows from, beside the rule itself.

    ``runs_today``: those that the rule has started since midnight. ``triples_an_hour``: today's pace, 0 if there is
    none to speak of. ``zone``: whose clock says what a day and a fixed time is. ``cancelled_run``: the newest one, if a
    person has ended it. ``recipe_refusal``: why the rule's recipe cannot be used; empty if it can. That and
    ``trainable`` are ``None`` where nobody has looked yet, and no condition then.
    """

    now: datetime
    zone: ZoneInfo
    new_triples: int = 0
    triples_an_hour: float = 0.0
    active_run: str = ""
    runs_today: int = 0
    failure: Failure | None = None
    cancelled_run: str = ""
    recipe_refusal: str | None = None
    trainable: Trainable | None = None
    has_policy: bool = True
    project_is_paused: bool = False
    paused_by: str = ""


@dataclass(frozen=True)
class Condition:
    """One of the things that must hold. ``may_hold_at``: when it will at the earliest; ``None``: time alone won't do.
    ``later``: the words for it once the moment is over."""

    name: str
    is_met: bool
    words: str
    may_hold_at: datetime | None = None
    later: str = ""


@dataclass(frozen=True)
class Decision:
    """``starts``: a run would start now. ``may_start_at``: the earliest moment at which time stands in the way no more;
    ``None`` where a person does. ``fixed_time``: the one that is due now, to be acted on or let pass; ``passed_by``:
    what is to be said of it if it passes."""

    starts: bool
    words: str
    conditions: tuple[Condition, ...]
    may_start_at: datetime | None = None
    fixed_time: datetime | None = None
    passed_by: str = ""


def decide(rule: LoopRule, known: Known) -> Decision:
    without_clock = tuple(_conditions(rule, known))
    due = due_fixed_time(rule, known)
    at_its_time = _at_a_fixed_time(rule, known, due)
    conditions = (*without_clock, at_its_time) if at_its_time else without_clock
    unmet = [condition for condition in conditions if not condition.is_met]
    words = unmet[0].words if unmet else f"{_counted(known.new_triples)}, and nothing stands in the way."
    return Decision(
        starts=not unmet,
        words=words,
        conditions=conditions,
        may_start_at=_may_start_at(rule, known, conditions),
        fixed_time=due,
        passed_by=_passed_by(known, due, unmet) if due and unmet else "",
    )


def _conditions(rule: LoopRule, known: Known) -> Iterator[Condition]:
    yield _is_on(rule)
    yield _is_not_paused(rule, known)
    yield _has_a_policy(known)
    yield _no_run_goes_on(known)
    yield _has_not_failed(known)
    if refused := _was_just_refused(rule, known):
        yield refused
    yield _enough_is_new(rule, known)
    yield _long_enough_ago(rule, known)
    yield _within_the_days_budget(rule, known)
    if known.recipe_refusal is not None:
        yield _has_a_recipe(known.recipe_refusal, known)
    if known.trainable is not None:
        yield _enough_to_train_on(known.trainable, known)


def _is_on(rule: LoopRule) -> Condition:
    words = "Training by itself is on." if rule.retrains else "Training by itself is off."
    return Condition("on", rule.retrains, words)


def _is_not_paused(rule: LoopRule, known: Known) -> Condition:
    if known.project_is_paused:
        words = "The project is paused: an admin ends that in its settings."
        return Condition("not paused", False, words, None, "The project was paused.")
    if not is_paused(rule, known.now):
        return Condition("not paused", True, "It is not paused.", known.now)
    by = f" by {known.paused_by}" if known.paused_by else ""
    until = clock(rule.paused_until, known) if rule.paused_until else "somebody ends it"
    return Condition("not paused", False, f"Paused{by} until {until}.", rule.paused_until, f"It was paused{by}.")


def is_paused(rule: LoopRule, now: datetime) -> bool:
    return rule.paused_at is not None and (rule.paused_until is None or now < rule.paused_until)


def _has_a_policy(known: Known) -> Condition:
    if known.has_policy:
        return Condition("a policy", True, "There is a policy to train from.", known.now)
    words = "There is no policy to train from yet: add a model and promote it."
    return Condition("a policy", False, words, None, "There was no policy to train from.")


def _no_run_goes_on(known: Known) -> Condition:
    if known.active_run:
        later = f"{known.active_run} was going on."
        return Condition("no other run", False, f"{known.active_run} is going on.", known.now, later)
    return Condition("no other run", True, "No other run is going on.", known.now)


def _has_not_failed(known: Known) -> Condition:
    failure = known.failure
    if failure is None:
        return Condition("no failure", True, "The newest run has not failed.", known.now)
    wait = min(WAIT_AFTER_FAILURE * 2 ** min(failure.in_a_row - 1, 10), LONGEST_WAIT_AFTER_FAILURE)
    until = failure.at + wait
    if known.now >= until:
        return Condition("no failure", True, f"{failure.run} failed, and the wait after it is over.", known.now)
    runs = f"{failure.run} failed" if failure.in_a_row == 1 else f"The last {failure.in_a_row} runs failed"
    words = (
        f"{runs}, so the rule waits until {clock(until, known)}, for somebody to look. "
        "Triples that only failed runs have used count as new."
    )
    return Condition("no failure", False, words, until, f"{runs} shortly before.")


def _was_just_refused(rule: LoopRule, known: Known) -> Condition | None:
    if rule.refused_at is None or known.now >= rule.refused_at + WAIT_AFTER_REFUSAL:
        return None
    until = rule.refused_at + WAIT_AFTER_REFUSAL
    words = f"A run was asked for at {clock(rule.refused_at, known)} and refused: {rule.refusal}"
    if not rule.fixed_times:  # else at the next of them, as the condition of these says
        words += f" It is asked for again at {clock(until, known)}, or when the rule is saved."
    return Condition("no refusal", False, words, until, "A run was refused shortly before.")


def _enough_is_new(rule: LoopRule, known: Known) -> Condition:
    new, wanted = known.new_triples, rule.min_new_triples
    if new >= wanted:
        return Condition("enough is new", True, f"{_counted(new)}; {wanted:,} are enough.", known.now)
    words, later = f"{new:,} of {wanted:,} new triples", f"{new:,} of {wanted:,} triples were new."
    if known.triples_an_hour > 0:
        words += f"; at today’s pace the rest comes in about {_span((wanted - new) / known.triples_an_hour)}"
    if known.cancelled_run:
        words += f". Those of {known.cancelled_run} are not new any more, because somebody has cancelled it"
    return Condition("enough is new", False, f"{words}.", known.now, later)


def _long_enough_ago(rule: LoopRule, known: Known) -> Condition:
    if rule.trained_at is None:
        return Condition("time since the last run", True, "No run was asked for yet.", known.now)
    until = rule.trained_at + timedelta(minutes=rule.min_minutes_between)
    if known.now >= until:
        words = f"The last run was asked for {rule.min_minutes_between:,} minutes ago or more."
        return Condition("time since the last run", True, words, known.now)
    minutes = max(1, round((until - known.now) / timedelta(minutes=1)))
    words = f"The next run may start in {minutes:,} minute{'' if minutes == 1 else 's'}, at {clock(until, known)}."
    return Condition("time since the last run", False, words, until, "The last run was too short a while ago.")


def _within_the_days_budget(rule: LoopRule, known: Known) -> Condition:
    most, done = rule.most_runs_a_day, known.runs_today
    if not most:
        return Condition("runs of the day", True, "The number of runs a day is not limited.", known.now)
    if done < most:
        return Condition("runs of the day", True, f"{done} of {most} runs of today are used up.", known.now)
    until = fixed_times.midnight_after(known.zone, known.now)
    words = f"{done} of {most} runs of today are used up; the next may start at midnight."
    return Condition("runs of the day", False, words, until, f"{done} of {most} runs of the day were used up.")


def _has_a_recipe(refusal: str, known: Known) -> Condition:
    if refusal:
        return Condition("the recipe", False, refusal, None, refusal)
    return Condition("the recipe", True, "The recipe can be used.", known.now)


def _enough_to_train_on(trainable: Trainable, known: Known) -> Condition:
    there = f"{_many(trainable.triples, 'triple')} on {_many(trainable.prompts, 'prompt')}"
    least = f"{_many(trainable.least_triples, 'triple')} on {_many(trainable.least_prompts, 'prompt')}"
    if trainable.is_enough:
        words = f"There is enough to train on: {there}; {least} are enough."
        return Condition("enough to train on", True, words, known.now)
    words = f"There is not enough to train on: {there}, and at least {least} are needed."
    return Condition("enough to train on", False, words, known.now, f"There was not enough to train on: {there}.")


def due_fixed_time(rule: LoopRule, known: Known) -> datetime | None:
    """The newest of the fixed times, if nobody has acted on it or let it pass."""
    newest = fixed_times.newest(rule.fixed_times, known.zone, known.now)
    if newest is None or (rule.fixed_time_seen_at is not None and newest <= rule.fixed_time_seen_at):
        return None
    return newest


def _at_a_fixed_time(rule: LoopRule, known: Known, due: datetime | None) -> Condition | None:
    following = fixed_times.following(rule.fixed_times, known.zone, known.now)
    if following is None:
        return None
    if due is not None and known.now - due <= CATCH_UP:
        return Condition(FIXED_TIME, True, f"{clock(due, known)}, a fixed time, has come.", known.now)
    said = f" {rule.passed_by}" if rule.passed_by else ""
    words = f"The next fixed time is {clock(following, known)}.{said}"
    return Condition(FIXED_TIME, False, words, following)


def _passed_by(known: Known, due: datetime, unmet: list[Condition]) -> str:
    if known.now - due > CATCH_UP:
        return f"{_date(due, known)} was missed: the scheduler was down then."
    return passed_by(due, known, unmet[0].later)


def passed_by(due: datetime, known: Known, reason: str) -> str:
    """What is said of a fixed time from now on, if no run starts at it."""
    return f"{_date(due, known)} passed by without a run. {reason}".strip()


def _may_start_at(rule: LoopRule, known: Known, conditions: tuple[Condition, ...]) -> datetime | None:
    unmet = [condition for condition in conditions if not condition.is_met]
    if not unmet:
        return known.now
    moments = [condition.may_hold_at for condition in unmet if condition.name != FIXED_TIME]
    if None in moments:
        return None
    earliest = max([known.now, *filter(None, moments)])
    if not rule.fixed_times:
        return earliest
    # One that is due now passes by; one at the very moment is early enough.
    just_before = max(known.now, earliest - timedelta(microseconds=1))
    return fixed_times.following(rule.fixed_times, known.zone, just_before)


def clock(moment: datetime, known: Known) -> str:
    """As people say it: the time alone today, else with the day."""
    local, today = moment.astimezone(known.zone), known.now.astimezone(known.zone).date()
    at = f"{local:%H:%M}"
    if local.date() == today:
        return at
    if local.date() == today + timedelta(days=1):
        return f"{at} tomorrow"
    return _date(moment, known)


def _date(moment: datetime, known: Known) -> str:
    local = moment.astimezone(known.zone)
    return f"{local:%H:%M} on {local.day} {local:%b}"


def _counted(triples: int) -> str:
    return f"{triples:,} triple{' is' if triples == 1 else 's are'} new"


def _many(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _span(hours: float) -> str:
    if hours < 1:
        minutes = max(1, round(60 * hours))
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    if hours < 48:
        return f"{hours:.0f} hour{'' if round(hours) == 1 else 's'}"
    return f"{hours / 24:.0f} days"
