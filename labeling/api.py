"""Labeling over HTTP and JSON: projects, prompts, the next lease, an answer. Thin; every write is a service's."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import generics, status
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling import queue
from labeling.access import ADMINS, REVIEWERS, Role, person, project_or_404
from labeling.answers import Details
from labeling.desk import choice_of, contents, side_of
from labeling.figures import newest_report
from labeling.leases import Lease
from labeling.models import Membership, Preference, Project, Prompt
from labeling.project_settings import change_settings
from labeling.serializers import (
    ImportReportSerializer,
    JudgementSerializer,
    LeaseSerializer,
    MemberSerializer,
    NewPromptsSerializer,
    ProjectSerializer,
    ProjectSettingsSerializer,
    PromptSerializer,
    QualitySerializer,
    SkipSerializer,
    SubmissionSerializer,
)
from labeling.services import add_prompts, set_guidelines
from labeling.tokens import read_token

MAX_POSITION_DIGITS = 18  # what any database's big integer can hold


class NewestFirst(CursorPagination):
    ordering = "-pk"
    page_size = 100

    def decode_cursor(self, request: Request) -> Any:
        cursor = super().decode_cursor(request)
        position = str((cursor and cursor.position) or 0)
        if not (position.isascii() and position.isdecimal() and len(position) <= MAX_POSITION_DIGITS):
            raise NotFound(self.invalid_cursor_message)
        return cursor


class ProjectList(generics.ListAPIView[Project]):
    """The projects that you are in."""

    serializer_class = ProjectSerializer
    pagination_class = NewestFirst

    def get_queryset(self) -> QuerySet[Project]:
        return Project.objects.visible_to(person(self.request))


class ProjectDetail(APIView):
    """A project's settings and guidelines. PATCH changes those that are named, all or none."""

    @extend_schema(responses={200: ProjectSettingsSerializer})
    def get(self, request: Request, slug: str) -> Response:
        return Response(ProjectSettingsSerializer(_project(request, slug, ADMINS)).data)

    @extend_schema(request=ProjectSettingsSerializer, responses={200: ProjectSettingsSerializer})
    def patch(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        form = ProjectSettingsSerializer(project, data=request.data, partial=True)
        form.is_valid(raise_exception=True)
        changes = dict(form.validated_data)
        text, note = changes.pop("guidelines", None), changes.pop("guidelines_note", "")
        based_on = changes.pop("guidelines_based_on", None)
        with transaction.atomic():
            change_settings(project=project, changes=changes)
            if text is not None:
                set_guidelines(project=project, text=text, author=person(request), note=note, based_on=based_on)
        return Response(ProjectSettingsSerializer(project).data)


class MemberList(generics.ListAPIView[Membership]):
    """Who is in a project, and as what."""

    serializer_class = MemberSerializer
    pagination_class = NewestFirst
    queryset = Membership.objects.none()

    def get_queryset(self) -> QuerySet[Membership]:
        project = _project(self.request, self.kwargs["slug"], ADMINS)
        return Membership.objects.filter(project=project).select_related("user")


class PromptList(generics.ListAPIView[Prompt]):
    """Prompts of a project, newest first; POST adds some, all or none."""

    serializer_class = PromptSerializer
    pagination_class = NewestFirst
    queryset = Prompt.objects.none()

    def get_queryset(self) -> QuerySet[Prompt]:
        return Prompt.objects.filter(project=_project(self.request, self.kwargs["slug"], REVIEWERS))

    @extend_schema(request=NewPromptsSerializer, responses={201: ImportReportSerializer})
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug, ADMINS)
        new = NewPromptsSerializer(data=request.data)
        new.is_valid(raise_exception=True)
        report = add_prompts(project=project, prompts=new.validated_data["prompts"])
        return Response(ImportReportSerializer(report).data, status=status.HTTP_201_CREATED)


