"""Who writes the responses of a sampling job: a model in this process, or a server that holds the weights."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from training.engine import compute as compute_module
from training.engine import loading
from training.engine.chat import context_length, response_text, stop_token_ids
from training.engine.completion_server import Completed, CompletionServer, PromptTooLong, Sampling
from training.engine.compute import Compute
from training.engine.decoding import Decoding, Request, Row, write_responses
from training.engine.errors import EngineError
from training.engine.margins import Margins, Scored, updates_of
from training.engine.scoring import add_scoring_head
from training.jobspec import ModelRef, SampledResponse, SampleJob


@dataclass(frozen=True)
class Refusal:
    """Why there is no response to a prompt, as a sentence."""

    reason: str


Outcome = list[SampledResponse] | Refusal


class Backend(Protocol):
    """``context`` is how many tokens are read at most, prompt and response together."""

    tokenizer: PreTrainedTokenizerBase
    context: int
    stop_ids: list[int]

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yield (number of the request, its responses in the order of its seeds) as they are done."""

    def score(self, prompt_ids: list[int], responses: Sequence[SampledResponse]) -> Scored | None:
        """How sure the policy is which of two responses is better, where that can be known and was asked for."""

    def describe(self) -> dict[str, Any]:
        """Details for the result."""

    def close(self) -> None:
        """Give back what is held."""


def open_backend(job: SampleJob) -> Backend:
    return ServerPolicy(job) if job.backend == "server" else LocalPolicy(job)


class LocalPolicy:
    """The weights in this process."""

    def __init__(self, job: SampleJob) -> None:
        self.rows = job.rows
        self.compute = compute_module.choose(job.device, job.threads)
        self.tokenizer = loading.load_tokenizer(job.model.base_dir)
        self.merged = folds_exactly(job.model, self.compute)
        self.margins: Margins | None = None
        self.model = self.load(job.model, job.beta)
        self.context = context_length(self.model.config)
        self.stop_ids = stop_token_ids(self.tokenizer, self.model.generation_config)
        self.decoding = Decoding(job.temperature, job.top_p, frozenset(self.stop_ids), self.tokenizer.pad_token_id)

    def load(self, reference: ModelRef, beta: float) -> PreTrainedModel | PeftModel:
        """The policy, with its adapter folded into the weights where that changes no more than rounding."""
        if reference.adapter_dir is None:
            return loading.load_policy(reference, self.compute)
        base = loading.load_base(reference, self.compute.dtype)
        add_scoring_head(base)
        beside = loading.load_adapter(base, reference.adapter_dir, trainable=False)
        if not self.merged:
            beside = beside.to(self.compute.device).eval().requires_grad_(False)
            self.margins = Margins.beside(beside, self.compute, beta) if beta else None
            return beside
        updates = updates_of(beside) if beta else None
        model: PreTrainedModel = beside.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
        self.margins = Margins.folded(model, updates, self.compute, beta) if updates else None
        return model

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        for number, rows in write_responses(self.model, requests, self.decoding, self.rows):
            yield number, [self.response(row) for row in rows]

    def score(self, prompt_ids: list[int], responses: Sequence[SampledResponse]) -> Scored | None:
        return self.margins.of(prompt_ids, responses) if self.margins else None

    def response(self, row: Row) -> SampledResponse:
        # In bfloat16 a token read alone and the same token read within its text differ by hundredths of a nat.
        logps = row.logps if self.compute.dtype is torch.float32 else []
        text = response_text(self.tokenizer, row.token_ids)
        return SampledResponse(text, row.token_ids, row.finish_reason, row.seed, logps)

    def describe(self) -> dict[str, Any]:
        return self.compute.describe() | {"adapter_merged": self.merged}

    def close(self) -> None:
        """The weights go with the process."""


def folds_exactly(reference: ModelRef, compute: Compute) -> bool:
    """Whether W + s B A is as good as W and the adapter beside it: in float32, where a CPU then multiplies once."""
    return reference.adapter_dir is not None and not compute.on_cuda and compute.dtype is torch.float32


