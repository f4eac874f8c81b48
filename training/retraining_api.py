"""What happens by itself, over HTTP and JSON: the rule, what would happen now and why. Every write is a service's."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling.access import ADMINS, REVIEWERS, Role, person, project_or_404
from labeling.models import Project
from training import services
from training.preflight import look_ahead
from training.serializers import LoopRuleSerializer, PauseSerializer, RetrainingSerializer
from training.what_now import what_now


class Retraining(APIView):
    """The rule, what would happen now and why, and what the next run would take. PATCH changes what it names."""

    @extend_schema(responses=RetrainingSerializer)
    def get(self, request: Request, slug: str) -> Response:
        return _answer(_project(request, slug, REVIEWERS))

    @extend_schema(request=LoopRuleSerializer(partial=True), responses=RetrainingSerializer)
    def patch(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        form = LoopRuleSerializer(services.loop_rule(project), data=request.data, partial=True)
        form.is_valid(raise_exception=True)
        values = dict(form.validated_data)
        recipe = values.pop("recipe", None)
        with transaction.atomic():  # all of it or nothing
            services.change_rule(project=project, **values)
            if recipe is not None:
                services.use_recipe(project=project, recipe=recipe, by=person(request))
        return _answer(project)


class Pause(APIView):
    """Start no run by itself for now. What is running goes on, and people can still start one."""

    @extend_schema(request=PauseSerializer, responses=RetrainingSerializer)
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        form = PauseSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        services.pause_rule(project=project, by=person(request), until=form.validated_data.get("until"))
        return _answer(project)


class EndPause(APIView):
    """Let runs start by themselves again."""

    @extend_schema(request=None, responses=RetrainingSerializer)
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        services.end_pause(project=project)
        return _answer(project)


def _answer(project: Project) -> Response:
    now = what_now(project)
    preflight = look_ahead(project, now.recipe, now.reference.checkpoint) if now.recipe and now.reference else None
    parts: dict[str, Any] = {"rule": now.rule, "now": now, "expected": preflight}
    return Response(RetrainingSerializer(parts).data)


def _project(request: Request, slug: str, roles: tuple[Role, ...]) -> Project:
    return project_or_404(person(request), slug, roles)
