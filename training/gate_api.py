"""Gates and the release rule over HTTP and JSON. Thin; every write is a service's."""

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
from labeling.models import Project
from training import gates, services, withdrawn_votes
from training.gate_page import PEOPLE, WITHHELD
from training.models import Gate, ReleaseRule, TrainingRun


class VotesSerializer(serializers.Serializer[Any]):
    """Totals alone: a single vote would tell which side of which pair is whose. The interval is one of 90 %, however
    often it is looked at."""

    asked = serializers.IntegerField(default=0, help_text="Pairs that annotators are asked about.")
    votes = serializers.IntegerField(default=0)
    for_candidate = serializers.IntegerField(default=0)
    for_current = serializers.IntegerField(default=0)
    ties = serializers.IntegerField(default=0)
    win_rate = serializers.FloatField(default=None, allow_null=True)
    interval = serializers.ListField(child=serializers.FloatField(), default=None, allow_null=True)
    withdrawn = serializers.IntegerField(default=0, help_text="Of these, withdrawn since they were counted.")


class GateSerializer(serializers.ModelSerializer[Gate]):
    candidate = serializers.UUIDField(source="candidate.uuid")
    current = serializers.UUIDField(source="current.uuid")
    run = serializers.IntegerField(source="run.number", default=None)
    decided_by = serializers.CharField(source="decided_by.username", default=None)
    reasons = serializers.SerializerMethodField()

    class Meta:
        model = Gate
        fields = (
            *("number", "kind", "candidate", "current", "run", "state", "stage", "outcome", "reasons"),
            *("error", "created_at", "decided_at", "decided_by"),
        )

    def get_reasons(self, gate: Gate) -> list[str]:
        return [WITHHELD] if self.is_withheld(gate) else gate.reasons

    def is_withheld(self, gate: Gate) -> bool:
        """While votes come in, whoever labels in the project is told neither them nor what follows from them."""
        return gates.is_withheld_from(gate, person(self.context["request"]))


class CheckSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    title = serializers.CharField()
    outcome = serializers.CharField(help_text="pass, fail, unsure or not_measured.")
    words = serializers.CharField()
    figures = serializers.DictField()


class GateDetailSerializer(GateSerializer):
    votes = serializers.SerializerMethodField()
    checks = serializers.SerializerMethodField()

    class Meta(GateSerializer.Meta):
        fields = (*GateSerializer.Meta.fields, "rule", "checks", "votes", "report")  # type: ignore[assignment]

    @extend_schema_field(VotesSerializer(allow_null=True))
    def get_votes(self, gate: Gate) -> Any:
        if self.is_withheld(gate):
            return None
        loss = withdrawn_votes.of_gate(gate)
        return VotesSerializer(gate.votes | {"withdrawn": loss.gone if loss else 0}).data

    @extend_schema_field(CheckSerializer(many=True))
    def get_checks(self, gate: Gate) -> Any:
        shown = [one for one in gate.checks if not (self.is_withheld(gate) and one["name"] in PEOPLE)]
        return CheckSerializer(shown, many=True).data


class NewGateSerializer(serializers.Serializer[Any]):
    checkpoint = serializers.UUIDField(help_text="The candidate, which is compared with the policy.")


class VerdictSerializer(serializers.Serializer[Any]):
    verdict = serializers.ChoiceField(choices=Gate.Outcome.choices)
    reason = serializers.CharField(required=False, allow_blank=True, max_length=300)


class ReleaseRuleSerializer(serializers.ModelSerializer[ReleaseRule]):
    class Meta:
        model = ReleaseRule
        fields = ("compares", "decides", "asks_people", "most_votes", "watches", "watch_votes", "rolls_back")


