"""The joint model of annotators and pairs against majority vote, on simulated votes whose truth is known.

    python benchmarks/label_model.py [--pairs 2000] [--annotators 20] [--seeds 20] [--votes 10000,100000,200000]
                                     [--threads N] [--json]

Every crowd judges pairs once, once with 15 % of them twice, twice and three times. "Wrong" is the share of pairs whose
better response is missed; where votes are tied, or p is 1/2, a coin decides and half a pair is counted. The difference
is posterior less majority with its 95 % interval over seeds; below 0 the posterior is better. Brier is the mean squared
error of P(A is better), for majority the share of votes for A. 8 % of all judgements are ties.

Crowds: *careful* (reliability about 0.83, alike), *mixed* (as the model's prior has them), *spam* (mixed, but of twenty
three vote at random, two always left and two click on without reading half of the time), *misread* (mixed, but one in
ten takes worse for better), *hard pairs* (mixed, on pairs of which many differ little: not what the model assumes).
Then: does p mean what it says, and how long do a fit and the update of a few pairs take.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--votes", default="10000,100000,200000", help="sizes to time, with commas between them")
    parser.add_argument("--threads", type=int, default=0, help="of linear algebra; 0 leaves the choice to it")
    parser.add_argument("--json", action="store_true", help="write the figures as one JSON object in the last line")
    arguments = parser.parse_args()
    if arguments.seeds < 2 or arguments.annotators < 10 or arguments.pairs < 10:
        parser.error("An interval needs 2 seeds at least, and the crowds 10 annotators and 10 pairs.")
    return arguments


ARGUMENTS = parse() if __name__ == "__main__" else argparse.Namespace(threads=0)
if ARGUMENTS.threads:
    os.environ["OPENBLAS_NUM_THREADS"] = str(ARGUMENTS.threads)  # before numpy reads it

import numpy as np  # noqa: E402

from labeling.posterior import Fit, fit, update  # noqa: E402
from labeling.votes import TIE, Floats, VoteColumns  # noqa: E402

CROWDS = ("careful", "mixed", "spam", "misread", "hard pairs")
DESIGNS = {"1": (1, 0.0), "1 + 15 %": (1, 0.15), "2": (2, 0.0), "3": (3, 0.0)}
TIE_RATE = 0.08
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Crowd:
    """``ability`` and ``side``: logits of each annotator; ``unread``: share of votes that are a coin's."""

    ability: Floats
    side: Floats
    unread: Floats
    has_hard_pairs: bool

    @property
    def reliability(self) -> Floats:
        read = (sigmoid(self.ability + self.side) + sigmoid(self.ability - self.side)) / 2
        return np.asarray((1 - self.unread) * read + self.unread / 2)


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def crowd_of(name: str, size: int, random: np.random.Generator) -> Crowd:
    mean, spread = (1.6, 0.3) if name == "careful" else (1.25, 0.75)
    ability, side = random.normal(mean, spread, size), random.normal(0, 0.5, size)
    unread = np.zeros(size)
    tenth = max(1, size // 10)
    if name == "spam":
        ability[: 5 * size // 20] = 0
        side[: 5 * size // 20] = 0
        side[:tenth] = 8
        unread[5 * size // 20 : 5 * size // 20 + tenth] = 0.5
    if name == "misread":
        ability[:tenth] = -1
    return Crowd(ability, side, unread, name == "hard pairs")


def judge(crowd: Crowd, pairs: int, times: int, more: float, random: np.random.Generator) -> tuple[VoteColumns, Floats]:
    """Votes, ``times`` a pair and one more on a share of the pairs, and 1 where A is better.

    On hard pairs abilities count by a difference drawn from 0 to 2.
    """
    a_better = random.random(pairs) < 0.5
    judgements = times + (random.random(pairs) < more)
    pair = np.repeat(np.arange(pairs), judgements)
    turn = np.arange(len(pair)) - np.repeat(np.cumsum(judgements) - judgements, judgements)
    size = len(crowd.ability)
    annotator = np.argsort(random.random((pairs, size)), axis=1)[pair, turn]
    a_left = random.random(len(pair)) < 0.5
    difference = random.uniform(0, 2, pairs)[pair] if crowd.has_hard_pairs else 1.0
    toward = np.where(a_left == a_better[pair], 1.0, -1.0) * difference
    left = random.random(len(pair)) < sigmoid(toward * crowd.ability[annotator] + crowd.side[annotator])
    coin = random.random(len(pair)) < crowd.unread[annotator]
    left = np.where(coin, random.random(len(pair)) < 0.5, left)
    choice = np.where(left == a_left, 0, 1)
    choice[random.random(len(pair)) < TIE_RATE] = TIE
    return VoteColumns(pair, annotator, choice, a_left, np.zeros(len(pair), np.bool_)), a_better.astype(np.float64)


def vote_share(votes: VoteColumns, pairs: int) -> Floats:
    """Share of decided votes for A, 1/2 without one."""
    decided = np.bincount(votes.pair_id[votes.decided], minlength=pairs)
    for_a = np.bincount(votes.pair_id[votes.choice == 0], minlength=pairs)
    return np.where(decided > 0, for_a / np.maximum(decided, 1), 0.5)


def wrong(p: Floats, truth: Floats) -> float:
    missed = np.where(np.abs(p - 0.5) < 1e-9, 0.5, (p > 0.5) != (truth > 0.5))
    return float(missed.mean())


def measured(crowd: Crowd, fitted: Fit, votes: VoteColumns, truth: Floats) -> dict[str, float]:
    share, p = vote_share(votes, len(truth)), np.full(len(truth), 0.5)
    p[fitted.posterior.pair_ids] = fitted.posterior.p
    who = np.array([one.annotator_id for one in fitted.annotators])
    found = np.array([[one.reliability, one.reliability_low, one.reliability_high] for one in fitted.annotators])
    left = np.array([[one.left, one.left_low, one.left_high] for one in fitted.annotators])
    return (
        {"majority": wrong(share, truth), "posterior": wrong(p, truth)}
        | {"majority_brier": float(np.square(share - truth).mean()), "brier": float(np.square(p - truth).mean())}
        | recovered("reliability", found, crowd.reliability[who])
        | recovered("side", left, sigmoid(crowd.side)[who])
    )


def recovered(name: str, found: Floats, truth: Floats) -> dict[str, float]:
    within = (found[:, 1] <= truth) & (truth <= found[:, 2])
    return {
        f"{name}_correlation": float(np.corrcoef(found[:, 0], truth)[0, 1]),
        f"{name}_rmse": float(np.sqrt(np.square(found[:, 0] - truth).mean())),
        f"{name}_coverage": float(within.mean()),
    }


def compare(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, float]]]]:
    """A row a crowd and design, means over seeds; and calibration at three judgements."""
    rows, calibration = [], {}
    for place, name in enumerate(CROWDS):
        for design in DESIGNS:
            results, p_all, truth_all = [], [], []
            for seed in range(arguments.seeds):
                random = np.random.default_rng([seed, place])
                crowd = crowd_of(name, arguments.annotators, random)
                votes, truth = judge(crowd, arguments.pairs, *DESIGNS[design], random)
                fitted = fit(votes)
                results.append(measured(crowd, fitted, votes, truth))
                p_all.append(fitted.posterior.p)
                truth_all.append(truth[fitted.posterior.pair_ids])
            rows.append({"crowd": name, "judgements": design} | averaged(results))
            if design == "3" and name in ("mixed", "hard pairs"):
                calibration[name] = calibrated(np.concatenate(p_all), np.concatenate(truth_all))
    return rows, calibration


def averaged(results: list[dict[str, float]]) -> dict[str, float]:
    row = {name: float(np.mean([result[name] for result in results])) for name in results[0]}
    apart = np.array([result["posterior"] - result["majority"] for result in results])
    half = 1.96 * float(apart.std(ddof=1)) / len(apart) ** 0.5
    return row | {"difference": float(apart.mean()), "half_width": half}


def calibrated(p: Floats, truth: Floats) -> list[dict[str, float]]:
    """Of the response that is called better: how often it is said to be and is, by how surely it is said."""
    sure, right = np.maximum(p, 1 - p), np.where(p > 0.5, truth, 1 - truth)
    table = []
    for low, high in pairwise(BINS):
        within = (sure > low) & (sure <= high)
        if within.any():
            table.append({"from": low, "to": high, "pairs": int(within.sum()),
                          "said": float(sure[within].mean()), "is": float(right[within].mean())})  # fmt: skip
    return table


def timed(sizes: list[int]) -> list[dict[str, float]]:
    """Fits of so many votes of 50 annotators, half of the pairs judged once and half twice; updates of a part."""
    random = np.random.default_rng(0)
    rows = []
    for size in sizes:
        crowd = crowd_of("mixed", 50, random)
        votes, _ = judge(crowd, 2 * size // 3, 1, 0.5, random)
        seconds, fitted = best(partial(fit, votes))
        warm, _ = best(partial(fit, votes, start=fitted))
        one, _ = best(partial(update, fitted, votes.take(votes.pair_id == 0)))
        hundred, _ = best(partial(update, fitted, votes.take(votes.pair_id < 100)))
        rows.append({"votes": len(votes), "fit_s": seconds, "iterations": fitted.iterations, "warm_fit_s": warm,
                     "update_pair_ms": 1000 * one, "update_100_pairs_ms": 1000 * hundred})  # fmt: skip
    return rows


def best(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """The shortest time of some, and what came of it."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def show(
    rows: list[dict[str, Any]], calibration: dict[str, list[dict[str, float]]], times: list[dict[str, float]]
) -> None:
    print(f"{'':24}{'wrong, %':>18}{'':>20}{'Brier':>15}{'reliability':>22}{'P(left)':>21}")
    print(f"{'crowd':12}{'judgements':>12}{'majority':>9}{'posterior':>10}{'difference':>19}{'majority':>9}{'post.':>7}"
          f"{'corr.':>7}{'RMSE':>7}{'cover':>7}{'corr.':>7}{'RMSE':>7}{'cover':>7}")  # fmt: skip
    for row in rows:
        low, high = row["difference"] - row["half_width"], row["difference"] + row["half_width"]
        interval = f"{100 * row['difference']:+.2f} ({100 * low:+.2f}, {100 * high:+.2f})"
        print(f"{row['crowd']:12}{row['judgements']:>12}{100 * row['majority']:9.2f}{100 * row['posterior']:10.2f}"
              f"{interval:>21}{row['majority_brier']:7.3f}{row['brier']:7.3f}" + parts(row))  # fmt: skip
    for name, table in calibration.items():
        print(f"\ncalibration, {name}, three judgements")
        print("".join(f"{line['from']:7.2f}-{line['to']:.2f}" for line in table))
        print("".join(f"{line['said']:12.3f}" for line in table) + "  said")
        print("".join(f"{line['is']:12.3f}" for line in table) + "  is")
        print("".join(f"{line['pairs']:12d}" for line in table) + "  pairs")
    print()
    for line in times:
        print(f"{line['votes']:8d} votes: fit {line['fit_s']:.3f} s ({line['iterations']} steps), from an earlier fit "
              f"{line['warm_fit_s']:.3f} s; update of a pair {line['update_pair_ms']:.2f} ms, of 100 pairs "
              f"{line['update_100_pairs_ms']:.2f} ms")  # fmt: skip


def parts(row: dict[str, Any]) -> str:
    names = [f"{what}_{figure}" for what in ("reliability", "side") for figure in ("correlation", "rmse", "coverage")]
    return "".join(f"{row[name]:7.3f}" for name in names)


def main() -> int:
    rows, calibration = compare(ARGUMENTS)
    times = timed([int(size) for size in ARGUMENTS.votes.split(",")])
    show(rows, calibration, times)
    if ARGUMENTS.json:
        settings = {name: getattr(ARGUMENTS, name) for name in ("pairs", "annotators", "seeds", "threads")}
        print(json.dumps({"rows": rows, "calibration": calibration, "times": times} | settings))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
