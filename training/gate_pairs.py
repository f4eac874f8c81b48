"""The blind pairs of a gate: put among the others, read back as votes, closed when nothing is to be learnt from them.

Their rows in labeling are those of any other pair. That a pair belongs to a gate, and which side the candidate wrote,
is known to training alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import Count, Exists, Max, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Length
from django.utils import timezone

from labeling.exceptions import LabelingError
from labeling.models import Choice, Membership, Preference, Project, Prompt, Slot
from labeling.places import close_places
from labeling.services import NewResponse, add_pair
from labeling.withdrawals import without_unfinished
from training.gate import Decision, decide_measured
from training.length_control import LengthVote, doublings
from training.models import Checkpoint, Gate, GatePair, PairOrigin, Promotion, Taint

# Ordinary votes that say what length is worth: the newest, so that a page of years is not read at every vote.
MOST_ORDINARY_VOTES = 4000
# How long after a decision places that a worker died before closing are looked for.
CLOSE_WITHIN = timedelta(days=1)
PASSED_ON = 2  # people who skip a pair before it is no longer waited for


@dataclass(frozen=True)
class Votes:
    """One vote a pair, in the order in which they were given, for the candidate: 1, 1/2 or 0. Each with its length."""

    outcomes: list[float] = field(default_factory=list)
    lengths: list[LengthVote] = field(default_factory=list)
    preferences: list[int] = field(default_factory=list)
    both_bad: int = 0


# Adding


def add_gate_pair(gate: Gate, prompt: Prompt, candidate: NewResponse, current: NewResponse) -> GatePair | None:
    """Ask people which of the two responses is better, blind. Chance decides the sides, and the place in the queue.

    ``None`` where nobody is asked: the responses look the same, the pair is there already, there are as many as the
    rule wants, or the prompt was withdrawn. Harmless twice.
    """
    pairs = GatePair.objects.filter(gate=gate)
    if pairs.filter(prompt=prompt).exists() or pairs.count() >= most_votes(gate):
        return None
    if not Prompt.objects.in_use().filter(pk=prompt.pk).exists():
        return None
    side = random.choice((Slot.Side.A, Slot.Side.B))  # noqa: S311  (an order, not a secret)
    responses = (candidate, current) if side == Slot.Side.A else (current, candidate)
    try:
        with transaction.atomic():
            pair = add_pair(prompt=prompt, responses=responses, priority=_place_in_queue(gate.project))
            return GatePair.objects.create(pair=pair, gate=gate, prompt=prompt, candidate_side=side)
    except LabelingError:
        return None


def most_votes(gate: Gate) -> int:
    return int(gate.setting("watch_votes" if gate.kind == Gate.Kind.WATCH else "most_votes", 0))


def _place_in_queue(project: Project) -> float:
    """Anywhere in the newest round, where the pairs of the current policy are."""
    return Promotion.objects.filter(project=project).count() + random.random() * 0.999  # noqa: S311


def wants_people(gate: Gate, report: dict[str, Any]) -> bool:
    """Whether a gate that was measured goes on to ask people: the rule does, and the figures have not rejected yet."""
    if gate.kind == Gate.Kind.WATCH:
        return True
    return bool(gate.setting("asks_people")) and not decide_by_figures(gate, report).outcome


def decide_by_figures(gate: Gate, report: dict[str, Any]) -> Decision:
    return decide_measured(
        report,
        kl_first_budget=float(gate.setting("kl_first_budget")),
        asks_people=bool(gate.setting("asks_people")),
        is_tainted=is_tainted(gate.candidate),
    )


def is_tainted(checkpoint: Checkpoint) -> bool:
    return Taint.objects.filter(checkpoint=checkpoint).exists()


# Reading


def seen(gate: Gate) -> list[int]:
    """What changes with every vote, change of mind and withdrawal: how many count, and the newest of them."""
    found = _counted(gate).aggregate(votes=Count("pk"), newest=Max("pk"))
    return [found["votes"], found["newest"] or 0]


def newest_judgement(project: Project) -> int:
    """The key of the project's newest judgement; 0 before the first."""
    return Preference.objects.filter(project=project).order_by("-pk").values_list("pk", flat=True).first() or 0


