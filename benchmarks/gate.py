"""The release gate on simulated candidates whose truth is known: how often it is wrong, and what being right costs.

    python benchmarks/gate.py [--runs 4000] [--gates 400] [--most-votes 300] [--every 1] [--seed 0] [--json]

*The test*: votes one by one, looked at after each, beside the Wilson interval at 95 % that is looked at as often, from
the tenth decided vote on, and promises nothing of the kind. ``--runs`` courses a line, 15 % of the votes ties.

*The whole gate*, by the very functions that the product decides with; ``--gates`` a line. Figures alone: 100 prompts
with held-out labels and 200 answered ones, in which labels and judge see a fifth of the difference that people see. The
judge has learnt from the labels that the candidate was trained on, chance errors and all, and has an equal one win 56 %
of the time; nobody learns from held-out labels. Figures, then people: there is no judge, so that people alone say what
is better; the length is learnt from 300 ordinary votes, and once the test has spoken all is looked at after every vote,
or every ``--every``. *Only longer*: equal at equal length, answers 1.6 times as long, and voters who take one of two
equal responses in 69 % of the cases if it is twice as long.

Intervals: Wilson at 95 % over courses.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training.canaries import MUST_REFUSE  # noqa: E402
from training.gate import People, decide_measured, decide_with_people  # noqa: E402
from training.length_control import LengthVote, controlled, sigmoid  # noqa: E402
from training.sequential import Outcome, Side, Tally, leader  # noqa: E402

TIES = 0.15
LEAST_PEEKED = 10
ORDINARY, LABELLED, ANSWERED, CANARIES = 300, 100, 200, len(MUST_REFUSE)
PEOPLE_TO_JUDGE = 0.2
SHARED_ERRORS = 0.25  # logits that the judge gives a candidate for mistakes that both have learnt from the same labels
Z = 1.96


@dataclass(frozen=True)
class World:
    """``win``: share of decided votes at equal length. ``length``: logits a doubling; ``longer``: doublings."""

    name: str
    win: float = 0.5
    length: float = 0.5
    longer: float = 0.0

    @property
    def identity(self) -> float:
        return math.log(self.win / (1 - self.win))


WORLDS = (
    World("equal"),
    World("only longer", length=0.8, longer=math.log2(1.6)),
    World("55 %", 0.55),
    World("60 %", 0.6),
    World("70 %", 0.7),
    World("45 %", 0.45),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--gates", type=int, default=400)
    parser.add_argument(
        "--figures-gates", type=int, help="of the gate by figures alone, which costs little (as --gates)"
    )
    parser.add_argument("--most-votes", type=int, default=300)
    parser.add_argument("--every", type=int, default=1, help="votes from one look at the whole gate to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="write the figures as one JSON object in the last line")
    arguments = parser.parse_args()
    if min(arguments.runs, arguments.gates, arguments.every) < 1 or arguments.most_votes < LEAST_PEEKED:
        parser.error(f"At least one course a line, of {LEAST_PEEKED} votes.")
    report = simulate(
        arguments.runs,
        arguments.gates,
        arguments.most_votes,
        arguments.seed,
        arguments.every,
        figures_gates=arguments.figures_gates or arguments.gates,
    )
    show(report)
    if arguments.json:
        print(json.dumps(report))
    return 0


def simulate(
    runs: int, gates: int, most_votes: int, seed: int, every: int = 1, *, figures_gates: int
) -> dict[str, Any]:
    rates = (0.5, 0.55, 0.6, 0.7)
    return {
        "runs": runs,
        "gates": gates,
        "figures_gates": figures_gates,
        "most_votes": most_votes,
        "seed": seed,
        "every": every,
        "test": [the_test(win, runs, most_votes, random.Random(f"{seed} {win}")) for win in rates],
        "figures": [whole(world, figures_gates, 0, random.Random(f"{seed} {world.name} figures")) for world in WORLDS],
        "people": [whole(world, gates, most_votes, random.Random(f"{seed} {world.name}"), every) for world in WORLDS],
    }


# The test


def the_test(win: float, runs: int, most_votes: int, rng: random.Random) -> dict[str, Any]:
    ours, naive, spent = Counter[str](), 0, []
    for _ in range(runs):
        side, votes, peeked = course(win, most_votes, rng)
        ours[side] += 1
        naive += peeked
        if side == "candidate":
            spent.append(votes)
    return {
        "win": win,
        "promoted": ours["candidate"] / runs,
        "promoted_interval": wilson(ours["candidate"], runs),
        "rejected": ours["current"] / runs,
        "peeking": naive / runs,
        "peeking_interval": wilson(naive, runs),
        "median_votes": statistics.median(spent) if spent else None,
        "mean_votes": statistics.mean(spent) if spent else None,
    }


def course(win: float, most_votes: int, rng: random.Random) -> tuple[Side, int, bool]:
    """What the test says and when, and whether a peeked-at Wilson interval says "better" before it says "worse"."""
    won = lost = at = 0
    side: Side = ""
    peeked = ""
    for number in range(1, most_votes + 1):
        if rng.random() < TIES:
            continue
        if rng.random() < win:
            won += 1
        else:
            lost += 1
        if not side and (side := said(won, lost)):
            at = number
        peeked = peeked or peek(won, lost)
        if side and peeked:
            break
    return side, at, peeked == "candidate"


@cache
def said(won: int, lost: int) -> Side:
    return leader(Tally(won, lost))


@cache
def peek(won: int, lost: int) -> str:
    if won + lost < LEAST_PEEKED:
        return ""
    low, high = wilson(won, won + lost)
    return "candidate" if low > 0.5 else "current" if high < 0.5 else ""


def wilson(hits: int, of: int) -> tuple[float, float]:
    share, weight = hits / of, Z**2 / of
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / of + weight / of / 4) / (1 + weight)
    return middle - half, middle + half


# The whole gate


def whole(world: World, gates: int, most_votes: int, rng: random.Random, every: int = 1) -> dict[str, Any]:
    """How gates end: without votes on figures alone. ``every``: how many votes apart they are looked at."""
    outcomes, spent = Counter[str](), []
    for _ in range(gates):
        outcome, votes = one_gate(world, most_votes, rng, every)
        outcomes[outcome] += 1
        spent.append(votes)
    shares: dict[str, Any] = {name: outcomes[name] / gates for name in ("promote", "hold", "reject")}
    interval = wilson(outcomes["promote"], gates)
    return {"world": world.name, **shares, "promote_interval": interval, "mean_votes": statistics.mean(spent)}


def one_gate(world: World, most_votes: int, rng: random.Random, every: int) -> tuple[str, int]:
    figures = measured(world, rng, has_judge=not most_votes)
    decision = decide_measured(figures, kl_first_budget=40.0, asks_people=most_votes > 0)
    if decision.outcome:
        return decision.outcome, 0
    ordinary = [vote(World("", length=world.length), number, rng, compared=False) for number in range(ORDINARY)]
    tally, better, at, asked = Tally(), "", None, []
    for number in range(1, most_votes + 1):
        asked.append(vote(world, number, rng))
        tally = tally.plus(asked[-1].outcome)
        if not better and (better := said(tally.candidate, tally.current)):
            at = number
        # Before the test has spoken nothing but the last vote can end it, so the rest need not be computed.
        if (better and number % every == 0) or number == most_votes:
            people = People(
                Outcome(better, at, tally, [still(tally)]), controlled([*asked, *ordinary]), number == most_votes
            )
            decision = decide_with_people(decision.checks[:6], people)
            if decision.outcome:
                return decision.outcome, number
    raise AssertionError("the last vote decides")


def still(tally: Tally) -> Any:
    """Stands in for the band of the plot, which nothing is decided by."""
    return argparse.Namespace(votes=tally.votes, low=0.0, high=1.0)


def vote(world: World, number: int, rng: random.Random, *, compared: bool = True) -> LengthVote:
    doublings = rng.gauss(world.longer, 0.5)
    p = sigmoid(world.identity * compared + world.length * doublings)
    outcome = 0.5 if rng.random() < TIES else float(rng.random() < p)
    return LengthVote(outcome, doublings, number + (0 if compared else 10**6), compared)


def measured(world: World, rng: random.Random, *, has_judge: bool) -> dict[str, Any]:
    """A report as the engine writes it, of a candidate that is as the world has it and nothing else."""
    seen = sigmoid(PEOPLE_TO_JUDGE * world.identity)
    judged = PEOPLE_TO_JUDGE * world.identity + SHARED_ERRORS
    liked = sigmoid(judged + world.length * world.longer)
    raw = [float(rng.random() < liked) for _ in range(ANSWERED)]
    mean, half = normal(raw)
    for_length = liked - sigmoid(judged)
    right = [(rng.random() < seen + 0.05) - (rng.random() < 0.55) for _ in range(LABELLED)]
    difference, wide = normal([float(one) for one in right])
    grown, by = 100 * (2**world.longer - 1), rng.gauss(0, 2)
    return {
        "held_out": {"prompts": LABELLED, "difference": difference}
        | {"difference_interval": [difference - wide, difference + wide]},
        "judge": {"usable": has_judge},
        "win_rate": {
            "prompts": ANSWERED,
            "raw": mean,
            "raw_interval": [mean - half, mean + half],
            "length_controlled": mean - for_length,
            "length_controlled_interval": [mean - for_length - half, mean - for_length + half],
        },
        "on_policy": {
            "prompts": ANSWERED,
            "candidate": {"kl_first": 10.0, "kl_first_interval": [9.0, 11.0]},
            "change": {"prompts": ANSWERED, "mean_tokens_interval": [grown + by - 4, grown + by + 4]}
            | share_of("finish_rate", ANSWERED, rng),
        },
        "canaries": {
            name: {"prompts": CANARIES} | share_of("change", CANARIES, rng) for name in ("must_refuse", "must_answer")
        },
    }


def share_of(name: str, prompts: int, rng: random.Random) -> dict[str, Any]:
    """The change of a share that has not changed: one prompt in ten comes out otherwise, either way."""
    change, half = normal([rng.choices((-1.0, 0.0, 1.0), (1, 18, 1))[0] for _ in range(prompts)])
    return {name: change, f"{name}_interval": [change - half, change + half]}


def normal(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), Z * statistics.stdev(values) / math.sqrt(len(values))


# Words


def show(report: dict[str, Any]) -> None:
    print(f"the test, {report['runs']} courses of at most {report['most_votes']} votes, looked at after each")
    print(f"{'wins':>6}{'promoted, %':>22}{'rejected':>10}{'median':>8}{'mean votes':>12}{'peeking at Wilson, %':>26}")
    for row in report["test"]:
        ours, theirs = share(row["promoted"], row["promoted_interval"]), share(row["peeking"], row["peeking_interval"])
        spent = f"{row['median_votes'] or 0:8.0f}{row['mean_votes'] or 0:12.0f}"
        print(f"{100 * row['win']:5.0f}%{ours:>22}{100 * row['rejected']:10.1f}{spent}{theirs:>26}")
    for name, title, number in (
        ("figures", "figures alone", "figures_gates"),
        ("people", "figures, then people", "gates"),
    ):
        print(f"\nthe whole gate, {title}, {report[number]} gates")
        print(f"{'candidate':>12}{'promoted, %':>22}{'held':>8}{'rejected':>10}{'mean votes':>12}")
        for row in report[name]:
            ended = f"{100 * row['hold']:8.1f}{100 * row['reject']:10.1f}{row['mean_votes']:12.0f}"
            print(f"{row['world']:>12}{share(row['promote'], row['promote_interval']):>22}{ended}")


def share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} ({100 * interval[0]:.1f}, {100 * interval[1]:.1f})"


if __name__ == "__main__":
    raise SystemExit(main())
