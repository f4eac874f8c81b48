"""The sampling loop: many responses in flight, each with a random stream of its own.

A response depends on its prompt, its seed and the weights. It does not depend on the responses written beside it,
except for the rounding of sums, because no random number is shared and the columns of others are masked out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from peft import PeftModel
from transformers import Cache, DynamicCache, PreTrainedModel

from training.engine.errors import EngineError
from training.engine.kv_cache import ResponseCache
from training.jobspec import FinishReason

CANDIDATES = (64, 2048)  # as many are sorted first, then more for the rows where these hold less than top_p
PROMPT_TOKENS = 4096  # of prompts read at once, padding included
REFILL_SHARE = 16  # new prompts are read when one in so many places is free: a pair at 32 rows
SIGNIFICANT_DIGITS = 9  # enough for a float32 to come back as it was


@dataclass(frozen=True)
class Decoding:
    temperature: float  # 0: the likeliest token every time
    top_p: float  # nucleus sampling, Holtzman et al. 2020, section 3.1
    stop_ids: frozenset[int]
    pad_id: int


@dataclass(frozen=True)
class Request:
    """Write one response for each of ``seeds``, each at most ``max_new_tokens`` long."""

    prompt_ids: list[int]
    seeds: list[int]
    max_new_tokens: int


@dataclass
class Row:
    """One response: its tokens up to and with the one that stopped it, and log pi(token | prefix) of each in nats.

    The log-probabilities are those of the policy itself, at temperature 1 over the whole vocabulary, whatever
    temperature and nucleus the tokens were drawn with.
    """

    request: int
    seed: int
    max_new_tokens: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = ""
    logps: list[float] = field(default_factory=list)

    @cached_property
    def generator(self) -> torch.Generator:
        # On the CPU also for a model on a GPU, so that both draw the same numbers.
        return torch.Generator().manual_seed(self.seed)

    def uniform(self) -> torch.Tensor:
        return torch.rand(1, generator=self.generator, dtype=torch.float64)

    def add(self, token: int, logp: float, stop_ids: frozenset[int]) -> None:
        self.token_ids.append(token)
        self.logps.append(rounded_value(logp))
        if token in stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.max_new_tokens:
            self.finish_reason = "length"


def rounded_value(logp: float) -> float:
    return float(f"{logp:.{SIGNIFICANT_DIGITS}g}")


def rounded(logps: torch.Tensor) -> list[float]:
    """``logps`` (tokens,) float32 as they are written down."""
    return list(map(rounded_value, logps.tolist()))


@torch.inference_mode()
def write_responses(
    model: PreTrainedModel | PeftModel, requests: Sequence[Request], decoding: Decoding, rows: int = 32
) -> Iterator[tuple[int, list[Row]]]:
    """Yield (number of the request, its rows in the order of its seeds) as soon as all rows of a request have ended.

    At most ``rows`` responses are in flight; when one ends, the next one that waits takes its place. The longest
    prompts come first, so that neighbours in the queue need little padding and memory is greatest at the beginning.
    A prompt is read once for all responses to it. Raises ``EngineError`` bad_weights when the logits are not finite,
    and ``ValueError`` when ``rows`` is less than 1.
    """
    if rows < 1:
        raise ValueError(f"{rows} rows cannot write anything")
    answers = {
        number: [Row(number, seed, request.max_new_tokens) for seed in request.seeds]
        for number, request in enumerate(requests)
    }
    longest_first = sorted(answers, key=lambda number: -len(requests[number].prompt_ids))
    waiting = deque(row for number in longest_first for row in answers[number])
    flight = Flight(model, requests, decoding, min(rows, len(waiting)), waiting)
    left = Counter(row.request for row in waiting)
    while flight.refill():
        for row in flight.draw():
            left[row.request] -= 1
            if not left[row.request]:
                yield row.request, answers.pop(row.request)
        flight.advance()


@dataclass
class Prompt:
    """A prompt that the model has read: row ``index`` of ``cache``, and the logits (vocabulary,) that follow it."""

    cache: DynamicCache
    index: int
    tokens: int
    logits: torch.Tensor
    waiting: int  # responses to it that have no place yet


class Flight:
    """The responses that are being written, at most ``places``, and those that wait for a place.

    ``rows`` are in the order of their places in the cache, and ``logits`` (rows, vocabulary), float32, are what their
    next tokens are drawn from.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        requests: Sequence[Request],
        decoding: Decoding,
        places: int,
        waiting: deque[Row],
    ) -> None:
        self.model = model
        self.device = model.device
        self.requests = requests
        self.decoding = decoding
        self.places = places
        self.waiting = waiting
        self.rows: list[Row] = []
        self.prompts: dict[int, Prompt] = {}
        self.cache: ResponseCache | None = None
        self.logits = torch.empty(0)
        self.tokens = torch.empty(0)

    def refill(self) -> bool:
        """Give free places to rows that wait. Returns whether anything is in flight."""
        free = self.places - len(self.rows)
        if self.waiting and (not self.rows or free >= max(1, self.places // REFILL_SHARE)):
            self.admit([self.waiting.popleft() for _ in range(min(free, len(self.waiting)))])
        return bool(self.rows)

    def admit(self, new: list[Row]) -> None:
        self.read([number for number in dict.fromkeys(row.request for row in new) if number not in self.prompts])
        prompts = [self.prompts[row.request] for row in new]
        if self.cache is None:
            self.cache = ResponseCache(self.places, prompts[0].cache)
        self.cache.make_room(max(prompt.tokens for prompt in prompts))
        for prompt in prompts:
            self.cache.add(prompt.cache, prompt.index, prompt.tokens)
            prompt.waiting -= 1
        logits = torch.stack([prompt.logits for prompt in prompts])
        self.logits = torch.cat([self.logits, logits]) if self.rows else logits
        self.rows += new
        self.prompts = {number: prompt for number, prompt in self.prompts.items() if prompt.waiting}

    def read(self, numbers: list[int]) -> None:
        """Read the prompts of these requests, as many at once as ``PROMPT_TOKENS`` allows."""
        while numbers:
            longest = max(len(self.requests[number].prompt_ids) for number in numbers)
            count = max(1, PROMPT_TOKENS // longest)
            batch, numbers = numbers[:count], numbers[count:]
            self.read_together(batch)

    def read_together(self, numbers: list[int]) -> None:
        sequences = [self.requests[number].prompt_ids for number in numbers]
        ids, mask = left_padded(sequences, self.decoding.pad_id, self.device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()  # without the configuration, or layers with a window would forget columns
        logits = forward(self.model, ids, mask, positions, cache)
        for index, number in enumerate(numbers):
            request = self.requests[number]
            self.prompts[number] = Prompt(
                cache, index, len(request.prompt_ids), logits[index], waiting=len(request.seeds)
            )

    def draw(self) -> list[Row]:
        """Draw the next token of every row. Rows that end with it leave their places and are returned."""
        uniforms = torch.cat([row.uniform() for row in self.rows])
        tokens = choose(self.logits, uniforms, self.decoding)
        logps = torch.log_softmax(self.logits, dim=-1).gather(1, tokens[:, None]).squeeze(1)
        if not bool(logps.isfinite().all()):
            hint = "Check the checkpoint that is sampled from: a run that diverged writes such weights."
            raise EngineError("bad_weights", "The model's logits are not finite.", hint)
        for row, token, logp in zip(self.rows, tokens.tolist(), logps.tolist(), strict=True):
            row.add(token, logp, self.decoding.stop_ids)
        ended = [place for place, row in enumerate(self.rows) if row.finish_reason]
        return self.leave(ended, tokens)

    def leave(self, places: list[int], tokens: torch.Tensor) -> list[Row]:
        """Free ``places``. ``tokens`` (rows,) of the rows that stay are what ``advance`` reads."""
        ended = [self.rows[place] for place in places]
        order = self.cache.remove(set(places)) if ended else list(range(len(self.rows)))
        self.tokens = tokens[torch.tensor(order, device=tokens.device, dtype=torch.int64)] if ended else tokens
        self.rows = [self.rows[place] for place in order]
        return ended

    def advance(self) -> None:
        """Read the tokens just drawn, which gives the logits of the next ones."""
        if not self.rows:
            return
        self.cache.make_room()
        mask, positions = self.cache.mask(self.device), self.cache.positions(self.device)
        self.logits = forward(self.model, self.tokens[:, None], mask, positions, self.cache)
        self.cache.step()


def left_padded(
    sequences: list[list[int]], pad_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both (sequences, longest), int64."""
    longest = max(len(ids) for ids in sequences)
    padded = [[pad_id] * (longest - len(ids)) + ids for ids in sequences]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in sequences]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def forward(
    model: PreTrainedModel | PeftModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Cache,
) -> torch.Tensor:
    """Logits of the last position, (rows, vocabulary), float32. ``cache`` takes the columns of ``input_ids`` in."""
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def choose(logits: torch.Tensor, uniforms: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Draw a token a row by inverting the cumulative distribution of the nucleus at ``uniforms``.

    ``logits`` (rows, vocabulary) float32, ``uniforms`` (rows,) float64 in [0, 1). Returns (rows,) int64.
    """
    if decoding.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / decoding.temperature, dim=-1)
    uniforms = uniforms.to(logits.device)
    if decoding.top_p >= 1:
        return invert(probabilities.double(), uniforms)  # everything is in the nucleus, in whatever order
    chosen = uniforms.new_zeros(len(uniforms), dtype=torch.int64)
    rows, vocabulary = torch.arange(len(uniforms), device=logits.device), probabilities.shape[-1]
    # Sorting a vocabulary costs as much as the model itself, and a nucleus rarely holds a hundred tokens.
    for size in (*(size for size in CANDIDATES if size < vocabulary), vocabulary):
        top, ids = probabilities.topk(size, dim=-1)
        top = top.double()
        before = top.cumsum(dim=-1) - top
        picked = invert(top.masked_fill(before >= decoding.top_p, 0.0), uniforms[rows])
        chosen[rows] = ids.gather(1, picked[:, None]).squeeze(1)
        wider = top.sum(dim=-1) < decoding.top_p
        if size == vocabulary or not bool(wider.any()):
            break
        rows, probabilities = rows[wider], probabilities[wider]
    return chosen


def invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first column where the running sum of ``weights`` (rows, columns) float64 exceeds its share ``uniforms``."""
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    targets = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    picked = torch.searchsorted(cumulative, targets, right=True).squeeze(1)
    return picked.clamp(max=weights.shape[-1] - 1)
