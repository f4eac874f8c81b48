"""Two different responses to each prompt, written to ``samples.jsonl`` as they come."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from training.engine.chat import PromptError, prompt_token_ids
from training.engine.decoding import Request
from training.engine.errors import EngineError
from training.engine.journal import Journal, MetricsJournal
from training.engine.jsonlines import read_lines
from training.engine.sampling_backends import Backend, Refusal, open_backend
from training.jobspec import PromptLine, SampledPair, SampledResponse, SampleJob

LEAST_ROOM = 16  # tokens a response needs to be worth comparing
SEED_BITS = 53  # what a JSON number holds exactly in every reader
PROGRESS_SECONDS = 1.0  # at least, between two lines of progress


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
    scored: int = 0
    scoring_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> int:
        return self.pairs + self.refused

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def sample(run_dir: Path, job: SampleJob) -> dict[str, Any]:
    """Do ``job``. Prompts that have their line in ``samples.jsonl`` already are left alone.

    Returns the details of the result. Raises ``EngineError``.
    """
    check(job)
    metrics = MetricsJournal(run_dir)
    metrics.phase("loading model" if job.backend == "local" else "connecting to the sampling server")
    backend = open_backend(job)
    try:
        prompts = read_prompts(run_dir / "dataset.jsonl")
        sampler = Sampler(run_dir, job, backend, metrics)
        metrics.phase("sampling")
        sampler.run(prompts)
        return sampler.describe(len(prompts))
    finally:
        backend.close()


def check(job: SampleJob) -> None:
    """Raises ``EngineError`` bad_job with the first thing about ``job`` that cannot be."""
    if job.temperature <= 0:
        hint = "At temperature 0 the two responses would be the same. Choose one above 0."
        raise EngineError("bad_job", f"The temperature is {job.temperature}.", hint)
    if not 0 < job.top_p <= 1:
        raise EngineError("bad_job", f"top_p is {job.top_p}.", "Choose a value above 0 and up to 1.")
    if min(job.max_new_tokens, job.rows, job.max_attempts) < 1:
        raise EngineError("bad_job", "max_new_tokens, rows and max_attempts must be at least 1.")
    if not 0 <= job.beta < math.inf:
        raise EngineError("bad_job", f"beta is {job.beta}.", "Choose a number above 0, or 0 to score no pair.")
    if job.backend not in {"local", "server"}:
        raise EngineError("bad_job", f"There is no sampling backend {job.backend!r}.", "Choose local or server.")
    if job.backend == "server":
        check_server(job)


def check_server(job: SampleJob) -> None:
    url = urlsplit(job.server_url)
    if url.scheme not in {"http", "https"} or not url.hostname:
        hint = "Give the URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."
        raise EngineError("bad_job", "The job samples from a server and has no URL of one.", hint)
    if not job.server_model:
        hint = "Give the name that the server serves the base weights under (--served-model-name)."
        raise EngineError("bad_job", "The job samples from a server and does not say from which model there.", hint)
    if job.model.adapter_dir is not None and not job.model.adapter_hash:
        raise EngineError("bad_job", "The adapter has no hash, which is what the server knows it by.")


def read_prompts(path: Path) -> list[PromptLine]:
    prompts = read_lines(path, PromptLine)
    twice = [prompt_id for prompt_id, count in Counter(prompt.prompt_id for prompt in prompts).items() if count > 1]
    if twice:
        raise EngineError("bad_dataset", f"Prompt {twice[0]} is listed twice; a prompt has one pair a job.")
    return prompts


class Sampler:
    """The prompts, and what becomes of them."""

    def __init__(self, run_dir: Path, job: SampleJob, backend: Backend, metrics: MetricsJournal) -> None:
        self.job = job
        self.backend = backend
        self.metrics = metrics
        self.samples = Journal(run_dir / "samples.jsonl")
        self.counts = Counts()
        self.total = self.done_before = 0
        self.told = float("-inf")

    def run(self, prompts: list[PromptLine]) -> None:
        finished = {line["prompt_id"] for line in self.samples.read()}
        self.total, self.done_before = len(prompts), len(finished)
        tasks = self.accept([prompt for prompt in prompts if prompt.prompt_id not in finished])
        # One prompt alone comes first, so that somebody who waits has something to read soon.
        first, others = tasks[:1], tasks[1:]
        tasks = self.write(first) + others
        while tasks:
            tasks = self.write(tasks)
        self.tell_progress()

    def accept(self, prompts: list[PromptLine]) -> list[Task]:
        """Tasks for the prompts that leave room for a response; the others are refused now."""
        tasks = []
        for prompt in prompts:
            try:
                ids = prompt_token_ids(self.backend.tokenizer, prompt.messages)
            except PromptError as error:
                self.refuse(prompt.prompt_id, 0, str(error))
                continue
            if len(ids) + LEAST_ROOM >= min(self.backend.context, self.job.max_length):
                self.refuse(prompt.prompt_id, 0, self.too_long(len(ids)))
                continue
            tasks.append(Task(prompt.prompt_id, ids, min(self.job.max_new_tokens, self.backend.context - len(ids))))
        return tasks

    def too_long(self, tokens: int) -> str:
        return (
            f"The prompt has {tokens:,} tokens; the model reads at most {self.backend.context:,} and training "
            f"{self.job.max_length:,}, and a response needs {LEAST_ROOM} of them."
        )

    def write(self, tasks: list[Task]) -> list[Task]:
        """Sample once for each task, save the pairs as they come, and return the tasks that must try again."""
        requests = [Request(task.prompt_ids, task.seeds(self.job.seed), task.max_new_tokens) for task in tasks]
        again = []
        for number, outcome in self.backend.write(requests):
            if isinstance(outcome, Refusal):
                self.refuse(tasks[number].prompt_id, tasks[number].attempt, outcome.reason)
                continue
            self.counts.tokens += sum(len(response.token_ids) for response in outcome)
            if retry := self.settle(tasks[number], outcome):
                again.append(retry)
            if time.monotonic() - self.told >= PROGRESS_SECONDS:
                self.tell_progress()
        return again

    def tell_progress(self) -> None:
        self.told = time.monotonic()
        done = self.done_before + self.counts.finished
        self.metrics.progress(done, self.total, self.counts.tokens, self.counts.seconds)

    def settle(self, task: Task, responses: list[SampledResponse]) -> Task | None:
        """Save the pair, or refuse the prompt, or return the task that tries once more."""
        problem = unusable(responses, self.job.max_length - len(task.prompt_ids))
        if not problem:
            self.counts.pairs += 1
            responses, margin = self.scored(task, responses)
            pair = SampledPair(task.prompt_id, responses, task.attempt, prompt_token_ids=task.prompt_ids, margin=margin)
            self.samples.append(pair, durable=True)
            return None
        if task.attempt < self.job.max_attempts:
            self.counts.resampled += 1
            return dataclasses.replace(task, attempt=task.attempt + 1)
        self.refuse(task.prompt_id, task.attempt, f"{problem} in each of {task.attempt} attempts.")
        return None

    def scored(self, task: Task, responses: list[SampledResponse]) -> tuple[list[SampledResponse], float | None]:
        """The responses with what the reference says of them, and the margin between them, where there is one."""
        started = time.monotonic()
        scored = self.backend.score(task.prompt_ids, responses)
        # A policy that gives no numbers is told by the sampling itself; a reference that gives none costs the order.
        if scored is None or not math.isfinite(scored.margin):
            return responses, None
        self.counts.scored += 1
        self.counts.scoring_seconds += time.monotonic() - started
        both = zip(responses, scored.reference_logps, strict=True)
        return [dataclasses.replace(response, reference_logps=logps) for response, logps in both], scored.margin

    def refuse(self, prompt_id: str, attempts: int, reason: str) -> None:
        self.counts.refused += 1
        self.samples.append(SampledPair(prompt_id, attempts=attempts, refused=reason), durable=True)

    def describe(self, prompts: int) -> dict[str, Any]:
        counts, seconds = self.counts, self.counts.seconds
        return self.backend.describe() | {
            "backend": self.job.backend,
            "rows": self.job.rows,
            "prompts": prompts,
            "pairs": counts.pairs,
            "refused": counts.refused,
            "resampled": counts.resampled,
            "from_earlier_attempts": prompts - counts.finished,
            "scored": counts.scored,
            "scoring_seconds": round(counts.scoring_seconds, 3),
            "tokens": counts.tokens,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(counts.tokens / seconds, 1),
            "seed": self.job.seed,
            "context": self.backend.context,
            "stop_token_ids": self.backend.stop_ids,
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
