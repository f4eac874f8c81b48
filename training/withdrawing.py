"""Withdrawing labels, seen from what was made of them: the effect before the act, the act, and the rebuild."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Max

from labeling import withdrawals
from labeling.exceptions import LabelingError
from labeling.models import Preference, Project, Prompt, Withdrawal
from training import forecast, rebuilding, registry, services, taints, withdrawn_votes
from training.exceptions import Rejected
from training.models import Checkpoint, DatasetSnapshot, Gate, Job, Promotion, Taint, TrainingRun
from training.recipe import MEANT_EARLIER, Recipe
from training.tasks import hint_on_commit
from training.withdrawn_votes import Loss

# Pairs that the request itself puts right; what is left goes on in the background, within half a minute.
AT_ONCE = 200
NAMES_TOLD = 8
Target = User | Prompt | Preference
KINDS: dict[type[Target], tuple[Withdrawal.Kind, str]] = {
    User: (Withdrawal.Kind.ANNOTATOR, "annotator"),
    Prompt: (Withdrawal.Kind.PROMPT, "prompt"),
    Preference: (Withdrawal.Kind.PREFERENCE, "preference"),
}


# Before


@dataclass(frozen=True)
class RunReached:
    """A run whose snapshot has some of the judgements: how many it trains on, and how many only measure it."""

    run: TrainingRun
    trained: int
    measured: int


@dataclass(frozen=True)
class Effect:
    """What a withdrawal would change. ``judgements`` are those that count now; former versions go along unsaid.

    ``gates``: those that have come to something by votes that would go. Of those that people are still asked about only
    ``is_asked`` says that there are some: which pairs are theirs is nobody's to know.
    """

    what: str
    judgements: int
    pairs: int
    runs: list[RunReached]
    checkpoints: list[Checkpoint]
    descendants: list[Checkpoint]
    policies: list[Checkpoint]
    gates: list[Loss]
    is_asked: bool

    @property
    def active_runs(self) -> list[TrainingRun]:
        return [reached.run for reached in self.runs if reached.run.is_active]

    @property
    def sentences(self) -> list[str]:
        """The effect in words, as it is told before the act."""
        said = [f"Withdraws {_count(self.judgements, 'judgement')} {self.what}, on {_count(self.pairs, 'pair')}."]
        said += [_said_of_run(reached) for reached in self.runs] or ["No run has used any of them."]
        if self.checkpoints:
            said.append(f"{_listed(self.checkpoints)} came of these runs and will be marked.")
        if self.descendants:
            said.append(f"{_listed(self.descendants)} descend from those and will be marked as well.")
        said += [_said_of_gate(loss) for loss in self.gates]
        if self.gates:
            said.append("What was decided stays so. Compare again, or roll back, where it matters.")
        if self.is_asked:
            said.append("A gate that people are still asked about counts none of them from then on.")
        said += [f"{policy} is the policy of now: it stays so until another is promoted." for policy in self.policies]
        said += [f"{run} goes on; its checkpoint will be marked. You may cancel it." for run in self.active_runs]
        return said


def preview(project: Project, target: Target) -> Effect:
    """What withdrawing would change. Nothing is written."""
    withdrawal = _unsaved(project, target)
    covered = withdrawals.covered(withdrawal).order_by()
    used, own = taints.by_snapshot(withdrawal), taints.direct(withdrawal)
    below = taints.descendants(own) - own.keys()
    marked = Checkpoint.objects.in_bulk([*own, *below])
    gates = withdrawn_votes.reached_by(withdrawal)
    return Effect(
        what=_what(target),
        judgements=covered.filter(is_current=True).count(),
        pairs=covered.values("pair").distinct().count(),
        runs=_runs_reached(withdrawal, used),
        checkpoints=[marked[pk] for pk in sorted(own)],
        descendants=[marked[pk] for pk in sorted(below)],
        policies=_policy_among(project, {*marked, *(pk for loss in gates if (pk := loss.promoted_id))}),
        gates=gates,
        is_asked=Gate.objects.filter(project=project, stage=Gate.Stage.ASKING).exists(),
    )


def _policy_among(project: Project, checkpoint_ids: set[int]) -> list[Checkpoint]:
    policy = services.current_policy(project)
    return [policy] if policy and policy.pk in checkpoint_ids else []


def _runs_reached(withdrawal: Withdrawal, used: dict[int, int]) -> list[RunReached]:
    runs = TrainingRun.objects.filter(snapshot__in=used).select_related("snapshot", "project").order_by("number")
    found = []
    for run in runs:
        here = run.snapshot.preferences.filter(taints.reached(withdrawal))
        measured = here.filter(pair__prompt__is_held_out=True).count()
        found.append(RunReached(run, used[run.snapshot_id] - measured, measured))
    return found


def _what(target: Target) -> str:
    if isinstance(target, User):
        return f"of {target.get_username()}"
    if isinstance(target, Prompt):
        return "on this prompt, which nobody is asked about again and no policy either"
    return f"of {target.annotator.get_username()} with its former versions"


def _said_of_run(reached: RunReached) -> str:
    verb = "trains" if reached.run.is_active else "trained"
    measured = f", and {reached.measured} more only measure it" if reached.measured else ""
    return f"{reached.run} {verb} on {reached.trained} of them{measured}."


def _said_of_gate(loss: Loss) -> str:
    return f"{loss.gate}, which {loss.did}, rests on {loss.rests_on}; {loss.gone:,} of them would go."


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _listed(checkpoints: list[Checkpoint]) -> str:
    names = [str(checkpoint) for checkpoint in checkpoints[:NAMES_TOLD]]
    if more := len(checkpoints) - len(names):
        names.append(f"{more} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# The act


def withdraw(*, project: Project, target: Target, by: User | None = None, reason: str = "") -> Withdrawal:
    """Withdraw, and mark every checkpoint that it reaches, in one transaction; then put the pairs right.

    Of many pairs some are left to the background. Raises ``Rejected`` where there is nothing to withdraw.
    """
    withdrawal = _unsaved(project, target)
    withdrawal.by, withdrawal.reason = by, reason
    try:
        with transaction.atomic():
            withdrawals.begin(withdrawal)
            taints.mark(withdrawal)
    except LabelingError as refusal:
        raise Rejected(str(refusal)) from refusal
    return withdrawals.carry_out(withdrawal, most=AT_ONCE)


def _unsaved(project: Project, target: Target) -> Withdrawal:
    kind, name = next(value for of, value in KINDS.items() if isinstance(target, of))
    return Withdrawal(project=project, kind=kind, **{name: target})


# The rebuild


def can_rebuild(run: TrainingRun) -> bool:
    """Whether something that the run was made of was withdrawn, and it has not been made again since."""
    reached = taints.reaching(run)
    if run.is_active or not reached:
        return False
    newest = Withdrawal.objects.filter(pk__in=reached).aggregate(newest=Max("created_at"))["newest"]
    alive = run.rebuilds.exclude(state__in=[Job.State.FAILED, Job.State.CANCELLED])
    return not alive.filter(created_at__gt=newest).exists()


def runs_to_rebuild(project: Project) -> list[TrainingRun]:
    """Runs whose checkpoints are marked and that were not made again since, in the order in which to do so: what the
    first of them makes stands in where a later one was trained against the marked checkpoint."""
    marked = TrainingRun.objects.filter(project=project, checkpoint__taints__isnull=False).distinct()
    runs = marked.select_related("project", "snapshot", "reference", "checkpoint").order_by("number")
    return [run for run in runs if can_rebuild(run)]


def request_rebuild(*, run: TrainingRun, by: User | None = None) -> TrainingRun:
    """Queue the run once more without what was withdrawn: the same recipe and seed, and the same reference if it is
    still clean. The values of a reference that is the same come from the caches.

    Raises ``Rejected``.
    """
    services.refuse_second_run(run.project)
    if not taints.reaching(run):
        raise Rejected(f"Nothing that {run} was made of has been withdrawn, so there is nothing to make again.")
    reference, why = clean_reference(run)
    recipe = _recipe(run, reference)
    try:
        snapshot, rebuilt = rebuilding.rebuild_snapshot(run, reference.content_hash)
        services.refuse_too_little(rebuilt.counts)
    except OSError as error:
        raise Rejected(f"The snapshot could not be written: {error.strerror or error}. Nothing was queued.") from error
    expected = _expected(run, recipe, reference, snapshot)
    try:
        with transaction.atomic():
            services.lock(run.project)
            services.refuse_second_run(run.project)  # no constraint keeps a sweep out that was asked for meanwhile
            registry.refuse_removed(reference)
            last = TrainingRun.objects.filter(project=run.project).aggregate(last=Max("number"))["last"] or 0
            again = TrainingRun.objects.create(
                project=run.project,
                number=last + 1,
                snapshot=snapshot,
                reference=reference,
                reference_reason=why,
                recipe=recipe,
                forecast=expected,
                seed=run.seed,
                requested_by=by,
                rebuild_of=run,
            )
            hint_on_commit(again)
    except IntegrityError:
        services.refuse_second_run(run.project)
        raise
    return again


def _recipe(run: TrainingRun, reference: Checkpoint) -> dict[str, object]:
    """The run's own, but for what another reference decides: the shape of an adapter that is trained on."""
    if reference.pk == run.reference_id:
        return dict(run.recipe)
    recipe = services.continued(Recipe.from_dict(MEANT_EARLIER | run.recipe), reference)
    services.refuse_impossible(recipe, reference)
    return recipe.to_dict()


