"""The shapes of training's API."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from labeling.serializers import MessageSerializer
from training.models import Checkpoint, Promotion, SampleBatch, TrainingRun
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
        )


class RunSerializer(serializers.ModelSerializer[TrainingRun]):
    snapshot = serializers.CharField(source="snapshot.sha256", read_only=True)
    reference = serializers.UUIDField(source="reference.uuid", read_only=True)
    checkpoint = serializers.UUIDField(source="checkpoint.uuid", default=None, read_only=True)

    class Meta:
        model = TrainingRun
        fields = (
            *("number", "state", "progress", "recipe", "seed", "snapshot", "reference", "checkpoint", "is_automatic"),
            *("attempt", "error_code", "error", "hint", "created_at", "started_at", "finished_at"),
        )


class NewRunSerializer(serializers.Serializer[Any]):
    recipe = serializers.DictField(required=False, help_text=f"Any of {', '.join(Recipe().to_dict())}.")
    reference = serializers.UUIDField(required=False, help_text="A checkpoint; the project's first policy by default.")
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
