"""The family tree of a project's checkpoints: who was trained from whom, and what became of each. A few queries, pure.

It is drawn as a history is: the newest on top, each above what it was trained from. A line of descent keeps its lane,
so that a hundred generations are no wider than two; what branches off takes the lane beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from labeling.models import Project
from training import services
from training.models import Checkpoint, Gate, Promotion, Taint

LANES = 4  # that are drawn; what branches off further stands in the last one, and says what it was trained from
LANE_WIDTH = 18
_LIGHT = ("pk", "uuid", "name", "kind", "content_hash", "size_bytes", "removed_at", "created_at", "project", "base")


@dataclass(frozen=True)
class Mark:
    """What became of a checkpoint, in a word or two. ``role``: ``main`` for the policy, else empty."""

    label: str
    role: str = ""


@dataclass(frozen=True)
class Rails:
    """The lines beside one row, as a path in a box ``width`` wide and 100 high, and where its dot is."""

    path: str
    dot: float
    width: int


@dataclass(frozen=True)
class Row:
    """One line of the tree: a checkpoint with its marks, or the members of a sweep that led nowhere, folded."""

    checkpoint: Checkpoint
    marks: list[Mark]
    rails: Rails
    folded: list[Checkpoint] = field(default_factory=list)

    @property
    def can_answer(self) -> bool:
        """Whether it can be asked something: it writes text, and its files are there."""
        one = self.checkpoint
        gone = one.removed_at or (one.base and one.base.removed_at)
        return not gone and one.kind != Checkpoint.Kind.REWARD

    @property
    def sweep_number(self) -> int | None:
        run = _run_of(self.checkpoint)
        return run.sweep.number if run is not None and run.sweep else None


@dataclass(frozen=True)
class Standing:
    """What is known of a project's checkpoints beside their descent."""

    policies: list[int]  # in force, one behind the other, the policy of now last
    promoted: frozenset[int]  # at any time
    gates: dict[int, Gate]  # the newest by candidate
    tainted: frozenset[int]

    @property
    def policy(self) -> int | None:
        return self.policies[-1] if self.policies else None

    def generations(self, checkpoint_id: int) -> list[int]:
        return [number for number, policy in enumerate(self.policies) if policy == checkpoint_id]


def family_tree(project: Project) -> list[Row]:
    """Every checkpoint that the project may use, the newest line on top."""
    checkpoints = list(_checkpoints(project))
    standing = _standing(project)
    folds = _folds(checkpoints, standing)
    hidden = {one.pk for members in folds.values() for one in members[1:]}
    places = list(_Descent([one for one in checkpoints if one.pk not in hidden], standing.policy).places())
    drawn = _draw(places)
    return [
        Row(place.checkpoint, _marks(place.checkpoint, standing), rails, folds.get(place.checkpoint.pk, []))
        for place, rails in zip(places, drawn, strict=True)
    ]


def _checkpoints(project: Project) -> Iterable[Checkpoint]:
    """Without the figures, which are long. The oldest first."""
    run = [f"run__{name}" for name in ("number", "project", "sweep", "sweep__number")]
    rows = services.known_checkpoints(project).select_related("parent", "base", "run__sweep").order_by("pk")
    found: Iterable[Checkpoint] = rows.only(*_LIGHT, "parent__name", "base__removed_at", *run)
    return found


def _standing(project: Project) -> Standing:
    gates = Gate.objects.filter(project=project, kind=Gate.Kind.RELEASE).order_by("pk")
    light = gates.only("candidate", "stage", "outcome", "number", "state", "project")
    return Standing(
        policies=services.policies_behind(project),
        promoted=frozenset(Promotion.objects.filter(project=project).values_list("checkpoint_id", flat=True)),
        gates={gate.candidate_id: gate for gate in light},
        tainted=frozenset(
            Taint.objects.filter(checkpoint__project=project).values_list("checkpoint_id", flat=True).distinct()
        ),
    )


# Marks


def _marks(checkpoint: Checkpoint, standing: Standing) -> list[Mark]:
    found = []
    if checkpoint.pk == standing.policy:
        found.append(Mark("policy", "main"))
    if generations := standing.generations(checkpoint.pk):
        numbers = ", ".join(str(number) for number in generations)
        found.append(Mark("first policy" if numbers == "0" else f"generation {numbers}"))
    elif checkpoint.pk in standing.promoted:
        found.append(Mark("rolled back"))
    elif (gate := standing.gates.get(checkpoint.pk)) and (label := _in_gate(gate)):
        found.append(Mark(label))
    if checkpoint.pk in standing.tainted:
        found.append(Mark("withdrawn labels"))
    if checkpoint.removed_at is not None:
        found.append(Mark("weights deleted"))
    return found


def _in_gate(gate: Gate) -> str:
    if not gate.is_open:
        return _OUTCOMES.get(gate.outcome, "")
    if gate.state == Gate.State.CANCELLED:
        return ""
    return "gate failed" if gate.state == Gate.State.FAILED else _STAGES[gate.stage]