def votes_of(gate: Gate, until: int | None = None) -> Votes:
    """The first judgement of each pair that counts. What was withdrawn, or taken out by a reviewer, does not.

    ``until``: none that was first given after this judgement. One that was changed since is what it says now.
    """
    sides = dict(GatePair.objects.filter(gate=gate).values_list("pair_id", "candidate_side"))
    rows = _as_first_said(_counted(gate), until)
    rows = rows.annotate(a=Length("pair__response_a__text"), b=Length("pair__response_b__text"))
    votes, done, both_bad = Votes(), set(), 0
    for pk, pair_id, prompt_id, choice, a, b in rows.values_list(
        "pk", "pair_id", "pair__prompt_id", "choice", "a", "b"
    ):
        if pair_id in done:
            continue
        done.add(pair_id)
        side = sides[pair_id]
        outcome = _outcome(choice, side)
        longer = doublings(a, b) if side == Slot.Side.A else doublings(b, a)
        votes.outcomes.append(outcome)
        votes.lengths.append(LengthVote(outcome, longer, prompt_id, is_compared=True))
        votes.preferences.append(pk)
        both_bad += choice == Choice.BOTH_BAD
    return replace(votes, both_bad=both_bad)


def ordinary_votes(project: Project, until: int | None = None) -> list[LengthVote]:
    """Votes on pairs that one policy wrote both responses of: they say what length is worth, and nothing of a gate.

    ``until``: none newer than this judgement.
    """
    decided = Preference.objects.counted().filter(project=project, choice__in=(Choice.A, Choice.B, Choice.TIE))
    if until is not None:
        decided = decided.filter(pk__lte=until)
    rows = (
        without_unfinished(project, decided)
        .filter(Exists(PairOrigin.objects.filter(pair=OuterRef("pair_id"))))
        .annotate(a=Length("pair__response_a__text"), b=Length("pair__response_b__text"))
        .order_by("-pk")
        .values_list("pair__prompt_id", "choice", "a", "b")
    )
    return [
        LengthVote(_outcome(choice, Slot.Side.A), doublings(a, b), prompt_id, is_compared=False)
        for prompt_id, choice, a, b in rows[:MOST_ORDINARY_VOTES]
    ]


def _counted(gate: Gate) -> QuerySet[Preference]:
    of_gate = GatePair.objects.filter(gate=gate).values("pair_id")
    counted = Preference.objects.counted().filter(pair_id__in=of_gate)
    return without_unfinished(gate.project, counted)


def _as_first_said(rows: QuerySet[Preference], until: int | None) -> QuerySet[Preference]:
    """In the order of their first versions, of which none is newer than ``until``.

    A change of mind is a new row. By that row it would move behind all votes given since, and the sequential test would
    read another path than the one that was looked at vote by vote.
    """
    versions = Preference.objects.filter(
        pair=OuterRef("pair_id"), annotator=OuterRef("annotator_id"), is_repeat=False, withdrawal=None
    )
    ordered = rows.annotate(first=Subquery(versions.order_by("pk").values("pk")[:1])).order_by("first")
    return ordered if until is None else ordered.filter(first__lte=until)


def _outcome(choice: str, side: str) -> float:
    if choice not in (Choice.A, Choice.B):
        return 0.5
    return 1.0 if choice == side else 0.0


def is_over(gate: Gate) -> bool:
    """Whether nobody has a pair of the gate before them or is to be given one.

    What two people, or all, have passed on is not waited for: a place stays open for whoever comes, but nobody may.
    """
    waiting = Slot.objects.filter(kind=Slot.Kind.PLANNED, state__in=(Slot.State.OPEN, Slot.State.LEASED))
    unread = Exists(waiting.filter(pair=OuterRef("pair_id")))
    people = Membership.objects.filter(project=gate.project_id, user__is_active=True).count()
    unjudged = GatePair.objects.filter(unread, gate=gate, pair__judgements_count=0, pair__is_retired=False)
    passed_on = unjudged.annotate(skips=Count("pair__skips")).filter(skips__gte=max(1, min(PASSED_ON, people)))
    return not unjudged.exclude(pk__in=passed_on.values("pk")).exists()


