"""Signals of annotation quality from counts and times. Pure, of the standard library alone: any process may ask.

Everything here asks a person to look; nothing excludes anybody. Dropping weak labelers or unsure labels made reward
models worse (Stiennon et al. 2020, C.2): what an annotator's votes are worth is ``labeling.posterior``'s to say, by
weight. A signal is therefore rare by design: with nothing wrong, one annotator in a hundred gets one of each kind.

Sentences are English message ids with named figures, so that pages may translate them:
``gettext(signal.template) % signal.figures``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, median, stdev
from typing import Literal, TypeVar

Kind = Literal["side", "speed", "pace", "streak", "gold", "reliability", "length"]
Severity = Literal["note", "look"]
Verdict = Literal["too few", "even", "left", "right"]
Figures = dict[str, float | int | str]
Who = TypeVar("Who", bound=Hashable)

Z95, Z99 = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.995)
LEAST_VOTES = 30  # below, an interval of a share is wider than any reading of it

# Silent reading of English takes 200 to 400 words a minute (Rayner et al. 2016, So Much to Read, So Little Time;
# Brysbaert 2019: mean 238); beyond 600 nobody reads every line.
FASTEST_WORDS_PER_MINUTE = 600
LEAST_SECONDS = 1.0  # two short texts are not judged in less either
MOST_UNREAD = 1 / 3  # some pairs are clear from their first lines

PACE_OTHERS, PACE_Z, LEAST_SPREAD = (
    5,
    3.5,
    0.2,
)  # annotators, robust deviations (Iglewicz and Hoaglin 1993), log-seconds
# The prior of a person's ability puts six in seven above. Near 1/2 votes say nothing, and below it the contrary: by the
# posterior such a person's single judgements give no label, or the other one.
LEAST_RELIABILITY = 0.6
STREAK_CHANCE, LOOK_CHANCE = 0.01, 0.0001
STEPS = (3, 5)  # judgements a pair grows to


def gettext_noop(message: str) -> str:
    """Marks a sentence for translation, by the name that extraction looks for, without a web framework."""
    return message


@dataclass(frozen=True)
class Share:
    """``value``: hits of all, ``None`` of nothing; ``low`` to ``high``: its interval, 0 to 1 of nothing."""

    hits: float
    of: float
    value: float | None
    low: float
    high: float

    def excludes(self, share: float) -> bool:
        return not self.low <= share <= self.high


@dataclass(frozen=True)
class Signal:
    """Something about an annotator or a project that a person should look at, and why."""

    kind: Kind
    severity: Severity
    template: str
    figures: Figures = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        return self.template % self.figures


def wilson(hits: float, of: float, z: float = Z95) -> Share:
    """Wilson's score interval of a share (Wilson 1927); half hits are allowed.

    Raises ``ValueError`` where hits are not between 0 and all.
    """
    if not 0 <= hits <= of:
        raise ValueError(f"Hits are between 0 and all: {hits} of {of} are not.")
    if not of:
        return Share(hits, of, None, 0.0, 1.0)
    value, squared = hits / of, z * z / of
    middle = (value + squared / 2) / (1 + squared)
    half = z * math.sqrt(value * (1 - value) / of + squared / (4 * of)) / (1 + squared)
    low = 0.0 if hits == 0 else max(0.0, middle - half)  # by rounding alone the ends would miss 0 and 1
    high = 1.0 if hits == of else min(1.0, middle + half)
    return Share(hits, of, value, low, high)


# --- Sides -----------------------------------------------------------------------------------------------------------


def side_verdict(left: int, decided: int) -> tuple[Share, Verdict]:
    """P(left) of decided votes and what it says. Sides are shuffled: without a pull it is 1/2, whatever the texts."""
    share = wilson(left, decided)
    if decided < LEAST_VOTES:
        return share, "too few"
    if not share.excludes(0.5):
        return share, "even"
    return share, "left" if share.low > 0.5 else "right"


def side_signal(left: int, decided: int) -> Signal | None:
    """Where the 99 % interval of P(left) leaves 1/2 out; "look" if that is by ten points at least."""
    strict, (share, _) = wilson(left, decided, Z99), side_verdict(left, decided)
    if decided < LEAST_VOTES or share.value is None or not strict.excludes(0.5):
        return None
    distance = strict.low - 0.5 if strict.low > 0.5 else 0.5 - strict.high
    if share.value > 0.5:
        template = gettext_noop(
            "%(share).0f %% of %(of)d decided judgements went to the left side (%(low).0f to %(high).0f %%). Sides are "
            "shuffled, so about half should."
        )
    else:
        template = gettext_noop(
            "%(share).0f %% of %(of)d decided judgements went to the right side (%(low).0f to %(high).0f %%). Sides "
            "are shuffled, so about half should."
        )
    shown = share if share.value > 0.5 else wilson(decided - left, decided)
    return Signal("side", "look" if distance >= 0.1 else "note", template, _percent(shown))


def corrected_share(wins_left: int, shown_left: int, wins_right: int, shown_right: int) -> Share:
    """How often a response wins, with the pull of the side taken out: the mean of its share on either side.

    A side that pulls by the same amount wherever the response stands cancels, also where it stood on one side more
    often. Interval: each share with one win and one loss added (Agresti and Caffo 2000), variances added. ``value`` is
    ``None`` where the response was never shown on one of the sides. Raises ``ValueError`` where wins are not between 0
    and the times shown.
    """
    sides = ((wins_left, shown_left), (wins_right, shown_right))
    if any(not 0 <= wins <= shown for wins, shown in sides):
        raise ValueError(f"Wins are between 0 and the times shown, not {sides}.")
    wins, of = wins_left + wins_right, shown_left + shown_right
    if not shown_left or not shown_right:
        return Share(wins, of, None, 0.0, 1.0)
    value = (wins_left / shown_left + wins_right / shown_right) / 2
    drawn = [(wins + 1) / (shown + 2) for wins, shown in sides]
    variance = sum(share * (1 - share) / (shown + 2) for share, (_, shown) in zip(drawn, sides, strict=True)) / 4
    half = Z95 * math.sqrt(variance)
    # Around the drawn-in mean, and never without the value itself, which may lie outside where all is won or lost.
    low, high = min(value, fmean(drawn) - half), max(value, fmean(drawn) + half)
    return Share(wins, of, value, max(0.0, low), min(1.0, high))


# --- Redundancy ------------------------------------------------------------------------------------------------------


def disagreement(choices: Sequence[str]) -> float:
    """How likely two of these judgements, drawn by chance, differ, in [0, 1) (Gini-Simpson index); 0 of none."""
    return 1 - sum((choices.count(choice) / len(choices)) ** 2 for choice in set(choices)) if choices else 0.0


def has_majority(choices: Sequence[str]) -> bool:
    """Whether one choice has more than half of the judgements; of none, none has."""
    return bool(choices) and 2 * max(Counter(choices).values()) > len(choices)


def judgements_needed(choices: Sequence[str], wanted: int, most: int) -> int:
    """How many places a pair should have: more where those who judged it don't agree.

    While places are free, or one choice has more than half of the judgements, ``wanted``. Otherwise the next of 3 and
    5, bounded by ``most``; never less than ``wanted``. Raises ``ValueError`` where ``wanted`` is not positive.
    """
    if wanted < 1:
        raise ValueError(f"A pair wants one judgement at least, not {wanted}.")
    judged = len(choices)
    if judged < wanted or has_majority(choices):
        return wanted
    following = next((step for step in STEPS if step > max(wanted, judged)), wanted)
    return max(wanted, min(following, most))


# --- Speed -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """One judgement: seconds from the pair's showing to the vote, and the words of both responses together."""

    seconds: float
    words: int

    @property
    def is_faster_than_reading(self) -> bool:
        return self.seconds < max(LEAST_SECONDS, 60 * self.words / FASTEST_WORDS_PER_MINUTE)