_STAGES: dict[str, str] = {
    Gate.Stage.MEASURING: "in a gate: being measured",
    Gate.Stage.ASKING: "in a gate: people are asked",
    Gate.Stage.WAITING: "in a gate: waits for an admin",
}
_OUTCOMES: dict[str, str] = {Gate.Outcome.HOLD: "held", Gate.Outcome.REJECT: "rejected"}


# Sweeps


def _folds(checkpoints: Sequence[Checkpoint], standing: Standing) -> dict[int, list[Checkpoint]]:
    """Members of a sweep of which nothing came, by the one that stands for them: two or more, the newest first."""
    parents = {one.parent_id for one in checkpoints}
    by_sweep: dict[int, list[Checkpoint]] = defaultdict(list)
    for one in reversed(checkpoints):
        run = _run_of(one)
        leads_on = one.pk in parents or one.pk in standing.policies or one.pk in standing.gates
        if run is not None and run.sweep_id is not None and not leads_on:
            by_sweep[run.sweep_id].append(one)
    return {members[0].pk: members for members in by_sweep.values() if len(members) > 1}


def _run_of(checkpoint: Checkpoint) -> Any:
    return getattr(checkpoint, "run", None)  # the other end of a one-to-one field is an error where there is none


# Descent


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is drawn. ``leaves``: its line goes to the lane before, to its parent; else straight down."""

    checkpoint: Checkpoint
    lane: int
    leaves: bool
    has_parent: bool
    has_children: bool


class _Descent:
    """Who comes from whom, in the order in which it is drawn."""

    def __init__(self, checkpoints: Sequence[Checkpoint], policy: int | None) -> None:
        known = {one.pk: one for one in checkpoints}
        self.roots: list[Checkpoint] = []
        self.children: dict[int, list[Checkpoint]] = defaultdict(list)
        for one in checkpoints:
            if one.parent_id in known:
                self.children[one.parent_id].append(one)
            else:
                self.roots.append(one)
        self.policy = policy
        self.way = self._way_to(known.get(policy) if policy else None, known)

    def _way_to(self, one: Checkpoint | None, known: dict[int, Checkpoint]) -> set[int]:
        """The policy and all that it descends from."""
        way: set[int] = set()
        while one is not None and one.pk not in way:
            way.add(one.pk)
            one = known.get(one.parent_id) if one.parent_id else None
        return way

    def places(self) -> Iterator[Place]:
        """The newest line first, each parent after all of its descendants. No recursion: lines may be long."""
        newest_first = sorted(self.roots, key=lambda one: (one.pk in self.way, one.pk), reverse=True)
        waiting = [Place(one, 0, False, False, bool(self.children[one.pk])) for one in reversed(newest_first)]
        opened: set[int] = set()
        while waiting:
            place = waiting[-1]
            one = place.checkpoint
            if one.pk in opened or not place.has_children:
                yield waiting.pop()
                continue
            opened.add(one.pk)
            waiting += reversed(list(self._below(place)))

    def _below(self, place: Place) -> Iterator[Place]:
        """The children of a place in the order in which they are drawn: first who goes on in its lane."""
        heir = self._heir(place.checkpoint)
        if heir is not None:
            yield Place(heir, place.lane, False, True, bool(self.children[heir.pk]))
        for child in reversed(self.children[place.checkpoint.pk]):
            if child is not heir:
                yield Place(child, place.lane + 1, True, True, bool(self.children[child.pk]))

    def _heir(self, parent: Checkpoint) -> Checkpoint | None:
        """The child on the way to the policy; on a side line the newest. What came after the policy branches off it."""
        children = self.children[parent.pk]
        if parent.pk == self.policy or not children:
            return None
        return next((child for child in children if child.pk in self.way), children[-1])


# Drawing


def _draw(places: Sequence[Place]) -> list[Rails]:
    """The lines beside each row. ``open_lanes``: those in which a line comes down from the row above."""
    lanes = min(LANES, 1 + max((place.lane for place in places), default=0))
    drawn, open_lanes = [], set[int]()
    for place in places:
        lane = min(place.lane, LANES - 1)
        before = min(lane, place.lane - 1)
        path = [_down(other, 0, 100) for other in sorted(open_lanes - {lane})]
        if lane in open_lanes:
            path.append(_down(lane, 0, 50))
        open_lanes.discard(lane)
        if place.leaves and before != lane:
            path.append(f"M{_x(lane)} 50C{_x(lane)} 80 {_x(before)} 70 {_x(before)} 100")
            open_lanes.add(before)
        elif place.has_parent:
            path.append(_down(lane, 50, 100))
            open_lanes.add(lane)
        drawn.append(Rails("".join(path), _x(lane), lanes * LANE_WIDTH))
    return drawn


def _down(lane: int, top: int, bottom: int) -> str:
    return f"M{_x(lane)} {top}V{bottom}"


def _x(lane: int) -> float:
    return lane * LANE_WIDTH + LANE_WIDTH / 2
