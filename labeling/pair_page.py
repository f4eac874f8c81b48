"""Everything about one pair as reviewers see it: texts, judgements and their versions, skips, decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.shortcuts import get_object_or_404

from labeling.desk import side_of
from labeling.difference import Difference, difference
from labeling.models import Adjudication, Choice, Pair, Preference, Project, Response, SentBack, Skip, Slot
from labeling.rendering import render_text
from labeling.withheld import withheld_from

# Comparing two texts of the greatest length takes a second. Whoever writes many long ones must not stop the page.
MOST_COMPARED = 5


@dataclass(frozen=True)
class Judged:
    """One judgement with the side it went to as shown, and whether its author was asked to look again.

    ``compared``: how its rewrite differs from the chosen response; ``None`` without one, and beyond ``MOST_COMPARED``.
    """

    preference: Preference
    side: str
    sent_back: SentBack | None
    compared: Difference | None

    @property
    def may_go_back(self) -> bool:
        one = self.preference
        return one.is_current and not one.is_repeat and one.frozen_at is None and self.sent_back is None


@dataclass(frozen=True)
class PairPage:
    """``earlier``: judgements that count no more: older versions and withdrawn ones.

    Of a pair that its reader has still to judge there are the texts alone, and ``is_withheld`` says so.
    """

    pair: Pair
    earlier_turns: list[dict[str, Any]]
    last_turn: dict[str, Any]
    response_a: dict[str, Any]
    response_b: dict[str, Any]
    judgements: list[Judged]
    earlier: list[Judged]
    skips: list[Skip]
    decisions: list[Adjudication]
    is_read_now: bool
    is_withheld: bool


def pair_or_404(project: Project, pair_id: int) -> Pair:
    pairs = Pair.objects.select_related("project", "prompt", "response_a", "response_b")
    return get_object_or_404(pairs, project=project, pk=pair_id)


def read_pair(pair: Pair, reader_id: int) -> PairPage:
    is_withheld = pair.pk in withheld_from(pair.project, reader_id)
    judged = [] if is_withheld else _judgements(pair)
    turns = [{"role": message["role"], "html": render_text(message["content"])} for message in pair.prompt.messages]
    return PairPage(
        pair=pair,
        earlier_turns=turns[:-1],
        last_turn=turns[-1],
        response_a=_response(pair.response_a),
        response_b=_response(pair.response_b),
        judgements=[one for one in judged if one.preference.is_current],
        earlier=[one for one in judged if not one.preference.is_current],
        skips=[] if is_withheld else list(pair.skips.select_related("annotator").order_by("pk")),
        decisions=[] if is_withheld else list(pair.adjudications.select_related("reviewer")),
        is_read_now=Slot.objects.filter(pair=pair).being_read().exists(),
        is_withheld=is_withheld,
    )


def _judgements(pair: Pair) -> list[Judged]:
    rows = Preference.objects.filter(pair=pair).select_related("annotator", "rewrite__response").order_by("pk")
    preferences = list(rows)
    compared = _compared(pair, preferences)
    waiting = SentBack.objects.filter(preference__pair=pair, settled_at=None).select_related("reviewer")
    by_judgement = {back.preference_id: back for back in waiting}
    return [
        Judged(one, side_of(one.choice, one.shown_left), by_judgement.get(one.pk), compared.get(one.pk))
        for one in preferences
    ]


def _compared(pair: Pair, preferences: list[Preference]) -> dict[int, Difference]:
    """Rewrites with what they change of the chosen response, those that count first."""
    chosen = {Choice.A: pair.response_a.text, Choice.B: pair.response_b.text}
    rewritten = [one for one in preferences if one.rewritten]
    rewritten.sort(key=lambda one: not one.is_current)
    return {one.pk: difference(chosen[Choice(one.choice)], one.rewritten) for one in rewritten[:MOST_COMPARED]}


def _response(response: Response) -> dict[str, Any]:
    return {"html": render_text(response.text), "cut": response.finish_reason == "length"}
