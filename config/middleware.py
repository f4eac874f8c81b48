"""Small cross-cutting behaviour of pages."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
from django.utils.cache import add_never_cache_headers
from django_htmx.http import HttpResponseClientRedirect

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
