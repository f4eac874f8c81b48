"""What policies answer to given prompts, and how far apart they are on it: written down as it is found.

An interrupted comparison is begun again by another process, which finds here what the first one had and goes on. Each
piece is kept under a key of all that it follows from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.engine import on_policy, reference_logps
from training.engine.cache import key_of
from training.engine.chat import accepted_token_ids, response_text
from training.engine.compute import VERSIONS, Compute
from training.engine.journal import Journal
from training.engine.on_policy import OnPolicyResponse, OnPolicySettings
from training.engine.shared_weights import Policies
from training.jobspec import Completion, Message, ModelRef

WRITTEN_TOGETHER = 4  # times the responses in flight: what an interrupted comparison writes again at most

Tick = Callable[[int, int], None]


class Kept:
    """Values by key in a journal of the job, which end with its directory."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self.journal = Journal(path)
        self.values = {line["key"]: line["value"] for line in self.journal.read()}

    def of(self, key: bytes, compute: Callable[[], Any]) -> Any:
        name = key.hex()
        if name not in self.values:
            self.values[name] = compute()
            self.journal.append({"key": name, "value": self.values[name]})
        return self.values[name]


@dataclass(frozen=True)
class Answer:
    """One policy's answer to one prompt, as ids of that policy's own tokenizer."""

    prompt_ids: list[int]
    completion: Completion

    def measured(self, prompt: int, kl: dict[str, float]) -> OnPolicyResponse:
        return OnPolicyResponse(prompt, self.completion.token_ids, self.completion.finish_reason, kl)


@dataclass(frozen=True)
class Writer:
    """Lets policies answer. What ``settings`` and prompt decide is the same for each policy, random numbers too."""

    policies: Policies
    compute: Compute
    kept: Kept

    def answers(
        self, policy: ModelRef, prompts: Sequence[list[Message]], settings: OnPolicySettings, tick: Tick
    ) -> dict[int, Answer]:
        """By the number of the prompt; without those that the template refuses or that leave no room for an answer."""
        tokenizer = self.policies.tokenizer_of(policy)
        ids = accepted_token_ids(tokenizer, prompts)
        numbers = sorted(ids)
        found: dict[int, Answer] = {}
        at_once = settings.rows * WRITTEN_TOGETHER
        for start in range(0, len(numbers), at_once):
            part = numbers[start : start + at_once]
            written = self.written(policy, [ids[number] for number in part], settings)
            for place, (tokens, finish_reason) in written.items():
                completion = Completion(response_text(tokenizer, tokens), tokens, finish_reason)
                found[part[int(place)]] = Answer(ids[part[int(place)]], completion)
            tick(start + len(part), len(numbers))
        return found

    def written(self, policy: ModelRef, prompts: list[list[int]], settings: OnPolicySettings) -> dict[str, Any]:
        def write() -> dict[str, Any]:
            opened, tokenizer = self.policies.opened(policy), self.policies.tokenizer_of(policy)
            rows = on_policy.write(opened, tokenizer, prompts, settings, self.compute)
            return {str(number): [row.token_ids, row.finish_reason] for number, row in sorted(rows.items())}

        numbers = [settings.seed, settings.max_new_tokens, settings.rows]
        decoding = f"{settings.temperature} {settings.top_p}"
        key = key_of("answers", *self.name(policy), decoding, numbers, *prompts)
        return dict(self.kept.of(key, write))

    def distances(self, policy: ModelRef, other: ModelRef, answers: dict[int, Answer], tick: Tick) -> dict[int, float]:
        """KL(policy || other) of each answer of ``policy``, in nats."""
        if reference_logps.content_hash(policy) == reference_logps.content_hash(other):
            return dict.fromkeys(answers, 0.0)
        found = {}
        for done, (number, answer) in enumerate(sorted(answers.items()), start=1):
            found[number] = self.distance(policy, other, answer)
            tick(done, len(answers))
        return found

    def distance(self, policy: ModelRef, other: ModelRef, answer: Answer) -> float:
        def measure() -> float:
            opened = {"other": self.policies.opened(other)}
            ids = answer.completion.token_ids
            ours = self.policies.opened(policy)
            return on_policy.sequence_kl(ours, opened, answer.prompt_ids, ids, self.compute)["other"]

        names = (*self.name(policy), reference_logps.content_hash(other))
        return float(self.kept.of(key_of("kl", *names, answer.prompt_ids, answer.completion.token_ids), measure))

    def name(self, policy: ModelRef) -> tuple[str, ...]:
        return (*VERSIONS, reference_logps.content_hash(policy), self.compute.name)
