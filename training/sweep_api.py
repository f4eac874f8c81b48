"""Sweeps over HTTP and JSON. Thin; every write is a service's."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import generics, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling.access import ADMINS, REVIEWERS, Role, person, project_or_404
from labeling.api import NewestFirst
from training import services, sweeps
from training.frontier import Figure, Point, read_frontier
from training.models import Sweep, TrainingRun
from training.recipe import Recipe


class PointSerializer(serializers.Serializer[Any]):
    """One run of a sweep. Figures are null until it is done; an interval is one of 95 %."""

    run = serializers.IntegerField(source="run.number")
    state = serializers.CharField(source="run.state")
    beta = serializers.FloatField()
    learning_rate = serializers.FloatField()
    kl = serializers.SerializerMethodField(help_text="Nats a response, from the first policy or the reference.")
    accuracy = serializers.SerializerMethodField(help_text="Held out, by implicit reward.")
    margin = serializers.SerializerMethodField(help_text="Held out, beta times nats.")
    nats = serializers.SerializerMethodField(help_text="The margin without beta, on one scale for every point.")
    is_best = serializers.BooleanField(help_text="No other point has at least its accuracy at no more KL.")
    is_picked = serializers.BooleanField()

    def get_kl(self, point: Point) -> list[float] | None:
        return _figure(point.kl)

    def get_accuracy(self, point: Point) -> list[float] | None:
        return _figure(point.accuracy)

    def get_margin(self, point: Point) -> list[float] | None:
        return _figure(point.margin)

    def get_nats(self, point: Point) -> list[float] | None:
        return _figure(point.nats)


def _figure(figure: Figure | None) -> list[float] | None:
    """The value, then the ends of its interval where it has one."""
    return [figure.value, *(figure.interval or ())] if figure else None


class SweepSerializer(serializers.ModelSerializer[Sweep]):
    snapshot = serializers.CharField(source="snapshot.sha256")
    reference = serializers.UUIDField(source="reference.uuid")
    runs = serializers.SerializerMethodField()
    picked = serializers.IntegerField(source="picked.number", default=None)

    class Meta:
        model = Sweep
        fields = ("number", "snapshot", "reference", "recipe", "runs", "picked", "created_at")

    def get_runs(self, sweep: Sweep) -> list[int]:
        return sorted(run.number for run in sweep.runs.all())


class FrontierSerializer(SweepSerializer):
    points = serializers.SerializerMethodField()

    class Meta(SweepSerializer.Meta):
        fields = (*SweepSerializer.Meta.fields, "points")  # type: ignore[assignment]

    @extend_schema_field(PointSerializer(many=True))
    def get_points(self, sweep: Sweep) -> Any:
        return PointSerializer(read_frontier(sweep).points, many=True).data


class NewSweepSerializer(serializers.Serializer[Any]):
    betas = serializers.ListField(child=serializers.FloatField(), default=list(sweeps.USUAL_BETAS))
    learning_rates = serializers.ListField(child=serializers.FloatField(), default=list)
    recipe = serializers.DictField(required=False, help_text="What the runs have in common, as of a run.")
    reference = serializers.UUIDField(
        required=False, help_text="A checkpoint; by default the one that the project's rule names."
    )
    seed = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)


class SweepList(generics.ListAPIView[Sweep]):
    """Sweeps, newest first; POST freezes the triples of now once and queues a run for each point."""

    serializer_class = SweepSerializer
    pagination_class = NewestFirst
    queryset = Sweep.objects.none()

    def get_queryset(self) -> QuerySet[Sweep]:
        project = project_or_404(person(self.request), self.kwargs["slug"], REVIEWERS)
        rows = Sweep.objects.filter(project=project).select_related("snapshot", "reference", "picked")
        return rows.prefetch_related("runs")

    @extend_schema(request=NewSweepSerializer, responses={201: FrontierSerializer})
    def post(self, request: Request, slug: str) -> Response:
        project = project_or_404(person(request), slug, ADMINS)
        form = NewSweepSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        asked = form.validated_data
        reference = asked.get("reference")
        usable = services.usable_checkpoints(project)
        sweep = sweeps.request_sweep(
            project=project,
            recipe=Recipe.from_dict(asked.get("recipe", {})),
            betas=asked["betas"],
            learning_rates=asked["learning_rates"],
            reference=get_object_or_404(usable, uuid=reference) if reference else None,
            seed=asked.get("seed"),
            by=person(request),
        )
        return Response(FrontierSerializer(sweep).data, status=status.HTTP_201_CREATED)


class SweepDetail(APIView):
    """One sweep with its points."""

    @extend_schema(responses=FrontierSerializer)
    def get(self, request: Request, slug: str, number: int) -> Response:
        return Response(FrontierSerializer(_sweep(request, slug, number, REVIEWERS)).data)


class SweepCancel(APIView):
    """Drop the runs that wait, and stop the one that runs. Points that are done stay."""

    @extend_schema(request=None, responses={202: FrontierSerializer})
    def post(self, request: Request, slug: str, number: int) -> Response:
        sweep = _sweep(request, slug, number, ADMINS)
        sweeps.cancel_sweep(sweep=sweep)
        return Response(FrontierSerializer(sweep).data, status=status.HTTP_202_ACCEPTED)


class SweepResume(APIView):
    """Queue its cancelled and failed runs again, each from its last saved step."""

    @extend_schema(request=None, responses={202: FrontierSerializer})
    def post(self, request: Request, slug: str, number: int) -> Response:
        sweep = _sweep(request, slug, number, ADMINS)
        sweeps.resume_sweep(sweep=sweep)
        return Response(FrontierSerializer(sweep).data, status=status.HTTP_202_ACCEPTED)


class PickSerializer(serializers.Serializer[Any]):
    run = serializers.IntegerField(help_text="The number of one of the sweep's runs.")


class SweepPick(APIView):
    """Say which point is the one; runs that start by themselves have its recipe from then on. Promotes nothing."""

    @extend_schema(request=PickSerializer, responses=FrontierSerializer)
    def post(self, request: Request, slug: str, number: int) -> Response:
        sweep = _sweep(request, slug, number, ADMINS)
        form = PickSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        run = get_object_or_404(TrainingRun, sweep=sweep, number=form.validated_data["run"])
        return Response(FrontierSerializer(sweeps.pick(sweep=sweep, run=run, by=person(request))).data)


def _sweep(request: Request, slug: str, number: int, roles: tuple[Role, ...]) -> Sweep:
    project = project_or_404(person(request), slug, roles)
    rows = Sweep.objects.filter(project=project).select_related("project", "snapshot", "reference", "picked")
    return get_object_or_404(rows, number=number)
