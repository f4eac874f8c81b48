"""Roles and rows as fixtures."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.test import Client
from django.utils import translation
from knox.models import AuthToken

from config.catalogue import compile_newer
from labeling.models import Membership, Pair, Project, Prompt
from labeling.prompts import content_hash, is_held_out, parse_prompt
from labeling.services import NewResponse, add_member, add_pair, add_prompts, create_project
from tests.installation import bare_environment

pytest_plugins = ["tests.checkpoints"]
# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

MakePair = Callable[..., Pair]
_numbers = itertools.count(1)


def pytest_configure() -> None:
    compile_newer()  # pages are tested in each language of theirs


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The longest first, or one of several processes has them left when the others are done. Sorting keeps the order
    # of the rest, which is random.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if django_settings.DATABASES["default"]["ENGINE"].endswith("postgresql"):
        return
    elsewhere = [item for item in items if item.get_closest_marker("postgresql")]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture(autouse=True)
def no_language_of_another_test() -> Iterator[None]:
    """A page in German leaves its thread in German; a server sets the language at each request, a test does not."""
    yield
    translation.deactivate()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a process of its own, with a data directory of its own."""
    return bare_environment(tmp_path / "var")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run(
        [sys.executable, "-m", "training.engine.tiny_model", str(path)], cwd=django_settings.BASE_DIR, check=True
    )
    return path


@pytest.fixture
def data_dir(tmp_path: Path, settings: Any) -> Path:
    """A fresh data directory for what this process stores."""
    settings.DATA_DIR = tmp_path / "data"
    settings.DATA_DIR.mkdir()
    return Path(settings.DATA_DIR)


@pytest.fixture
def project(db: None) -> Project:
    """Nothing in it happens by chance: no shared, random, golden or second looks but those that a test asks for."""
    project = create_project(name="Helpful answers", slug="helpful")
    project.calibration_percent = project.control_percent = project.repeat_percent = project.gold_percent = 0
    project.save()
    return project


def _member(project: Project, name: str, role: str) -> User:
    user = User.objects.create_user(name, password="secret-password")
    add_member(project=project, user=user, role=role)
    return user


@pytest.fixture
def annotator(project: Project) -> User:
    return _member(project, "annotator", Membership.Role.ANNOTATOR)


@pytest.fixture
def other_annotator(project: Project) -> User:
    return _member(project, "other", Membership.Role.ANNOTATOR)


@pytest.fixture
def reviewer(project: Project) -> User:
    return _member(project, "reviewer", Membership.Role.REVIEWER)


@pytest.fixture
def project_admin(project: Project) -> User:
    return _member(project, "boss", Membership.Role.ADMIN)


@pytest.fixture
def stranger(db: None) -> User:
    return User.objects.create_user("stranger", password="secret-password")


@pytest.fixture
def sign_in() -> Callable[[User], Client]:
    def sign_in(user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    return sign_in


@pytest.fixture
def anonymous_client() -> Client:
    return Client()


@pytest.fixture
def make_prompt(project: Project) -> Callable[..., Prompt]:
    """A prompt of the project; ``held_out`` looks for a text whose hash falls on that side."""

    def make(text: str = "", *, held_out: bool | None = None) -> Prompt:
        while True:
            messages = parse_prompt(text or f"Question number {next(_numbers)}?")
            if held_out is None or is_held_out(content_hash(messages)) == held_out:
                break
            assert not text
        add_prompts(project=project, prompts=[messages])
        return Prompt.objects.order_by("-pk")[0]

    return make


@pytest.fixture
def make_pair(make_prompt: Callable[..., Prompt]) -> MakePair:
    def make(
        first: str = "The first answer.",
        second: str = "The second answer.",
        *,
        prompt: Prompt | None = None,
        held_out: bool | None = None,
        priority: float = 0.0,
    ) -> Pair:
        return add_pair(
            prompt=prompt or make_prompt(held_out=held_out),
            responses=(NewResponse(first, [5, 6, 7], "stop"), NewResponse(second, [5, 8], "length")),
            priority=priority,
        )

    return make


@pytest.fixture
def api(project: Project) -> Callable[[User], Callable[..., Any]]:
    """A client with a token: ``api(user)(method, path, body)``."""

    def of(user: User) -> Callable[..., Any]:
        _, token = AuthToken.objects.create(user)
        client = Client(headers={"Authorization": f"Token {token}"})

        def call(method: str, path: str, body: object = None) -> Any:
            data: dict[str, Any] = (
                {} if body is None else {"data": json.dumps(body), "content_type": "application/json"}
            )
            return getattr(client, method)(f"/api/v1/projects/{path}", **data)

        return call

    return of
