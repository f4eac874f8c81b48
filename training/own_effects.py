"""What the newest promotion has moved on pairs that one person has judged. Pure reading."""

from __future__ import annotations

import math
from dataclasses import dataclass

from django.db.models import QuerySet

from labeling.models import Choice, Preference, Project
from training.jobspec import TrainJob
from training.label_effects import own_judgements
from training.models import Checkpoint, Job, LabelEffect, LabelEffects, Promotion, TrainingRun

# Below half a point of a percentage nobody would see a difference in what is written.
HARDLY = 0.005


@dataclass(frozen=True)
class Move:
    """One judged pair. ``before`` and ``after``: how likely the model finds the chosen response the better one."""

    prompt: str
    chosen: str
    other: str
    before: float
    after: float
    answer_before: str
    answer_after: str

    @property
    def way(self) -> str:
        if abs(self.after - self.before) < HARDLY:
            return "hardly"
        return "towards" if self.after > self.before else "away"

    @property
    def percent_before(self) -> int:
        return round(100 * self.before)

    @property
    def percent_after(self) -> int:
        return round(100 * self.after)

    @property
    def is_same_answer(self) -> bool:
        return self.answer_before == self.answer_after


def newest_effects(project: Project) -> LabelEffects | None:
    done = LabelEffects.objects.filter(project=project, state=Job.State.SUCCEEDED)
    return done.select_related("project", "promotion__checkpoint", "before").first()


def is_past(effects: LabelEffects) -> bool:
    """Whether the model has changed once more since: nobody has looked, or has come to the end of it."""
    return Promotion.objects.filter(project=effects.project, pk__gt=effects.promotion_id).exists()


def own_of(effects: LabelEffects, annotator_id: int) -> QuerySet[Preference]:
    """The person's own judgements whose pairs were measured, the newest first."""
    mine = own_judgements(effects.project).filter(annotator_id=annotator_id)
    return mine.filter(pair_id__in=effects.rows.values("pair_id")).order_by("-created_at", "-pk")


def own_moves(effects: LabelEffects, annotator_id: int) -> list[Move]:
    beta = _beta(effects.promotion.checkpoint, effects.before)
    mine = own_of(effects, annotator_id).select_related("pair__prompt", "pair__response_a", "pair__response_b")
    rows = {row.pair_id: row for row in effects.rows.filter(pair_id__in=[preference.pair_id for preference in mine])}
    return [_move(preference, rows[preference.pair_id], beta) for preference in mine]


def _beta(*policies: Checkpoint) -> float:
    """One for both sides, or the two could not be compared: that of the run behind the newer policy, if a run is."""
    found = (TrainingRun.objects.filter(checkpoint=policy).first() for policy in policies)
    return next((run.beta for run in found if run), TrainJob.beta)


def _move(preference: Preference, row: LabelEffect, beta: float) -> Move:
    pair = preference.pair
    is_a = preference.choice == Choice.A
    chosen, other = (pair.response_a, pair.response_b) if is_a else (pair.response_b, pair.response_a)
    sign = 1 if is_a else -1
    return Move(
        prompt=str(pair.prompt.last_message["content"]),
        chosen=chosen.text,
        other=other.text,
        before=sigmoid(sign * beta * row.margin_before),
        after=sigmoid(sign * beta * row.margin_after),
        answer_before=row.answer_before,
        answer_after=row.answer_after,
    )


def sigmoid(z: float) -> float:
    """The probability that Bradley and Terry give a response whose reward is ``z`` higher."""
    return 1 / (1 + math.exp(-z)) if z >= 0 else 1 - 1 / (1 + math.exp(z))
