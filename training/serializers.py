"""The shapes of training's API."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from labeling.serializers import MessageSerializer
from training.models import Checkpoint, LoopRule, Promotion, SampleBatch, TrainingRun
from training.recipe import Decoding, Recipe


class CompletionSerializer(serializers.Serializer[Any]):
    text = serializers.CharField()
    token_ids = serializers.ListField(child=serializers.IntegerField())
    finish_reason = serializers.CharField()


class TripleSerializer(serializers.Serializer[Any]):
    """(x, y_w, y_l) with the preferences behind it."""

    pair_id = serializers.CharField()
    prompt_id = serializers.CharField()
    split = serializers.ChoiceField(choices=["train", "held_out"])
    messages = MessageSerializer(many=True)
    chosen = CompletionSerializer()
    rejected = CompletionSerializer()
    preference_ids = serializers.ListField(child=serializers.IntegerField())
    weight = serializers.FloatField()
    label_noise = serializers.FloatField()
    source = serializers.ChoiceField(  # type: ignore[assignment]
        choices=["pair", "rewrite"],
        help_text="The judgements of a pair, or a person's rewrite of the rejected response.",
    )


class TriplePageSerializer(serializers.Serializer[Any]):
    results = TripleSerializer(many=True)
    next_after = serializers.IntegerField(allow_null=True, help_text="Pass as ``after`` to go on; null at the end.")


class DemonstrationSerializer(serializers.Serializer[Any]):
    """A chat that ends with a person's rewrite, in the form that TRL's SFTTrainer reads."""

    messages = MessageSerializer(many=True)
    split = serializers.ChoiceField(choices=["train", "held_out"])
    prompt_id = serializers.CharField()
    pair_id = serializers.CharField()
    preference_id = serializers.IntegerField()


class DemonstrationPageSerializer(serializers.Serializer[Any]):
    results = DemonstrationSerializer(many=True)
    next_after = serializers.IntegerField(allow_null=True, help_text="Pass as ``after`` to go on; null at the end.")


class CheckpointSerializer(serializers.ModelSerializer[Checkpoint]):
    base = serializers.CharField(source="base.content_hash", default=None)
    parent = serializers.CharField(source="parent.content_hash", default=None)  # type: ignore[assignment]

    class Meta:
        model = Checkpoint
        fields = (
            "uuid",
            "name",
            "kind",
            "content_hash",
            "size_bytes",
            "licence",
            "base",
            "parent",
            "details",
            "created_at",
            "removed_at",
        )


class RunSerializer(serializers.ModelSerializer[TrainingRun]):
    snapshot = serializers.CharField(source="snapshot.sha256", read_only=True)
    reference = serializers.UUIDField(source="reference.uuid", read_only=True)
    checkpoint = serializers.UUIDField(source="checkpoint.uuid", default=None, read_only=True)

    class Meta:
        model = TrainingRun
        fields = (
            *("number", "state", "progress", "recipe", "seed", "snapshot", "reference", "reference_reason"),
            *("checkpoint", "is_automatic", "forecast"),
            *("attempt", "error_code", "error", "hint", "created_at", "started_at", "finished_at"),
        )


class NewRunSerializer(serializers.Serializer[Any]):
    recipe = serializers.DictField(required=False, help_text=f"Any of {', '.join(Recipe().to_dict())}.")
    reference = serializers.UUIDField(
        required=False, help_text="A checkpoint; by default the one that the project's rule names."
    )
    seed = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)


class BatchSerializer(serializers.ModelSerializer[SampleBatch]):
    policy = serializers.UUIDField(source="policy.uuid", read_only=True)
    pairs = serializers.IntegerField(source="wanted", min_value=1, max_value=2000)
    decoding = serializers.DictField(required=False, help_text=f"Any of {', '.join(Decoding().to_dict())}.")

    class Meta:
        model = SampleBatch
        fields = (
            "uuid",
            "state",
            "policy",
            "pairs",
            "pairs_made",
            "prompts_refused",
            "decoding",
            "seed",
            "error",
            "created_at",
        )
        read_only_fields = ("uuid", "state", "pairs_made", "prompts_refused", "seed", "error")


class PromotionSerializer(serializers.ModelSerializer[Promotion]):
    checkpoint = serializers.UUIDField(source="checkpoint.uuid")

    class Meta:
        model = Promotion
        fields = ("checkpoint", "reason", "is_rollback", "created_at")
        read_only_fields = ("is_rollback",)


class ConditionSerializer(serializers.Serializer[Any]):
    """One of the things that must hold for a run to start by itself."""

    name = serializers.CharField()
    is_met = serializers.BooleanField()
    words = serializers.CharField()


class WhatNowSerializer(serializers.Serializer[Any]):
    """What would happen now and why."""

    starts = serializers.BooleanField(source="decision.starts")
    words = serializers.CharField(source="decision.words")
    conditions = ConditionSerializer(source="decision.conditions", many=True)
    may_start_at = serializers.DateTimeField(
        source="decision.may_start_at", allow_null=True, help_text="From when time stands in the way no more."
    )
    new_triples = serializers.IntegerField(source="known.new_triples")
    runs_today = serializers.IntegerField(source="known.runs_today")
    is_paused = serializers.BooleanField()
    scheduler_is_late = serializers.BooleanField(help_text="Nobody has looked at the rule for two minutes.")
    reference = serializers.UUIDField(source="reference.checkpoint.uuid", default=None)
    reference_hash = serializers.CharField(source="reference.checkpoint.content_hash", default="")
    reference_reason = serializers.CharField(source="reference.reason", default="")


class ExpectedSerializer(serializers.Serializer[Any]):
    """What the next run would take; null where no earlier run tells."""

    train_triples = serializers.IntegerField(source="triples.train")
    held_out_triples = serializers.IntegerField(source="triples.held_out")
    steps = serializers.IntegerField(help_text="Of the optimiser, in one process; 0 while there is no triple.")
    learning_rate = serializers.FloatField(help_text="The one of the recipe, or the usual one for so many steps.")
    reference_forwards = serializers.IntegerField(source="forecast.reference.forwards", default=None)
    reference_cached = serializers.IntegerField(source="forecast.reference.cached", default=None)
    reference_sampled = serializers.IntegerField(source="forecast.reference.sampled", default=None)
    training_seconds = serializers.FloatField(source="forecast.training", default=None)
    seconds = serializers.FloatField(source="forecast.seconds", default=None)
    memory_bytes = serializers.IntegerField(source="memory.footprint.total", default=None)
    refusal = serializers.CharField()


class LoopRuleSerializer(serializers.ModelSerializer[LoopRule]):
    """The rule of what happens by itself. ``recipe`` is what differs from the usual one."""

    fixed_times = serializers.ListField(
        child=serializers.CharField(), help_text="Times of day as HH:MM, in the server's time zone."
    )
    recipe = serializers.DictField()
    paused_by = serializers.CharField(source="paused_by.username", default=None, read_only=True)

    class Meta:
        model = LoopRule
        fields = (
            *("open_pairs_wanted", "effects_per_person", "retrains", "min_new_triples", "min_minutes_between"),
            *("fixed_times", "most_runs_a_day", "recipe", "reference", "kl_first_budget", "paused_at", "paused_until"),
            *("paused_by", "passed_by", "new_triples", "verdict", "evaluated_at"),
        )
        read_only_fields = ("paused_at", "paused_until", "passed_by", "new_triples", "verdict", "evaluated_at")


class RetrainingSerializer(serializers.Serializer[Any]):
    rule = LoopRuleSerializer()
    now = WhatNowSerializer()
    expected = ExpectedSerializer(allow_null=True)


class PauseSerializer(serializers.Serializer[Any]):
    until = serializers.DateTimeField(required=False, allow_null=True, help_text="Left out: until somebody ends it.")
