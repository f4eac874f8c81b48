"""Two policies that answer the same prompts, a token each in turn, with what they have written so far on the disk.

Both draw with the same random numbers: the n-th token of an answer is drawn at the same place of either distribution,
so answers part where the policies do.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from training.engine import compute as compute_module
from training.engine.chat import PromptError, context_length, prompt_token_ids, response_text, stop_token_ids
from training.engine.decoding import Decoding, Flight, Request, Row
from training.engine.errors import EngineError
from training.engine.journal import MetricsJournal
from training.engine.jsonlines import read_lines
from training.engine.on_policy import Opened
from training.engine.sampling import LEAST_ROOM, response_seed
from training.engine.shared_weights import Policies
from training.jobspec import PromptLine, SideAnswer, SideBySideAnswer, SideBySideJob, write_atomically

ANSWERS = "answers.json"
WRITE_SECONDS = 0.5  # between two states of the answers on the disk


def answer(run_dir: Path, job: SideBySideJob) -> dict[str, Any]:
    """Do ``job``. An attempt that starts again writes the same answers again.

    Returns the details of the result. Raises ``EngineError``.
    """
    check(job)
    metrics = MetricsJournal(run_dir)
    metrics.phase("loading models")
    prompts = read_lines(run_dir / "dataset.jsonl", PromptLine)
    compute = compute_module.choose(job.device, job.threads)
    policies = Policies(compute)
    sides = [Side(policies.opened(policy), policies.tokenizer_of(policy), job) for policy in (job.left, job.right)]
    conversation = Conversation(run_dir, prompts, sides)
    metrics.phase("answering")
    started = time.monotonic()
    conversation.hold()
    seconds = time.monotonic() - started
    tokens = sum(len(row.token_ids) for side in sides for row in side.rows.values())
    return compute.describe() | {
        "prompts": len(prompts),
        "refused": len(conversation.refused),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
    }


def check(job: SideBySideJob) -> None:
    """Raises ``EngineError`` bad_job with the first thing about ``job`` that cannot be."""
    if not 0 <= job.temperature < float("inf"):
        raise EngineError("bad_job", f"The temperature is {job.temperature}.", "Choose 0 or more.")
    if not 0 < job.top_p <= 1:
        raise EngineError("bad_job", f"top_p is {job.top_p}.", "Choose a value above 0 and up to 1.")
    if job.max_new_tokens < 1:
        raise EngineError("bad_job", "max_new_tokens must be at least 1.")


class Side:
    """One policy and its answers, by the id of the prompt."""

    def __init__(self, opened: Opened, tokenizer: PreTrainedTokenizerBase, job: SideBySideJob) -> None:
        self.opened = opened
        self.tokenizer = tokenizer
        self.job = job
        self.rows: dict[str, Row] = {}
        with opened() as model:
            self.context = context_length(model.config)
            stop_ids = frozenset(stop_token_ids(tokenizer, model.generation_config))
        self.decoding = Decoding(job.temperature, job.top_p, stop_ids, int(tokenizer.pad_token_id))
        self.flight: Flight | None = None

    def refusal(self, prompt: PromptLine) -> str:
        """Why the policy cannot be asked ``prompt``; empty if it can."""
        try:
            tokens = len(prompt_token_ids(self.tokenizer, prompt.messages))
        except PromptError as error:
            return str(error)
        if tokens + LEAST_ROOM > self.context:
            return (
                f"The prompt has {tokens:,} tokens; the model reads at most {self.context:,}, and a response needs "
                f"{LEAST_ROOM} of them."
            )
        return ""

    def take(self, prompts: Sequence[PromptLine]) -> None:
        """Get ready to answer all of ``prompts`` together."""
        requests = []
        for number, prompt in enumerate(prompts):
            ids = prompt_token_ids(self.tokenizer, prompt.messages)
            seed = response_seed(self.job.seed, prompt.prompt_id, 1, 0)
            most = min(self.job.max_new_tokens, self.context - len(ids))
            requests.append(Request(ids, [seed], most))
            self.rows[prompt.prompt_id] = Row(number, seed, most)
        rows = deque(self.rows.values())
        with self.opened() as model:
            self.flight = Flight(model, requests, self.decoding, max(1, len(rows)), rows)

    def step(self) -> bool:
        """Write one more token of each answer. ``False`` once all of them have ended.

        Raises ``EngineError`` bad_weights when the logits are not finite.
        """
        assert self.flight is not None
        with self.opened(), torch.inference_mode():
            if not self.flight.refill():
                return False
            self.flight.draw()
            self.flight.advance()
        return True

    def so_far(self, prompt_id: str) -> SideAnswer:
        if (row := self.rows.get(prompt_id)) is None:
            return SideAnswer()
        text = response_text(self.tokenizer, row.token_ids)
        if not row.finish_reason:
            text = text.rstrip("\ufffd")  # the first bytes of a character whose others are still to come
        return SideAnswer(text, len(row.token_ids), row.finish_reason)


class Conversation:
    """Both sides on all prompts that both can be asked."""

    def __init__(self, run_dir: Path, prompts: Sequence[PromptLine], sides: Sequence[Side]) -> None:
        self.path = run_dir / ANSWERS
        self.prompts = prompts
        self.sides = sides
        self.refused = {
            prompt.prompt_id: reason
            for prompt in prompts
            if (reason := next(filter(None, (side.refusal(prompt) for side in sides)), ""))
        }
        self.written = float("-inf")

    def hold(self) -> None:
        asked = [prompt for prompt in self.prompts if prompt.prompt_id not in self.refused]
        for side in self.sides:
            side.take(asked)
        writing = list(self.sides)
        while writing:
            writing = [side for side in writing if side.step()]
            if time.monotonic() - self.written >= WRITE_SECONDS:
                self.write()
        self.write()

    def write(self) -> None:
        """Replace what readers see, as a whole: no reader finds half a file."""
        answers = [self.answer_of(prompt).to_dict() for prompt in self.prompts]
        write_atomically(self.path, json.dumps(answers, ensure_ascii=False))
        self.written = time.monotonic()

    def answer_of(self, prompt: PromptLine) -> SideBySideAnswer:
        left, right = (side.so_far(prompt.prompt_id) for side in self.sides)
        return SideBySideAnswer(prompt.prompt_id, left, right, self.refused.get(prompt.prompt_id, ""))
