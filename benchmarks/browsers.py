"""Annotators over HTTP, in one process and light: plain sockets, and no more of the page is read than its form."""

from __future__ import annotations

import asyncio
import html
import random
import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlencode

from django.urls import reverse

CHOICES = ("left", "right", "tie", "both_bad")
TIMEOUT_SECONDS = 60
MAX_ERRORS = 5
INPUT = re.compile(r"<input\b[^>]*>")
KEY = re.compile(r'\bdata-key="([^"]+)"')
NAME, VALUE = re.compile(r'\bname="([^"]*)"'), re.compile(r'\bvalue="([^"]*)"')


@dataclass(frozen=True)
class Desk:
    """One pair on a page: the name of its lease and the fields of its form, the token included."""

    key: str
    form: dict[str, str]


@dataclass(frozen=True)
class Held:
    """What the page of an annotator holds: the pair on the screen and the one behind it, unseen."""

    now: Desk
    ahead: Desk


def desks(page: str) -> list[Desk]:
    """The pairs that an answer of the annotate page holds, in its order; what waits in a template is one of them."""
    found = []
    for part in page.split('<section id="desk"')[1:]:
        key, fields = KEY.search(part), {}
        for tag in INPUT.findall(part[part.find('id="vote"') : part.find("</form>")]):
            name, value = NAME.search(tag), VALUE.search(tag)
            if name and value:
                fields[name[1]] = html.unescape(value[1])
        if key and fields.get("token"):
            found.append(Desk(key[1], fields))
    return found


@dataclass(frozen=True)
class Sitting:
    """Where, in which project and for how long; ``think`` is a mean in seconds."""

    port: int
    slug: str
    warm_up: float
    seconds: float
    think: float


@dataclass
class Tally:
    """What all of them have seen: times of the measured part in ms, votes of the whole."""

    ms: list[float] = field(default_factory=list)
    answered: int = 0
    unanswered: int = 0
    reconnects: int = 0
    page_bytes: int = 0
    desk_bytes: int = 0
    errors: list[str] = field(default_factory=list)


class UnexpectedAnswer(Exception):
    """The server said something else than the next pair."""


@dataclass
class Browser:
    """One annotator's connection and cookies."""

    port: int
    cookies: dict[str, str]
    tally: Tally
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def fetch(self, method: str, path: str, body: str = "", headers: str = "") -> str:
        """The text of an answer. A connection that the server closed while it lay idle is opened again, once."""
        try:
            return await self._fetch(method, path, body, headers)
        except (ConnectionError, asyncio.IncompleteReadError):
            if self.streams is None:
                raise
            self.close()
            self.tally.reconnects += 1
            return await self._fetch(method, path, body, headers)

    async def _fetch(self, method: str, path: str, body: str, headers: str) -> str:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookies}\r\n{headers}"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = answer.split("\r\n")
        fields = [line.partition(": ") for line in lines[1:]]
        length = next((int(value) for name, _, value in fields if name.lower() == "content-length"), 0)
        text = (await reader.readexactly(length)).decode()
        self.cookies |= dict(
            value.partition(";")[0].split("=", 1) for name, _, value in fields if name.lower() == "set-cookie"
        )
        if any(name.lower() == "connection" and value == "close" for name, _, value in fields):
            self.close()
        if " 200 " not in lines[0]:
            raise UnexpectedAnswer(f"{method} {path}: {lines[0]}")
        return text

    def close(self) -> None:
        if self.streams:
            self.streams[1].close()
        self.streams = None


async def sit(sitting: Sitting, sessions: list[str]) -> Tally:
    """Let one annotator of each session label at once, and return what they saw."""
    tally = Tally()
    started = time.monotonic()
    await asyncio.gather(*(_label(sitting, session, tally, started) for session in sessions))
    return tally


async def _label(sitting: Sitting, session: str, tally: Tally, started: float) -> None:
    browser = Browser(sitting.port, {"sessionid": session}, tally)
    held: Held | None = None
    errors = 0
    while errors < MAX_ERRORS:
        if sitting.think:
            await asyncio.sleep(random.expovariate(1 / sitting.think))
        if (now := time.monotonic()) > started + sitting.warm_up + sitting.seconds:
            break
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                held = await (_answer(browser, sitting, held) if held else _open(browser, sitting))
        except Exception as error:  # whatever it is, it is counted, told and makes the benchmark fail
            tally.errors.append(f"{type(error).__name__}: {error}")
            tally.unanswered += held is not None
            held, errors = None, errors + 1
            browser.close()
            continue
        if now > started + sitting.warm_up:
            tally.ms.append((time.monotonic() - now) * 1000)
    browser.close()


async def _open(browser: Browser, sitting: Sitting) -> Held:
    """Open the page and, as its script does then, fetch the pair after the one that it shows."""
    address = reverse("labeling:annotate", args=[sitting.slug])
    page = await browser.fetch("GET", address)
    browser.tally.page_bytes = len(page.encode())
    now = _first(desks(page))
    further = await browser.fetch("GET", f"{address}?shown={now.key}", headers="HX-Request: true\r\n")
    return Held(now, _first(desks(further), besides=now.key))


async def _answer(browser: Browser, sitting: Sitting, held: Held) -> Held:
    """Send the form while the next pair stands on the screen already, and take the one after it."""
    headers = {
        "HX-Request": "true",
        "HX-Target": "desk",
        "X-CSRFToken": held.now.form.get("csrfmiddlewaretoken", browser.cookies.get("csrftoken", "")),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    body = urlencode(held.now.form | {"choice": random.choice(CHOICES), "shown": held.ahead.key})
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    answer = await browser.fetch("POST", reverse("labeling:submit", args=[sitting.slug]), body, lines)
    browser.tally.answered += 1
    browser.tally.desk_bytes = len(answer.encode())
    return Held(held.ahead, _first(desks(answer), besides=held.ahead.key))


def _first(pairs: list[Desk], *, besides: str = "") -> Desk:
    for pair in pairs:
        if pair.key != besides:
            return pair
    raise UnexpectedAnswer("a page without a further pair to vote on")
