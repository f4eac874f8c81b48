"""The family tree of checkpoints: order, lines, marks, folded sweeps."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.models import Withdrawal
from training import services
from training.family import LANE_WIDTH, LANES, Row, family_tree
from training.models import Checkpoint, DatasetSnapshot, Gate, Sweep, Taint, TrainingRun
from training.services import promote_checkpoint, roll_back
from training.views.checkpoints import ROWS_PER_PAGE


@pytest.fixture
def child(project, make_checkpoint):
    """A checkpoint of the project: ``child(name, parent)``."""

    def make(name: str, parent: Checkpoint, **values) -> Checkpoint:
        return make_checkpoint(name, project=project, kind="dpo", parent=parent, **values)

    return make


@pytest.fixture
def promote(project):
    def promote(*checkpoints: Checkpoint) -> None:
        for checkpoint in checkpoints:
            promote_checkpoint(project=project, checkpoint=checkpoint)

    return promote


@pytest.fixture
def snapshot(project) -> DatasetSnapshot:
    counts = {"train_triples": 1, "held_out_triples": 0, "ties": 0, "both_bad": 0, "last_preference_id": 0}
    return DatasetSnapshot.objects.create(project=project, sha256="a" * 64, **counts)


def _names(rows: list[Row]) -> list[str]:
    return [row.checkpoint.name for row in rows]


def _lanes(rows: list[Row]) -> list[int]:
    return [int((row.rails.dot - LANE_WIDTH / 2) / LANE_WIDTH) for row in rows]


def _marks(project) -> dict[str, list[str]]:
    return {row.checkpoint.name: [mark.label for mark in row.marks] for row in family_tree(project)}


def _ends(row: Row) -> tuple[set[int], set[int]]:
    """The lanes in which a line crosses the upper and the lower edge of a row."""
    upper, lower = set(), set()
    for x, top, bottom in re.findall(r"M([\d.]+) (\d+)V(\d+)", row.rails.path):
        upper |= {int(float(x) // LANE_WIDTH)} if top == "0" else set()
        lower |= {int(float(x) // LANE_WIDTH)} if bottom == "100" else set()
    for x in re.findall(r"C[\d. ]+ ([\d.]+) 100", row.rails.path):
        lower.add(int(float(x) // LANE_WIDTH))
    return upper, lower


def _assert_joined(rows: list[Row]) -> None:
    """Every line that leaves a row below comes into the next one above, and none hangs in the air."""
    edges = [_ends(row) for row in rows]
    assert edges[0][0] == set()
    assert edges[-1][1] == set()
    for (_, lower), (upper, _) in pairwise(edges):
        assert lower == upper


def test_a_project_without_checkpoints_has_no_tree(project):
    assert family_tree(project) == []


def test_the_newest_line_is_on_top_and_each_stands_above_what_it_was_trained_from(project, base, child, promote):
    one = child("one", base)
    child("beside", base)
    two = child("two", one)
    promote(base, one, two)
    child("candidate", two)
    rows = family_tree(project)
    assert _names(rows) == ["candidate", "two", "one", "beside", "base"]
    assert _lanes(rows) == [1, 0, 0, 1, 0]
    _assert_joined(rows)


def test_a_line_of_generations_is_no_wider_than_one(project, base, child):
    newest = base
    for number in range(30):
        newest = child(f"c{number}", newest)
    rows = family_tree(project)
    assert _names(rows) == [f"c{number}" for number in reversed(range(30))] + ["base"]
    assert set(_lanes(rows)) == {0}
    assert {row.rails.width for row in rows} == {LANE_WIDTH}
    _assert_joined(rows)


def test_branches_of_branches_stay_within_the_lanes_and_joined(project, base, child):
    other = base
    first = []
    for number in range(LANES + 2):  # the newer of two children, below, has the parent's lane, so this goes beside it
        other = child(f"deep{number}", other)
        first.append(other)
    for number, one in enumerate(reversed([base, *first])):
        child(f"wide{number}", one)
    rows = family_tree(project)
    assert max(_lanes(rows)) == LANES - 1
    assert {row.rails.width for row in rows} == {LANES * LANE_WIDTH}
    assert len(rows) == 2 * (LANES + 2) + 2
    _assert_joined(rows)
    places = {row.checkpoint.pk: number for number, row in enumerate(rows)}
    assert all(places[row.checkpoint.pk] < places[row.checkpoint.parent_id] for row in rows if row.checkpoint.parent_id)


def test_models_of_other_families_stand_below(project, base, make_checkpoint, child, promote):
    stranger = make_checkpoint("stranger")
    promote(base)
    child("of stranger", stranger)
    rows = family_tree(project)
    assert _names(rows) == ["base", "of stranger", "stranger"]
    _assert_joined(rows)


def test_generations_are_counted_and_rollbacks_taken_away(project, base, child, promote):
    one, bad = child("one", base), child("bad", base)
    promote(base, one, bad)
    roll_back(project=project)
    two = child("two", one)
    promote(two)
    assert _marks(project) == {
        "base": ["first policy"],
        "one": ["generation 1"],
        "bad": ["rolled back"],
        "two": ["policy", "generation 2"],
    }


def test_a_policy_that_came_back_has_both_of_its_numbers(project, base, child, promote):
    one = child("one", base)
    promote(base, one, base)
    assert _marks(project)["base"] == ["policy", "generation 0, 2"]


@pytest.mark.parametrize(
    ("values", "mark"),
    [
        ({"stage": "measuring"}, ["in a gate: being measured"]),
        ({"stage": "asking"}, ["in a gate: people are asked"]),
        ({"stage": "waiting", "state": "succeeded"}, ["in a gate: waits for an admin"]),
        ({"stage": "measuring", "state": "failed"}, ["gate failed"]),
        ({"stage": "measuring", "state": "cancelled"}, []),
        ({"stage": "decided", "outcome": "reject", "state": "succeeded"}, ["rejected"]),
        ({"stage": "decided", "outcome": "hold", "state": "succeeded"}, ["held"]),
    ],
)
def test_what_a_gate_said_last_is_told(project, base, child, promote, values, mark):
    promote(base)
    candidate = child("candidate", base)
    earlier = {"stage": "decided", "outcome": "reject"}
    for number, gate in enumerate((earlier, values), start=1):
        Gate.objects.create(project=project, number=number, candidate=candidate, current=base, rule={}, **gate)
    assert _marks(project)["candidate"] == mark


def test_taints_and_removed_files_are_told_beside_the_rest(project, base, child, promote, make_prompt):
    one = child("one", base)
    promote(base, one)
    for _ in range(2):
        withdrawal = Withdrawal.objects.create(project=project, kind="prompt", prompt=make_prompt())
        Taint.objects.create(checkpoint=one, withdrawal=withdrawal, preferences=1)
    Checkpoint.objects.filter(pk=one.pk).update(removed_at=timezone.now())
    assert _marks(project)["one"] == ["policy", "generation 1", "withdrawn labels", "weights deleted"]
    rows = {row.checkpoint.name: row for row in family_tree(project)}
    assert not rows["one"].can_answer
    assert rows["base"].can_answer


def test_an_adapter_whose_base_is_gone_can_answer_no_more(project, base, child):
    child("adapter", base, base=base)
    Checkpoint.objects.filter(pk=base.pk).update(removed_at=timezone.now())
    assert [row.can_answer for row in family_tree(project)] == [False, False]


@pytest.fixture
def sweep(project, base, child, snapshot):
    """Four runs of one sweep; returns their checkpoints."""
    row = Sweep.objects.create(project=project, number=7, snapshot=snapshot, reference=base, recipe={})
    members = [child(f"s{number}", base) for number in range(4)]
    for number, checkpoint in enumerate(members, start=1):
        TrainingRun.objects.create(
            project=project, number=number, snapshot=snapshot, reference=base, checkpoint=checkpoint, recipe={},
            sweep=row, state="succeeded",
        )  # fmt: skip
    return members


def test_members_of_a_sweep_that_led_nowhere_are_one_row(project, base, sweep):
    rows = family_tree(project)
    assert _names(rows) == ["s3", "base"]
    assert [one.name for one in rows[0].folded] == ["s3", "s2", "s1", "s0"]
    assert rows[0].sweep_number == 7
    assert rows[1].sweep_number is None


def test_the_member_that_was_promoted_trained_from_or_compared_stands_alone(project, base, child, promote, sweep):
    promote(base, sweep[0])
    child("grandchild", sweep[1])
    Gate.objects.create(project=project, number=1, candidate=sweep[2], current=base, rule={})
    rows = {row.checkpoint.name: row for row in family_tree(project)}
    assert rows.keys() == {"base", "s0", "s1", "s2", "s3", "grandchild"}
    assert all(row.folded == [] for row in rows.values()), "one alone is not folded"


def test_it_takes_as_many_queries_whatever_the_size(project, base, child, promote, sweep):
    promote(base)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            for row in family_tree(project):
                _ = (row.can_answer, row.sweep_number, row.checkpoint.parent and row.checkpoint.parent.name)
        return len(captured)

    few = queries()
    newest = base
    for number in range(12):
        newest = child(f"c{number}", newest)
        promote(newest)
    assert queries() == few <= 6


def test_another_project_is_not_in_it(project, base, child, make_checkpoint):
    from labeling.services import create_project

    elsewhere = create_project(name="Elsewhere", slug="elsewhere")
    make_checkpoint("theirs", project=elsewhere, kind="dpo", parent=base)
    promote_checkpoint(project=elsewhere, checkpoint=base)
    assert _marks(project) == {"base": []}
    assert services.current_policy(project) is None


# The page


@pytest.fixture
def page(project, reviewer, sign_in):
    """The text of the page of checkpoints."""

    def page(**query) -> str:
        address = reverse("training:checkpoints", args=[project.slug])
        return " ".join(sign_in(reviewer).get(address, query).content.decode().split())

    return page


def test_the_page_says_what_it_has_not_got_yet(page, project, base):
    assert "None yet: the first promotion begins the line." in page()
    promote_checkpoint(project=project, checkpoint=base)
    assert "One generation so far: base." in page()
    assert "Compare side by side" not in page(), "there is nothing to compare it with"


def test_the_page_of_a_new_project_says_how_to_begin(page, project):
    assert "No checkpoints yet" in page()


def test_each_row_names_its_parent_and_a_folded_sweep_its_members(page, project, base, promote, sweep):
    promote(base)
    shown = page()
    assert "from base" in shown
    assert "and 3 more of sweep 7 that nothing came of" in shown
    for checkpoint in sweep:
        assert reverse("training:checkpoint", args=[project.slug, checkpoint.uuid]) in shown


def test_a_long_family_is_read_page_by_page(page, base, child):
    newest = base
    for number in range(ROWS_PER_PAGE):
        newest = child(f"c{number}", newest)
    assert ">base</a>" not in page()
    older = page(page=2)
    assert ">base</a>" in older
    assert ">c0</a>" not in older
