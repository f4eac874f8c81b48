"""The shapes of labeling's API. What an annotator can fetch names no model and no other person's vote."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from labeling.answers import MAX_COMMENT_CHARACTERS, MAX_REWRITE_CHARACTERS
from labeling.desk import BOTH_BAD, LEFT, RIGHT, TIE, side_of
from labeling.models import Membership, Preference, Project, Prompt, QualityReport, Skip
from labeling.models.projects import MAX_NAME_LENGTH, MAX_REASON_CHIPS
from labeling.project_settings import SETTINGS
from labeling.prompts import parse_prompt


class ProjectSerializer(serializers.ModelSerializer[Project]):
    class Meta:
        model = Project
        fields = ("slug", "name", "guidelines", "is_paused", "judgements_per_pair", "created_at")


class ProjectSettingsSerializer(serializers.ModelSerializer[Project]):
    """All that the admins of a project decide. Pairs that exist keep what was decided when they were made."""

    guidelines_note = serializers.CharField(max_length=200, required=False, write_only=True, allow_blank=True)
    guidelines_based_on = serializers.IntegerField(
        required=False,
        write_only=True,
        min_value=0,
        help_text="The version that the new guidelines were written from; refused if there is a newer one.",
    )

    class Meta:
        model = Project
        fields = (
            *("slug", "guidelines", "guidelines_version", "guidelines_note", "guidelines_based_on", "created_at"),
            *SETTINGS,
        )
        read_only_fields = ("slug", "guidelines_version", "created_at")


class MemberSerializer(serializers.ModelSerializer[Membership]):
    username = serializers.CharField(source="user.username", read_only=True)

    class Meta:
        model = Membership
        fields = ("username", "role")
        read_only_fields = ("role",)


class MessageSerializer(serializers.Serializer[Any]):
    role = serializers.ChoiceField(choices=["system", "user", "assistant"])
    content = serializers.CharField(trim_whitespace=False, max_length=200_000)


class PromptSerializer(serializers.ModelSerializer[Prompt]):
    messages = MessageSerializer(many=True)

    class Meta:
        model = Prompt
        fields = ("id", "messages", "content_hash", "is_held_out", "withdrawn_at", "created_at")
        read_only_fields = ("content_hash", "is_held_out", "withdrawn_at")


class NewPromptsSerializer(serializers.Serializer[Any]):
    """A text is a prompt of one user message; a list of messages is a chat that ends with the user's turn."""

    prompts = serializers.ListField(child=serializers.JSONField(), min_length=1, max_length=10_000)

    def validate_prompts(self, value: list[Any]) -> list[Any]:
        return [parse_prompt(item) for item in value]


class ImportReportSerializer(serializers.Serializer[Any]):
    added = serializers.IntegerField()
    duplicates = serializers.IntegerField()


class JudgementSerializer(serializers.ModelSerializer[Preference]):
    """A judgement for reviewers. ``side``: where the chosen response stood."""

    person = serializers.CharField(source="annotator.username")
    side = serializers.SerializerMethodField()
    prompt = MessageSerializer(source="pair.prompt.messages", many=True)

    class Meta:
        model = Preference
        fields = (
            *("id", "created_at", "person", "pair", "prompt", "choice", "side", "is_strong", "shown_left", "seconds"),
            *("criteria", "reasons", "comment", "version", "is_repeat", "guidelines_version", "frozen_at"),
        )

    def get_side(self, judgement: Preference) -> str:
        return side_of(judgement.choice, judgement.shown_left)


class QualitySerializer(serializers.ModelSerializer[QualityReport]):
    """``quality`` is as it was measured at ``computed_at``; ``annotators`` in it are by user id. Intervals are 95 %."""

    computed_at = serializers.DateTimeField(source="as_of", read_only=True)
    quality = serializers.SerializerMethodField()

    class Meta:
        model = QualityReport
        fields = ("day", "computed_at", "quality")

    def get_quality(self, report: QualityReport) -> dict[str, Any]:
        return {name: value for name, value in report.data.items() if name not in ("reach", "parameters")}


class LeaseSerializer(serializers.Serializer[Any]):
    """A pair to judge, by side. ``previous`` is the answer that an undo reopened, else empty."""

    token = serializers.CharField()
    expires_at = serializers.DateTimeField()
    prompt = MessageSerializer(many=True)
    left = serializers.CharField()
    right = serializers.CharField()
    previous = serializers.CharField(allow_blank=True)
    asks_reason = serializers.BooleanField(help_text="An answer to this one must name a reason or carry a comment.")
    is_second_look = serializers.BooleanField(help_text="You have judged this pair before.")


class SubmissionSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(max_length=400, write_only=True)
    choice = serializers.ChoiceField(choices=[LEFT, RIGHT, TIE, BOTH_BAD])
    is_strong = serializers.BooleanField(default=False, write_only=True, help_text="Much better, not only better.")
    criteria = serializers.DictField(
        child=serializers.ChoiceField(choices=[LEFT, RIGHT, TIE]), default=dict, write_only=True
    )
    reasons = serializers.ListField(
        child=serializers.CharField(max_length=MAX_NAME_LENGTH),
        default=list,
        max_length=MAX_REASON_CHIPS,
        write_only=True,
    )
    comment = serializers.CharField(default="", allow_blank=True, max_length=MAX_COMMENT_CHARACTERS, write_only=True)
    rewrite = serializers.CharField(
        default="",
        allow_blank=True,
        trim_whitespace=False,
        max_length=MAX_REWRITE_CHARACTERS,
        write_only=True,
        help_text="A better version of the chosen side.",
    )
    seconds = serializers.FloatField(
        default=None, allow_null=True, min_value=0, write_only=True, help_text="How long the pair was looked at."
    )
    is_extra = serializers.BooleanField(read_only=True, help_text="The pair had gone to somebody else meanwhile.")
    is_repeat = serializers.BooleanField(read_only=True, help_text="This lease was answered before; it counts once.")


class SkipSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(max_length=400)
    reason = serializers.ChoiceField(choices=Skip.Reason.choices, required=False, allow_blank=True)
    note = serializers.CharField(max_length=500, required=False, allow_blank=True)
