"""The annotate page as its tests drive it: a web server alone, seeded projects of their own, and one desk a tab."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from playwright.sync_api import Browser, BrowserContext, Page

from tests.installation import bare_environment, free_port, wait_until

PASSWORD = "secret-password"
# Everybody has one project, which is named as they are: nothing of one test is in another's way.
SEED = """
import json, sys
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.test import Client
from labeling.keys import save_keys
from labeling.prompts import parse_prompt
from labeling.qualification_items import ItemContent, add_items
from labeling.services import NewResponse, add_member, add_pair, add_prompts, create_project

wanted, password, cookies = json.loads(sys.stdin.read()), make_password("secret-password"), {}
for slug, wish in wanted.items():
    user, _ = User.objects.get_or_create(username=slug, defaults={"password": password})
    project = create_project(name=slug.title(), slug=slug, guidelines=wish.get("guidelines", "Be **kind**."))
    add_member(project=project, user=user, role="annotator")
    chances = ("calibration", "control", "repeat", "gold")
    for name, value in ({f"{name}_percent": 0 for name in chances} | wish.get("settings", {})).items():
        setattr(project, name, value)
    project.save()
    if "keys" in wish:
        save_keys(user=user, keys=wish["keys"])
    if wish.get("items"):
        question = [{"role": "user", "content": "Which?"}]
        add_items(project=project, contents=[ItemContent(question, "First", "Second", "tie", "Because.")])
    texts = [(f"One of {n}.", f"Two of {n}.") for n in range(wish.get("pairs", 0))] + wish.get("texts", [])
    add_prompts(project=project, prompts=[parse_prompt(f"{slug}, question {n}?") for n in range(len(texts))])
    for prompt, (one, two) in zip(project.prompts.order_by("pk"), texts, strict=True):
        add_pair(prompt=prompt, responses=(NewResponse(one, [1], "stop"), NewResponse(two, [2], "stop")))
    client = Client()
    client.force_login(user)
    cookies[slug] = client.cookies["sessionid"].value
