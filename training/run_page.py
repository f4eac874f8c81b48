"""What a run's page shows, read from its row and its run directory. Pure reading; nothing is written here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from labeling.charts import Chart, Series, line_chart
from labeling.models import Prompt
from labeling.templatetags.formatting import duration
from training.jobspec import PairScore, StepMetrics
from training.models import Job, TrainingRun
from training.outcome import Outcome, facts, read_outcome
from training.recipe import CHOICES, LABELS
from training.rundir import RunDir, log_tail, read_steps

# Values at which a field does nothing, so that nobody has to read past it.
SILENT = {
    "mode": "exact",
    "sft_weight": 0,
    "ld_alpha": 1,
    "ties": "drop",
    "label_noise": "none",
    "pair_weight": "equal",
    "precision": "auto",  # what it came to is among the facts
    "processes": 1,
}
ZERO = {
    "learning_rate": "the usual one for the number of steps",
    "micro_batch": "as many as fit",
    "fast_layers": "a third",
    "processes": "all there are",
}


@dataclass(frozen=True)
class RunStatus:
    """Everything on the page that changes while the run goes on."""

    run: TrainingRun
    phase: str
    newest: StepMetrics | None
    percent: int
    eta_seconds: int | None
    charts: list[Chart]
    log: str
    outcome: Outcome
    facts: list[tuple[str, str]]
    recipe: list[tuple[str, str]]


def read_status(run: TrainingRun) -> RunStatus:
    run_dir = RunDir.of(run.uuid)
    steps = read_steps(run_dir)
    newest = steps[-1] if steps else None
    outcome = read_outcome(_details(run), run.recipe)
    return RunStatus(
        run=run,
        phase=_phase(run),
        newest=newest,
        percent=_percent(run, newest),
        eta_seconds=eta_seconds(newest) if _is_training(run) else None,
        charts=run_charts(steps),
        log=log_tail(run_dir),
        outcome=outcome,
        facts=[*(outcome.facts or facts(run.progress, run.recipe)), *forecast_facts(run)],
        recipe=shown_recipe(run.recipe),
    )


def shown_recipe(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """The fields that make a difference to the run, as people call them. Earlier runs have fewer."""
    order = {name: place for place, name in enumerate(LABELS)}
    names = sorted(recipe, key=lambda name: order.get(name, len(order)))
    return [(LABELS.get(name, name), _value(name, recipe[name])) for name in names if _matters(name, recipe)]


def shown_difference(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """The fields of a part of a recipe, as people call them."""
    return [(label, _value(name, recipe[name])) for name, label in LABELS.items() if name in recipe]


def _matters(name: str, recipe: dict[str, Any]) -> bool:
    if name == "fast_layers":
        return bool(recipe.get("mode") == "fast")
    if name in ("lora_rank", "lora_alpha"):
        return bool(recipe.get("method") == "lora")
    if name == "sharding":
        return bool(recipe.get("processes", 1) != 1)
    return not (name in SILENT and recipe[name] == SILENT[name])


def _value(name: str, value: Any) -> str:
    if value == 0 and name in ZERO:
        return ZERO[name]
    return CHOICES.get(name, {}).get(str(value), str(value))


def _phase(run: TrainingRun) -> str:
    if run.is_cancelling:
        return "Cancelling: the engine saves its state and stops."
    if run.state == Job.State.QUEUED:
        return "Waiting for the training worker." if run.attempt == 0 else "Waiting to go on from the last saved step."
    if run.state == Job.State.PUBLISHING:
        return "Hashing and publishing the checkpoint."
    phase = str(run.progress.get("phase", "")).capitalize()
    if phase and run.progress.get("total"):
        return f"{phase}: {run.progress.get('done', 0):,} of {run.progress['total']:,}"
    return phase


def _is_training(run: TrainingRun) -> bool:
    """Whether steps are being made: others phases have no pace that is known."""
    return run.state == Job.State.RUNNING and run.progress.get("phase", "training") == "training"


def _percent(run: TrainingRun, newest: StepMetrics | None) -> int:
    if run.state == Job.State.SUCCEEDED:
        return 100
    return round(100 * newest.step / newest.steps) if newest and newest.steps else 0


def eta_seconds(newest: StepMetrics | None) -> int | None:
    """Seconds that the remaining steps take at the pace so far; ``None`` without a pace, or without a step left."""
    if newest is None or newest.step == 0 or newest.step >= newest.steps:
        return None
    return round(newest.seconds / newest.step * (newest.steps - newest.step))


def forecast_facts(run: TrainingRun) -> list[tuple[str, str]]:
    """What was expected of the run when it was asked for, and how that held."""
    expected, is_done = run.forecast, run.state == Job.State.SUCCEEDED
    reference, found = expected.get("reference") or {}, _details(run).get("reference_logps") or {}
    rows = []
    if expected.get("seconds") is not None:
        took = f"; it took {duration(run.seconds)}" if is_done else ""
        rows.append(("Time expected", f"{duration(expected['seconds'])}, as Run {expected['run']} went{took}"))
    if "forwards" in reference:
        computed = f"; {found['forwards']:,} were computed" if is_done and "forwards" in found else ""
        rows.append(("Forwards expected", f"{reference['forwards']:,} of the reference{computed}"))
    return rows


def _details(run: TrainingRun) -> dict[str, Any]:
    return run.checkpoint.details if run.checkpoint else {}


def run_charts(steps: list[StepMetrics]) -> list[Chart]:
    """Loss, reward margin, accuracy, and the two log-probabilities, against the optimiser step."""
    if not steps:
        return []
    x_max = float(steps[-1].steps)

    def points(name: str) -> list[tuple[float, float]]:
        return [(float(step.step), getattr(step, name)) for step in steps]

    charts = [
        line_chart("Loss", [Series("loss", "main", points("loss"))], x_max=x_max),
        line_chart("Reward margin", [Series("margin", "main", points("reward_margin"))], x_max=x_max),
        line_chart("Reward accuracy", [Series("accuracy", "main", points("reward_accuracy"))], x_max=x_max),
        line_chart(
            "Log-probability of the responses, nats",
            [Series("chosen", "main", points("logp_chosen")), Series("rejected", "other", points("logp_rejected"))],
            x_max=x_max,
        ),
    ]
    return [chart for chart in charts if chart]


@dataclass(frozen=True)
class HeldOutRow:
    """One held-out triple: how far the policy moved each response, in nats, and the reward margin."""

    pair_id: str
    prompt: str
    chosen: float
    rejected: float
    margin: float


def held_out_rows(run: TrainingRun, limit: int = 200) -> list[HeldOutRow]:
    """Held-out triples of a finished run with the implicit reward margin of each, the lowest first."""
    path = RunDir.of(run.uuid).held_out
    if not path.exists():
        return []
    scores = [PairScore.from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    lowest = sorted(scores, key=_moved_apart)[:limit]
    prompts = Prompt.objects.in_bulk([int(score.prompt_id) for score in lowest])
    return [_held_out_row(score, str(prompts.get(int(score.prompt_id), "")), run.beta) for score in lowest]


def _moved_apart(score: PairScore) -> float:
    chosen = score.policy_chosen - score.reference_chosen
    return chosen - (score.policy_rejected - score.reference_rejected)


def _held_out_row(score: PairScore, prompt: str, beta: float) -> HeldOutRow:
    chosen = score.policy_chosen - score.reference_chosen
    rejected = score.policy_rejected - score.reference_rejected
    return HeldOutRow(score.pair_id, prompt, chosen, rejected, beta * _moved_apart(score))
