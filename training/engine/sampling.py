"""Two different responses to each prompt, written to ``samples.jsonl`` as they come."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
import unicodedata
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.engine import compute as compute_module
from training.engine import loading
from training.engine.chat import PromptError, context_length, prompt_token_ids, response_text, stop_token_ids
from training.engine.compute import Compute
from training.engine.decoding import Decoding, Request, Row, write_responses
from training.engine.errors import EngineError
from training.engine.journal import Journal, MetricsJournal
from training.engine.jsonlines import read_lines
from training.jobspec import PromptLine, SampledPair, SampledResponse, SampleJob

LEAST_ROOM = 16  # tokens a response needs to be worth comparing
SEED_BITS = 53  # what a JSON number holds exactly in every reader


@dataclass(frozen=True)
class Task:
    """One prompt that still needs a pair. ``attempt`` counts from 1."""

    prompt_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    attempt: int = 1

    def seeds(self, job_seed: int) -> list[int]:
        return [response_seed(job_seed, self.prompt_id, self.attempt, index) for index in (0, 1)]


@dataclass
class Counts:
    """What this start of the process has done."""

    pairs: int = 0
    refused: int = 0
    resampled: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def sample(run_dir: Path, job: SampleJob) -> dict[str, Any]:
    """Do ``job``. Prompts that have their line in ``samples.jsonl`` already are left alone.

    Returns the details of the result. Raises ``EngineError``.
    """
    check(job)
    metrics = MetricsJournal(run_dir)
    metrics.phase("loading model")
    compute = compute_module.choose(job.device, job.threads)
    tokenizer = loading.load_tokenizer(job.model.base_dir)
    model = loading.load_policy(job.model, compute)
    prompts = read_prompts(run_dir / "dataset.jsonl")
    sampler = Sampler(run_dir, job, model, tokenizer, metrics)
    metrics.phase("sampling")
    sampler.run(prompts)
    return sampler.describe(len(prompts), compute)


def check(job: SampleJob) -> None:
    if job.temperature <= 0:
        hint = "At temperature 0 the two responses would be the same. Choose one above 0."
        raise EngineError("bad_job", f"The temperature is {job.temperature}.", hint)
    if not 0 < job.top_p <= 1:
        raise EngineError("bad_job", f"top_p is {job.top_p}.", "Choose a value above 0 and up to 1.")
    if min(job.max_new_tokens, job.prompts_per_batch, job.max_attempts) < 1:
        raise EngineError("bad_job", "max_new_tokens, prompts_per_batch and max_attempts must be at least 1.")


def read_prompts(path: Path) -> list[PromptLine]:
    prompts = read_lines(path, PromptLine)
    twice = [prompt_id for prompt_id, count in Counter(prompt.prompt_id for prompt in prompts).items() if count > 1]
    if twice:
        raise EngineError("bad_dataset", f"Prompt {twice[0]} is listed twice; a prompt has one pair a job.")
    return prompts


class Sampler:
    """The queue of prompts and what becomes of them."""

    def __init__(
        self,
        run_dir: Path,
        job: SampleJob,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        metrics: MetricsJournal,
    ) -> None:
        self.job = job
        self.model = model
        self.tokenizer = tokenizer
        self.metrics = metrics
        self.samples = Journal(run_dir / "samples.jsonl")
        self.context = context_length(model.config)
        stop_ids = stop_token_ids(tokenizer, model.generation_config)
        self.decoding = Decoding(job.temperature, job.top_p, frozenset(stop_ids), tokenizer.pad_token_id)
        self.counts = Counts()

    def run(self, prompts: list[PromptLine]) -> None:
        finished = {line["prompt_id"] for line in self.samples.read()}
        total, done = len(prompts), len(finished)
        queue = deque(self.accept([prompt for prompt in prompts if prompt.prompt_id not in finished]))
        # One prompt alone comes first, so that somebody who waits has something to read soon.
        size = 1
        while queue:
            batch = [queue.popleft() for _ in range(min(size, len(queue)))]
            queue.extendleft(reversed(self.write_batch(batch)))
            size = self.job.prompts_per_batch
            finished_now = self.counts.pairs + self.counts.refused
            self.metrics.progress(done + finished_now, total, self.counts.tokens, self.counts.seconds)

    def accept(self, prompts: list[PromptLine]) -> list[Task]:
        """Tasks for the prompts that leave room for a response; the others are refused now."""
        tasks = []
        for prompt in prompts:
            try:
                ids = prompt_token_ids(self.tokenizer, prompt.messages)
            except PromptError as error:
                self.refuse(prompt.prompt_id, 0, str(error))
                continue
            if len(ids) + LEAST_ROOM >= min(self.context, self.job.max_length):
                self.refuse(prompt.prompt_id, 0, self.too_long(len(ids)))
                continue
            tasks.append(Task(prompt.prompt_id, ids, min(self.job.max_new_tokens, self.context - len(ids))))
        return tasks

    def too_long(self, tokens: int) -> str:
        return (
            f"The prompt has {tokens:,} tokens; the model reads at most {self.context:,} and training "
            f"{self.job.max_length:,}, and a response needs {LEAST_ROOM} of them."
        )

    def write_batch(self, batch: list[Task]) -> list[Task]:
        """Sample once for each task, save the pairs as they come, and return the tasks that must try again."""
        requests = [Request(task.prompt_ids, task.seeds(self.job.seed), task.max_new_tokens) for task in batch]
        again = []
        for number, rows in write_responses(self.model, requests, self.decoding):
            self.counts.tokens += sum(len(row.token_ids) for row in rows)
            if retry := self.settle(batch[number], [self.response(row) for row in rows]):
                again.append(retry)
        return again

    def settle(self, task: Task, responses: list[SampledResponse]) -> Task | None:
        """Save the pair, or refuse the prompt, or return the task that tries once more."""
        problem = unusable(responses, self.job.max_length - len(task.prompt_ids))
        if not problem:
            self.counts.pairs += 1
            self.samples.append(SampledPair(task.prompt_id, responses, task.attempt), durable=True)
            return None
        if task.attempt < self.job.max_attempts:
            self.counts.resampled += 1
            return dataclasses.replace(task, attempt=task.attempt + 1)
        self.refuse(task.prompt_id, task.attempt, f"{problem} in each of {task.attempt} attempts.")
        return None

    def response(self, row: Row) -> SampledResponse:
        return SampledResponse(response_text(self.tokenizer, row.token_ids), row.token_ids, row.finish_reason, row.seed)

    def refuse(self, prompt_id: str, attempts: int, reason: str) -> None:
        self.counts.refused += 1
        self.samples.append(SampledPair(prompt_id, attempts=attempts, refused=reason), durable=True)

    def describe(self, prompts: int, compute: Compute) -> dict[str, Any]:
        counts = self.counts
        return compute.describe() | {
            "prompts": prompts,
            "pairs": counts.pairs,
            "refused": counts.refused,
            "resampled": counts.resampled,
            "from_earlier_attempts": prompts - counts.pairs - counts.refused,
            "tokens": counts.tokens,
            "seconds": round(counts.seconds, 3),
            "seed": self.job.seed,
            "context": self.context,
            "stop_token_ids": sorted(self.decoding.stop_ids),
        }


def response_seed(job_seed: int, prompt_id: str, attempt: int, index: int) -> int:
    """A seed that nothing but these four decides, so that order, batches and restarts do not matter."""
    digest = hashlib.sha256(f"{job_seed}\0{prompt_id}\0{attempt}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def unusable(responses: list[SampledResponse], trained_tokens: int) -> str:
    """Why these two cannot be compared, as the beginning of a sentence; empty when they can."""
    first, second = (normalised(response.text) for response in responses)
    if not first or not second:
        return "The model wrote an empty response"
    heads = [list(islice(response.token_ids, trained_tokens)) for response in responses]
    if first == second or heads[0] == heads[1]:
        return "The model wrote the same response twice"
    return ""


def normalised(text: str) -> str:
    """``text`` without what a reader does not see as a difference: width and case forms, Markdown marks, spacing."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    unmarked = re.sub(r"^\s*(?:[-+•]|\d+[.)])\s+|[*_#>`~|]", " ", folded, flags=re.MULTILINE)
    return " ".join(re.sub(r"\s+([.,;:!?])", r"\1", unmarked).split()).rstrip(".!?… ")
