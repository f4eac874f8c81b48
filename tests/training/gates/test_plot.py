"""The plot of a gate's checks: which are drawn, on which scale, and what the page says of each."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.training.gates.steps import turned
from tests.training.gates.test_decision import report
from tests.training.gates.test_pages import REPORT
from training.gate import decide_measured, measured_checks
from training.gate_plot import read_plot

BARE: dict[str, Any] = {"held_out": {"pairs": 0}, "win_rate": {"prompts": 0}, "on_policy": {}, "canaries": {}}


def _checks(told: dict[str, Any], budget: float = 20) -> list[dict[str, Any]]:
    return [check.as_json() for check in measured_checks(told, kl_first_budget=budget)]


def test_each_kind_of_figure_has_a_scale_of_its_own():
    held_out, win_rate, kl, shares = (measured.panel for measured in read_plot(_checks(REPORT)))
    assert [row.value for row in held_out.rows] == ["+5.0"]
    assert [(row.value, row.interval) for row in win_rate.rows] == [("56.0\u202f%", "51.0\u202f% to 61.0\u202f%")]
    assert [(row.value, row.interval) for row in kl.rows] == [("4.25", "3.50 to 5.00")]
    assert [(row.name, row.said) for row in shares.rows] == [
        ("Answers that end by themselves", "Passed"),
        ("Refusals of what must be refused", "Failed"),
        ("Answers to what must be answered", "Passed"),
    ]
    assert kl.ticks[0].label == "0"
    (row,) = win_rate.rows
    assert win_rate.level < row.low, "above 50 % for sure"
    (row,) = held_out.rows
    assert row.low < held_out.level < row.high, "unsure"
    (row,) = kl.rows
    assert row.high < kl.level, "within the budget"


def test_a_guard_has_a_mark_at_what_is_tolerated():
    """Five points, or what one prompt alone is."""
    shares = read_plot(_checks(REPORT))[-1].panel
    at = {row.name: row.mark for row in shares.rows}
    assert at["Refusals of what must be refused"] < at["Answers that end by themselves"] < shares.level


def test_a_kl_far_beyond_its_budget_is_marked_and_the_budget_is_still_seen():
    told = report()
    told["on_policy"]["candidate"] |= {"kl_first": 900.0, "kl_first_interval": [800.0, 1000.0]}
    panel = next(one.panel for one in read_plot(_checks(told)) if "nats" in one.unit)
    (row,) = panel.rows
    assert (row.above, row.is_off, row.outcome) == (True, True, "fail")
    assert panel.level < row.place


def test_what_was_not_measured_is_said_in_words_and_a_verdict_that_is_left_out_is_not_drawn():
    rows = [row for measured in read_plot(_checks(BARE)) for row in measured.panel.rows]
    assert len(rows) == 6
    assert {(row.place, row.said) for row in rows} == {(None, "Not measured")}
    unbelieved = REPORT | {"judge": REPORT["judge"] | {"usable": False}}
    win_rate = read_plot(_checks(unbelieved))[1].panel
    assert [row.place for row in win_rate.rows] == [None]


def test_of_a_watch_there_is_no_plot():
    assert read_plot([]) == []
    assert (
        read_plot([{"name": "people", "title": "Blind votes", "outcome": "unsure", "words": "", "figures": {}}]) == []
    )


@pytest.mark.parametrize("asks_people", [False, True])
def test_the_page_has_the_plot_above_the_table(nobody_measures, ask, sign_in, project_admin, asks_people):
    gate = turned(ask(told=report(), asks_people=asks_people))
    checks = decide_measured(report(), kl_first_budget=20, asks_people=asks_people).checks
    page = sign_in(project_admin).get(gate.get_absolute_url()).content.decode()
    plot = re.search(r'<figure class="intervals">.*?</figure>', page, re.S)
    assert plot
    assert plot.start() < page.index('aria-label="Checks"')
    for check in checks:
        assert f'<span class="interval-name">{check.title}</span>' in plot[0]
    drawn = [check for check in checks if check.outcome != "not_measured"]
    assert drawn
    assert plot[0].count('role="img"') == len(drawn)
    assert plot[0].count("not measured</span>") == len(checks) - len(drawn)
    for check in drawn:
        assert f'class="check check-{check.outcome}"' in plot[0]
    assert "style=" not in plot[0]


def test_the_page_draws_a_failure_in_another_shape_and_says_what_lies_beyond(
    nobody_measures, ask, sign_in, project_admin
):
    told = REPORT | {"held_out": REPORT["held_out"] | {"difference_interval": [-0.02, 0.9]}}
    gate = turned(ask(told=told))
    page = " ".join(sign_in(project_admin).get(gate.get_absolute_url()).content.decode().split())
    assert 'aria-label="Refusals of what must be refused: −25.0, 95 % interval −40.0 to −10.0"' in page
    assert page.count('<path class="point"') == 1
    assert 'aria-label="Held-out preferences: +5.0, 95 % interval −2.0 to +90.0, beyond the scale"' in page
    assert page.count("arrow-above") == 1
