"""How two policies differ on judged pairs: in what they prefer, and in what they answer.

The margin of a policy is log pi(a | x) - log pi(b | x) less the same of the first policy: the implicit reward of a less
that of b, without its beta (Rafailov et al. 2023, eq. 5), in nats a response.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.engine import compute as compute_module
from training.engine import loading
from training.engine.arrangement import Unlabelled
from training.engine.chat import context_length, response_text, stop_token_ids, turn_end_id
from training.engine.compute import Compute
from training.engine.decoding import Decoding, Request, write_responses
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.engine.jsonlines import read_lines
from training.engine.on_policy import prompt_seed
from training.engine.preference_data import problem, tokenize
from training.engine.scoring import Scorer, add_scoring_head, choose_scorer
from training.jobspec import EffectsJob, JudgedPair, ModelRef, PairEffect, TripleLine, write_atomically

Model = PreTrainedModel | PeftModel
LEAST_ROOM = 16  # tokens without which there is no answer
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
        "bases_loaded": comparison.bases_loaded,
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
        self.left_out: dict[str, str] = {}  # why, by pair
        self.bases_loaded = 0

    def read(self) -> dict[str, Readings]:
        """By role. Policies that are adapters on the same weights share these, and the weights are loaded once."""
        roles = sorted(NAMES, key=lambda role: (self.ref(role).base_dir, self.ref(role).adapter_dir or ""))
        readings: dict[str, Readings] = {}
        for base_dir, on_base in groupby(roles, key=lambda role: self.ref(role).base_dir):
            self.metrics.phase("loading model")
            self.bases_loaded += 1
            base = loading.load_weights(base_dir, self.compute.dtype)
            tokenizer = loading.load_tokenizer(base_dir)
            add_scoring_head(base)
            for _, same in groupby(on_base, key=lambda role: self.ref(role).adapter_dir):
                base = self.read_alike(list(same), base, tokenizer, readings)
            del base
        return readings

    def ref(self, role: str) -> ModelRef:
        ref: ModelRef = getattr(self.job, role)
        return ref

    def read_alike(
        self, roles: list[str], base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, into: dict[str, Readings]
    ) -> PreTrainedModel:
        """Roles of one and the same policy, which is read once. Returns ``base`` without its adapter."""
        with self.policy(base, self.ref(roles[0]).adapter_dir) as model:
            found = Readings(self.gaps(roles, model, tokenizer))
            if roles != ["first"]:  # nobody is shown its answers unless it is the policy before or after as well
                found.answers = self.answers(roles, model, tokenizer)
        into |= dict.fromkeys(roles, found)
        return base

    @contextmanager
    def policy(self, base: PreTrainedModel, adapter_dir: str | None) -> Iterator[Model]:
        if adapter_dir is None:
            yield base.to(self.compute.device).eval().requires_grad_(False)
            return
        adapted = loading.load_adapter(base, adapter_dir, trainable=False)
        try:
            yield adapted.to(self.compute.device).eval().requires_grad_(False)
        finally:
            adapted.unload()

    @torch.no_grad()
    def gaps(self, roles: list[str], model: Model, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        # On a GPU the kernel for packed rows takes longer to compile than the pairs take to read.
        scorer = Scorer(packed=False) if self.compute.on_cuda else choose_scorer(model, self.compute)
        turn_end = turn_end_id(tokenizer, model.generation_config)
        found = {}
        with scorer.over(model), self.compute.autocast():
            for number, pair in enumerate(self.pairs):
                self.tell(roles, "reads the pairs", number)
                tokens = self.tokens_of(pair, tokenizer, turn_end)
                if tokens is None:
                    continue
                batch = scorer.arrange([tokens], self.compute.device)
                a, b = scorer.token_logps(model, batch).double().cpu().split(batch.lengths)
                found[pair.pair_id] = float(a.sum() - b.sum())
        return found

    def tokens_of(self, pair: JudgedPair, tokenizer: PreTrainedTokenizerBase, turn_end: int) -> Unlabelled | None:
        """As training would read it; ``None``, with a note of the reason, if it could not."""
        line = TripleLine(
            pair.pair_id, pair.prompt_id, "train", pair.messages, pair.response_a, pair.response_b, preference_ids=[]
        )
        lengths = (self.job.max_length, self.job.max_length)
        triple = tokenize(line, tokenizer, turn_end, lengths, of_reference="")
        if reason := triple if isinstance(triple, str) else problem(triple):
            self.left_out[pair.pair_id] = reason
            return None
        assert not isinstance(triple, str)
        return Unlabelled(triple.prompt_ids, triple.chosen_ids, triple.rejected_ids)

    def answers(self, roles: list[str], model: Model, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
        """One to each prompt that leaves room for one, by a seed that the job and the prompt alone decide."""
        context, stop_ids = context_length(model.config), stop_token_ids(tokenizer, model.generation_config)
        prompts = self.prompt_ids(tokenizer)
        numbers = [name for name, ids in prompts.items() if len(ids) + LEAST_ROOM <= context]
        requests = [
            Request(
                prompts[name],
                [prompt_seed(self.job.seed, prompts[name])],
                min(self.job.max_new_tokens, context - len(prompts[name])),
            )
            for name in numbers
        ]
        decoding = Decoding(self.job.temperature, self.job.top_p, frozenset(stop_ids), int(tokenizer.pad_token_id))
        found = {}
        with self.compute.autocast():
            for number, (row,) in write_responses(model, requests, decoding, self.job.rows) if requests else ():
                found[numbers[number]] = response_text(tokenizer, row.token_ids)
                self.tell(roles, "answers", len(found))
        return found

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
        turn_end = int(tokenizer.eos_token_id)
        read = {pair.prompt_id: self.tokens_of(pair, tokenizer, turn_end) for pair in self.pairs}
        return {prompt_id: tokens.prompt_ids for prompt_id, tokens in read.items() if tokens}

    def tell(self, roles: list[str], what: str, done: int) -> None:
        self.metrics.phase(f"{NAMES[roles[0]]} {what}", done=done, total=len(self.pairs))


def check(job: EffectsJob) -> None:
    """Raises ``EngineError`` bad_job with the first thing about ``job`` that cannot be."""
    if job.temperature <= 0 or not 0 < job.top_p <= 1 or min(job.max_new_tokens, job.rows) < 1:
        raise EngineError(
            "bad_job", "Temperature, top_p, max_new_tokens and rows must be above 0, and top_p at most 1."
        )
