"""What a run would take, before it is started: triples, tokens, memory, time. Reads only; the database counts."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, cast

from django.conf import settings
from django.db.models import Case, Count, F, Func, IntegerField, Max, OuterRef, Q, Subquery, Sum, TextField, Value, When
from django.db.models.functions import Cast, Coalesce, Greatest, Least, Length, NullIf

from labeling.models import Choice, Preference, Project
from training import footprint, store
from training.footprint import Footprint, Memory, Method, Mode, Shape
from training.models import Checkpoint, Job, PairOrigin, TrainingRun
from training.recipe import Recipe
from training.services import MIN_TRAIN_TRIPLES

PAIRS_LOOKED_AT = 20_000  # the newest; their tokens are counted on every look at the page
RUNS_LOOKED_AT = 20
CHARACTERS_PER_TOKEN = 3  # where no sampler has counted; English has four to five


@dataclass(frozen=True)
class Triples:
    """How many triples the recipe's rule would give now. ``ties`` are among those to train on."""

    train: int
    held_out: int
    ties: int

    @property
    def is_enough(self) -> bool:
        return self.train - self.ties >= MIN_TRAIN_TRIPLES


@dataclass(frozen=True)
class Longest:
    """Tokens of the longest pair: its prompt once and both responses, and the responses alone."""

    tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class NeededMemory:
    """How many pairs like the longest would be in memory at once, what that needs and what there is; if it fits."""

    footprint: Footprint
    pairs: int
    checkpointing: bool
    machine: Memory | None
    fits: bool


@dataclass(frozen=True)
class Pace:
    """Time of the training steps alone, at the pace of an earlier run of the same kind."""

    seconds: float
    run: TrainingRun


@dataclass(frozen=True)
class Preflight:
    triples: Triples
    longest: Longest | None
    memory: NeededMemory | None
    pace: Pace | None


def look_ahead(project: Project, recipe: Recipe, reference: Checkpoint | None) -> Preflight:
    triples = count_triples(project, recipe)
    longest = longest_pair(project, recipe.max_length)
    root = (reference.base or reference) if reference else None
    return Preflight(
        triples=triples,
        longest=longest,
        memory=_memory(recipe, root, longest) if root and longest else None,
        pace=_pace(project, recipe, root, triples) if root and triples.train else None,
    )


def count_triples(project: Project, recipe: Recipe) -> Triples:
    """What ``derive_triples`` would count, by one query."""
    vote = Case(When(choice=Choice.A, then=1), When(choice=Choice.B, then=-1), default=0)
    pairs = (
        Preference.objects.filter(pair__project=project, is_current=True)
        .exclude(choice=Choice.BOTH_BAD)
        .values("pair_id")
        .annotate(lead=Sum(vote), is_held_out=F("pair__prompt__is_held_out"))
    )
    decided = ~Q(lead=0)
    counts = pairs.aggregate(
        train=Count("pair_id", filter=decided & Q(is_held_out=False)),
        held_out=Count("pair_id", filter=decided & Q(is_held_out=True)),
        ties=Count("pair_id", filter=~decided & Q(is_held_out=False)),
    )
    ties = counts["ties"] if recipe.ties == "half" else 0
    return Triples(counts["train"] + ties, counts["held_out"], ties)


class ArrayLength(Func):
    """Values in a JSON array, counted by the database."""

    function = "json_array_length"
    output_field = IntegerField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="jsonb_array_length", **context)


def longest_pair(project: Project, max_length: int) -> Longest | None:
    """The most tokens of a judged pair, as training would cut it; ``None`` without one."""
    pairs = project.pairs.filter(judgements_count__gt=0).order_by("-pk")[:PAIRS_LOOKED_AT]
    sampled = PairOrigin.objects.filter(pair=OuterRef("pk")).values(tokens=ArrayLength("prompt_token_ids"))
    prompt = Coalesce(NullIf(Subquery(sampled), 0), _guess(Cast("prompt__messages", TextField())))
    room = Greatest(Value(max_length) - F("prompt_tokens"), 0)
    completions = Least(_tokens("response_a"), room) + Least(_tokens("response_b"), room)
    found = (
        pairs.annotate(prompt_tokens=prompt)
        .annotate(completions=completions)
        .aggregate(tokens=Max(F("prompt_tokens") + F("completions")), completion_tokens=Max("completions"))
    )
    return Longest(found["tokens"], found["completion_tokens"]) if found["tokens"] else None


def _tokens(response: str) -> Coalesce:
    return Coalesce(NullIf(ArrayLength(f"{response}__token_ids"), 0), _guess(f"{response}__text"))


def _guess(text: Any) -> Any:
    return Length(text) / CHARACTERS_PER_TOKEN + 1


def _memory(recipe: Recipe, root: Checkpoint, longest: Longest) -> NeededMemory | None:
    shape = _shape(root)
    if shape is None:
        return None
    on_gpu = settings.ENGINE_DEVICE == "cuda"
    sizes: dict[str, Any] = {
        "method": cast(Method, recipe.method),
        "mode": cast(Mode, recipe.mode),
        "lora_rank": recipe.lora_rank,
        "tokens": longest.tokens,
        "completion_tokens": longest.completion_tokens,
        "bytes_per_weight": 2 if on_gpu else 4,
        "trained_layers": footprint.layers_trained(shape, cast(Mode, recipe.mode), recipe.fast_layers),
    }
    # Whether the workers run here, and how much a GPU has, this process cannot know.
    machine = None if on_gpu else footprint.machine_memory()
    chosen = footprint.choose(
        shape,
        **sizes,
        pairs_per_step=recipe.micro_batch or recipe.pairs_per_step,
        limit_bytes=machine.total if machine else 0,
        most_tokens=sys.maxsize,
    )
    pairs, checkpointing = chosen or (1, machine is not None)
    if not recipe.micro_batch:
        pairs = min(pairs, -(-footprint.MOST_TOKENS["cuda" if on_gpu else "cpu"] // longest.tokens))
    needed = footprint.estimate(shape, **sizes, pairs=pairs, checkpointing=checkpointing)
    return NeededMemory(needed, pairs, checkpointing, machine, chosen is not None or machine is None)


def _shape(root: Checkpoint) -> Shape | None:
    try:
        config = (store.checkpoint_dir(root.uuid) / "config.json").read_text(encoding="utf-8")
        return Shape.from_config(json.loads(config))
    except (OSError, ValueError):  # a ShapeError is one
        return None


def _pace(project: Project, recipe: Recipe, root: Checkpoint, triples: Triples) -> Pace | None:
    runs = TrainingRun.objects.filter(
        Q(reference=root) | Q(reference__base=root),
        project=project,
        state=Job.State.SUCCEEDED,
        checkpoint__isnull=False,
    ).select_related("checkpoint", "project")
    for run in runs.order_by("-pk")[:RUNS_LOOKED_AT]:
        same_kind = (run.recipe.get("method"), run.recipe.get("mode", "exact")) == (recipe.method, recipe.mode)
        speed = ((run.checkpoint.details if run.checkpoint else {}).get("speed") or {}).get("pairs_per_s")
        if same_kind and speed:
            return Pace(triples.train * recipe.epochs / speed, run)
    return None
