"""Tokens a second: responses in flight together, against transformers' ``generate`` called pair by pair.

    python benchmarks/sampling.py [--prompts N] [--rows 64] [--max-new-tokens 128] [--threads N] [--model DIR] [--json]

Both write two responses to each of the same prompts, with the same weights, temperature, nucleus, length and stop
tokens, in one process after one another. Counted are sampled tokens up to and with the one that stops a response;
padding is not. The time includes reading the prompts. A job writes its first pair alone, which is not in these figures.
A few responses are checked: the log-probabilities that were kept must be those of a plain forward of the whole text.

Without ``--model`` the model is SmolLM2-135M-Instruct, built once from the wheel that a fresh installation uses and
kept; the first line says where.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # and not this folder, whose queue.py would hide Python's

from training.engine.process import ENVIRONMENT_DEFAULTS  # noqa: E402

for _name, _value in ENVIRONMENT_DEFAULTS.items():
    os.environ.setdefault(_name, _value)  # before torch reads them

import torch  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

from benchmarks.pairs import default_model  # noqa: E402
from training.engine import chat, loading  # noqa: E402
from training.engine import compute as compute_module  # noqa: E402
from training.engine.decoding import Decoding, Request, Row, write_responses  # noqa: E402

TEMPERATURE = 0.9
TOP_P = 0.95
CHECKED = 4  # responses whose log-probabilities are computed again
TOLERANCE = 1e-4  # nats

INSTRUCTIONS = (
    "Why is the sky blue?",
    "Write a short poem about a river in autumn.",
    "List three uses of copper in a house.",
    "Explain gravity to a six year old in two sentences.",
    "What should I pack for a weekend in the mountains?",
    "Turn this into a polite email: I can't come on Friday, my train was cancelled.",
    "Give me a name for a bakery and say why it fits.",
    "How do bees find their way home?",
    "Summarise the story of Robinson Crusoe in one paragraph.",
    "What is the difference between weather and climate?",
    "Write a riddle whose answer is 'a shadow'.",
    "Suggest a dinner with lentils, carrots and rice.",
    "Who was Ada Lovelace?",
    "Translate into plain English: 'The aforementioned party shall henceforth desist.'",
    "Give two arguments for and two against school uniforms.",
    "How does a bicycle stay upright?",
    "Write a product description for a wooden spoon.",
    "My plant has yellow leaves. What could be wrong?",
    "Explain what a database index does, with an example from a library.",
    "Continue the story: The lighthouse had been dark for a year when",
    "What is seven times eight, and how could I remember it?",
    "Describe the taste of a lemon to somebody who has never had one.",
    "Name five trees that keep their leaves in winter.",
    "What makes bread rise?",
    "Write a toast for my sister's wedding. She is a nurse and loves sailing.",
    "How can I learn to fall asleep earlier?",
    "Correct the grammar: 'Me and him goes to the market every days.'",
    "What happens to a star when it runs out of hydrogen?",
    "Give me a one-week plan to learn the Greek alphabet.",
    "Why do cats purr?",
    "Write a haiku about an empty station.",
    "What questions should I ask when I rent a flat?",
)


@dataclass(frozen=True)
class Measured:
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def main() -> int:
    arguments = parse()
    compute = compute_module.choose("cpu", arguments.threads)
    directory = arguments.model or default_model()
    print(f"model: {directory}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the beginning")
    tokenizer = loading.load_tokenizer(directory)
    model = loading.load_weights(directory, compute.dtype).eval().requires_grad_(False)
    requests = make_requests(tokenizer, arguments.prompts, arguments.max_new_tokens)
    stop_ids = chat.stop_token_ids(tokenizer, model.generation_config)
    decoding = Decoding(TEMPERATURE, TOP_P, frozenset(stop_ids), tokenizer.pad_token_id)
    warm_up(model, requests[0], decoding)

    ours, answers = in_flight(model, requests, decoding, arguments.rows)
    worst = largest_error(model, requests, answers)
    theirs = pair_by_pair(model, requests, decoding)
    report(arguments, theirs, ours, worst, directory)
    return 0 if worst <= TOLERANCE else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=len(INSTRUCTIONS), help="number of pairs to write")
    parser.add_argument("--rows", type=int, default=64, help="responses in flight")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the choice to torch")
    parser.add_argument("--model", type=Path, help="directory of weights and tokenizer")
    parser.add_argument("--json", action="store_true", help="write the figures as one JSON object in the last line")
    return parser.parse_args()


def make_requests(tokenizer: PreTrainedTokenizerBase, prompts: int, max_new_tokens: int) -> list[Request]:
    requests = []
    for number, text in enumerate(islice(cycle(INSTRUCTIONS), prompts)):
        ids = chat.prompt_token_ids(tokenizer, [{"role": "user", "content": text}])
        requests.append(Request(ids, [2 * number, 2 * number + 1], max_new_tokens))
    return requests


def warm_up(model: PreTrainedModel, request: Request, decoding: Decoding) -> None:
    short = Request(request.prompt_ids, request.seeds, 4)
    list(write_responses(model, [short], decoding))
    pair_by_pair(model, [short], decoding)


def in_flight(
    model: PreTrainedModel, requests: Sequence[Request], decoding: Decoding, rows: int
) -> tuple[Measured, dict[int, list[Row]]]:
    started = time.perf_counter()
    answers = dict(write_responses(model, requests, decoding, rows))
    seconds = time.perf_counter() - started
    return Measured(sum(len(row.token_ids) for answer in answers.values() for row in answer), seconds), answers


@torch.inference_mode()
def pair_by_pair(model: PreTrainedModel, requests: Sequence[Request], decoding: Decoding) -> Measured:
    tokens, started = 0, time.perf_counter()
    for request in requests:
        ids = torch.tensor([request.prompt_ids])
        torch.manual_seed(request.seeds[0])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_return_sequences=len(request.seeds),
            do_sample=True,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=0,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=sorted(decoding.stop_ids),
            pad_token_id=decoding.pad_id,
        )
        written = output[:, ids.shape[1] :].tolist()
        tokens += sum(length_with_stop(row, decoding.stop_ids) for row in written)
    return Measured(tokens, time.perf_counter() - started)


def length_with_stop(token_ids: list[int], stop_ids: frozenset[int]) -> int:
    """Tokens up to and with the first that stops; what follows it is padding."""
    return next((place for place, token in enumerate(token_ids, start=1) if token in stop_ids), len(token_ids))


@torch.inference_mode()
def largest_error(model: PreTrainedModel, requests: Sequence[Request], answers: dict[int, list[Row]]) -> float:
    """Greatest difference in nats between the kept log-probabilities and those of a forward of the whole text."""
    worst = 0.0
    spread = sorted(answers)[:: max(1, len(answers) // CHECKED)][:CHECKED]
    for number in spread:
        prompt_ids, row = requests[number].prompt_ids, answers[number][-1]
        logits = model(input_ids=torch.tensor([prompt_ids + row.token_ids])).logits[0, len(prompt_ids) - 1 : -1]
        targets = torch.tensor(row.token_ids)[:, None]
        logps = torch.log_softmax(logits.float(), dim=-1).gather(1, targets).squeeze(1)
        worst = max(worst, float((logps - torch.tensor(row.logps)).abs().max()))
    return worst


def report(arguments: argparse.Namespace, theirs: Measured, ours: Measured, worst: float, directory: Path) -> None:
    ratio = ours.tokens_per_s / theirs.tokens_per_s
    print(f"{'':34}{'tokens':>8}{'seconds':>10}{'tokens/s':>10}")
    print(f"{'generate, pair by pair':34}{theirs.tokens:8}{theirs.seconds:10.1f}{theirs.tokens_per_s:10.1f}")
    print(f"{f'ours, {arguments.rows} rows':34}{ours.tokens:8}{ours.seconds:10.1f}{ours.tokens_per_s:10.1f}")
    print(f"ratio {ratio:.2f} (goal: at least 3); log-probabilities within {worst:.1e} nats of a plain forward")
    if arguments.json:
        print(json.dumps(figures(arguments, theirs, ours, worst, directory) | {"ratio": round(ratio, 3)}))


def figures(
    arguments: argparse.Namespace, theirs: Measured, ours: Measured, worst: float, directory: Path
) -> dict[str, Any]:
    return {
        "tokens_per_s": {"pair_by_pair": round(theirs.tokens_per_s, 2), "ours": round(ours.tokens_per_s, 2)},
        "tokens": {"pair_by_pair": theirs.tokens, "ours": ours.tokens},
        "seconds": {"pair_by_pair": round(theirs.seconds, 2), "ours": round(ours.seconds, 2)},
        "max_logp_error": worst,
        "prompts": arguments.prompts,
        "rows": arguments.rows,
        "max_new_tokens": arguments.max_new_tokens,
        "threads": torch.get_num_threads(),
        "model": directory.name,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    raise SystemExit(main())
