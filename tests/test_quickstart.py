"""The demo project: complete, private, and made once."""

from __future__ import annotations

import json
import stat
from collections import Counter
from pathlib import Path

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from config import quickstart
from labeling.models import Membership, Project, Prompt
from labeling.prompts import content_hash, parse_prompt
from training.exceptions import Rejected
from training.models import Promotion, SampleBatch

STARTERS = Path(quickstart.__file__).parent / "starter_prompts.jsonl"


@pytest.fixture
def installation(db, data_dir, make_checkpoint, monkeypatch):
    base = make_checkpoint("SmolLM2-135M-Instruct", public_name="somebody/base")
    monkeypatch.setattr(quickstart, "ensure_default_model", lambda say: base)
    return data_dir


def test_it_makes_everything_once(installation, capsys):
    call_command("quickstart")
    first = capsys.readouterr().out
    call_command("quickstart")
    second = capsys.readouterr().out
    project = Project.objects.get()
    assert project.name == "Helpful answers"
    assert project.guidelines
    assert Prompt.objects.count() >= 60
    assert SampleBatch.objects.count() == Promotion.objects.count() == 1
    roles = Counter(Membership.objects.values_list("role", flat=True))
    assert roles == {"admin": 1, "annotator": 2}
    assert "ada" in first
    assert second == ""


def test_the_passwords_work_and_are_the_owners_alone(installation):
    call_command("quickstart")
    path = installation / "credentials.txt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    words = dict(line.split("\t") for line in path.read_text().splitlines())
    assert set(words) == {"admin", "ada", "ben"}
    for name, password in words.items():
        assert authenticate(username=name, password=password) is not None
    assert len(set(words.values())) == 3


def test_what_was_removed_stays_removed(installation, capsys):
    call_command("quickstart")
    capsys.readouterr()
    User.objects.get(username="ada").delete()
    Prompt.objects.all()[0].delete()
    left = Prompt.objects.count()
    call_command("quickstart")
    assert capsys.readouterr().out == ""
    assert not User.objects.filter(username="ada").exists()
    assert Prompt.objects.count() == left
    assert quickstart.people_with_passwords() == ["admin", "ben"]


def test_a_removed_project_stays_removed(db, data_dir):
    assert set(quickstart.make_project(print)) == {"admin", "ada", "ben"}
    Project.objects.all().delete()
    assert quickstart.make_project(print) == {}
    quickstart.choose_first_policy(print)
    assert not Project.objects.exists()


def test_an_installation_with_projects_of_its_own_gets_no_demo(project, data_dir):
    assert quickstart.make_project(print) == {}
    assert list(Project.objects.all()) == [project]
    assert not User.objects.exists()
    assert quickstart.people_with_passwords() == []


def test_a_database_that_was_made_anew_starts_again(db, data_dir):
    quickstart.make_project(print)
    Project.objects.all().delete()
    User.objects.all().delete()
    passwords = quickstart.make_project(print)
    assert quickstart.people_with_passwords() == ["admin", "ada", "ben"]
    assert authenticate(username="ada", password=passwords["ada"]) is not None


def test_a_first_start_without_a_model_is_brought_to_its_end(installation, monkeypatch, capsys):
    def fail(say: object) -> None:
        raise Rejected("No connection.")

    with monkeypatch.context() as broken:
        broken.setattr(quickstart, "ensure_default_model", fail)
        with pytest.raises(CommandError, match="No connection"):
            call_command("quickstart")
    assert "ada" in capsys.readouterr().out, "the passwords are said all the same"
    assert Promotion.objects.count() == 0
    call_command("quickstart")
    assert Promotion.objects.count() == 1


def test_the_starter_prompts_are_valid_varied_and_different():
    lines = [json.loads(line) for line in STARTERS.read_text().splitlines()]
    chats = [parse_prompt(line["messages"]) for line in lines]
    assert len(chats) >= 60
    assert len({content_hash(chat) for chat in chats}) == len(chats)
    assert len({line["tag"] for line in lines}) >= 8
    assert any(len(chat) > 2 for chat in chats), "some have several turns"
    assert any("\u0600" <= character <= "\u06ff" for chat in chats for character in chat[0]["content"])
