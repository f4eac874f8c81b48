"""What the policy does on pairs it was not trained on, pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from training.engine.compute import Compute
from training.engine.preference_data import TokenTriple
from training.jobspec import PairScore

RESAMPLES = 1000
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Logps:
    """Log-probabilities of one triple's completions given its prompt, in nats, summed over tokens."""

    chosen: float
    rejected: float


@torch.inference_mode()
def score(
    model: PreTrainedModel, triples: Sequence[TokenTriple], compute: Compute, tick: Callable[[int], None] | None = None
) -> list[Logps]:
    """``Logps`` of each triple under ``model``. ``tick`` hears how many are done."""
    scores = []
    for done, triple in enumerate(triples, start=1):
        chosen, rejected = pair_logps(model, triple, compute)
        scores.append(Logps(chosen, rejected))
        if tick:
            tick(done)
    return scores


def pair_logps(model: PreTrainedModel, triple: TokenTriple, compute: Compute) -> list[float]:
    """log pi(y_w | x) and log pi(y_l | x).

    Both completions start at the same column, so the head is computed for their columns only, and padding is on the
    right, where causal attention does not see it.
    """
    completions = [triple.chosen_ids, triple.rejected_ids]
    longest = max(len(ids) for ids in completions)
    padded = [ids + [0] * (longest - len(ids)) for ids in completions]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in completions]
    targets = torch.tensor(padded, device=compute.device)
    kept = torch.tensor(mask, device=compute.device)
    prompt = torch.tensor([triple.prompt_ids] * 2, device=compute.device)
    with compute.autocast():
        logits = model(
            input_ids=torch.cat([prompt, targets], dim=1),
            attention_mask=torch.cat([torch.ones_like(prompt), kept], dim=1),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits
    logps = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, targets[:, :, None]).squeeze(2)
    sums: list[float] = (logps.double() * kept).sum(dim=1).tolist()
    return sums


def pair_scores(triples: Sequence[TokenTriple], reference: Sequence[Logps], policy: Sequence[Logps]) -> list[PairScore]:
    return [
        PairScore(
            pair_id=triple.pair_id,
            prompt_id=triple.prompt_id,
            reference_chosen=before.chosen,
            reference_rejected=before.rejected,
            policy_chosen=after.chosen,
            policy_rejected=after.rejected,
            chosen_tokens=len(triple.chosen_ids),
            rejected_tokens=len(triple.rejected_ids),
        )
        for triple, before, after in zip(triples, reference, policy, strict=True)
    ]


def summarise(scores: Sequence[PairScore], beta: float) -> dict[str, object]:
    """Accuracy and margin of the implicit reward before and after training, over pairs.

    Before training policy and reference are one, so all margins are zero, and a tie counts half. ``logp_accuracy``,
    the share of pairs with log pi(y_w | x) > log pi(y_l | x), tells something before as well.
    """
    if not scores:
        return {"pairs": 0}
    margins = np.array([margin(item, beta) for item in scores])
    reference_gap = np.array([item.reference_chosen - item.reference_rejected for item in scores])
    policy_gap = np.array([item.policy_chosen - item.policy_rejected for item in scores])
    prompts = [item.prompt_id for item in scores]
    return {
        "pairs": len(scores),
        "prompts": len(set(prompts)),
        "before": {"accuracy": 0.5, "margin": 0.0, "logp_accuracy": share_positive(reference_gap)},
        "after": {
            "accuracy": share_positive(margins),
            "margin": float(margins.mean()),
            "logp_accuracy": share_positive(policy_gap),
        },
        "accuracy_interval": accuracy_interval(margins, prompts),
    }


def margin(item: PairScore, beta: float) -> float:
    """Implicit reward of y_w less that of y_l (Rafailov et al. 2023, eq. 5)."""
    chosen = item.policy_chosen - item.reference_chosen
    rejected = item.policy_rejected - item.reference_rejected
    return beta * (chosen - rejected)


def wins(values: np.ndarray) -> np.ndarray:
    """1 above zero, 1/2 at zero, 0 below."""
    return (np.sign(values) + 1) / 2


def share_positive(values: np.ndarray) -> float:
    return float(wins(values).mean())


def accuracy_interval(margins: np.ndarray, prompts: Sequence[str]) -> list[float]:
    """Percentile bootstrap over prompts: the pairs of a prompt are not independent (Efron 1979)."""
    _, group = np.unique(np.array(prompts), return_inverse=True)
    won = np.bincount(group, weights=wins(margins))
    pairs = np.bincount(group)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    accuracies = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = generator.integers(len(pairs), size=len(pairs))
        accuracies[number] = won[drawn].sum() / pairs[drawn].sum()
    tail = (1 - CONFIDENCE) / 2
    return [float(value) for value in np.quantile(accuracies, [tail, 1 - tail])]