# Ending


def close_pairs(gate_id: int) -> int:
    """Ask nobody about what is left of a gate's pairs; whoever reads one may finish. Returns how many places closed.

    A pair at a time: no lock is held while the next one is waited for.
    """
    return sum(
        close_places(pair_id) for pair_id in list(_with_open_places().filter(gate=gate_id).values_list("pk", flat=True))
    )


def close_left_open() -> int:
    """Close what a process that ended the asking did not come to, and what has opened since. Harmless twice."""
    lately = timezone.now() - CLOSE_WITHIN
    decided = Q(gate__stage=Gate.Stage.DECIDED, gate__decided_at__gte=lately)
    over = _with_open_places().filter(decided | Q(gate__stage=Gate.Stage.WAITING))
    return sum(close_pairs(gate_id) for gate_id in set(over.values_list("gate_id", flat=True)))


def _with_open_places() -> QuerySet[GatePair]:
    return GatePair.objects.filter(Exists(Slot.objects.filter(pair=OuterRef("pair_id"), state=Slot.State.OPEN)))


def decide_by_promotion(promotion: Promotion, before: Checkpoint | None) -> Gate | None:
    """Decide, by whoever promotes its candidate elsewhere than on its page, the gate that compares it with the policy
    ``before``; ``None`` where there is none, or nothing is measured yet. What it advised stays.

    The caller has the project locked, and saves the promotion with this as its gate.
    """
    by = promotion.promoted_by
    if by is None or promotion.is_rollback:
        return None
    sides = {"project": promotion.project, "candidate": promotion.checkpoint, "current": before}
    measured = Gate.objects.filter(**sides, kind=Gate.Kind.RELEASE, stage__in=(Gate.Stage.ASKING, Gate.Stage.WAITING))
    gate: Gate | None = measured.select_for_update().first()
    if gate is None:
        return None
    gate.stage, gate.outcome = Gate.Stage.DECIDED, Gate.Outcome.PROMOTE
    gate.decided_by, gate.decided_at = by, timezone.now()
    gate.reasons = [f"{by} decided: promote. {promotion.reason}".strip(), *gate.reasons]
    gate.save(update_fields=["stage", "outcome", "decided_by", "decided_at", "reasons"])
    transaction.on_commit(partial(close_pairs, gate.pk))
    return gate


def settle_stale(project: Project, policy: Checkpoint) -> list[Gate]:
    """Hold every open gate whose two sides are no longer "candidate" and "current policy", now that this is the policy.

    The caller has the project locked, and cancels the measurement of those returned.
    """
    return [gate for gate in _open_gates(project) if _hold_if_stale(gate, policy)]


def _open_gates(project: Project) -> Iterator[Gate]:
    yield from Gate.objects.filter(project=project).exclude(stage=Gate.Stage.DECIDED).select_related("candidate")


def why_stale(gate: Gate, policy: Checkpoint | None) -> str:
    """Why what was compared is no longer the question; empty while it is."""
    is_watch = gate.kind == Gate.Kind.WATCH
    if policy is not None and policy.pk == (gate.candidate_id if is_watch else gate.current_id):
        return ""
    if policy is not None and policy.pk == gate.candidate_id:
        return f"{gate.candidate} became the policy meanwhile, before this was decided."
    named = f"the policy is now {policy}" if policy else "the project has no policy"
    compared = f"{gate.candidate} was watched as the policy" if is_watch else f"this compared with {gate.current}"
    again = "" if is_watch else " Compare again."
    return f"Another policy was promoted meanwhile: {compared}, and {named}.{again}"


def _hold_if_stale(gate: Gate, policy: Checkpoint) -> bool:
    reason = why_stale(gate, policy)
    if not reason:
        return False
    held = Gate.objects.filter(pk=gate.pk).exclude(stage=Gate.Stage.DECIDED)
    values = {"outcome": Gate.Outcome.HOLD, "reasons": [reason], "decided_at": timezone.now()}
    if held.update(stage=Gate.Stage.DECIDED, **values):
        transaction.on_commit(partial(close_pairs, gate.pk))
        return True
    return False
