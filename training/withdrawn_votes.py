"""Votes that a gate rests on and that were withdrawn since. Pure reading: what a gate has come to stays as it is.

A gate that people are still asked about rests on nothing yet: it counts anew whenever a vote comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from django.db.models import Q, QuerySet

from labeling.models import Preference, Project, Withdrawal
from labeling.withdrawals import without_unfinished
from training.models import Checkpoint, Gate, GatePair, Promotion
from training.taints import reached

RESTS = (Gate.Stage.WAITING, Gate.Stage.DECIDED)
SHOWN = ("project", "candidate", "current", "promotion")


@dataclass(frozen=True)
class Loss:
    """A gate, how many votes it rests on, and how many of these are gone."""

    gate: Gate
    votes: int
    gone: int

    @property
    def rests_on(self) -> str:
        return f"{self.votes:,} vote{'' if self.votes == 1 else 's'}"

    @property
    def promoted_id(self) -> int | None:
        """The checkpoint that became the policy by it."""
        promotion: Promotion | None = getattr(self.gate, "promotion", None)
        return promotion.checkpoint_id if promotion else None

    @property
    def did(self) -> str:
        """What came of it, as the rest of a sentence."""
        gate = self.gate
        if gate.is_open:
            return "waits for an admin"
        if promotion := getattr(gate, "promotion", None):
            return f"rolled back to {gate.current}" if promotion.is_rollback else f"promoted {gate.candidate}"
        kept = "kept" if gate.kind == Gate.Kind.WATCH else "held"
        return f"{'rejected' if gate.outcome == Gate.Outcome.REJECT else kept} {gate.candidate}"


def reached_by(withdrawal: Withdrawal) -> list[Loss]:
    """The gates whose votes it has taken, or will take; the newest first. It need not be saved."""
    gone = dict(_on_gates(withdrawal.project_id, reached(withdrawal)).values_list("pk", "pair"))
    return _losses(_gates_of(gone.values()), gone.keys())


def by_withdrawal(withdrawals: Sequence[Withdrawal]) -> dict[int, list[Loss]]:
    """The same of several of one project that are written down; those that took no such vote are left out."""
    done = [withdrawal for withdrawal in withdrawals if withdrawal.finished_at]
    taken: dict[int, set[int]] = {}
    pairs: set[int] = set()
    if done:
        rows = _on_gates(done[0].project_id, Q(withdrawal__in=done))
        for withdrawal_id, preference_id, pair_id in rows.values_list("withdrawal", "pk", "pair"):
            taken.setdefault(withdrawal_id, set()).add(preference_id)
            pairs.add(pair_id)
    gates = _gates_of(pairs)
    found = {pk: _losses(gates, gone) for pk, gone in taken.items()}
    found |= {withdrawal.pk: reached_by(withdrawal) for withdrawal in withdrawals if not withdrawal.finished_at}
    return {pk: losses for pk, losses in found.items() if losses}


def of_gate(gate: Gate) -> Loss | None:
    """What one gate has lost; ``None`` where that is nothing."""
    votes = _rests_on(gate)
    if not votes or gate.stage not in RESTS:
        return None
    there = Preference.objects.filter(pk__in=votes, withdrawal=None)
    gone = len(votes) - without_unfinished(gate.project, there).count()
    return Loss(gate, len(votes), gone) if gone else None


def behind(checkpoint: Checkpoint, project: Project) -> list[Loss]:
    """Of the gates by which it became the policy those that have lost votes since, the newest first."""
    gates = Gate.objects.filter(project=project, promotion__checkpoint=checkpoint).select_related(*SHOWN)
    return [loss for gate in gates.defer("report") if (loss := of_gate(gate))]


def _on_gates(project_id: int, rows: Q) -> QuerySet[Preference]:
    of_gates = GatePair.objects.filter(gate__project=project_id, gate__stage__in=RESTS)
    return Preference.objects.filter(rows, pair__in=of_gates.values("pair")).order_by()


def _gates_of(pair_ids: Iterable[int]) -> list[Gate]:
    of_pairs = GatePair.objects.filter(pair__in=set(pair_ids)).values("gate")
    return list(Gate.objects.filter(pk__in=of_pairs).select_related(*SHOWN).defer("report"))


def _losses(gates: Iterable[Gate], gone: Set[int]) -> list[Loss]:
    losses = (Loss(gate, len(votes), len(votes & gone)) for gate in gates if (votes := _rests_on(gate)))
    return [loss for loss in losses if loss.gone]


def _rests_on(gate: Gate) -> set[int]:
    """Nothing where it was ended for another reason than its votes, such as another promotion."""
    outcome, _ = gate.votes.get("decided") or ("", 0)
    by_votes = gate.is_open or gate.decided_by_id is not None or outcome == gate.outcome
    return set(gate.votes.get("preferences", ())) if by_votes else set()
