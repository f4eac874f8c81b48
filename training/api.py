"""Training over HTTP and JSON: triples, batches, runs, checkpoints, promotions. Thin; every write is a service's."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpResponseBase
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import generics, status
from rest_framework.exceptions import NotFound
from rest_framework.mixins import CreateModelMixin
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling.access import ADMINS, REVIEWERS, Role, person, project_or_404
from labeling.api import NewestFirst
from labeling.models import Project
from training import demonstrations, downloads, services, snapshots
from training.models import Checkpoint, Promotion, SampleBatch, TrainingRun
from training.recipe import Decoding, Recipe
from training.serializers import (
    BatchSerializer,
    CheckpointSerializer,
    DemonstrationPageSerializer,
    NewRunSerializer,
    PromotionSerializer,
    RunSerializer,
    TriplePageSerializer,
)
from training.triples import LabelRule, without_engine_fields

TRIPLES_PER_PAGE = 500
DEMONSTRATIONS_PER_PAGE = 500
RULE_PARAMETERS = [
    OpenApiParameter(name, str, enum=Recipe.VALUES[name], default=getattr(Recipe, name), description="As in a recipe.")
    for name in Recipe.ABOUT_DATA
]


class TripleList(APIView):
    """The triples of now, by pair, as a run by the same rule would train on them; by default as the default recipe.

    ``manage.py export_triples`` writes all of them to a file.
    """

    @extend_schema(parameters=[OpenApiParameter("after", int), *RULE_PARAMETERS], responses=TriplePageSerializer)
    def get(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, REVIEWERS)
        page = snapshots.triple_page(project, _after(request), TRIPLES_PER_PAGE, _label_rule(request))
        results = [without_engine_fields(triple) for triple in page.triples]
        return Response({"results": results, "next_after": page.next_after})


class DemonstrationList(APIView):
    """The rewrites of now as chats for supervised fine-tuning. ``manage.py export_demonstrations`` writes them all."""

    @extend_schema(parameters=[OpenApiParameter("after", int)], responses=DemonstrationPageSerializer)
    def get(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, REVIEWERS)
        page = demonstrations.page(project, _after(request), DEMONSTRATIONS_PER_PAGE)
        return Response({"results": [asdict(each) for each in page.demonstrations], "next_after": page.next_after})


class _CreatedByAdmins(CreateModelMixin):
    """Asks who sends a body before it looks at the body."""

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        _project(request, kwargs["slug"], ADMINS)
        return super().create(request, *args, **kwargs)


class BatchList(_CreatedByAdmins, generics.ListCreateAPIView[SampleBatch]):
    """Sample batches, newest first; POST asks the policy for pairs."""

    serializer_class = BatchSerializer
    pagination_class = NewestFirst
    queryset = SampleBatch.objects.none()

    def get_queryset(self) -> QuerySet[SampleBatch]:
        project = _project(self.request, self.kwargs["slug"], REVIEWERS)
        return SampleBatch.objects.filter(project=project).select_related("policy")

    def perform_create(self, serializer: Any) -> None:
        project = _project(self.request, self.kwargs["slug"], ADMINS)
        asked = serializer.validated_data
        serializer.instance = services.request_samples(
            project=project,
            pairs=asked["wanted"],
            decoding=Decoding.from_dict(asked.get("decoding", {})),
            by=person(self.request),
        )


class RunList(generics.ListAPIView[TrainingRun]):
    """Runs, newest first; POST freezes the triples of now and queues a run."""

    serializer_class = RunSerializer
    pagination_class = NewestFirst
    queryset = TrainingRun.objects.none()

    def get_queryset(self) -> QuerySet[TrainingRun]:
        return _runs(_project(self.request, self.kwargs["slug"], REVIEWERS))

    @extend_schema(request=NewRunSerializer, responses={201: RunSerializer})
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        form = NewRunSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        run = services.request_run(
            project=project,
            recipe=Recipe.from_dict(form.validated_data.get("recipe", {})),
            reference=_checkpoint(project, form.validated_data.get("reference")),
            seed=form.validated_data.get("seed"),
            by=person(request),
        )
        return Response(RunSerializer(run).data, status=status.HTTP_201_CREATED)


class RunDetail(APIView):
    """One run: state, progress, recipe, what came out."""

    @extend_schema(responses=RunSerializer)
    def get(self, request: Request, slug: str, number: int) -> Response:
        return Response(RunSerializer(_run(_project(request, slug, REVIEWERS), number)).data)


class RunCancel(APIView):
    """Stop a run within its current step; the steps before it are kept, and it can be resumed."""

    @extend_schema(request=None, responses={202: RunSerializer})
    def post(self, request: Request, slug: str, number: int) -> Response:
        run = _run(_project(request, slug, ADMINS), number)
        services.cancel_job(job=run)
        run.refresh_from_db()
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


class RunResume(APIView):
    """Queue a cancelled or failed run again, from its last saved step."""

    @extend_schema(request=None, responses={202: RunSerializer})
    def post(self, request: Request, slug: str, number: int) -> Response:
        run = _run(_project(request, slug, ADMINS), number)
        services.resume_job(job=run)
        run.refresh_from_db()
        return Response(RunSerializer(run).data, status=status.HTTP_202_ACCEPTED)


class CheckpointList(generics.ListAPIView[Checkpoint]):
    """Checkpoints that the project may use, newest first."""

    serializer_class = CheckpointSerializer
    pagination_class = NewestFirst
    queryset = Checkpoint.objects.none()

    def get_queryset(self) -> QuerySet[Checkpoint]:
        project = _project(self.request, self.kwargs["slug"], REVIEWERS)
        rows: QuerySet[Checkpoint] = services.known_checkpoints(project).select_related("base", "parent")
        return rows


class CheckpointFile(APIView):
    """A file of a checkpoint, whole or a range of it; its entity tag is its sha256. HEAD tells size and tag alone."""

    @extend_schema(
        parameters=[OpenApiParameter("Range", str, OpenApiParameter.HEADER, description="A single range of bytes.")],
        responses={(200, "application/octet-stream"): bytes, (206, "application/octet-stream"): bytes},
    )
    def get(self, request: Request, slug: str, uuid: UUID, name: str) -> HttpResponseBase:
        checkpoint = _checkpoint(_project(request, slug, REVIEWERS), uuid)
        assert checkpoint is not None
        try:
            return downloads.serve(request._request, checkpoint, name)
        except downloads.NotThere as reason:
            raise NotFound(str(reason)) from None

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Whatever the client accepts: an archive has one form, and an error is JSON."""
        return super().perform_content_negotiation(request, force=True)


