"""What a run would take, before it is started: triples, tokens, memory, time. Reads only; the database counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from django.conf import settings
from django.core.cache import cache
from django.db.models import Count, F, Func, IntegerField, Max, OuterRef, Q, Subquery, Sum, TextField, Value
from django.db.models.functions import Cast, Coalesce, Greatest, Least, Length, NullIf, Sign

from labeling.models import Choice, Preference, Project, Rewrite
from training import footprint, registry, tallies
from training.exceptions import Rejected
from training.footprint import Footprint, Method, Mode
from training.forecast import Forecast, expect
from training.learning_rate import steps_of
from training.models import Checkpoint, Job, PairOrigin, Promotion, TrainingRun
from training.recipe import Recipe
from training.services import MIN_TRAIN_PROMPTS, MIN_TRAIN_TRIPLES, continued, refuse_impossible
from training.triples import UNDECIDED, LabelRule

MOST_PEOPLE_NAMED = 20
PAIRS_LOOKED_AT = 20_000  # the newest; their tokens are counted on every look at the page
CHARACTERS_PER_TOKEN = 3  # where no sampler has counted; English has four to five
# Counting a large project takes seconds, and the form asks again with every field that is changed.
LARGE = 20_000  # judged pairs
KEPT_SECONDS = 60

_Counted = TypeVar("_Counted")


@dataclass(frozen=True)
class Triples:
    """How many triples the recipe's rule would give now. ``ties`` are among those to train on.

    ``rewrites`` are among either split's. ``train_prompts`` are the prompts of those to train on that are no ties.
    ``pairs`` are all that were judged, whatever becomes of them.
    """

    train: int
    held_out: int
    ties: int
    rewrites: int
    train_prompts: int
    pairs: int

    least_triples = MIN_TRAIN_TRIPLES
    least_prompts = MIN_TRAIN_PROMPTS

    @property
    def decided(self) -> int:
        """Of those to train on, the ones that say which response is better."""
        return self.train - self.ties

    @property
    def is_enough(self) -> bool:
        return self.decided >= MIN_TRAIN_TRIPLES and self.train_prompts >= MIN_TRAIN_PROMPTS


@dataclass(frozen=True)
class Overruled:
    """Of pairs that one person alone has judged, for one of the responses: how many give no label by the posterior, and
    how many the other label, so that somebody sees why."""

    person_id: int
    name: str
    judgements: int
    dropped: int
    turned: int


@dataclass(frozen=True)
class Longest:
    """Tokens of the longest pair: its prompt once and both responses, and the responses alone."""

    tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class NeededMemory:
    """How many pairs like the longest would be in memory at once, what that needs and what there is; if it fits.

    ``machine``: bytes of a machine like this one, if the run is on its CPU. ``is_guess``: nothing says yet that it is.
    ``as_many_as_fit``: a GPU decides how many, and ``footprint`` is that of one.
    """

    footprint: Footprint
    pairs: int
    checkpointing: bool = False
    machine: int | None = None
    fits: bool = True
    is_guess: bool = False
    as_many_as_fit: bool = False


@dataclass(frozen=True)
class Preflight:
    """``refusal``: why a run would be refused, whatever is labelled. ``note``: what the recipe will not do.

    ``steps`` of the optimiser in one process, and the rate that they are taken at; none before there is a triple.
    """

    triples: Triples
    longest: Longest | None
    memory: NeededMemory | None
    forecast: Forecast | None
    refusal: str = ""
    note: str = ""
    overruled: Sequence[Overruled] = ()
    steps: int = 0
    learning_rate: float = 0.0


def look_ahead(project: Project, recipe: Recipe, reference: Checkpoint | None) -> Preflight:
    """Of a project with many pairs the counts may be as old as ``KEPT_SECONDS``."""
    rule = recipe.label_rule
    triples = triples_lately(project, recipe)
    longest = _kept(
        f"longest:{project.pk}:{recipe.max_length}",
        lambda: longest_pair(project, recipe.max_length),
        lambda _: _is_large(triples),
    )
    overruled = _kept(
        f"overruled:{project.pk}:{rule.uses_posterior}",
        lambda: overruled_people(project, rule),
        lambda _: _is_large(triples),
    )
    if reference is None:
        return Preflight(triples, longest, None, None, overruled=overruled)
    recipe = continued(recipe, reference)
    return Preflight(
        triples=triples,
        longest=longest,
        memory=_memory(project, recipe, reference, longest) if longest else None,
        forecast=_forecast(project, recipe, reference, triples) if triples.train else None,
        refusal=_refusal(recipe, reference),
        note=_note(project, recipe),
        overruled=overruled,
        steps=steps_of(triples.train, recipe.epochs, recipe.pairs_per_step) if triples.train else 0,
        learning_rate=recipe.settled(triples.train).learning_rate,
    )


def triples_lately(project: Project, recipe: Recipe) -> Triples:
    """``count_triples``; of a project with many pairs it may be as old as ``KEPT_SECONDS``."""
    rule = recipe.label_rule
    key = f"triples:{project.pk}:{rule.ties}:{rule.uses_posterior}"
    return _kept(key, lambda: count_triples(project, recipe), _is_large)


def _forecast(project: Project, recipe: Recipe, reference: Checkpoint, triples: Triples) -> Forecast:
    values = (recipe.method, recipe.mode, recipe.precision, recipe.ties, recipe.label_noise, recipe.epochs)
    return _kept(
        f"forecast:{project.pk}:{reference.pk}:{values}".replace(" ", ""),
        lambda: expect(project, recipe, reference, triples.train),
        lambda _: _is_large(triples),
    )


def _kept(key: str, count: Callable[[], _Counted], is_large: Callable[[_Counted], bool]) -> _Counted:
    key = f"preflight:{key}"
    if (counted := cache.get(key)) is not None:
        return cast(_Counted, counted)
    counted = count()
    if is_large(counted):
        cache.set(key, counted, KEPT_SECONDS)
    return counted


def _is_large(triples: Triples) -> bool:
    return triples.pairs >= LARGE


def _refusal(recipe: Recipe, reference: Checkpoint) -> str:
    try:
        refuse_impossible(recipe, reference)
    except Rejected as refusal:
        return str(refusal)
    return ""


def _note(project: Project, recipe: Recipe) -> str:
    if recipe.label_rule.uses_posterior and not project.pairs.filter(p_a__isnull=False).exists():
        return (
            "No pair has a posterior probability yet, so every annotator is taken for as reliable as people usually "
            "are. The background job that finds out more writes one for each judged pair within a minute."
        )
    if "votes" not in (recipe.label_noise, recipe.pair_weight):
        return ""
    if project.judgements_per_pair > 1 or project.calibration_percent:
        return ""
    return (
        "The project asks for one judgement a pair, and one vote leaves a label certain and its weight 1: votes change "
        "nothing."
    )


def count_triples(project: Project, recipe: Recipe) -> Triples:
    """What ``derive_triples`` would count, by one query."""
    pairs = tallies.by_pair(Preference.objects.counted().filter(project=project))
    held_out, judged, rewritten = Q(is_held_out=True), tallies.is_judged(), Q(rewrites__gt=0)
    decided = judged & tallies.is_decided(recipe.label_rule)
    counts = pairs.aggregate(
        train=Count("pair_id", filter=decided & ~held_out),
        held_out=Count("pair_id", filter=decided & held_out),
        ties=Count("pair_id", filter=judged & ~decided & ~held_out),
        train_rewrites=Sum("rewrites", filter=~held_out, default=0),
        held_out_rewrites=Sum("rewrites", filter=held_out, default=0),
        train_prompts=Count("prompt", filter=(decided | rewritten) & ~held_out, distinct=True),
        pairs=Count("pair_id", filter=judged),
    )
    ties = counts["ties"] if recipe.ties == "half" else 0
    return Triples(
        train=counts["train"] + ties + counts["train_rewrites"],
        held_out=counts["held_out"] + counts["held_out_rewrites"],
        ties=ties,
        rewrites=counts["train_rewrites"] + counts["held_out_rewrites"],
        train_prompts=counts["train_prompts"],
        pairs=counts["pairs"],
    )


def overruled_people(project: Project, rule: LabelRule) -> list[Overruled]:
    """Whom the label model believes too little for a label of theirs to stand by itself; most judgements first."""
    if not rule.uses_posterior:
        return []
    low, high = UNDECIDED
    alone = Preference.objects.counted().filter(
        project=project, choice__in=[Choice.A, Choice.B], pair__judgements_count=1, pair__adjudicated_choice=""
    )
    against = Q(choice=Choice.A, pair__p_a__lt=low) | Q(choice=Choice.B, pair__p_a__gt=high)
    people = (
        alone.filter(pair__p_a__isnull=False)
        .order_by()
        .values("annotator_id", "annotator__username")
        .annotate(
            judgements=Count("pk"),
            dropped=Count("pk", filter=Q(pair__p_a__range=UNDECIDED)),
            turned=Count("pk", filter=against),
        )
        .exclude(dropped=0, turned=0)
        .order_by("-judgements", "annotator_id")
    )
    names = ("annotator_id", "annotator__username", "judgements", "dropped", "turned")
    return [Overruled(*row) for row in people.values_list(*names)[:MOST_PEOPLE_NAMED]]


class ArrayLength(Func):
    """Values in a JSON array, counted by the database."""

    function = "json_array_length"
    output_field = IntegerField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, function="jsonb_array_length", **context)


def longest_pair(project: Project, max_length: int) -> Longest | None:
    """The most tokens of a judged pair, as training would cut it, or of a rewrite and the longer of its pair's
    responses; ``None`` without a judged pair."""
    pairs = project.pairs.filter(judgements_count__gt=0, is_retired=False).order_by("-pk")[:PAIRS_LOOKED_AT]
    sampled = PairOrigin.objects.filter(pair=OuterRef("pk")).values(tokens=ArrayLength("prompt_token_ids"))
    prompt = Coalesce(NullIf(Subquery(sampled), 0), _guess(Cast("prompt__messages", TextField())))
    room = Greatest(Value(max_length) - F("prompt_tokens"), 0)
    a, b = Least(_tokens("response_a"), room), Least(_tokens("response_b"), room)
    completions = Greatest(a + b, Least(_rewrite_tokens(), room) + Greatest(a, b) * Sign(_rewrite_tokens()))
    found = (
        pairs.annotate(prompt_tokens=prompt)
        .annotate(completions=completions)
        .aggregate(tokens=Max(F("prompt_tokens") + F("completions")), completion_tokens=Max("completions"))
    )
    return Longest(found["tokens"], found["completion_tokens"]) if found["tokens"] else None


def _tokens(response: str) -> Coalesce:
    return Coalesce(NullIf(ArrayLength(f"{response}__token_ids"), 0), _guess(f"{response}__text"))


def _rewrite_tokens() -> Coalesce:
    """Of the longest rewrite of a pair's responses; 0 without one."""
    counted = Preference.objects.counted().filter(pair=OuterRef(OuterRef("pk")))
    written = Rewrite.objects.filter(preference__in=counted).order_by()
    longest = written.values("preference__pair").annotate(tokens=Max(_guess("response__text"))).values("tokens")
    return Coalesce(Subquery(longest), 0)