def unread_share(timings: Sequence[Timing]) -> Share:
    """Judgements in less time than both texts can be read in."""
    return wilson(sum(timing.is_faster_than_reading for timing in timings), len(timings))


def speed_signal(timings: Sequence[Timing]) -> Signal | None:
    """Where more than ``MOST_UNREAD`` of the judgements were surely (99 %) faster than reading; "look" beyond twice."""
    hits = sum(timing.is_faster_than_reading for timing in timings)
    strict = wilson(hits, len(timings), Z99)
    if len(timings) < LEAST_VOTES or strict.low <= MOST_UNREAD:
        return None
    figures = _percent(unread_share(timings)) | {
        "words": FASTEST_WORDS_PER_MINUTE,
        "seconds": median(timing.seconds for timing in timings),
        "length": median(timing.words for timing in timings),
    }
    template = gettext_noop(
        "%(share).0f %% of %(of)d judgements came faster than both texts can be read, even at %(words)d words a minute "
        "(half of them within %(seconds).1f s; half of the pairs have %(length)d words or fewer)."
    )
    return Signal("speed", "look" if strict.low > 2 * MOST_UNREAD else "note", template, figures)


def pace_signals(seconds: Mapping[Who, Sequence[float]]) -> dict[Who, Signal]:
    """Annotators whose usual time lies far from the others', by the robust z of their median log-seconds.

    z = (m - median of the others') / (1.4826 MAD of the others'), a spread of less than ``LEAST_SPREAD`` taken as that.
    Told beyond 3.5 either way, of those with ``LEAST_VOTES`` times, where ``PACE_OTHERS`` others have them as well.
    """
    usual = {
        who: median(math.log(max(second, 0.1)) for second in times)
        for who, times in seconds.items()
        if len(times) >= LEAST_VOTES
    }
    signals = {}
    for who, own in usual.items():
        others = [pace for other, pace in usual.items() if other != who]
        if len(others) >= PACE_OTHERS and (signal := _pace_signal(own, others)):
            signals[who] = signal
    return signals


