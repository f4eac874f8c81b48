"""People who are signed in over HTTP: an admin who uses the API and forms, annotators who read the page and vote.

They do what a browser without a script does: a page, its form, the page that it leads to.
"""

from __future__ import annotations

import html
import http.cookiejar
import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from benchmarks.browsers import desks

SECONDS = 120
TEXT = re.compile(r'<pre class="raw"[^>]*>\n?(.*?)</pre>', re.DOTALL)
SECOND_LOOK = '<span class="badge">Second look</span>'


class Refused(Exception):
    """The server said no, and this is why."""


@dataclass(frozen=True)
class Reading:
    """The pair on the annotate page: both texts as they were written, and the form that takes the vote."""

    form: dict[str, str]
    left: str
    right: str
    is_second_look: bool


class Visitor:
    """One person's cookies at one installation."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cookies = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies)
        )

    def sign_in(self, name: str, password: str) -> None:
        self.get("/sign-in/")
        self.post("/sign-in/", {"username": name, "password": password})
        if "sessionid" not in self._by_name():
            raise Refused(f"{name} could not sign in")

    def get(self, path: str) -> str:
        return self._send(path)

    def post(self, path: str, fields: dict[str, str]) -> str:
        """Send a form, and return the page that it leads to."""
        body = urlencode(fields | {"csrfmiddlewaretoken": self._by_name()["csrftoken"]}).encode()
        return self._send(path, body)

    def api(self, method: str, path: str, data: dict[str, Any] | None = None) -> Any:
        """What the API answers; ``None`` where it has nothing to say."""
        headers = {"Content-Type": "application/json", "X-CSRFToken": self._by_name().get("csrftoken", "")}
        body = None if data is None else json.dumps(data).encode()
        answer = self._send(f"/api/v1/projects/{path}", body, method, headers)
        return json.loads(answer) if answer else None

    def _send(
        self, path: str, body: bytes | None = None, method: str | None = None, headers: dict[str, str] | None = None
    ) -> str:
        request = urllib.request.Request(self.url + path, body, headers or {}, method=method)
        try:
            with self.opener.open(request, timeout=SECONDS) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise Refused(f"{request.get_method()} {path}: {error.code} {said}") from error

    def _by_name(self) -> dict[str, str]:
        return {cookie.name: cookie.value or "" for cookie in self.cookies}


def reading(page: str) -> Reading | None:
    """The pair that an annotate page shows; ``None`` if it says that there is none."""
    shown = desks(page)
    if not shown:
        return None
    part = page.split('<section id="desk"')[1]
    left, right = (html.unescape(text) for text in TEXT.findall(part)[:2])
    return Reading(shown[0].form, left, right, SECOND_LOOK in part)
