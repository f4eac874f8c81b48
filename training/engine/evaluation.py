"""What the policy does on pairs it was not trained on, pair by pair."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from training.engine.preference_data import TokenTriple
from training.engine.reference_logps import Pair
from training.jobspec import PairScore

LengthRule = Literal["longer", "shorter"]

RESAMPLES = 1000
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
RESAMPLED_AT_ONCE = 2**22  # counts in memory, so that many prompts do not need many gigabytes


def pair_score(triple: TokenTriple, reference: Pair, policy: Pair) -> PairScore:
    """Sums over tokens, in float64, of per-token log-probabilities (chosen, rejected)."""
    sums = [float(values.double().sum()) for values in (*reference, *policy)]
    lengths = (len(triple.chosen_ids), len(triple.rejected_ids))
    return PairScore(triple.pair_id, triple.prompt_id, *sums, *lengths)


def summarise(scores: Sequence[PairScore], beta: float, train_lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Accuracy and margin of the implicit reward before and after training, over pairs, with intervals over prompts.

    ``train_lengths`` are the tokens (chosen, rejected) of the training pairs. A tied label has no winner, and neither
    ``PairScore`` nor a length says that it is one: the caller leaves such triples out of both arguments.

    Before training policy and reference are one, so all margins are zero, and a margin of zero counts half.
    ``logp_accuracy``, the share of pairs with log pi(y_w | x) > log pi(y_l | x), tells something before as well.

    ``length_baseline`` is what a reader of lengths alone would have got: "longer" or "shorter" wins, whichever does on
    the training pairs. ``advantage`` is the policy's accuracy less that one, on the same pairs, so that its interval
    is narrower than the two say. ``chosen_shift`` is log pi(y_w | x) / pi_ref(y_w | x) in nats a token.
    """
    if not scores:
        return {"pairs": 0}
    rule = length_rule(train_lengths)
    columns = pair_figures(scores, beta, rule)
    prompts = [item.prompt_id for item in scores]
    mean = {name: float(values.mean()) for name, values in columns.items()}
    interval = dict(zip(columns, intervals(np.stack(list(columns.values()), axis=1), prompts), strict=True))
    return {
        "pairs": len(scores),
        "prompts": len(set(prompts)),
        "before": {"accuracy": 0.5, "margin": 0.0, "logp_accuracy": mean["reference_won"]},
        "after": {"accuracy": mean["won"], "margin": mean["margin"], "logp_accuracy": mean["policy_won"]},
        "accuracy_interval": interval["won"],
        "margin_interval": interval["margin"],
        "chosen_shift": mean["chosen_shift"],
        "chosen_shift_interval": interval["chosen_shift"],
        "length_baseline": {
            "rule": rule,
            "accuracy": mean["rule_won"],
            "interval": interval["rule_won"],
            "advantage": mean["advantage"],
            "advantage_interval": interval["advantage"],
        },
    }


def pair_figures(scores: Sequence[PairScore], beta: float, rule: LengthRule) -> dict[str, np.ndarray]:
    """What ``summarise`` averages: (pairs,) each."""
    margins = np.array([margin(item, beta) for item in scores])
    rule_won = wins(rule_margins(rule, [(item.chosen_tokens, item.rejected_tokens) for item in scores]))
    return {
        "won": wins(margins),
        "margin": margins,
        "reference_won": wins(np.array([item.reference_chosen - item.reference_rejected for item in scores])),
        "policy_won": wins(np.array([item.policy_chosen - item.policy_rejected for item in scores])),
        "chosen_shift": np.array([chosen_shift(item) for item in scores]),
        "rule_won": rule_won,
        "advantage": wins(margins) - rule_won,
    }


def margin(item: PairScore, beta: float) -> float:
    """Implicit reward of y_w less that of y_l (Rafailov et al. 2023, eq. 5)."""
    chosen = item.policy_chosen - item.reference_chosen
    rejected = item.policy_rejected - item.reference_rejected
    return beta * (chosen - rejected)


def chosen_shift(item: PairScore) -> float:
    """How much likelier training has made y_w, in nats a token."""
    return (item.policy_chosen - item.reference_chosen) / max(item.chosen_tokens, 1)


def length_rule(lengths: Sequence[tuple[int, int]]) -> LengthRule:
    """Which of longer and shorter wins more often among (chosen, rejected); longer where both do alike.

    People, and judges that are models, err that way (Singhal et al. 2023; Dubois et al. 2024).
    """
    return "longer" if not lengths or wins(rule_margins("longer", lengths)).mean() >= 0.5 else "shorter"


def rule_margins(rule: LengthRule, lengths: Sequence[tuple[int, int]]) -> np.ndarray:
    """Above zero where the rule picks the chosen response, zero where it cannot tell."""
    longer = np.array([chosen - rejected for chosen, rejected in lengths])
    return longer if rule == "longer" else -longer


def wins(values: np.ndarray) -> np.ndarray:
    """1 above zero, 1/2 at zero, 0 below."""
    return (np.sign(values) + 1) / 2


def intervals(values: np.ndarray, groups: Sequence[Hashable]) -> list[list[float]]:
    """Percentile bootstrap intervals [low, high] of the column means of ``values`` (rows, columns).

    Whole groups are drawn, because the pairs of a prompt are not independent (Efron 1979; cluster bootstrap). With a
    handful of groups, or where all agree, such an interval is too narrow.
    """
    _, group = np.unique(np.array(groups), return_inverse=True)
    sizes = np.bincount(group)
    totals = np.stack([np.bincount(group, weights=column) for column in values.T], axis=1)
    means = np.concatenate(list(resampled_means(totals, sizes)))
    tail = (1 - CONFIDENCE) / 2
    bounds: list[list[float]] = np.quantile(means, [tail, 1 - tail], axis=0).T.tolist()
    return bounds


def resampled_means(totals: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Means of ``RESAMPLES`` draws of as many groups as there are, some draws at a time, (draws, columns)."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    groups = len(sizes)
    at_once = max(1, RESAMPLED_AT_ONCE // groups)
    for start in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - start)
        times = generator.multinomial(groups, np.full(groups, 1 / groups), size=draws)  # (draws, groups)
        yield (times @ totals) / (times @ sizes)[:, None]