class ServerPolicy:
    """The weights on a completion server. Of the model's directory only tokenizer and configuration are read.

    The log-probabilities that a server tells are those of other arithmetic, so none are kept.
    """

    def __init__(self, job: SampleJob) -> None:
        self.rows = job.rows
        base = job.model.base_dir
        self.tokenizer = loading.load_tokenizer(base)
        self.stop_ids = stop_token_ids(self.tokenizer, generation_config(base))
        self.sampling = Sampling(job.temperature, job.top_p, tuple(self.stop_ids))
        self.retokenised = 0
        self.server = CompletionServer(job.server_url, connections=job.rows)
        try:
            self.context = self.least_context(base, job.server_model)
            self.model = self.model_name(job)
        except BaseException:
            self.server.close()
            raise

    def least_context(self, base: str, server_model: str) -> int:
        own = context_length(AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
        return min(own, self.server.context_of(server_model) or own)

    def model_name(self, job: SampleJob) -> str:
        """What to ask the server for: the base weights, or the adapter, which it learns to know by its hash."""
        if job.model.adapter_dir is None:
            return job.server_model
        assert job.model.adapter_hash is not None
        self.server.load_adapter(job.model.adapter_hash, job.model.adapter_dir)
        return job.model.adapter_hash

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        done = Crew(self.server, self.model, self.sampling, requests, self.rows)
        answers = [[None] * len(request.seeds) for request in requests]
        try:
            for number, index, completed in done:
                if answers[number] is None:
                    continue
                if isinstance(completed, PromptTooLong):
                    answers[number] = None  # the other response will be refused as well
                    yield number, Refusal(completed.message)
                    continue
                answers[number][index] = self.response(completed, requests[number].seeds[index])
                if None not in answers[number]:
                    yield number, answers[number]
        finally:
            done.stop()

    def score(self, prompt_ids: list[int], responses: Sequence[SampledResponse]) -> None:
        return None  # the weights are elsewhere

    def response(self, completed: Completed, seed: int) -> SampledResponse:
        ids = completed.token_ids
        if ids is None:
            self.retokenised += 1
            ids = self.tokenizer(completed.text, add_special_tokens=False)["input_ids"]
        if ids and max(ids) >= len(self.tokenizer):
            hint = "Set the server's model to the one that was imported here, with the same tokenizer."
            raise EngineError("server_answer", "The sampling server writes tokens of another vocabulary.", hint)
        if completed.finish_reason == "stop" and (not ids or ids[-1] not in self.stop_ids):
            # Some servers keep the token that ended the response to themselves; training must see it.
            ids = [*ids, completed.stop_id if completed.stop_id is not None else self.tokenizer.eos_token_id]
        text = completed.text.replace("\x00", "\ufffd")
        if completed.token_ids is not None:
            text = response_text(self.tokenizer, ids)
        return SampledResponse(text, ids, completed.finish_reason, seed)

    def describe(self) -> dict[str, Any]:
        return {
            "device": "server",
            "server": self.server.name,
            "server_model": self.model,
            "retokenised": self.retokenised,
            "versions": {library: version(library) for library in ("transformers", "tokenizers", "httpx2")},
        }

    def close(self) -> None:
        self.server.close()


def generation_config(directory: str) -> GenerationConfig | None:
    if not (Path(directory) / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(directory, local_files_only=True)


class Crew:
    """Threads that put the requests to the server, and the completions in the order in which they come.

    The threads are daemons: one that waits for an answer must not keep a process alive that was told to stop.
    """

    def __init__(
        self, server: CompletionServer, model: str, sampling: Sampling, requests: Sequence[Request], threads: int
    ) -> None:
        self.server = server
        self.model = model
        self.sampling = sampling
        self.requests = requests
        self.todo: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[int, int, Completed | Exception]] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.left = 0
        for number, request in enumerate(requests):
            for index in range(len(request.seeds)):
                self.todo.put((number, index))
                self.left += 1
        for _ in range(min(threads, self.left)):
            threading.Thread(target=self.work, name="sampling-request", daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()

    def __iter__(self) -> Iterator[tuple[int, int, Completed | PromptTooLong]]:
        """(request, index of the seed, completion). Raises what went wrong with any request but a long prompt."""
        for _ in range(self.left):
            number, index, completed = self.done.get()
            if isinstance(completed, Exception) and not isinstance(completed, PromptTooLong):
                raise completed
            yield number, index, completed

    def work(self) -> None:
        while not self.stopped.is_set():
            try:
                number, index = self.todo.get_nowait()
            except queue.Empty:
                return
            try:
                completed: Completed | Exception = self.ask(number, index)
            except Exception as error:
                completed = error  # raised in the thread that reads
            self.done.put((number, index, completed))

    def ask(self, number: int, index: int) -> Completed:
        request = self.requests[number]
        return self.server.complete(
            self.model,
            request.prompt_ids,
            seed=request.seeds[index],
            max_new_tokens=request.max_new_tokens,
            sampling=self.sampling,
        )