def _expected(
    run: TrainingRun, recipe: dict[str, object], reference: Checkpoint, snapshot: DatasetSnapshot
) -> dict[str, object]:
    """Nothing where the recipe is one that no new run could have: it is made again all the same."""
    try:
        meant = Recipe.from_dict(MEANT_EARLIER | recipe)
    except Rejected:
        return {}
    return forecast.of_rebuild(run.project, meant, reference, snapshot).to_dict()


def clean_reference(run: TrainingRun) -> tuple[Checkpoint, str]:
    """The run's reference, or what stands in for one that was made of withdrawn labels; and why, in a sentence."""
    reference = run.reference
    if not Taint.objects.filter(checkpoint=reference).exists():
        return reference, f"The reference of {run}, which was made of no label that was withdrawn."
    if counterpart := _counterpart(reference):
        return counterpart, f"{reference} was made of withdrawn labels; {counterpart} is its rebuild without them."
    first = Promotion.first_checkpoint(run.project)
    if first is None or first.removed_at or Taint.objects.filter(checkpoint=first).exists():
        raise Rejected(
            f"{run} was trained against {reference}, which was made of withdrawn labels, and there is no clean policy "
            "to train against in its place. Rebuild the run that made it first."
        )
    return first, f"{reference} was made of withdrawn labels and has no rebuild, so the first policy, {first}."


def _counterpart(reference: Checkpoint) -> Checkpoint | None:
    """The newest clean checkpoint among the rebuilds of the run that made it, and the rebuilds of those."""
    made_by = set(TrainingRun.objects.filter(checkpoint=reference).values_list("pk", flat=True))
    clean: list[Checkpoint] = []
    while made_by:
        rebuilds = TrainingRun.objects.filter(rebuild_of__in=made_by).select_related("checkpoint__base")
        found = [run.checkpoint for run in rebuilds if run.checkpoint and not run.checkpoint.removed_at]
        marked = set(Taint.objects.filter(checkpoint__in=found).values_list("checkpoint", flat=True))
        clean += [checkpoint for checkpoint in found if checkpoint.pk not in marked]
        made_by = {run.pk for run in rebuilds}
    return max(clean, key=lambda checkpoint: checkpoint.pk, default=None)