class GateList(generics.ListAPIView[Gate]):
    """Gates, newest first; POST compares a checkpoint with the policy, by the release rule of now."""

    serializer_class = GateSerializer
    pagination_class = NewestFirst
    queryset = Gate.objects.none()

    def get_queryset(self) -> QuerySet[Gate]:
        return _gates(_project(self.request, self.kwargs["slug"], REVIEWERS))

    @extend_schema(request=NewGateSerializer, responses={201: GateDetailSerializer})
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        form = NewGateSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        candidate = get_object_or_404(services.usable_checkpoints(project), uuid=form.validated_data["checkpoint"])
        run = TrainingRun.objects.filter(checkpoint=candidate, project=project).first()
        asked = gates.request_gate(project=project, candidate=candidate, run=run, by=person(request))
        return _answer(request, asked, status.HTTP_201_CREATED)


class Watch(APIView):
    """Ask annotators, blind, whether the policy is worse than the one before it."""

    @extend_schema(request=None, responses={201: GateDetailSerializer})
    def post(self, request: Request, slug: str) -> Response:
        asked = gates.request_watch(project=_project(request, slug, ADMINS), by=person(request))
        return _answer(request, asked, status.HTTP_201_CREATED)


class GateDetail(APIView):
    """One gate: what was measured, what people said, what was decided and why."""

    @extend_schema(responses=GateDetailSerializer)
    def get(self, request: Request, slug: str, number: int) -> Response:
        return _answer(request, _gate(_project(request, slug, REVIEWERS), number))


class GateDecide(APIView):
    """Promote, hold or reject. Of a watch, reject rolls the policy back and the others leave it."""

    @extend_schema(request=VerdictSerializer, responses=GateDetailSerializer)
    def post(self, request: Request, slug: str, number: int) -> Response:
        gate = _gate(_project(request, slug, ADMINS), number)
        form = VerdictSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        said = form.validated_data
        gates.admin_decides(gate=gate, verdict=said["verdict"], by=person(request), reason=said.get("reason", ""))
        return _answer(request, gate)


class GateCancel(APIView):
    """Stop a measurement. It can be started again."""

    @extend_schema(request=None, responses={202: GateDetailSerializer})
    def post(self, request: Request, slug: str, number: int) -> Response:
        gate = _gate(_project(request, slug, ADMINS), number)
        services.cancel_job(job=gate)
        return _answer(request, gate, status.HTTP_202_ACCEPTED)


class GateStartAgain(APIView):
    """Measure again what was cancelled or has failed, with the same prompts and rule."""

    @extend_schema(request=None, responses={202: GateDetailSerializer})
    def post(self, request: Request, slug: str, number: int) -> Response:
        gate = _gate(_project(request, slug, ADMINS), number)
        gates.start_again(gate=gate)
        return _answer(request, gate, status.HTTP_202_ACCEPTED)


class Release(APIView):
    """What happens to the checkpoint of each run. PATCH changes what it names, from the next gate on."""

    @extend_schema(responses=ReleaseRuleSerializer)
    def get(self, request: Request, slug: str) -> Response:
        return Response(ReleaseRuleSerializer(gates.release_rule(_project(request, slug, REVIEWERS))).data)

    @extend_schema(request=ReleaseRuleSerializer(partial=True), responses=ReleaseRuleSerializer)
    def patch(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        form = ReleaseRuleSerializer(gates.release_rule(project), data=request.data, partial=True)
        form.is_valid(raise_exception=True)
        if form.validated_data:
            gates.change_release_rule(project=project, **form.validated_data)
        return Response(ReleaseRuleSerializer(gates.release_rule(project)).data)


def _answer(request: Request, gate: Gate, code: int = status.HTTP_200_OK) -> Response:
    gate.refresh_from_db()
    return Response(GateDetailSerializer(gate, context={"request": request}).data, status=code)


def _gates(project: Project) -> QuerySet[Gate]:
    rows = Gate.objects.filter(project=project)
    return rows.select_related("project", "candidate", "current", "run", "decided_by")


def _gate(project: Project, number: int) -> Gate:
    found: Gate = get_object_or_404(_gates(project), number=number)
    return found


def _project(request: Request, slug: str, roles: tuple[Role, ...]) -> Project:
    return project_or_404(person(request), slug, roles)
