"""The operators' view of labeling. Rows that are history can be read, not rewritten."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from labeling.access import person
from labeling.models import (
    Adjudication,
    Guidelines,
    KeyMap,
    Membership,
    Pair,
    Preference,
    Project,
    Prompt,
    QualificationAnswer,
    QualificationItem,
    QualificationResult,
    QualityReport,
    Response,
    Rewrite,
    Seat,
    SentBack,
    Skip,
    Slot,
    Withdrawal,
)
from labeling.paginator import EstimatingPaginator
from labeling.services import set_guidelines


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """History: written by services alone."""

    paginator = EstimatingPaginator
    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class MembershipInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Membership
    autocomplete_fields = ("user",)
    extra = 0


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("name", "slug", "members", "judgements_per_pair", "is_paused", "created_at")
    search_fields = ("name", "slug")
    prepopulated_fields = {"slug": ("name",)}
    inlines = (MembershipInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        projects: QuerySet[Project] = super().get_queryset(request)
        return projects.annotate(members_count=Count("memberships"))

    def save_model(self, request: HttpRequest, obj: Project, form: Any, change: bool) -> None:
        """The guidelines go the way that every version goes."""
        text = obj.guidelines
        obj.guidelines = Project.objects.values_list("guidelines", flat=True).get(pk=obj.pk) if change else ""
        super().save_model(request, obj, form, change)
        set_guidelines(project=obj, text=text, author=person(request))

    @admin.display(ordering="members_count")
    def members(self, project: Any) -> int:
        return int(project.members_count)


@admin.register(Prompt)
class PromptAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", "is_held_out", "created_at")
    list_filter = ("is_held_out", "project")
    list_select_related = ("project",)


@admin.register(Response)
class ResponseAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "prompt", "finish_reason", "created_at")
    list_filter = ("finish_reason",)
    list_select_related = ("prompt",)


@admin.register(Pair)
class PairAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "prompt", "judgements_count", "judgements_wanted", "created_at")
    list_filter = ("project",)
    list_select_related = ("prompt",)


@admin.register(Slot)
class SlotAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "state", "annotator", "priority", "lease_until", "kind")
    list_filter = ("state", "kind", "project")
    list_select_related = ("annotator",)


@admin.register(Preference)
class PreferenceAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "annotator", "shown_left", "seconds", "version", "is_current", "created_at")
    list_filter = ("choice", "is_current", "shown_left")
    list_select_related = ("annotator",)


@admin.register(Skip)
class SkipAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "annotator", "reason", "created_at")
    list_select_related = ("annotator",)


@admin.register(Rewrite)
class RewriteAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "response")
    list_select_related = ("preference", "response")


@admin.register(Adjudication)
class AdjudicationAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "reviewer", "note", "created_at")
    list_select_related = ("reviewer",)


@admin.register(SentBack)
class SentBackAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "reviewer", "created_at", "settled_at")
    list_select_related = ("reviewer", "preference")


@admin.register(Guidelines)
class GuidelinesAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "author", "created_at")
    list_select_related = ("project", "author")


@admin.register(Seat)
class SeatAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "judged", "a_left", "reliability", "left_bias", "qualified_at")
    list_select_related = ("annotator", "project")


@admin.register(KeyMap)
class KeyMapAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "keys")
    list_select_related = ("user",)


@admin.register(QualificationItem)
class QualificationItemAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "choice", "is_active", "explanation")
    list_select_related = ("project",)


@admin.register(QualificationAnswer)
class QualificationAnswerAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "item", "attempt", "is_right", "created_at")
    list_select_related = ("annotator", "item__project")


@admin.register(QualificationResult)
class QualificationResultAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", "attempt", "is_passed", "created_at")
    list_select_related = ("annotator", "project")


@admin.register(QualityReport)
class QualityReportAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "computed_at", "last_preference_id")
    list_select_related = ("project",)


@admin.register(Withdrawal)
class WithdrawalAdmin(ReadOnlyAdmin):
    list_display = ("__str__", "project", "kind", "judgements", "by", "created_at", "finished_at")
    list_filter = ("kind", "project")
    list_select_related = ("project", "by")