print(json.dumps(cookies))
"""
ANOTHER_PAIR = """
import sys
from labeling.models import Project
from labeling.prompts import parse_prompt
from labeling.services import NewResponse, add_pair, add_prompts
project = Project.objects.get(slug=sys.stdin.read())
add_prompts(project=project, prompts=[parse_prompt("One more?")])
prompt = project.prompts.order_by("-pk")[0]
add_pair(prompt=prompt, responses=(NewResponse("New one.", [1], "stop"), NewResponse("New two.", [2], "stop")))
"""
QUIETLY = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass
class Server:
    """A web process over a database of its own, as ``serve`` starts it, without workers."""

    url: str
    data_dir: Path
    environment: dict[str, str]
    cookies: dict[str, str] = field(default_factory=dict)

    def shell(self, code: str, told: str = "") -> str:
        command = [sys.executable, "manage.py", "shell", "-v0", "-c", code]
        run = {"cwd": settings.BASE_DIR, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run(command, input=told, check=False, **run)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def seed(self, wanted: dict[str, dict[str, Any]]) -> None:
        self.cookies |= json.loads(self.shell(SEED, json.dumps(wanted)))

    def rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        address = f"{(self.data_dir / 'tiebreak.sqlite3').as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(sql, values).fetchall()


@contextlib.contextmanager
def web_alone(data_dir: Path) -> Iterator[Server]:
    environment = bare_environment(data_dir)
    manage = [sys.executable, "manage.py"]
    for command in (["migrate", "-v0"], ["collectstatic", "--noinput", "-v0"]):
        subprocess.run([*manage, *command], cwd=settings.BASE_DIR, env=environment, check=True)
    address = f"127.0.0.1:{free_port()}"
    web = f"-m gunicorn config.wsgi --bind {address} --workers 1 --threads 8 --no-control-socket".split()
    process = subprocess.Popen([sys.executable, *web], cwd=settings.BASE_DIR, env=environment, **QUIETLY)
    try:
        wait_until(lambda: _answers(f"http://{address}/readyz"), 60, "the server")
        yield Server(f"http://{address}", data_dir, environment)
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


IS_READY = """() => {
  const desk = document.getElementById("desk");
  return desk?.dataset.state === "pair" && document.documentElement.dataset.ready === desk.dataset.key;
}"""
HAS_NEXT = """() => document.getElementById("ahead").content.getElementById("desk") !== null"""
IS_OTHER = """(key) => {
  const desk = document.getElementById("desk");
  return desk?.dataset.state === "pair" && desk.dataset.key !== key;
}"""


@dataclass
class Desk:
    """The annotate page in one tab, and what its person's answers became in the database."""

    server: Server
    slug: str
    context: BrowserContext
    page: Page

    @property
    def url(self) -> str:
        return f"{self.server.url}/p/{self.slug}"

    def open(self) -> Desk:
        self.page.goto(f"{self.url}/annotate/")
        return self

    def tab(self) -> Desk:
        return Desk(self.server, self.slug, self.context, self.context.new_page())

    def ready(self) -> None:
        """Waits until the page takes keys."""
        self.page.wait_for_function(IS_READY)

    def has_next(self) -> None:
        """Waits until the pair after this one is held, unseen."""
        self.page.wait_for_function(HAS_NEXT)

    @property
    def key(self) -> str:
        return self.page.locator("#desk").get_attribute("data-key") or ""

    def text(self, side: str) -> str:
        return self.page.locator(f'[data-side="{side}"] .raw').text_content() or ""

    def vote(self, key: str) -> str:
        """Presses a key that answers; returns the desk's key of before, once the next pair is there."""
        self.ready()
        before = self.key
        self.page.keyboard.press(key)
        self.moved_on(before)
        return before

    def moved_on(self, before: str) -> None:
        self.page.wait_for_function(IS_OTHER, arg=before)

    def judgements(self) -> list[sqlite3.Row]:
        """Every version, in the order in which they arrived, with the texts of the sides as they were shown."""
        return self.server.rows(
            """
            SELECT preference.*, rewrite_text.text AS rewrite,
              CASE shown_left WHEN 'a' THEN a.text ELSE b.text END AS left_text,
              CASE WHEN choice IN ('a', 'b')
                THEN CASE choice WHEN shown_left THEN 'left' ELSE 'right' END ELSE choice END AS said
            FROM labeling_preference preference
            JOIN labeling_project project ON project.id = preference.project_id
            JOIN labeling_pair pair ON pair.id = preference.pair_id
            JOIN labeling_response a ON a.id = pair.response_a_id
            JOIN labeling_response b ON b.id = pair.response_b_id
            LEFT JOIN labeling_rewrite rewrite ON rewrite.preference_id = preference.id
            LEFT JOIN labeling_response rewrite_text ON rewrite_text.id = rewrite.response_id
            WHERE project.slug = ? ORDER BY preference.id
            """,
            self.slug,
        )

    def arrived(self, count: int) -> list[sqlite3.Row]:
        """Waits for so many stored versions, and no more than these."""
        self.until(lambda: len(self.judgements()) >= count, f"{count} judgements")
        found = self.judgements()
        assert len(found) == count
        return found

    def skips(self) -> list[str]:
        sql = """
            SELECT reason FROM labeling_skip skip JOIN labeling_pair pair ON pair.id = skip.pair_id
            JOIN labeling_project project ON project.id = pair.project_id WHERE slug = ? ORDER BY skip.id
        """
        return [row["reason"] for row in self.server.rows(sql, self.slug)]

    def leased(self) -> list[bool]:
        """The slots that are leased, and whether each is held ahead."""
        sql = """
            SELECT is_ahead FROM labeling_slot slot JOIN labeling_project project ON project.id = slot.project_id
            WHERE slug = ? AND state = 'leased' ORDER BY is_ahead
        """
        return [bool(row["is_ahead"]) for row in self.server.rows(sql, self.slug)]

    def until(self, condition: Callable[[], object], what: str, seconds: float = 12) -> None:
        """The page goes on meanwhile, which it would not beside a sleep of ours: its requests pass through here."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            self.context.pages[-1].wait_for_timeout(20)


@dataclass
class Desks:
    """Opens desks, and says at the end whether the browser complained."""

    browser: Browser
    server: Server
    contexts: list[BrowserContext] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_network_cut: bool = False

    def __call__(self, slug: str, **options: Any) -> Desk:
        context = self.browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | options)
        context.set_default_timeout(12_000)
        self.contexts.append(context)
        context.on("console", lambda message: self._heard(message.type, message.text))
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.add_cookies([{"name": "sessionid", "value": self.server.cookies[slug], "url": self.server.url}])
        return Desk(self.server, slug, context, context.new_page()).open()

    def _heard(self, kind: str, text: str) -> None:
        is_expected = self.is_network_cut and text.startswith("Failed to load resource")
        if kind == "error" and not is_expected:
            self.problems.append(text)

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        assert self.problems == [], "the browser's console"
