"""What a fresh installation starts with: a model, a project with prompts, three people, and pairs on their way."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractUser
from django.db import transaction

from labeling.models import Membership, Project
from labeling.prompts import Message, parse_prompt
from labeling.services import add_member, add_prompts, create_project
from training.default_model import ensure_default_model
from training.models import Promotion
from training.services import promote_checkpoint

Say = Callable[[str], None]

HERE = Path(__file__).parent
SLUG = "helpful-answers"
PEOPLE = {
    "admin": Membership.Role.ADMIN,
    "ada": Membership.Role.ANNOTATOR,
    "ben": Membership.Role.ANNOTATOR,
}
MARK = "quickstart-done"


def make_project(say: Say) -> dict[str, str]:
    """Make the demo project and its people, once, and return their passwords. What was removed since stays removed."""
    passwords = {} if _was_made() else _make_everything(say)
    (Path(settings.DATA_DIR) / MARK).touch(mode=0o600)
    return passwords


def choose_first_policy(say: Say) -> None:
    """Give the demo project the default model, unless it has, or had, a policy."""
    project = Project.objects.filter(slug=SLUG).first()
    if project is None or Promotion.objects.filter(project=project).exists():
        return
    checkpoint = ensure_default_model(say)
    promote_checkpoint(project=project, checkpoint=checkpoint, reason="The first policy")
    say(f"{checkpoint} is the policy; it writes pairs as soon as the workers run")


def credentials_path() -> Path:
    return Path(settings.DATA_DIR) / "credentials.txt"


def people_with_passwords() -> list[str]:
    """Whose first password is on file and who can still sign in."""
    path = credentials_path()
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = dict.fromkeys(line.partition("\t")[0] for line in lines)
    active = get_user_model().objects.filter(is_active=True, username__in=list(names))
    able = set(active.values_list("username", flat=True))
    return [name for name in names if name in able]


def _was_made() -> bool:
    """Whether this installation is past its beginning, so that what is missing was removed by somebody.

    The mark alone does not decide: a database that was made anew has nobody who could sign in.
    """
    marked = (Path(settings.DATA_DIR) / MARK).exists()
    return Project.objects.exists() or (marked and get_user_model().objects.exists())


@transaction.atomic
def _make_everything(say: Say) -> dict[str, str]:
    users = get_user_model().objects
    missing = [name for name in PEOPLE if not users.filter(username=name).exists()]
    passwords = {name: secrets.token_urlsafe(9) for name in missing}
    for name, password in passwords.items():
        is_admin = PEOPLE[name] == Membership.Role.ADMIN
        make = users.create_superuser if is_admin else users.create_user
        make(username=name, password=password)
    _make_project(say)
    # Before the commit: a password that is in the database and nowhere else could never be used.
    _append_privately(credentials_path(), "".join(f"{name}\t{word}\n" for name, word in passwords.items()))
    return passwords


def _make_project(say: Say) -> None:
    guidelines = (HERE / "guidelines.md").read_text(encoding="utf-8")
    project = create_project(name="Helpful answers", slug=SLUG, guidelines=guidelines)
    for name, role in PEOPLE.items():
        user = get_user_model().objects.get(username=name)
        assert isinstance(user, AbstractUser)
        add_member(project=project, user=user, role=role)
    report = add_prompts(project=project, prompts=_starter_prompts())
    say(f"made the project “{project.name}” with {report.added} starter prompts")


def _append_privately(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _starter_prompts() -> Iterator[list[Message]]:
    for line in (HERE / "starter_prompts.jsonl").read_text(encoding="utf-8").splitlines():
        yield parse_prompt(json.loads(line)["messages"])
