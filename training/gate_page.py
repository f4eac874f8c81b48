"""What the page of a gate shows: the outcome, each check beside its figures, the votes as they came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from labeling.charts import Band, Chart, Series, line_chart
from labeling.templatetags.formatting import decimals, percent, signed
from training.gate import OUTCOMES
from training.gate_plot import Measured, read_plot
from training.models import Gate, Job

Show = Callable[[float | None], str]

CANARIES = {"must_refuse": "Refused of what should be", "must_answer": "Answered of what sounds alike"}
PEOPLE = ("people", "people_length")  # checks that every vote changes
WITHHELD = "People are being asked. You label here as well, so what they say is shown to you when all have said it."
# By the verdict: what happens, to a candidate and to a policy that is watched.
VERDICTS = {
    Gate.Kind.RELEASE: {"promote": "Promote", "hold": "Hold", "reject": "Reject"},
    Gate.Kind.WATCH: {"promote": "Keep: people prefer it", "hold": "Keep: no regression found", "reject": "Roll back"},
}


@dataclass(frozen=True)
class Row:
    """A figure of both, what has changed from one to the other, and its 95 % interval."""

    title: str
    current: str
    candidate: str
    change: str = ""
    interval: str = ""
    outcome: str = ""  # of the check it belongs to: a key of ``OUTCOMES``; empty for what is only told

    @property
    def outcome_words(self) -> str:
        return OUTCOMES.get(self.outcome, "")


@dataclass(frozen=True)
class Votes:
    """Totals alone: a single vote, or a single pair, would tell an admin who labels which side is whose."""

    votes: int
    asked: int
    wins: int
    losses: int
    ties: int
    win_rate: str
    interval: str
    at_equal_length: str
    equal_length_interval: str
    chart: Chart | None


@dataclass(frozen=True)
class GateStatus:
    """Everything on the page that changes while the gate is open."""

    gate: Gate
    verdict: str
    phase: str
    percent: int
    plot: list[Measured]
    rows: list[Row]
    reasons: list[str]
    words: list[tuple[str, str]]  # title and sentence of each check
    votes: Votes | None
    facts: list[tuple[str, str]]


def read_gate(gate: Gate, *, withheld: bool = False) -> GateStatus:
    """``withheld``: for somebody who labels too, while votes come in. The count after one's own vote would tell whose
    answer it was for, and the count before it how much a vote is worth."""
    checks = [check for check in gate.checks if not (withheld and check["name"] in PEOPLE)]
    done, total = gate.progress.get("done", 0), gate.progress.get("total", 0)
    return GateStatus(
        gate=gate,
        verdict=VERDICTS[Gate.Kind(gate.kind)].get(gate.outcome, ""),
        phase=_phase(gate),
        percent=round(100 * done / total) if total else 0,
        plot=read_plot(checks),
        rows=list(_rows(gate.report, {check["name"]: check["outcome"] for check in checks})),
        reasons=[WITHHELD] if withheld else list(gate.reasons),
        words=[(check["title"], check["words"]) for check in checks],
        votes=None if withheld or gate.votes.get("votes") is None else read_votes(gate.votes),
        facts=list(_facts(gate)),
    )


def _phase(gate: Gate) -> str:
    if gate.is_cancelling:
        return "Cancelling: the engine stops."
    if gate.state == Job.State.QUEUED:
        return "Waiting for a worker."
    if gate.state == Job.State.PUBLISHING:
        return "Writing the report."
    phase = str(gate.progress.get("phase", "")).capitalize()
    if phase and gate.progress.get("total"):
        return f"{phase}: {gate.progress.get('done', 0):,} of {gate.progress['total']:,}"
    return phase


# The table


def _rows(report: dict[str, Any], outcomes: dict[str, str]) -> Iterator[Row]:
    """Nothing before it is measured."""
    if not report:
        return
    own = _part(report, "on_policy")
    yield from _held_out(_part(report, "held_out"), outcomes)
    yield from _win_rate(_part(report, "win_rate"), outcomes)
    yield from _distances(_part(own, "current"), _part(own, "candidate"), outcomes)
    yield _changed(
        "Answers that end by themselves", own, "finish_rate", (_share, _points), outcomes.get("finish_rate", "")
    )
    yield _changed("Length of an answer, tokens", own, "mean_tokens", (_tenths, _tenths_more))
    for name, title in CANARIES.items():
        if (figures := _part(_part(report, "canaries"), name)).get("prompts"):
            both = (figures["current"], figures["candidate"])
            yield _compared(f"{title}, {figures['prompts']} prompts", figures, both, outcomes.get(name, ""))


def _held_out(figures: dict[str, Any], outcomes: dict[str, str]) -> Iterator[Row]:
    title = "Right on held-out preferences"
    if not figures.get("pairs"):
        yield Row(title, "–", "–", outcome=outcomes.get("held_out", ""))
        return
    title = f"{title}, {figures['pairs']} pairs on {figures['prompts']} prompts"
    moved = {"change": figures["difference"], "change_interval": figures["difference_interval"]}
    both = (figures["current_accuracy"], figures["candidate_accuracy"])
    yield _compared(title, moved, both, outcomes.get("held_out", ""))


def _win_rate(figures: dict[str, Any], outcomes: dict[str, str]) -> Iterator[Row]:
    if not figures.get("prompts"):
        yield Row("Win rate at equal length, by the judge", "", "–", outcome=outcomes.get("win_rate", ""))
        return
    for name, title, outcome in (
        ("length_controlled", "Win rate at equal length, by the judge", outcomes.get("win_rate", "")),
        ("raw", "Win rate as the answers are, by the judge", ""),
    ):
        value, bounds = figures[name], figures[f"{name}_interval"]
        yield Row(title, _share(1 - value), _share(value), "", _interval(bounds, _share), outcome)


def _distances(current: dict[str, Any], candidate: dict[str, Any], outcomes: dict[str, str]) -> Iterator[Row]:
    for name, title in (
        ("kl_first", "KL from the first policy, nats"),
        ("kl_current", "KL from the current policy, nats"),
    ):
        if candidate.get(name) is not None:
            interval = _interval(candidate.get(f"{name}_interval"), _hundredths)
            before = _hundredths(current[name]) if current.get(name) is not None else ""
            yield Row(title, before, _hundredths(candidate[name]), "", interval, outcomes.get(name, ""))


def _compared(title: str, moved: dict[str, Any], both: tuple[float, float], outcome: str) -> Row:
    current, candidate = map(_share, both)
    interval = _interval(moved["change_interval"], _points)
    return Row(title, current, candidate, _points(moved["change"]), interval, outcome)


def _changed(title: str, own: dict[str, Any], name: str, shows: tuple[Show, Show], outcome: str = "") -> Row:
    """A figure of their own answers; ``shows``: how it is written, and how a change of it is."""
    show, show_change = shows
    current, candidate = (show(_part(own, side).get(name)) for side in ("current", "candidate"))
    change = _part(own, "change")
    moved = show_change(change[name]) if change.get(name) is not None else ""
    return Row(title, current, candidate, moved, _interval(change.get(f"{name}_interval"), show_change), outcome)


# The votes


def read_votes(votes: dict[str, Any]) -> Votes:
    series = votes.get("series") or []
    controlled = _part(votes, "length_controlled")
    return Votes(
        votes=votes["votes"],
        asked=votes.get("asked", 0),
        wins=votes.get("for_candidate", 0),
        losses=votes.get("for_current", 0),
        ties=votes.get("ties", 0),
        win_rate=_share(votes.get("win_rate")) if votes["votes"] else "",
        interval=_interval(votes.get("interval"), _share),
        at_equal_length=_share(controlled.get("value")) if controlled.get("interval") else "",
        equal_length_interval=_interval(controlled.get("interval"), _share),
        chart=votes_chart(series),
    )


def votes_chart(series: Sequence[dict[str, Any]]) -> Chart | None:
    """The win rate after each vote, within an interval that holds however often it is looked at; nothing for a vote."""
    if len(series) < 2:
        return None
    last = float(series[-1]["votes"])
    points = [(float(point["votes"]), point["win_rate"]) for point in series]
    return line_chart(
        "Win rate of the candidate, vote by vote",
        [Series("candidate", "main", points), Series("even", "muted", [(0.0, 0.5), (last, 0.5)])],
        bands=[Band("main", [(float(point["votes"]), point["low"], point["high"]) for point in series])],
        x_max=last,
        x_name="vote",
        y_label=_share,
        y_tick=percent,
    )


def _facts(gate: Gate) -> Iterator[tuple[str, str]]:
    report, judge = gate.report, _part(gate.report, "judge")
    if report.get("device"):
        where = {"cpu": "on a CPU", "cuda": "on a GPU"}.get(report["device"], report["device"])
        yield "Computed", f"{where} in {report.get('dtype', 'unknown precision')}"
    if judge.get("train_pairs"):
        yield "Judge", f"made of {judge['train_pairs']:,} labelled pairs on {judge['train_prompts']:,} prompts"
    if judge.get("pairs"):
        found = f"{_share(judge['accuracy'])} ({_interval(judge['accuracy_interval'], _share)})"
        yield "It is right", f"on {found} of {judge['pairs']:,} held-out preferences"
    if answers := _part(report, "answers"):
        yield "Answers", f"{answers['different']:,} different, {answers['identical']:,} the same on both sides: ties"


def _part(figures: dict[str, Any], name: str) -> dict[str, Any]:
    value = figures.get(name)
    return value if isinstance(value, dict) else {}


def _interval(bounds: Sequence[float] | None, show: Show) -> str:
    return f"{show(bounds[0])} to {show(bounds[1])}" if bounds else ""


def _share(value: float | None) -> str:
    return percent(value, 1)


def _points(share: float | None) -> str:
    return signed(None if share is None else 100 * share, 1)


def _tenths(value: float | None) -> str:
    return decimals(value, 1)


def _tenths_more(value: float | None) -> str:
    return signed(value, 1)


def _hundredths(value: float | None) -> str:
    return decimals(value, 2)
