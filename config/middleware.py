"""Small cross-cutting behaviour of pages."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, resolve_url
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.translation import gettext
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


class SamePersonMiddleware:
    """A page that one account has opened does not act for another that has signed in since, in the same browser.

    Scripts say in a header whose page they are on. Whoever is signed out is led to sign in, as anywhere.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        whose = request.headers.get("X-Person")
        if whose is None or request.user.is_anonymous or whose == str(request.user.pk):
            return self.get_response(request)
        said = gettext("This page belongs to another account than the one that is signed in now. Reload it.")
        return HttpResponse(said, status=403, content_type="text/plain; charset=utf-8", headers={"X-Other-Person": "1"})


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
