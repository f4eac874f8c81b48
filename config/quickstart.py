"""What a fresh installation starts with: a model, a project with prompts, three people, and pairs on their way."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractUser

from labeling.models import Membership, Project
from labeling.prompts import Message, parse_prompt
from labeling.services import add_member, add_prompts, create_project
from training.default_model import ensure_default_model
from training.exceptions import Rejected
from training.models import Promotion
from training.services import promote_checkpoint, request_samples

Say = Callable[[str], None]

HERE = Path(__file__).parent
SLUG = "helpful-answers"
PEOPLE = {
    "admin": Membership.Role.ADMIN,
    "ada": Membership.Role.ANNOTATOR,
    "ben": Membership.Role.ANNOTATOR,
}
# The first pairs are labelled while the rest is written, so a newcomer need not wait for all of them.
FIRST_PAIRS = 24


def set_up(say: Say) -> dict[str, str]:
    """Make what is missing and return the passwords of the people made now. Running it again changes nothing."""
    passwords = _make_people()
    project = _make_project(say)
    if not Promotion.objects.filter(project=project).exists():
        checkpoint = ensure_default_model(say)
        promote_checkpoint(project=project, checkpoint=checkpoint, reason="The first policy")
        say(f"{checkpoint} is the policy; it writes pairs as soon as the workers run")
    elif not project.pairs.exists():
        _ask_again(project)
    return passwords


def credentials_path() -> Path:
    return Path(settings.DATA_DIR) / "credentials.txt"


def _make_people() -> dict[str, str]:
    users = get_user_model().objects
    missing = [name for name in PEOPLE if not users.filter(username=name).exists()]
    passwords = {name: secrets.token_urlsafe(9) for name in missing}
    if passwords:
        # The file first: a password that is in the database and nowhere else could never be used.
        _append_privately(credentials_path(), "".join(f"{name}\t{word}\n" for name, word in passwords.items()))
    for name, password in passwords.items():
        is_admin = PEOPLE[name] == Membership.Role.ADMIN
        make = users.create_superuser if is_admin else users.create_user
        make(username=name, password=password)
    return passwords


def _append_privately(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _make_project(say: Say) -> Project:
    project = Project.objects.filter(slug=SLUG).first()
    if project is None:
        guidelines = (HERE / "guidelines.md").read_text(encoding="utf-8")
        project = create_project(name="Helpful answers", slug=SLUG, guidelines=guidelines)
        say("made the project “Helpful answers”")
        for name, role in PEOPLE.items():
            user = get_user_model().objects.get(username=name)
            assert isinstance(user, AbstractUser)
            add_member(project=project, user=user, role=role)
    report = add_prompts(project=project, prompts=_starter_prompts())
    if report.added:
        say(f"added {report.added} starter prompts")
    return project


def _starter_prompts() -> Iterator[list[Message]]:
    for line in (HERE / "starter_prompts.jsonl").read_text(encoding="utf-8").splitlines():
        yield parse_prompt(json.loads(line)["messages"])


def _ask_again(project: Project) -> None:
    with contextlib.suppress(Rejected):  # they are being written
        request_samples(project=project, pairs=FIRST_PAIRS)
