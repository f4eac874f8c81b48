"""Whether this process lives, and whether it can serve: for process managers and load balancers."""

from __future__ import annotations

from collections.abc import Callable

from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

NO_STORE = {"Cache-Control": "no-store"}


@require_safe
def livez(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"}, headers=NO_STORE)


@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return JsonResponse({"status": "the database does not answer"}, status=503, headers=NO_STORE)
    return JsonResponse({"status": "ok"}, headers=NO_STORE)


PROBES = {"/livez": livez, "/readyz": readyz}


class HealthMiddleware:
    """Answers before the host name is checked and before anything redirects to HTTPS.

    A load balancer asks by address and over plain HTTP, and so does ``serve`` on its own machine. The answers hold
    nothing that depends on either.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        probe = PROBES.get(request.path_info)
        return probe(request) if probe else self.get_response(request)
