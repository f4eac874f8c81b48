"""When a project is measured, and how what was found is stored: P(A is better), seats, today's report.

For background tasks only (numpy). Every minute each project with something new is looked at:

- *Everything* is measured anew, the label model starting from its last parameters, with the first new judgement of a
  day, then from none as well; once there are ``LEAST_NEW`` and ``NEW_SHARE`` more judgements than it knew; and at the
  latest ``PATIENCE`` after the last time.
- In between only the pairs with new judgements or decisions are given their probability, with the annotators as they
  were found the last time: a few rows instead of all.

Every change of a pair's judgements takes its probability away, in the same statement that counts it (``records``). So
what is written here was found from the judgements that the pair has, and a pair without one waits to be measured, also
where no newer row says so: after a withdrawal, or where an older judgement was committed after a newer one was read.
Two at once are harmless: who finds another report than the one they began from measures again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, TypeVar

from django.db import IntegrityError, connection, transaction
from django.db.models import Model, QuerySet
from django.utils import timezone

from labeling import posterior
from labeling.agreement import LEAST_PAIRS
from labeling.judgement_columns import PairColumns, load_all, load_criteria, load_of
from labeling.models import Adjudication, Pair, Preference, Project, QualityReport, Seat, Withdrawal
from labeling.posterior import Adjudication as Decision
from labeling.posterior import Fit, Parameters
from labeling.quality import LEAST_VOTES
from labeling.quality_report import report
from labeling.votes import VoteColumns

log = logging.getLogger(__name__)

LEAST_NEW, NEW_SHARE = 20, 0.02
PATIENCE = timedelta(minutes=15)
BATCH = 1000
# Whoever reads a probability of these needs no more digits, and a refit moves all of them a little.
WRITTEN_BEYOND = 0.002
TRIES = 3

_Row = TypeVar("_Row", bound=Model)


@dataclass(frozen=True)
class Reach:
    """How far a measurement has read: the newest judgement and the newest decision it knows."""

    preference_id: int = 0
    adjudication_id: int = 0


@dataclass(frozen=True)
class Known:
    """The newest report of a project: how far it has read, and how far the last measurement of everything had.

    ``is_whole``: nothing was measured since then.
    """

    pk: int
    day: date
    computed_at: datetime
    reach: Reach
    whole: Reach
    whole_at: datetime
    judgements: int
    is_whole: bool


def measure_all() -> int:
    """Measure every project with something new; returns how many. One in trouble does not stop the others."""
    measured = 0
    for project in Project.objects.order_by("pk"):
        try:
            measured += measure(project)
        except Exception:
            log.exception("The judgements of project %s could not be measured", project.slug)
    return measured


def measure(project: Project) -> bool:
    """Bring the project's figures up to its newest judgement; ``False`` where nothing was new."""
    for _ in range(TRIES):
        known, newest = _known(project), _newest(project)
        if not _is_behind(project, known, newest):
            return False
        if known is None or _asks_for_everything(project, known):
            is_stored = _measure_everything(project, known, newest)
        else:
            is_stored = _measure_changes(project, known, newest)
        if is_stored:
            return True
    log.warning("Project %s is being measured by others; it waits for the next time", project.slug)
    return False


# When


def _known(project: Project) -> Known | None:
    """Without the figures themselves, which may be large."""
    rows = QualityReport.objects.filter(project=project)
    row = rows.values_list("pk", "day", "computed_at", "last_preference_id", "data__reach").first()
    if row is None or not row[4]:
        return None
    pk, day, computed_at, preference_id, reach = row
    return Known(
        pk=pk,
        day=day,
        computed_at=computed_at,
        reach=Reach(preference_id, reach["adjudication_id"]),
        whole=Reach(reach["whole"]["preference_id"], reach["whole"]["adjudication_id"]),
        whole_at=datetime.fromisoformat(reach["whole"]["at"]),
        judgements=reach["whole"]["judgements"],
        is_whole=reach["whole"].get("is_all", False),
    )


def _newest(project: Project) -> Reach:
    preferences = Preference.objects.filter(project=project).order_by("-pk").values_list("pk", flat=True)
    decisions = Adjudication.objects.filter(pair__project=project).order_by("-pk").values_list("pk", flat=True)
    return Reach(preferences.first() or 0, decisions.first() or 0)


def _is_behind(project: Project, known: Known | None, newest: Reach) -> bool:
    if known is None:
        return newest.preference_id > 0
    if known.reach != newest or _was_withdrawn_since(project, known):
        return True
    if not known.is_whole and timezone.now() - known.whole_at > PATIENCE:
        return True
    return Pair.objects.filter(project=project).to_measure().exists()


def _asks_for_everything(project: Project, known: Known) -> bool:
    if known.day != timezone.localdate() or timezone.now() - known.whole_at > PATIENCE:
        return True
    if _was_withdrawn_since(project, known):  # what is known of all the others has been learnt from it as well
        return True
    new = Preference.objects.filter(project=project, pk__gt=known.whole.preference_id).count()
    return new >= max(LEAST_NEW, NEW_SHARE * known.judgements)


def _was_withdrawn_since(project: Project, known: Known) -> bool:
    return Withdrawal.objects.filter(project=project, finished_at__gt=known.whole_at).exists()


# How


