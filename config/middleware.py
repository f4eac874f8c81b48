"""Small cross-cutting behaviour of pages."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, resolve_url
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django_htmx.http import HttpResponseClientRedirect

from labeling.exceptions import NotQualified

GetResponse = Callable[[HttpRequest], HttpResponse]


class HtmxLoginMiddleware:
    """A fragment request of somebody signed out goes to the sign-in page as a whole page, not into the fragment."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        location = response.headers.get("Location", "")
        is_login = response.status_code == 302 and location.startswith(resolve_url(settings.LOGIN_URL))
        if request.headers.get("HX-Request") and is_login:
            return HttpResponseClientRedirect(resolve_url(settings.LOGIN_URL))
        return response


class QualificationMiddleware:
    """Who has still to pass a project's qualification set is led there by any page that would give them a pair."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        match = request.resolver_match
        if not isinstance(error, NotQualified) or match is None or "slug" not in match.kwargs:
            return None
        where = reverse("labeling:qualify", args=[match.kwargs["slug"]])
        return HttpResponseClientRedirect(where) if request.headers.get("HX-Request") else redirect(where)


class NoStoreMiddleware:
    """Pages of signed-in people hold prompts and votes: no shared or back-button cache keeps them."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        user = getattr(request, "user", None)
        if user is not None and user.is_authenticated and not response.has_header("Cache-Control"):
            add_never_cache_headers(response)
        return response