def _guess(text: Any) -> Any:
    return Length(text) / CHARACTERS_PER_TOKEN + 1


def _memory(project: Project, recipe: Recipe, reference: Checkpoint, longest: Longest) -> NeededMemory | None:
    """What the engine would plan. How much a GPU has, this process cannot know."""
    shape = registry.shape_of(reference)
    if shape is None:
        return None
    device = _device(project)
    first = Promotion.first_behind(project, reference)
    mode, method = cast(Mode, recipe.mode), cast(Method, recipe.method)
    sizes: dict[str, Any] = {
        "method": method,
        "mode": mode,
        "lora_rank": recipe.lora_rank,
        "tokens": longest.tokens,
        "completion_tokens": longest.completion_tokens,
        "bytes_per_weight": {"float32": 4, "bfloat16": 2}.get(recipe.precision, 2 if device == "cuda" else 4),
        "trained_layers": footprint.layers_trained(shape, mode, recipe.fast_layers),
        "models_beside": footprint.models_compared(
            method, on_adapter=reference.is_adapter, has_first=first is not None
        ),
        "shared_by": max(1, recipe.processes) if recipe.sharding == "fsdp" else 1,
    }
    if device == "cuda":
        pairs = recipe.micro_batch or 1
        needed = footprint.estimate(shape, **sizes, pairs=pairs, checkpointing=False)
        return NeededMemory(needed, pairs, as_many_as_fit=not recipe.micro_batch)
    machine = footprint.machine_memory()
    plan = footprint.plan(
        shape,
        **sizes,
        micro_batch=recipe.micro_batch,
        pairs_per_step=recipe.pairs_per_step,
        limit_bytes=machine or footprint.UNKNOWN,
        device="cpu",
    )
    if plan is None:
        needed = footprint.estimate(shape, **sizes, pairs=1, checkpointing=True)
        return NeededMemory(needed, 1, checkpointing=True, machine=machine, fits=False, is_guess=not device)
    return NeededMemory(plan.expected, plan.pairs, plan.checkpointing, machine, is_guess=not device)


def _device(project: Project) -> str:
    """What training runs on: as it is set, or else as the project's last run found it; empty without one."""
    if settings.ENGINE_DEVICE != "auto":
        return str(settings.ENGINE_DEVICE)
    runs = TrainingRun.objects.filter(project=project, state=Job.State.SUCCEEDED, checkpoint__isnull=False)
    return runs.order_by("-pk").values_list("checkpoint__details__device", flat=True).first() or ""