def _measure_everything(project: Project, known: Known | None, newest: Reach) -> bool:
    judgements, pairs = load_all(project)
    counted = judgements.first_looks.votes
    fitted = _fitted(project, known, counted, pairs.decisions)
    _write_probabilities(pairs.with_p(fitted.posterior))
    _write_seats(project, fitted)
    whole = {
        "preference_id": newest.preference_id,
        "adjudication_id": newest.adjudication_id,
        "at": timezone.now().isoformat(),
        "judgements": len(counted),
        "is_all": True,
    }
    data = report(judgements, fitted) | {
        "criteria": load_criteria(project),
        "parameters": fitted.parameters.as_json(),
        "model": {"has_converged": fitted.has_converged, "steps": fitted.iterations},
        "reach": {"adjudication_id": newest.adjudication_id, "whole": whole},
    }
    return _store(project, known, newest, data)


def _fitted(project: Project, known: Known | None, votes: VoteColumns, decisions: list[Decision]) -> Fit:
    """From the last parameters, and with the first measurement of a day from the start as well: the better is kept.

    Otherwise the model would stay for ever near what it took the first few judgements for.
    """
    start = _parameters(known) if known else None
    fitted = posterior.fit(votes, adjudications=decisions, start=start)
    if known and known.day != timezone.localdate():
        fitted = posterior.better(fitted, posterior.fit(votes, adjudications=decisions))
    if not fitted.has_converged:
        log.warning(
            "The label model of project %s has not come to rest in %d steps; its figures may be a little off",
            project.slug,
            fitted.iterations,
        )
    return fitted


def _measure_changes(project: Project, known: Known, newest: Reach) -> bool:
    changed, parameters = _changed_pairs(project, known.reach), _parameters(known)
    for start in range(0, len(changed), BATCH):
        votes, pairs = load_of(changed[start : start + BATCH])
        found = posterior.update(parameters, votes, adjudications=pairs.decisions)
        _write_probabilities(pairs.with_p(found))
    row = QualityReport.objects.only("data").get(pk=known.pk)
    row.data["reach"]["adjudication_id"] = newest.adjudication_id
    row.data["reach"]["whole"]["is_all"] = False
    return _store(project, known, newest, row.data)


def _changed_pairs(project: Project, since: Reach) -> list[int]:
    judged = Preference.objects.filter(project=project, pk__gt=since.preference_id).values_list("pair_id", flat=True)
    decided = Adjudication.objects.filter(pair__project=project, pk__gt=since.adjudication_id)
    waiting = Pair.objects.filter(project=project).to_measure().values_list("pk", flat=True)
    return sorted({*judged, *decided.values_list("pair_id", flat=True), *waiting})


def _parameters(known: Known) -> Parameters:
    stored = QualityReport.objects.filter(pk=known.pk).values_list("data__parameters", flat=True)
    return Parameters.from_json(stored.get())


# Storing


def _store(project: Project, known: Known | None, newest: Reach, data: dict[str, Any]) -> bool:
    """Write today's report; ``False`` if somebody has written one since ``known`` was read."""
    today, now = timezone.localdate(), timezone.now()
    if known and known.day == today:
        same = QualityReport.objects.filter(pk=known.pk, computed_at=known.computed_at)
        return same.update(data=data, last_preference_id=newest.preference_id, computed_at=now) == 1
    try:
        with transaction.atomic():
            row = QualityReport(project=project, day=today, last_preference_id=newest.preference_id, data=data)
            row.save(force_insert=True)
    except IntegrityError:
        return False
    return True


def _write_probabilities(pairs: PairColumns) -> None:
    """Only those that moved, in short transactions: an annotator who answers meanwhile does not wait for long.

    A pair that is no more as it was read has been judged or withdrawn since; it is measured the next time.
    """
    changed = pairs.moved_by(WRITTEN_BEYOND)
    for start in range(0, len(changed), BATCH):
        batch = {one.pair_id: one for one in changed[start : start + BATCH]}
        with transaction.atomic():
            free = _locked_if_free(Pair.objects.filter(pk__in=batch)).values_list("pk", "p_a", "judgements_count")
            found = [(batch[pk].new_p_a, pk) for pk, *now in free if now == [batch[pk].p_a, batch[pk].judgements]]
            with connection.cursor() as cursor:
                # One statement with a thousand cases takes the database seconds; a thousand small ones do not.
                cursor.executemany("UPDATE labeling_pair SET p_a = %s WHERE id = %s", found)


def _write_seats(project: Project, fitted: Fit) -> None:
    """What is known of each person; nothing where too few judgements speak."""
    people = {annotator.annotator_id: annotator for annotator in fitted.annotators}
    with transaction.atomic():
        free = _locked_if_free(Seat.objects.filter(project=project, annotator__in=people))
        seats = list(Seat.objects.filter(pk__in=list(free.values_list("pk", flat=True))))
        for seat in seats:
            one = people[seat.annotator_id]
            seat.reliability = one.reliability if one.shared >= LEAST_PAIRS else None
            seat.left_bias = one.left if one.decided >= LEAST_VOTES else None
        Seat.objects.bulk_update(seats, ["reliability", "left_bias"], batch_size=BATCH)


def _locked_if_free(rows: QuerySet[_Row]) -> QuerySet[_Row]:
    """Lock these rows but those that somebody is writing: nobody waits for this job, and it waits for nobody.

    What is left out differs from what is found the next time, and is written then.
    """
    skips = connection.features.has_select_for_update_skip_locked
    return rows.select_for_update(skip_locked=skips, no_key=True, of=("self",)).order_by("pk")
