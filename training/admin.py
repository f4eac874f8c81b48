"""The operators' view of training. Everything here is written by services; here it is read."""

from __future__ import annotations

from django.contrib import admin

from labeling.admin import ReadOnlyAdmin
from training.models import (
    Checkpoint,
    CheckpointExport,
    DatasetSnapshot,
    Gate,
    HubPush,
    LabelEffects,
    LoopRule,
    Notice,
    PairOrigin,
    Promotion,
    RetentionRule,
    SampleBatch,
    SampleRefusal,
    SideBySide,
    Sweep,
    Taint,
    TrainingRun,
)

JOB_COLUMNS = ("state", "attempt", "worker", "created_at", "finished_at", "error_code")


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    list_display = ("name", "kind", "short_hash", "project", "size_bytes", "created_at")
    list_filter = ("kind", "project")
    list_select_related = ("project",)


@admin.register(DatasetSnapshot)
class DatasetSnapshotAdmin(ReadOnlyAdmin):
    list_display = ("short_hash", "project", "train_triples", "held_out_triples", "ties", "both_bad", "created_at")
    list_filter = ("project",)
    list_select_related = ("project",)
    exclude = ("preferences",)


@admin.register(TrainingRun)
class TrainingRunAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", *JOB_COLUMNS)
    list_filter = ("state", "project")
    list_select_related = ("project",)


@admin.register(SampleBatch)
class SampleBatchAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", "policy", "pairs_made", "prompts_refused", *JOB_COLUMNS)
    list_filter = ("state", "project")
    list_select_related = ("project", "policy")


@admin.register(SideBySide)
class SideBySideAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", "left", "right", *JOB_COLUMNS)
    list_filter = ("state", "project")
    list_select_related = ("project", "left", "right")


@admin.register(CheckpointExport)
class CheckpointExportAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "size_bytes", *JOB_COLUMNS)
    list_filter = ("state",)
    list_select_related = ("checkpoint",)


@admin.register(HubPush)
class HubPushAdmin(ReadOnlyAdmin):
    list_display = ("repo_id", "project", "checkpoint", "variant", "is_private", "commit_url", *JOB_COLUMNS)
    list_filter = ("state", "project")
    list_select_related = ("project", "checkpoint")


@admin.register(RetentionRule)
class RetentionRuleAdmin(ReadOnlyAdmin):
    list_display = ("project", "is_on", "keep_last", "keep_days")
    list_select_related = ("project",)


@admin.register(PairOrigin)
class PairOriginAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "policy", "seed_a", "seed_b", "attempts")
    list_select_related = ("policy", "batch")


@admin.register(SampleRefusal)
class SampleRefusalAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "prompt", "batch")
    list_select_related = ("prompt", "batch")


@admin.register(Promotion)
class PromotionAdmin(ReadOnlyAdmin):
    list_display = ("checkpoint", "project", "promoted_by", "is_rollback", "reason", "created_at")
    list_filter = ("project",)
    list_select_related = ("checkpoint", "project", "promoted_by")


@admin.register(LoopRule)
class LoopRuleAdmin(ReadOnlyAdmin):
    list_display = ("project", "open_pairs_wanted", "retrains", "min_new_triples", "new_triples", "verdict")
    list_select_related = ("project",)


@admin.register(Sweep)
class SweepAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", "reference", "picked", "created_at")
    list_filter = ("project",)
    list_select_related = ("project", "reference", "picked")


@admin.register(LabelEffects)
class LabelEffectsAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", *JOB_COLUMNS)
    list_filter = ("state", "project")
    list_select_related = ("project",)


@admin.register(Gate)
class GateAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", "kind", "stage", "outcome", *JOB_COLUMNS)
    list_filter = ("kind", "stage", "outcome", "project")
    list_select_related = ("project",)


@admin.register(Taint)
class TaintAdmin(ReadOnlyAdmin):
    list_display = ("checkpoint", "withdrawal", "preferences", "created_at")
    list_select_related = ("checkpoint", "withdrawal")


@admin.register(Notice)
class NoticeAdmin(ReadOnlyAdmin):
    list_display = ("title", "user", "project", "kind", "created_at", "read_at", "emailed_at", "email_tries")
    list_filter = ("kind", "project")
    list_select_related = ("user", "project")