class JudgementList(generics.ListAPIView[Preference]):
    """Current judgements of a project, newest first."""

    serializer_class = JudgementSerializer
    pagination_class = NewestFirst
    queryset = Preference.objects.none()

    def get_queryset(self) -> QuerySet[Preference]:
        project = _project(self.request, self.kwargs["slug"], REVIEWERS)
        rows = Preference.objects.filter(project=project, is_current=True)
        return rows.select_related("annotator", "pair__prompt")


class QualityNow(APIView):
    """What was last measured of the judgements: agreement, biases, people. 204 before there is anything."""

    @extend_schema(responses={200: QualitySerializer, 204: OpenApiResponse(description="Nothing is measured yet")})
    def get(self, request: Request, slug: str) -> Response:
        report = newest_report(_project(request, slug, REVIEWERS))
        if report is None:
            return Response(status=status.HTTP_204_NO_CONTENT)
        return Response(QualitySerializer(report).data)


class LeaseNext(APIView):
    """The pair you hold, or the next one. 204 when nothing is open for you."""

    @extend_schema(request=None, responses={200: LeaseSerializer, 204: OpenApiResponse(description="Nothing is open")})
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug)
        lease = queue.lease_next(project, person(request).pk)
        if lease is None:
            return Response(status=status.HTTP_204_NO_CONTENT)
        return Response(LeaseSerializer(_by_side(project, lease, person(request).pk)).data)


class SubmitPreference(APIView):
    """Answer a lease. Answering it again, or late, loses nothing and counts once."""

    @extend_schema(request=SubmissionSerializer, responses={201: SubmissionSerializer})
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug)
        form = SubmissionSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        said, annotator_id = form.validated_data, person(request).pk
        shown_left = read_token(said["token"], annotator_id).shown_left
        choice = choice_of(said["choice"], shown_left)
        outcome = queue.submit(project, said["token"], annotator_id, choice, _details(said, shown_left))
        body = {
            "choice": side_of(outcome.preference.choice, shown_left),
            "is_extra": outcome.is_extra,
            "is_repeat": outcome.is_repeat,
        }
        return Response(SubmissionSerializer(body).data, status=status.HTTP_201_CREATED)


class SkipPair(APIView):
    """Pass on a pair for good."""

    @extend_schema(request=SkipSerializer, responses={204: OpenApiResponse(description="Skipped")})
    def post(self, request: Request, slug: str) -> Response:
        project = _project(request, slug)
        form = SkipSerializer(data=request.data)
        form.is_valid(raise_exception=True)
        said = form.validated_data
        queue.skip(project, said["token"], person(request).pk, said.get("reason", ""), said.get("note", ""))
        return Response(status=status.HTTP_204_NO_CONTENT)


def _project(request: Request, slug: str, roles: tuple[Role, ...] = tuple(Role)) -> Project:
    return project_or_404(person(request), slug, roles)


def _details(said: dict[str, Any], shown_left: str) -> Details:
    return Details(
        is_strong=said["is_strong"],
        criteria={name: choice_of(side, shown_left) for name, side in said["criteria"].items()},
        reasons=tuple(said["reasons"]),
        comment=said["comment"],
        rewrite=said["rewrite"],
        seconds=said["seconds"],
    )


def _by_side(project: Project, lease: Lease, annotator_id: int) -> dict[str, Any]:
    slot, pair = lease.slot, contents(lease.slot)
    texts = [pair.response_a.text, pair.response_b.text]
    left, right = texts if slot.shown_left == slot.Side.A else reversed(texts)
    return {
        "token": lease.token,
        "expires_at": slot.lease_until,
        "prompt": pair.prompt.messages,
        "left": left,
        "right": right,
        "previous": side_of(lease.previous.choice, slot.shown_left) if lease.previous else "",
        "asks_reason": queue.asks_for_reason(project, slot, annotator_id),
        "is_second_look": slot.kind == slot.Kind.REPEAT,
    }
