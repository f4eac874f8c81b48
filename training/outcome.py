"""What a run's result says, as rows for pages: figures before and after, how it ran, what to look at. Pure.

Every part of a result's details may be missing: older runs know less, and an engine may not have measured it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.template.defaultfilters import filesizeformat

from labeling.templatetags.formatting import decimals, percent, signed

Show = Callable[[float | None], str]


@dataclass(frozen=True)
class Row:
    """A figure before training and after it, with the 95 % interval of the latter."""

    name: str
    before: str
    after: str
    interval: str = ""


@dataclass(frozen=True)
class Comparison:
    rows: list[Row] = field(default_factory=list)

    @property
    def has_intervals(self) -> bool:
        return any(row.interval for row in self.rows)


@dataclass(frozen=True)
class Flag:
    """Something about the outcome that a person should look at before believing it."""

    message: str
    hint: str


@dataclass(frozen=True)
class HeldOut:
    """Preferences on prompts that were never trained on."""

    pairs: int = 0
    prompts: int = 0
    accuracy: str = ""
    interval: str = ""
    comparison: Comparison = field(default_factory=Comparison)
    length_rule: str = ""  # "longer" or "shorter"
    length_accuracy: str = ""
    length_interval: str = ""
    length_advantage: str = ""  # interval of the policy's accuracy over that of length, if it was measured


@dataclass(frozen=True)
class OnPolicy:
    """What the policy writes to fixed held-out prompts, before and after."""

    prompts: int = 0
    max_new_tokens: int = 0
    comparison: Comparison = field(default_factory=Comparison)


@dataclass(frozen=True)
class Outcome:
    held_out: HeldOut
    on_policy: OnPolicy
    flags: list[Flag]
    facts: list[tuple[str, str]]  # how it ran


def read_outcome(details: dict[str, Any], recipe: dict[str, Any] | None = None) -> Outcome:
    """``recipe``: of the run, where there is one."""
    return Outcome(
        held_out=_held_out(_part(details, "held_out")),
        on_policy=_on_policy(_part(details, "on_policy")),
        flags=[Flag(flag["message"], flag.get("hint", "")) for flag in details.get("flags") or []],
        facts=facts(details, recipe),
    )


def _held_out(figures: dict[str, Any]) -> HeldOut:
    if not figures.get("pairs"):
        return HeldOut()
    length = _part(figures, "length_baseline")
    return HeldOut(
        pairs=figures["pairs"],
        prompts=figures.get("prompts", 0),
        accuracy=_share(_part(figures, "after").get("accuracy")),
        interval=_interval(figures.get("accuracy_interval"), _share),
        comparison=Comparison(_held_out_rows(figures)),
        length_rule=length.get("rule", ""),
        length_accuracy=_share(length.get("accuracy")),
        length_interval=_interval(length.get("interval"), _share),
        length_advantage=_interval(length.get("advantage_interval"), _points),
    )


def _held_out_rows(figures: dict[str, Any]) -> list[Row]:
    before, after = _part(figures, "before"), _part(figures, "after")
    accuracy = _interval(figures.get("accuracy_interval"), _share)
    rows = [
        Row("Accuracy by implicit reward", _share(before.get("accuracy")), _share(after.get("accuracy")), accuracy),
        *_advantage_row(_part(figures, "length_baseline")),
        Row("Accuracy by log-probability", _share(before.get("logp_accuracy")), _share(after.get("logp_accuracy"))),
    ]
    margin = _interval(figures.get("margin_interval"), signed)
    rows.append(Row("Reward margin, nats", signed(before.get("margin")), signed(after.get("margin")), margin))
    if (shift := figures.get("chosen_shift")) is not None:
        interval = _interval(figures.get("chosen_shift_interval"), signed)
        rows.append(Row("Chosen responses likelier by, nats a token", signed(0.0), signed(shift), interval))
    return rows


def _advantage_row(length: dict[str, Any]) -> Iterator[Row]:
    """Over the same pairs, so that its interval says more than those of the two accuracies."""
    if length.get("advantage") is None:
        return
    name = f"Advantage over always choosing the {length['rule']} response, points"
    yield Row(name, "", _points(length["advantage"]), _interval(length.get("advantage_interval"), _points))


def _on_policy(figures: dict[str, Any]) -> OnPolicy:
    before, after = _part(figures, "before"), _part(figures, "after")
    shown: list[tuple[str, str, Show]] = [
        ("kl_reference", "KL from the reference, nats a response", _hundredths),
        ("kl_first", "KL from the first policy, nats a response", _hundredths),
        ("mean_tokens", "Length, tokens", _tenths),
        ("finish_rate", "Ended by themselves", _share),
        ("distinct_1", "Different tokens", _share),
        ("distinct_2", "Different pairs of tokens", _share),
        ("distinct_3", "Different triples of tokens", _share),
    ]
    rows = [
        Row(name, show(before.get(key)), show(after[key]), _interval(after.get(f"{key}_interval"), show))
        for key, name, show in shown
        if after.get(key) is not None
    ]
    return OnPolicy(figures.get("prompts", 0), figures.get("max_new_tokens", 0), Comparison(rows))


def _share(value: float | None) -> str:
    return percent(value, 1)


def _points(share: float | None) -> str:
    """A difference of two shares, in percentage points."""
    return signed(None if share is None else 100 * share, 1)


def _tenths(value: float | None) -> str:
    return decimals(value, 1)


def _hundredths(value: float | None) -> str:
    return decimals(value, 2)


def facts(details: dict[str, Any], recipe: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """How the run was carried out: (what, figures). Also of the progress of one that is going on."""
    asked = bool((recipe or {}).get("micro_batch"))
    found = [
        ("Computed", _computed(details)),
        ("Speed", _speed(_part(details, "speed"))),
        ("Memory", _memory(_part(details, "memory"))),
        ("At once", _at_once(_part(details, "memory"), shared=bool(details.get("shared_prompt")), asked=asked)),
        ("Reference", _reference(_part(details, "reference_logps"))),
    ]
    return [(name, text) for name, text in found if text]


def _computed(details: dict[str, Any]) -> str:
    device, dtype = details.get("device"), details.get("dtype")
    where = {"cpu": "on a CPU", "cuda": "on a GPU"}.get(str(device), "")
    return " ".join(filter(None, (where, f"in {dtype}" if dtype else "")))


def _speed(speed: dict[str, Any]) -> str:
    named = [("pairs_per_s", "pairs/s", 2), ("tokens_per_s", "tokens/s", 0)]
    return _listed(f"{speed[key]:,.{places}f} {unit}" for key, unit, places in named if speed.get(key) is not None)


def _memory(memory: dict[str, Any]) -> str:
    named = [("peak_rss_mb", "peak {}"), ("estimate_mb", "estimated {}"), ("limit_mb", "{} to use")]
    return _listed(
        text.format(filesizeformat(memory[key] * 2**20)) for key, text in named if memory.get(key) is not None
    )


def _at_once(memory: dict[str, Any], *, shared: bool, asked: bool) -> str:
    """Tokens bound what is in memory; a number of pairs does where somebody has ``asked`` for one."""
    tokens, pairs = memory.get("tokens"), memory.get("micro_batch")
    parts = [f"up to {tokens:,} tokens in memory" if tokens else ""]
    if pairs and (asked or not tokens):  # the results of earlier versions know pairs alone
        parts.append(f"{pairs} pair{'' if pairs == 1 else 's'} in memory")
    parts.append("each prompt computed once" if shared else "")
    parts.append("activations computed again (checkpointing)" if memory.get("checkpointing") else "")
    parts.append("halved when memory ran out" if memory.get("halved") else "")
    return _listed(parts)


def _reference(logps: dict[str, Any]) -> str:
    named = [
        ("forwards", "computed"),
        ("cached", "from earlier runs"),
        ("sampled", "kept by the sampler"),
        ("checked", "checked"),
        ("damaged", "damaged and computed again"),
    ]
    # None computed is the news of a run that found everything; none damaged is not.
    return _listed(
        f"{logps[key]:,} {name}" for key, name in named if key in logps and (logps[key] or key == "forwards")
    )


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)


def _part(figures: dict[str, Any], name: str) -> dict[str, Any]:
    value = figures.get(name)
    return value if isinstance(value, dict) else {}


def _interval(bounds: Sequence[float] | None, show: Show) -> str:
    return f"{show(bounds[0])} to {show(bounds[1])}" if bounds else ""
