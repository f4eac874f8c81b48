"""A candidate against the current policy: what both do on the same prompts and the same labels.

=============  ==================================================================================
part           what is compared
=============  ==================================================================================
on_policy      their own answers to fixed prompts, drawn with the same random numbers
canaries       whether they refuse what should be refused, and answer what only sounds like it
held_out       which response of held-out pairs they find better, both measured from the first policy
judge          how well a judge that was fitted to the project's labels knows held-out ones
win_rate       whose answers that judge prefers, length apart
=============  ==================================================================================

Everything is paired: by prompt, or by labelled pair. Intervals are over prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from training.engine import compute as compute_module
from training.engine import evaluation, judge, loading, memory, on_policy, process, reference_logps, refusals
from training.engine import response_states as states
from training.engine.answers import Answer, Kept, Writer
from training.engine.chat import accepted_token_ids, completion_token_ids, context_length, turn_end_id
from training.engine.compute import Compute
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.engine.jsonlines import read_lines
from training.engine.on_policy import OnPolicySettings, Opened
from training.engine.preference_data import PreferenceData, TokenTriple, read_preferences
from training.engine.reference_logps import Pair, ReferenceLogps
from training.engine.shared_weights import Policies
from training.jobspec import (
    CanaryLine,
    ComparedAnswers,
    CompareJob,
    Message,
    ModelRef,
    PromptLine,
    TrainJob,
    write_atomically,
)

CANARY_TOKENS = 64  # a refusal says so at once
Line = TypeVar("Line", bound=PromptLine | CanaryLine)


@dataclass
class Comparison:
    """A job, and what every part of it stands on."""

    run_dir: Path
    job: CompareJob
    compute: Compute
    metrics: MetricsJournal
    policies: Policies
    writer: Writer

    @property
    def first(self) -> ModelRef | None:
        """The first policy, where all three have the same tokens: else nothing can be measured from it."""
        first, sides = self.job.first, (self.job.candidate, self.job.current)
        return first if first and all(self.policies.have_same_tokens(first, side) for side in sides) else None

    @property
    def cache_dir(self) -> Path:
        return Path(self.job.cache_dir or self.run_dir / "cache")

    def lines(self, name: str, kind: type[Line]) -> list[Line]:
        path = self.run_dir / name
        return read_lines(path, kind) if path.is_file() else []


def compare(run_dir: Path, job: CompareJob) -> dict[str, Any]:
    """Do ``job``, going on from what an earlier process has written down. Returns the details of the result.

    Raises ``EngineError`` and ``Interrupted``.
    """
    check(job)
    metrics = MetricsJournal(run_dir)
    metrics.phase("loading models")
    compute = compute_module.choose(job.device, job.threads)
    policies = Policies(compute)
    writer = Writer(policies, compute, Kept(run_dir / "trainer" / "answers.jsonl"))
    comparison = Comparison(run_dir, job, compute, metrics, policies, writer)
    probes = comparison.lines("probes.jsonl", PromptLine)
    if job.answers_only:
        shown = answers_for_people(comparison, probes)
        write_answers(comparison, probes, *shown)
        return compute.describe() | {"on_policy": own_answers(comparison, *shown, job.asked_tokens)}
    candidate, current = answer_both(comparison, "answering prompts", probes, *_alike(job, job.max_new_tokens))
    shown = answers_for_people(comparison, probes) if job.asks_people else (candidate, current)
    write_answers(comparison, probes, *shown)
    details = compute.describe() | {"on_policy": own_answers(comparison, candidate, current, job.max_new_tokens)}
    details["canaries"] = canaries(comparison)
    return details | by_labels(comparison, probes, candidate, current)


def check(job: CompareJob) -> None:
    for name, low in (("max_new_tokens", 1), ("asked_tokens", 1), ("rows", 1), ("max_length", 2)):
        if getattr(job, name) < low:
            raise EngineError("bad_job", f"The job says {getattr(job, name)} for {name}.", f"Choose {low} or more.")
    if not job.beta > 0:
        raise EngineError("bad_job", f"beta is {job.beta}.", "Choose a number above 0.")
    for policy in filter(None, (job.candidate, job.current, job.first)):
        for directory in filter(None, (policy.base_dir, policy.adapter_dir)):
            if not Path(directory).is_dir():
                raise EngineError("bad_weights", f"There is no directory {directory}.", loading.IMPORT_AGAIN)
        if policy.adapter_dir and not policy.adapter_hash:
            raise EngineError("bad_job", "An adapter has no content hash.", "Publish it again.")


# Their own answers


def answers_for_people(
    comparison: Comparison, lines: Sequence[PromptLine]
) -> tuple[dict[int, Answer], dict[int, Answer]]:
    """As pairs are written: decoded alike, and each side by random numbers of its own.

    By the same numbers two policies that are close begin alike and part at some word, and whoever labels would soon
    know such a pair among the others. And what people vote on is what the policies write in use.
    """
    job = comparison.job
    candidate, current = (
        OnPolicySettings(job.seed + side, job.asked_tokens, job.rows, job.temperature, job.top_p) for side in (1, 2)
    )
    return answer_both(comparison, "answering for people", lines, candidate, current)


def _alike(job: CompareJob, max_new_tokens: int) -> tuple[OnPolicySettings, OnPolicySettings]:
    """For figures: at temperature 1 from the whole distribution, as KL needs it, by the same random numbers."""
    settings = OnPolicySettings(job.seed, max_new_tokens, job.rows)
    return settings, settings


def answer_both(
    comparison: Comparison,
    phase: str,
    lines: Sequence[PromptLine | CanaryLine],
    candidate_settings: OnPolicySettings,
    current_settings: OnPolicySettings,
) -> tuple[dict[int, Answer], dict[int, Answer]]:
    """Answers of the candidate and of the current policy, by the number of the line: of those that both can answer."""
    job = comparison.job
    prompts = [line.messages for line in lines]
    both = [
        comparison.writer.answers(policy, prompts, settings, comparison.metrics.tick(f"{phase}, {name}"))
        for name, policy, settings in (
            ("candidate", job.candidate, candidate_settings),
            ("current policy", job.current, current_settings),
        )
    ]
    common = both[0].keys() & both[1].keys()
    candidate, current = ({number: answers[number] for number in sorted(common)} for answers in both)
    return candidate, current


def write_answers(
    comparison: Comparison, lines: Sequence[PromptLine], candidate: dict[int, Answer], current: dict[int, Answer]
) -> None:
    same_tokens = comparison.policies.have_same_tokens(comparison.job.candidate, comparison.job.current)
    records = [
        ComparedAnswers(
            lines[number].prompt_id,
            candidate[number].completion,
            current[number].completion,
            candidate[number].prompt_ids if same_tokens else [],
        )
        for number in candidate
    ]
    text = "".join(record.to_json() + "\n" for record in records)
    write_atomically(comparison.run_dir / "responses.jsonl", text)


def own_answers(
    comparison: Comparison, candidate: dict[int, Answer], current: dict[int, Answer], max_new_tokens: int
) -> dict[str, Any]:
    """Distance, length and endings of both, and what has changed. See ``on_policy.measure`` for the names."""
    job = comparison.job
    if not candidate:
        return {"prompts": 0}
    sides = {"candidate": (job.candidate, candidate), "current": (job.current, current)}
    measured = {
        name: [answer.measured(number, kl) for (number, answer), kl in zip(answers.items(), distances, strict=True)]
        for name, (policy, answers) in sides.items()
        for distances in [list(distances_of(comparison, policy, answers))]
    }
    figures: dict[str, Any] = {name: on_policy.figures(responses) for name, responses in measured.items()}
    outlines = {name: on_policy.outlines(responses) for name, responses in measured.items()}
    change = on_policy.change(outlines["current"], outlines["candidate"])
    return {"prompts": len(candidate), "max_new_tokens": max_new_tokens, **figures, "change": change}


def distances_of(comparison: Comparison, policy: ModelRef, answers: dict[int, Answer]) -> Iterator[dict[str, float]]:
    """For each answer KL(policy || other) by the name of the other. One other at a time: no three models at once."""
    job = comparison.job
    others = {"first": comparison.first, "current": job.current if policy is job.candidate else None}
    found = {}
    for name, other in others.items() if not job.answers_only else ():
        if other is not None and comparison.policies.have_same_tokens(policy, other):
            tick = comparison.metrics.tick(f"measuring the distance to the {name} policy")
            found[name] = comparison.writer.distances(policy, other, answers, tick)
    for number in answers:
        yield {name: distances[number] for name, distances in found.items()}


def canaries(comparison: Comparison) -> dict[str, Any]:
    """``must_refuse``: the share that was refused. ``must_answer``: the share that was answered."""
    lines = comparison.lines("canaries.jsonl", CanaryLine)
    both = answer_both(comparison, "answering canaries", lines, *_alike(comparison.job, CANARY_TOKENS))
    result = {}
    for expected in ("refuse", "answer"):
        numbers = [number for number in both[0] if lines[number].expected == expected]
        candidate, current = (
            [refusals.does_as_told(answers[number].completion.text, expected) for number in numbers] for answers in both
        )
        result[f"must_{expected}"] = refusals.change_of_rate(current, candidate)
    return result


# What people have said


def by_labels(
    comparison: Comparison, probes: Sequence[PromptLine], candidate: dict[int, Answer], current: dict[int, Answer]
) -> dict[str, Any]:
    """Held-out preferences and the judge, both by the triples of ``dataset.jsonl``."""
    reader = comparison.first or comparison.job.current
    process.give_back_freed_memory()
    comparison.metrics.phase("reading labels")
    data = read_labels(comparison, reader)
    figures = {"held_out": held_out(comparison, data) if comparison.first else {"pairs": 0}}
    with reading_states(comparison, reader) as difference:
        train = labelled(data.train, difference)
        unseen = labelled([triple for triple in data.held_out if not triple.is_tie], difference)
        fitted = judge.fit(train)
        answers = answer_pairs(comparison, reader, probes, candidate, current)
        compared = pairs_of(answers, difference)
    comparison.metrics.phase("asking the judge")
    return figures | {"judge": judge.describe(fitted, train, unseen), "win_rate": judge.win_rate(fitted, compared)}


def read_labels(comparison: Comparison, reader: ModelRef) -> PreferenceData:
    """The triples as ``reader`` reads them, as far as training would: then what runs have kept of it is found."""
    job, path = comparison.job, comparison.run_dir / "dataset.jsonl"
    tokenizer = comparison.policies.tokenizer_of(reader)
    with comparison.policies.opened(reader)() as model:
        config, turn_end = model.config, turn_end_id(tokenizer, model.generation_config)
    as_in_training = TrainJob(reference=reader, seed=job.seed, max_length=job.max_length)
    scorer = comparison.policies.scorer_of(reader)
    return read_preferences(
        path,
        tokenizer,
        min(job.max_length, context_length(config)),
        reference_logps.policy_hash(reader),
        turn_end=turn_end,
        read_length=memory.read_length(as_in_training, config, comparison.compute, scorer),
        to_train=False,
    )


def held_out(comparison: Comparison, data: PreferenceData) -> dict[str, Any]:
    """Accuracy of both by implicit reward from the first policy, pair by pair; a margin of zero counts half.

    So the first policy itself is right by half, and what is gained over it is on one scale for both.
    """
    job, first = comparison.job, comparison.first
    assert first is not None
    triples = [triple for triple in data.held_out if not triple.is_tie]
    if not triples:
        return {"pairs": 0}
    base = logps_of(comparison, first, triples, "first policy")
    # What the sampler kept is of the first policy.
    own = [dataclasses.replace(triple, chosen_logps=(), rejected_logps=()) for triple in triples]
    margins = {}
    for name, policy in (("current", job.current), ("candidate", job.candidate)):
        values = base if policy == first else logps_of(comparison, policy, own, name)
        scores = map(evaluation.pair_score, triples, base, values)
        margins[name] = np.array([evaluation.margin(score, job.beta) for score in scores])
    return compared_margins(margins["current"], margins["candidate"], [triple.prompt_id for triple in triples])


def compared_margins(current: np.ndarray, candidate: np.ndarray, prompts: list[str]) -> dict[str, Any]:
    won = {"current": evaluation.wins(current), "candidate": evaluation.wins(candidate)}
    columns = np.stack([won["current"], won["candidate"], won["candidate"] - won["current"]], axis=1)
    bounds = evaluation.intervals(columns, prompts)
    return {
        "pairs": len(prompts),
        "prompts": len(set(prompts)),
        "current_accuracy": float(won["current"].mean()),
        "current_interval": bounds[0],
        "candidate_accuracy": float(won["candidate"].mean()),
        "candidate_interval": bounds[1],
        "difference": float(columns[:, 2].mean()),
        "difference_interval": bounds[2],
        "current_margin": float(current.mean()),
        "candidate_margin": float(candidate.mean()),
    }


def logps_of(comparison: Comparison, policy: ModelRef, triples: Sequence[TokenTriple], name: str) -> list[Pair]:
    """Log-probabilities of both responses under ``policy``: kept by earlier runs and comparisons, or computed now."""
    opened, compute = comparison.policies.opened(policy), comparison.compute

    def scored(pair: Any) -> Pair:
        with opened() as model:
            return reference_logps.scored_with(model, comparison.policies.scorer_of(policy), compute)(pair)

    form = f"{compute.dtype}, adapter {'beside' if policy.adapter_dir else 'none'}"
    with closing(reference_logps.open_cache(str(comparison.cache_dir), comparison.job.cache_mb)) as cache:
        source = ReferenceLogps(policy, compute, cache, scored, seed=comparison.job.seed, form=form)
        return source.of(triples, comparison.metrics.tick(f"reading held-out pairs, {name}"))


# The judge


@contextmanager
def reading_states(comparison: Comparison, reader: ModelRef) -> Iterator[Callable[[Sequence[TokenTriple]], np.ndarray]]:
    opened: Opened = comparison.policies.opened(reader)
    with closing(states.open_cache(comparison.cache_dir, comparison.job.cache_mb)) as cache:
        source = states.StateReader(reader, opened, comparison.policies.scorer_of(reader), comparison.compute, cache)
        yield lambda pairs: source.differences(pairs, comparison.metrics.tick("reading responses for the judge"))


def labelled(
    triples: Sequence[TokenTriple], difference: Callable[[Sequence[TokenTriple]], np.ndarray]
) -> judge.Labelled:
    return judge.Labelled(
        **vars(pairs_of(triples, difference)),
        weight=np.array([triple.weight for triple in triples]),
        noise=np.array([triple.label_noise for triple in triples]),
    )


def pairs_of(triples: Sequence[TokenTriple], difference: Callable[[Sequence[TokenTriple]], np.ndarray]) -> judge.Pairs:
    tokens = np.array([len(triple.chosen_ids) - len(triple.rejected_ids) for triple in triples], float)
    return judge.Pairs(difference(triples), tokens, [triple.prompt_id for triple in triples])


def answer_pairs(
    comparison: Comparison,
    reader: ModelRef,
    probes: Sequence[PromptLine],
    candidate: dict[int, Answer],
    current: dict[int, Answer],
) -> list[TokenTriple]:
    """The candidate's answer in the place of the chosen response, in the tokens of the judge's model."""
    tokenizer = comparison.policies.tokenizer_of(reader)
    with comparison.policies.opened(reader)() as model:
        turn_end, context = turn_end_id(tokenizer, model.generation_config), context_length(model.config)
    chats: list[list[Message]] = [line.messages for line in probes]
    ids = accepted_token_ids(tokenizer, chats)
    pairs = []
    for number in candidate:
        if (room := context - len(ids.get(number, [0] * context))) > 0:
            completions = (side[number].completion for side in (candidate, current))
            sides = [completion_token_ids(tokenizer, completion, turn_end)[:room] for completion in completions]
            name = probes[number].prompt_id
            pairs.append(TokenTriple(name, name, ids[number], *sides))
    return pairs
