"""The operators' view: history is read there, never written."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib import admin
from django.urls import reverse

from labeling import queue
from labeling.admin import ReadOnlyAdmin
from labeling.answers import Details
from labeling.models import (
    Adjudication,
    KeyMap,
    Preference,
    Project,
    QualificationAnswer,
    QualificationItem,
    QualificationResult,
    QualityReport,
    SentBack,
    Skip,
    Withdrawal,
)

HISTORY = [model for model, options in admin.site._registry.items() if isinstance(options, ReadOnlyAdmin)]


@pytest.fixture
def rows(project, annotator, other_annotator, make_pair):
    """At least one row of every model of labeling."""
    pair = make_pair()
    token = queue.lease_next(project, annotator.pk).token
    judged = queue.submit(project, token, annotator.pk, "a", Details(rewrite="Better.")).preference
    make_pair()
    queue.skip(project, queue.lease_next(project, other_annotator.pk).token, other_annotator.pk)
    Adjudication.objects.create(pair=pair, reviewer=annotator, verdict="a")
    SentBack.objects.create(preference=judged, reviewer=other_annotator)
    KeyMap.objects.create(user=annotator)
    Withdrawal.objects.create(project=project, kind="annotator", annotator=other_annotator)
    QualityReport.objects.create(project=project, day="2026-01-01")
    item = QualificationItem.objects.create(project=project, messages=pair.prompt.messages, choice="a")
    QualificationAnswer.objects.create(
        item=item, annotator=annotator, attempt=1, choice="a", shown_left="a", is_right=True
    )
    QualificationResult.objects.create(
        project=project, annotator=annotator, attempt=1, right=1, asked=1, is_passed=True
    )


def test_every_row_that_is_history_is_read_only():
    labeling = {model for model in HISTORY if model._meta.app_label == "labeling"}
    writable = {"Project", "Membership"}
    assert {model.__name__ for model in labeling} == {
        model.__name__ for model in apps.get_app_config("labeling").get_models()
    } - writable


@pytest.mark.parametrize("model", [model for model in HISTORY if model._meta.app_label == "labeling"])
def test_history_can_be_read_but_not_added_changed_or_deleted(model, rows, admin_client):
    row = model._default_manager.order_by("pk").first()
    name = f"admin:labeling_{model._meta.model_name}"
    before = list(model._default_manager.order_by("pk").values())
    assert admin_client.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200
    listed = admin_client.get(reverse(f"{name}_changelist")).content.decode()
    assert "delete_selected" not in listed
    for url in (
        reverse(f"{name}_add"),
        reverse(f"{name}_change", args=[row.pk]),
        reverse(f"{name}_delete", args=[row.pk]),
    ):
        assert admin_client.post(url, {"post": "yes"}).status_code == 403, url
    admin_client.post(
        reverse(f"{name}_changelist"), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    )
    assert list(model._default_manager.order_by("pk").values()) == before


def test_a_project_with_history_cannot_be_deleted_with_it(project, rows, admin_client):
    url = reverse("admin:labeling_project_delete", args=[project.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    assert (Project.objects.count(), Preference.objects.count(), Skip.objects.count()) == (1, 1, 1)


def test_a_person_who_is_no_operator_sees_nothing(annotator, sign_in):
    response = sign_in(annotator).get(reverse("admin:labeling_preference_changelist"))
    assert response.status_code == 302
