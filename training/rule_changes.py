"""What people change about what happens by itself.

Only what is named is written: the scheduler keeps other things on the same row.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from labeling.models import Project
from training import fixed_times
from training.exceptions import Rejected
from training.models import LoopRule
from training.recipe import Recipe

CHANGED_BY_PEOPLE = (
    *("open_pairs_wanted", "effects_per_person", "retrains", "min_new_triples", "min_minutes_between", "fixed_times"),
    *("most_runs_a_day", "reference", "kl_first_budget"),
)
# What was refused is asked for again at once when somebody has changed something.
NOT_REFUSED: dict[str, Any] = {"refused_at": None, "refusal": ""}
PAUSES = {"hour": "for an hour", "midnight": "until tomorrow", "open": "until I end it"}


def zone() -> ZoneInfo:
    """Whose clock says what a day and a fixed time is."""
    return ZoneInfo(settings.TIME_ZONE)


def loop_rule(project: Project) -> LoopRule:
    rule, _ = LoopRule.objects.get_or_create(project=project)
    return rule


@transaction.atomic
def change_rule(*, project: Project, **values: Any) -> None:
    """Write what people decide about the loop. ``Rejected`` names the value that cannot be."""
    if unknown := sorted(set(values) - set(CHANGED_BY_PEOPLE)):
        raise Rejected(f"There is no setting “{unknown[0]}”. Known: {', '.join(CHANGED_BY_PEOPLE)}.")
    rule = _locked(project)
    before = {"retrains": rule.retrains, "fixed_times": rule.fixed_times}
    if "fixed_times" in values:
        values["fixed_times"] = fixed_times.parse_times(_listed(values["fixed_times"]))
    for name, value in values.items():
        setattr(rule, name, value)
    _refuse_what_cannot_be(rule, set(values))
    changed = {name: getattr(rule, name) for name in values} | NOT_REFUSED
    if rule.retrains and before != {"retrains": rule.retrains, "fixed_times": rule.fixed_times}:
        # A time that came before anybody asked for it starts nothing.
        changed |= {"fixed_time_seen_at": timezone.now(), "passed_by": ""}
    LoopRule.objects.filter(pk=rule.pk).update(**changed)


def _listed(times: Any) -> list[Any]:
    if not isinstance(times, list | tuple):
        raise Rejected("Fixed times are a list of times of day, such as 03:00.")
    return list(times)


def _refuse_what_cannot_be(rule: LoopRule, names: set[str]) -> None:
    try:
        rule.clean_fields(exclude={field.name for field in LoopRule._meta.fields} - names)
    except ValidationError as error:
        name, reasons = next(iter(error.message_dict.items()))
        raise Rejected(f"{name} cannot be {getattr(rule, name)!r}: {' '.join(reasons)}") from error
    if rule.min_new_triples < 1:
        raise Rejected("min_new_triples must be at least 1: a run without a new triple would only repeat the last one.")


def pause_rule(*, project: Project, by: User | None, until: datetime | None = None) -> None:
    """Start no run by itself for now; without ``until``, until somebody ends it. What people ask for still runs."""
    if until is not None and until <= timezone.now():
        raise Rejected("A pause must end in the future.")
    paused = {"paused_at": timezone.now(), "paused_until": until, "paused_by": by}
    LoopRule.objects.filter(pk=loop_rule(project).pk).update(**paused)


def end_pause(*, project: Project) -> None:
    """Also of a rule that is not paused; it is what was asked for."""
    LoopRule.objects.filter(pk=loop_rule(project).pk).update(
        paused_at=None, paused_until=None, paused_by=None, **NOT_REFUSED
    )


def pause_end(name: str) -> datetime | None:
    """When a pause of ``PAUSES`` is over; ``None``: when somebody ends it."""
    now = timezone.now()
    ends = {"hour": now + timedelta(hours=1), "midnight": fixed_times.midnight_after(zone(), now), "open": None}
    if name not in ends:
        raise Rejected(f"There is no pause “{name[:40]}”; choose {', '.join(ends)}.")
    return ends[name]


def use_recipe(*, project: Project, recipe: dict[str, Any], by: User | None = None) -> None:
    """Let runs of the rule differ from the usual recipe by ``recipe``; empty: the usual one again.

    What is written is only what differs, so that a later version's better default reaches the rest.
    """
    whole, usual = Recipe.from_dict(recipe).to_dict(), Recipe().to_dict()
    differs = {name: value for name, value in whole.items() if value != usual[name]}
    rows = LoopRule.objects.filter(pk=loop_rule(project).pk)
    rows.update(recipe=differs, recipe_by=by if differs else None, **NOT_REFUSED)


def _locked(project: Project) -> LoopRule:
    rule = loop_rule(project)
    return LoopRule.objects.select_for_update().get(pk=rule.pk)