class PromotionList(_CreatedByAdmins, generics.ListCreateAPIView[Promotion]):
    """What was the policy when, newest first; POST promotes a checkpoint."""

    serializer_class = PromotionSerializer
    pagination_class = NewestFirst
    queryset = Promotion.objects.none()

    def get_queryset(self) -> QuerySet[Promotion]:
        project = _project(self.request, self.kwargs["slug"], REVIEWERS)
        return Promotion.objects.filter(project=project).select_related("checkpoint")

    def perform_create(self, serializer: Any) -> None:
        project = _project(self.request, self.kwargs["slug"], ADMINS)
        data = serializer.validated_data
        checkpoint = _checkpoint(project, data["checkpoint"]["uuid"])
        assert checkpoint is not None
        serializer.instance = services.promote_checkpoint(
            project=project,
            checkpoint=checkpoint,
            by=person(self.request),
            reason=data.get("reason", ""),
        )


def _after(request: Request) -> int:
    """The number of the row to go on after; what is none begins at the beginning."""
    after = request.query_params.get("after", "0")
    return int(after) if after.isdecimal() and len(after) < 19 else 0


def _label_rule(request: Request) -> LabelRule:
    asked = {name: request.query_params[name] for name in Recipe.ABOUT_DATA if name in request.query_params}
    return Recipe.from_dict(asked).label_rule


def _project(request: Request, slug: str, roles: tuple[Role, ...]) -> Project:
    return project_or_404(person(request), slug, roles)


def _runs(project: Project) -> QuerySet[TrainingRun]:
    return TrainingRun.objects.filter(project=project).select_related("snapshot", "reference", "checkpoint")


def _run(project: Project, number: int) -> TrainingRun:
    return get_object_or_404(_runs(project), number=number)


def _checkpoint(project: Project, uuid: Any) -> Checkpoint | None:
    if uuid is None:
        return None
    found: Checkpoint = get_object_or_404(
        services.known_checkpoints(project).select_related("base", "project"), uuid=uuid
    )
    return found