def robust_z(own: float, others: Sequence[float], least_spread: float = LEAST_SPREAD) -> float:
    """How many robust standard deviations ``own`` lies above the median of ``others``, one at least."""
    middle = median(others)
    spread = 1.4826 * median(abs(other - middle) for other in others)
    return (own - middle) / max(spread, least_spread)


def _pace_signal(own: float, others: Sequence[float]) -> Signal | None:
    z = robust_z(own, others)
    if abs(z) <= PACE_Z:
        return None
    figures: Figures = {"seconds": math.exp(own), "usual": math.exp(median(others)), "z": z, "others": len(others)}
    if z < 0:
        template = gettext_noop(
            "Half of the judgements took %(seconds).1f s or less; of the %(others)d others, %(usual).1f s is usual."
        )
        return Signal("pace", "look", template, figures)
    template = gettext_noop(
        "Half of the judgements took %(seconds).1f s or more; of the %(others)d others, %(usual).1f s is usual. Time "
        "may have run while nobody read."
    )
    return Signal("pace", "note", template, figures)


# --- Streaks ---------------------------------------------------------------------------------------------------------


def longest_run(values: Sequence[Hashable]) -> tuple[Hashable, int]:
    """The value and length of the longest run of one value, the first of equals; ``(None, 0)`` of nothing."""
    best: tuple[Hashable, int] = (None, 0)
    length, before = 0, None
    for value in values:
        length = length + 1 if length and value == before else 1
        before = value
        if length > best[1]:
            best = value, length
    return best


def run_chance(rates: Sequence[float], length: int, of: int) -> float:
    """P(some value runs ``length`` or longer in ``of`` independent draws), exactly.

    ``rates``: of the values, summing to 1. Let n_t be the probability of no such run in t draws and e_k,t that with the
    last draw being k; then e_k,t = r_k n_(t-1) - r_k^length (n_(t-length) - e_k,(t-length)): draw k after anything, but
    for those draws that complete a run. Raises ``ValueError`` where the rates are none.
    """
    if abs(sum(rates) - 1) > 1e-6 or min(rates) < 0:
        raise ValueError(f"Rates are not negative and sum to 1; {list(rates)} do not.")
    if length <= 1:
        return 1.0 if of >= length else 0.0
    none = [1.0]
    ends: list[list[float]] = [[0.0] for _ in rates]
    for drawn in range(1, of + 1):
        for rate, end in zip(rates, ends, strict=True):
            completing = rate**length * (none[drawn - length] - end[drawn - length]) if drawn >= length else 0.0
            end.append(rate * none[drawn - 1] - completing)
        none.append(sum(end[drawn] for end in ends))
    return min(1.0, max(0.0, 1 - none[of]))


def streak_signal(values: Sequence[str], what: Literal["side", "choice"]) -> Signal | None:
    """A run of one side or one choice that the annotator's own rates make unlikely (1 %; "look" below 0.01 %).

    ``values`` in order of time. The rates are those of all of them, the run among them, which tells too little rather
    than too much. Somebody who always votes left has no unlikely run: that is ``side_signal``'s to tell.
    """
    if len(values) < LEAST_VOTES:
        return None
    value, length = longest_run(values)
    rates = [count / len(values) for count in Counter(values).values()]
    chance = run_chance(rates, length, len(values))
    if chance >= STREAK_CHANCE:
        return None
    figures: Figures = {"length": length, "of": len(values), "value": str(value), "chance": 100 * chance}
    if what == "side":
        template = gettext_noop(
            "%(length)d judgements in a row went to the %(value)s side, of %(of)d. By this person's own rates a run "
            "that long has a chance of %(chance).2g %%."
        )
    else:
        template = gettext_noop(
            "%(length)d judgements in a row were “%(value)s”, of %(of)d. By this person's own rates a run that long "
            "has a chance of %(chance).2g %%."
        )
    return Signal("streak", "look" if chance < LOOK_CHANCE else "note", template, figures)


