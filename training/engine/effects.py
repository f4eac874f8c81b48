"""How two policies differ on judged pairs: in what they prefer, and in what they answer.

The margin of a policy is log pi(a | x) - log pi(b | x) less the same of the first policy: the implicit reward of a less
that of b, without its beta (Rafailov et al. 2023, eq. 5), in nats a response.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.engine import compute as compute_module
from training.engine import on_policy
from training.engine.arrangement import Unlabelled
from training.engine.chat import response_text, turn_end_id
from training.engine.compute import Compute
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.engine.jsonlines import read_lines
from training.engine.on_policy import OnPolicySettings
from training.engine.preference_data import problem, tokenize
from training.engine.sampling import LEAST_ROOM
from training.engine.shared_weights import Policies
from training.jobspec import EffectsJob, JudgedPair, ModelRef, PairEffect, TripleLine, write_atomically

NAMES = {"first": "the first policy", "before": "the policy before", "after": "the policy after"}


@dataclass
class Readings:
    """What one policy makes of the pairs: log pi(a | x) - log pi(b | x) by pair, and answers by prompt."""

    gaps: dict[str, float] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)


def measure(run_dir: Path, job: EffectsJob) -> dict[str, Any]:
    """Do ``job``: write ``effects.jsonl`` and return the details of the result. Raises ``EngineError``."""
    check(job)
    pairs = read_lines(run_dir / "dataset.jsonl", JudgedPair)
    metrics = MetricsJournal(run_dir)
    compute = compute_module.choose(job.device, job.threads)
    comparison = Comparison(job, pairs, compute, metrics)
    readings = comparison.read()
    effects = [
        effect_of(pair, readings) for pair in pairs if all(pair.pair_id in one.gaps for one in readings.values())
    ]
    write_atomically(run_dir / "effects.jsonl", "".join(effect.to_json() + "\n" for effect in effects))
    return compute.describe() | {
        "pairs": len(pairs),
        "measured": len(effects),
        "left_out": comparison.left_out,
        "bases_loaded": comparison.policies.loads,
        "seed": job.seed,
    }


def effect_of(pair: JudgedPair, readings: dict[str, Readings]) -> PairEffect:
    before, after, first = readings["before"], readings["after"], readings["first"]
    return PairEffect(
        pair.pair_id,
        margin_before=before.gaps[pair.pair_id] - first.gaps[pair.pair_id],
        margin_after=after.gaps[pair.pair_id] - first.gaps[pair.pair_id],
        answer_before=before.answers.get(pair.prompt_id, ""),
        answer_after=after.answers.get(pair.prompt_id, ""),
    )


class Comparison:
    """The three policies, read one after the other: never more than one model is in memory."""

    def __init__(self, job: EffectsJob, pairs: list[JudgedPair], compute: Compute, metrics: MetricsJournal) -> None:
        self.job = job
        self.pairs = pairs
        self.compute = compute
        self.metrics = metrics
        self.policies = Policies(compute, most_weights=1)
        self.left_out: dict[str, str] = {}  # why, by pair

    def read(self) -> dict[str, Readings]:
        """By role. A policy of several roles is read once, and those on the same weights one after the other."""
        roles_of: dict[ModelRef, list[str]] = {}
        for role in NAMES:
            roles_of.setdefault(getattr(self.job, role), []).append(role)
        readings: dict[str, Readings] = {}
        for policy in sorted(roles_of, key=lambda policy: policy.base_dir):
            readings |= dict.fromkeys(roles_of[policy], self.read_policy(policy, roles_of[policy]))
        return readings

    def read_policy(self, policy: ModelRef, roles: list[str]) -> Readings:
        self.metrics.phase("loading model")
        with self.policies.opened(policy)() as model:
            turn_end = turn_end_id(self.policies.tokenizer_of(policy), model.generation_config)
        pairs = self.tokens(policy, turn_end)
        found = Readings(self.gaps(policy, pairs, f"{NAMES[roles[0]]} reads the pairs"))
        if roles != ["first"]:  # nobody is shown its answers unless it is the policy before or after as well
            found.answers = self.answers(policy, pairs, f"{NAMES[roles[0]]} answers")
        return found

    def tokens(self, policy: ModelRef, turn_end: int) -> dict[str, Unlabelled]:
        """By pair, as training would read it; of one that it could not, the reason is noted."""
        tokenizer, lengths = self.policies.tokenizer_of(policy), (self.job.max_length, self.job.max_length)
        found = {}
        for pair in self.pairs:
            sides = (pair.response_a, pair.response_b)
            line = TripleLine(pair.pair_id, pair.prompt_id, "train", pair.messages, *sides, preference_ids=[])
            triple = tokenize(line, tokenizer, turn_end, lengths, of_reference="")
            if reason := triple if isinstance(triple, str) else problem(triple):
                self.left_out[pair.pair_id] = reason
            elif not isinstance(triple, str):
                found[pair.pair_id] = Unlabelled(triple.prompt_ids, triple.chosen_ids, triple.rejected_ids)
        return found

    @torch.no_grad()
    def gaps(self, policy: ModelRef, pairs: dict[str, Unlabelled], phase: str) -> dict[str, float]:
        scorer, tick = self.policies.scorer_of(policy), self.metrics.tick(phase)
        found = {}
        with self.policies.opened(policy)() as model, scorer.over(model), self.compute.autocast():
            for done, (pair_id, tokens) in enumerate(pairs.items(), start=1):
                batch = scorer.arrange([tokens], self.compute.device)
                a, b = scorer.token_logps(model, batch).double().cpu().split(batch.lengths)
                found[pair_id] = float(a.sum() - b.sum())
                tick(done, len(pairs))
        return found

    def answers(self, policy: ModelRef, pairs: dict[str, Unlabelled], phase: str) -> dict[str, str]:
        """One to each prompt that leaves room for one, by a seed that the job and the prompt alone decide."""
        job, tokenizer = self.job, self.policies.tokenizer_of(policy)
        prompts = {pair.prompt_id: pairs[pair.pair_id].prompt_ids for pair in self.pairs if pair.pair_id in pairs}
        settings = OnPolicySettings(job.seed, job.max_new_tokens, job.rows, job.temperature, job.top_p, LEAST_ROOM)
        opened, ids, tick = self.policies.opened(policy), list(prompts.values()), self.metrics.tick(phase)
        rows = on_policy.write(opened, tokenizer, ids, settings, self.compute, tick)
        return {name: response_text(tokenizer, rows[n].token_ids) for n, name in enumerate(prompts) if n in rows}


def check(job: EffectsJob) -> None:
    """Raises ``EngineError`` bad_job with the first thing about ``job`` that cannot be."""
    if job.temperature <= 0 or not 0 < job.top_p <= 1 or min(job.max_new_tokens, job.rows) < 1:
        raise EngineError(
            "bad_job", "Temperature, top_p, max_new_tokens and rows must be above 0, and top_p at most 1."
        )
