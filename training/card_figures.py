"""The figures of a model card, each with its interval where there is one. Pure, and the same in every language.

Every part may be missing: manifests of earlier versions know less, and an engine may not have measured it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Show = Callable[[float], str]
HEAD = ("", "before", "after", "95 % interval after")


def held_out_section(manifest: dict[str, Any]) -> str:
    held_out = _part(manifest.get("figures"), "held_out")
    if not held_out.get("pairs"):
        return _nothing_held_out(manifest)
    return (
        f"## Held-out preferences\n\n{held_out['pairs']} pairs on {held_out.get('prompts', 0)} prompts that were never "
        f"trained on; a tie counts as half. Intervals are by bootstrap over prompts.{_by_length(held_out)}\n\n"
        + table(HEAD, list(_held_out_rows(held_out)))
    )


def on_policy_section(manifest: dict[str, Any]) -> str:
    figures = _part(manifest.get("figures"), "on_policy")
    rows = list(_on_policy_rows(figures))
    if not rows:
        return ""
    cut = f", of at most {figures['max_new_tokens']} tokens" if figures.get("max_new_tokens") else ""
    return (
        f"## Its own responses\n\nOne response to each of {figures.get('prompts', 0)} held-out prompts{cut}, drawn at "
        "temperature 1. Intervals are by bootstrap over prompts.\n\n" + table(HEAD, rows)
    )


def gate_section(manifest: dict[str, Any]) -> str:
    """What came of the comparison with the policy before it, if one was decided."""
    gate = _part(manifest, "gate")
    if not gate.get("outcome"):
        return ""
    reasons = "\n".join(f"- {reason}" for reason in gate.get("reasons") or [])
    said = f"Compared with the policy before it, the outcome was **{gate['outcome']}**."
    if "advice" in gate:
        advice = gate["advice"]
        said += " A person decided that" + (f"; figures and votes alone came to **{advice}**." if advice else ".")
    return f"## Release gate\n\n{said}\n\n{reasons}".strip()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _held_out_rows(held_out: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    before, after = _part(held_out, "before"), _part(held_out, "after")
    length = _part(held_out, "length_baseline")
    accuracy, margin = held_out.get("accuracy_interval"), held_out.get("margin_interval")
    yield _row("Preference accuracy (implicit reward)", _share, before.get("accuracy"), after.get("accuracy"), accuracy)
    if length.get("advantage") is not None:
        name = f"Accuracy over that of always taking the {length['rule']} response"
        yield _row(name, _signed, None, length["advantage"], length.get("advantage_interval"))
    yield _row("Reward margin", _signed, before.get("margin"), after.get("margin"), margin)
    yield _row("Accuracy by log-probability", _share, before.get("logp_accuracy"), after.get("logp_accuracy"), None)
    if held_out.get("chosen_shift") is not None:
        shift, bounds = held_out["chosen_shift"], held_out.get("chosen_shift_interval")
        yield _row("Chosen responses likelier by, nats a token", _signed, 0.0, shift, bounds)


def _on_policy_rows(figures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    before, after, change = _part(figures, "before"), _part(figures, "after"), _part(figures, "change")
    shown: list[tuple[str, str, Show]] = [
        ("kl_reference", "KL from the reference, nats a response", _hundredths),
        ("kl_first", "KL from the first policy, nats a response", _hundredths),
        ("mean_tokens", "Length, tokens", _tenths),
        ("finish_rate", "Share that ended by themselves", _share),
        ("distinct_1", "Share of different tokens", _share),
        ("distinct_2", "Share of different pairs of tokens", _share),
        ("distinct_3", "Share of different triples of tokens", _share),
    ]
    for key, name, show in shown:
        if after.get(key) is not None:
            yield _row(name, show, before.get(key), after[key], after.get(f"{key}_interval"))
    for key, name in (("mean_tokens", "Length, prompt by prompt"), ("finish_rate", "Share that ended, likewise")):
        if change.get(key) is not None:
            yield _row(f"Change of {name}", _signed, None, change[key], change.get(f"{key}_interval"))


def _row(
    name: str, show: Show, before: float | None, after: float | None, bounds: Sequence[float] | None
) -> tuple[str, ...]:
    interval = f"{show(bounds[0])} to {show(bounds[1])}" if bounds else ""
    return (name, *("" if value is None else show(value) for value in (before, after)), interval)


def _by_length(held_out: dict[str, Any]) -> str:
    length = _part(held_out, "length_baseline")
    if length.get("accuracy") is None:
        return ""
    bounds = length.get("interval")
    interval = f" (95 % interval {_share(bounds[0])} to {_share(bounds[1])})" if bounds else ""
    accuracy = f"{_share(length['accuracy'])}{interval}"
    return f" Taking the {length['rule']} response, without reading it, is right in {accuracy} of them."


def _nothing_held_out(manifest: dict[str, Any]) -> str:
    if "recipe" not in manifest:
        return ""
    labelled = manifest["snapshot"]["held_out_triples"]
    why = "None could be scored within the maximum length." if labelled else "None were labelled before this run."
    return f"## Held-out preferences\n\n{why}"


def _part(figures: Any, name: str) -> dict[str, Any]:
    value = figures.get(name) if isinstance(figures, dict) else None
    return value if isinstance(value, dict) else {}


def _share(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if value else "0.000"


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