# --- Gold, length, pace of the project -------------------------------------------------------------------------------


def gold_signal(right: int, of: int, wanted: float = 0.8) -> Signal | None:
    """Where accuracy on gold pairs is surely (99 %) below ``wanted``; "look" where it is not surely above chance."""
    strict, share = wilson(right, of, Z99), wilson(right, of)
    if not of or strict.high >= wanted:
        return None
    template = gettext_noop(
        "%(hits)d of %(of)d gold pairs were judged as agreed (%(low).0f to %(high).0f %%); %(wanted).0f %% are wanted."
    )
    figures = _percent(share) | {"wanted": 100 * wanted}
    return Signal("gold", "note" if share.low > 0.5 else "look", template, figures)


def reliability_signal(value: float, low: float, high: float, shared: int) -> Signal | None:
    """Where P(votes for the better response) is surely (99 %) below ``LEAST_RELIABILITY``; "look" where it is not
    surely above chance.

    ``low`` to ``high``: its 95 % interval, which is symmetric in logits, from ``shared`` judgements.
    """
    wider = _logit(value) + Z99 / Z95 * (_logit(high) - _logit(value))
    if wider >= _logit(LEAST_RELIABILITY):
        return None
    template = gettext_noop(
        "By the %(of)d judgements that others or a known answer can be held against, this person votes for the better "
        "response with a probability of %(share).0f %% (%(low).0f to %(high).0f %%); a coin has 50 %%. Labels by the "
        "posterior believe them no more: near 50 %% their single judgements give none, and below it the other one."
    )
    figures: Figures = {"share": 100 * value, "low": 100 * low, "high": 100 * high, "of": shared}
    return Signal("reliability", "note" if low > 0.5 else "look", template, figures)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def length_signal(longer_won: int, decided: int) -> Signal | None:
    """Where the longer response surely (99 %) wins more or less than half of the decided judgements.

    Of pairs whose lengths differ. A longer response may well be better: what it says is that length and preference
    cannot be told apart here, and that what learns from these labels may learn length.
    """
    strict, share = wilson(longer_won, decided, Z99), wilson(longer_won, decided)
    if decided < LEAST_VOTES or share.value is None or not strict.excludes(0.5):
        return None
    template = gettext_noop(
        "The longer response won %(share).0f %% of %(of)d decided judgements (%(low).0f to %(high).0f %%). That may be "
        "right; it may also be length that was judged."
    )
    distance = strict.low - 0.5 if strict.low > 0.5 else 0.5 - strict.high
    return Signal("length", "look" if distance >= 0.1 else "note", template, _percent(share))


@dataclass(frozen=True)
class Eta:
    """Days until ``remaining`` judgements are in, at the rate of the last days. ``latest`` is ``None`` where the rate
    could as well be 0.
    """

    days: float
    earliest: float
    latest: float | None
    a_day: float


def eta(remaining: int, last_days: Sequence[int]) -> Eta | None:
    """When the work is done if the next days are as the last were, pauses included; ``None`` without a judgement.

    The interval comes from how much the days differ (95 %), and with one day from its count alone (Poisson). Raises
    ``ValueError`` on negative counts.
    """
    if remaining < 0 or any(count < 0 for count in last_days):
        raise ValueError("Counts of judgements are not negative.")
    if not any(last_days):
        return None
    rate = fmean(last_days)
    error = stdev(last_days) / math.sqrt(len(last_days)) if len(last_days) > 1 else math.sqrt(rate)
    slowest = rate - Z95 * error
    latest = remaining / slowest if slowest > 0 else None
    return Eta(remaining / rate, remaining / (rate + Z95 * error), latest, rate)


def _percent(share: Share) -> Figures:
    value = 100 * (share.value or 0.0)
    return {"share": value, "low": 100 * share.low, "high": 100 * share.high, "hits": int(share.hits),
            "of": int(share.of)}  # fmt: skip
