"""What must not reach an annotator, and how to look for it: marks, where they may hide, and a walk over every route."""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from django.http import HttpResponse
from django.test import Client
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve

# What may be a token: of a lease, a signed cookie, a cursor of the API.
SEALED = re.compile(rb"[A-Za-z0-9_+/=-]{12,}")
PLACEHOLDER = re.compile(r"<(?:\w+:)?(\w+)>")
GROUP = re.compile(r"\(\?P(<\w+>)[^)]*\)")  # a placeholder in a route that is a regular expression
PAGE_METHODS = ("get", "head", "post", "put", "delete", "options")
API_METHODS = (*PAGE_METHODS, "patch")


@dataclass(frozen=True)
class Mark:
    """Something that gives away what ``of`` says: a text, or a number however it is written."""

    of: str
    value: str | int

    def is_in(self, data: bytes) -> bool:
        if str(self.value).casefold().encode() in data.lower():
            return True
        return isinstance(self.value, int) and any(packed in data for packed in _packed(self.value))


def _packed(number: int) -> list[bytes]:
    size = 4 if number < 2**32 else 8
    return [number.to_bytes(size, "big"), number.to_bytes(size, "little")]


def leaks(response: HttpResponse, marks: Iterable[Mark], asked: str = "") -> list[str]:
    """The marks that a response carries: in its body, a header, a cookie, or in what one of these encodes.

    The address that was ``asked`` for may come back: whoever sent it knows it.
    """
    found = []
    for place, data in _places(response):
        data = data.replace(asked.encode(), b"") if asked else data
        readings = list(_readings(data))
        found += [f"{mark.of} ({mark.value}) in {place}" for mark in marks if any(map(mark.is_in, readings))]
    return found


def _places(response: HttpResponse) -> Iterator[tuple[str, bytes]]:
    yield "the body", body_of(response)
    for name, value in response.headers.items():
        yield f"the header {name}", f"{name}: {value}".encode()
    for name, morsel in response.cookies.items():
        yield f"the cookie {name}", f"{name}={morsel.value}".encode()


def body_of(response: Any) -> bytes:
    if response.streaming:
        return b"".join(response.streaming_content)
    return bytes(response.content)


def _readings(data: bytes) -> Iterator[bytes]:
    """The same as it is written, with what HTML, addresses and JSON escape, and with each token opened."""
    yield data
    text = data.decode("utf-8", "replace")
    for read in (html.unescape(text), unquote_plus(text), text.encode().decode("unicode_escape", "replace")):
        if read != text:
            yield read.encode("utf-8", "replace")
    for sealed in SEALED.findall(data):
        yield from _opened(sealed)


def _opened(sealed: bytes) -> Iterator[bytes]:
    plain = sealed.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        opened = base64.b64decode(plain + b"=" * (-len(plain) % 4))
    except binascii.Error:
        return
    yield opened
    try:
        yield zlib.decompress(opened)
    except zlib.error:
        return


class _Addresses(HTMLParser):
    """Every address that an element names, and every form with what a browser would send."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.forms: list[tuple[str, str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append((values.get("method", "get").lower(), values.get("action", ""), {}))
            return
        self.links += [value for name, value in values.items() if value.startswith("/") and not value.startswith("//")]
        self.links += [values["href"]] if values.get("href", "").startswith("?") else []
        if tag in ("input", "button", "textarea", "select") and self.forms and values.get("name"):
            self.forms[-1][2].setdefault(values["name"], values.get("value", ""))


@dataclass
class Walk:
    """Somebody who fetches whatever they can, and notes where a mark came back."""

    client: Client
    marks: list[Mark]
    found: list[str] = field(default_factory=list)
    seen: set[tuple[Any, ...]] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    fetched: int = 0

    def fetch(self, method: str, url: str, data: Any = None, **extra: Any) -> Any:
        self.client.raise_request_exception = False
        given = {} if data is None else {"data": data}
        response: Any = getattr(self.client, method)(url, **given, **extra)
        self.fetched += 1
        with suppress(Resolver404):
            self.reached.add("/" + resolve(urlsplit(url).path).route)
        assert response.status_code < 500, (method, url)
        self.found += [f"{leak} of {method.upper()} {url}" for leak in leaks(response, self.marks, asked=url)]
        return response

    def post_json(self, url: str, body: object) -> Any:
        return self.fetch("post", url, json.dumps(body), content_type="application/json")

    def follow(self, *starts: str, posts: bool = False) -> None:
        """Every link from these pages on; with ``posts`` every form too, but for the one that signs out."""
        waiting = list(starts)
        while waiting:
            url = waiting.pop()
            if ("get", url) in self.seen:
                continue
            self.seen.add(("get", url))
            response = self.fetch("get", url)
            waiting += [response.headers["Location"]] if response.has_header("Location") else []
            if response.headers.get("Content-Type", "").startswith("text/html"):
                waiting += self._named_in(url, body_of(response).decode(), posts)

    def _named_in(self, url: str, page: str, posts: bool) -> list[str]:
        parser = _Addresses()
        parser.feed(page)
        path = urlsplit(url).path
        links = [path + link if link.startswith("?") else link.split("#")[0] for link in parser.links]
        for method, action, values in parser.forms:
            if method == "get":
                links.append(action or path)
            elif posts and action not in ("/sign-out/",) and ("post", action) not in self.seen:
                self.seen.add(("post", action))
                answer = self.fetch("post", action or url, values)
                links += [answer.headers["Location"]] if answer.has_header("Location") else []
        return links


def routes(patterns: list[Any] | None = None, prefix: str = "/") -> list[str]:
    """Every route of the resolver, as it is written in the ``urls`` modules, with its placeholders."""
    found: list[str] = []
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        route = prefix + str(pattern.pattern).removeprefix("^")
        if isinstance(pattern, URLResolver):
            found += routes(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            found.append(route)
    return found


def addresses(route: str, values: dict[str, list[Any]]) -> list[str]:
    """The route with each of the values of its placeholders; those of one name are tried one after the other."""
    route = GROUP.sub(r"\1", route).removesuffix("$")
    names = PLACEHOLDER.findall(route)
    if missing := [name for name in names if not values.get(name)]:
        raise AssertionError(f"Nothing is known to put for {missing} in {route}: add rows to the planted project.")
    most = max((len(values[name]) for name in names), default=1)
    filled = []
    for turn in range(most):
        chosen = {name: values[name][turn % len(values[name])] for name in names}
        filled.append(PLACEHOLDER.sub(lambda found, chosen=chosen: str(chosen[found[1]]), route))
    return list(dict.fromkeys(filled))


def methods(route: str) -> tuple[str, ...]:
    return API_METHODS if route.startswith("/api/") else PAGE_METHODS
