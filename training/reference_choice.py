"""Which frozen reference a run of the project is given, and why, in a sentence. Reads only.

The reference moves on only with a policy that a gate has passed and that is surely near enough to the first one. Where
it follows every policy, each round may go a little further, and nothing holds the last one to the model that people
began with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from labeling.models import Project
from training.models import Checkpoint, Gate, LoopRule, Promotion


class Choice(NamedTuple):
    checkpoint: Checkpoint
    reason: str


class KlFirst(NamedTuple):
    """KL from the first policy in nats a response, with its 95 % interval."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1f} nats a response (95\N{NARROW NO-BREAK SPACE}% interval {low:.1f} to {high:.1f})"

    def is_within(self, budget: float) -> bool:
        """Surely so: the whole interval is."""
        return self.interval[1] <= budget


def choose(project: Project) -> Choice | None:
    """``None`` before the first promotion."""
    rule = LoopRule.objects.filter(project=project).first() or LoopRule(project=project)
    in_force = promotions_in_force(project)
    first = Promotion.first_checkpoint(project)
    if first is None:
        return None
    if rule.reference == LoopRule.Reference.FIRST:
        return Choice(first, "The project’s first policy, as its rule says: distances stay comparable from run to run.")
    return _newest_that_qualifies(in_force, first, rule.kl_first_budget)


def promotions_in_force(project: Project) -> list[Promotion]:
    """One behind the other, that of the current policy last: a rollback takes away what it rolled back."""
    promotions: list[Promotion] = []
    rows = Promotion.objects.filter(project=project).select_related("checkpoint__base", "gate").order_by("pk")
    for promotion in rows:
        if promotion.is_rollback:
            while promotions and promotions[-1].checkpoint_id != promotion.checkpoint_id:
                promotions.pop()
        if not promotions or promotions[-1].checkpoint_id != promotion.checkpoint_id:
            promotions.append(promotion)
    return promotions


def _newest_that_qualifies(in_force: list[Promotion], first: Checkpoint, budget: float) -> Choice:
    passed_over = ""
    for promotion in reversed(in_force):
        if promotion.checkpoint == first:
            break
        if not (obstacle := _obstacle(promotion, budget)):
            return Choice(promotion.checkpoint, _why_promoted(promotion, passed_over, budget))
        passed_over = passed_over or obstacle
    if passed_over:
        return Choice(first, f"{passed_over}, so the reference stays the first policy.")
    return Choice(first, "The promoted policy, which is the project’s first one.")


def _why_promoted(promotion: Promotion, passed_over: str, budget: float) -> str:
    if passed_over:
        return f"{passed_over}, so the reference stays {promotion.checkpoint}, the newest that {promotion.gate} passed."
    distance = kl_of(promotion)
    return (
        f"The promoted policy: {promotion.gate} passed it, and its KL from the first policy, {distance}, is within the "
        f"budget of {budget:g}."
    )


def _obstacle(promotion: Promotion, budget: float) -> str:
    """Why the reference may not move to this policy, as the beginning of a sentence; empty if it may."""
    checkpoint, gate, distance = promotion.checkpoint, promotion.gate, kl_of(promotion)
    if gate is None:
        return f"The policy {checkpoint} was promoted by hand without a gate"
    if gate.advice != Gate.Outcome.PROMOTE:
        return f"The policy {checkpoint} was promoted although {gate} had not passed it"
    if checkpoint.removed_at is not None:
        return f"The files of the policy {checkpoint} were removed"
    if checkpoint.taints.exists():
        return f"Labels that the policy {checkpoint} was made of were withdrawn since"
    if distance is None:
        return f"Nothing says how far the policy {checkpoint} is from the first one"
    if not distance.is_within(budget):
        return f"The policy {checkpoint} is {distance} from the first one, not surely within the budget of {budget:g}"
    return ""


def kl_of(promotion: Promotion) -> KlFirst | None:
    """As the gate has measured it; else as the run that trained the checkpoint did."""
    report = promotion.gate.report if promotion.gate else {}
    return _distance(_part(report, "on_policy", "candidate")) or kl_first(promotion.checkpoint)


def kl_first(checkpoint: Checkpoint) -> KlFirst | None:
    """``None`` where it was not measured, as of a model that was not trained here."""
    return _distance(_part(checkpoint.details, "on_policy", "after"))


def budget_of(project: Project) -> float:
    """Nats a response that a policy of the project may be away from the first one."""
    budget = LoopRule.objects.filter(project=project).values_list("kl_first_budget", flat=True).first()
    return LoopRule().kl_first_budget if budget is None else budget


def _part(figures: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        figures = figures.get(name) or {}
    return figures


def _distance(figures: dict[str, Any]) -> KlFirst | None:
    value, interval = figures.get("kl_first"), figures.get("kl_first_interval")
    if value is None or not interval:
        return None
    low, high = interval
    return KlFirst(value, (low, high))
