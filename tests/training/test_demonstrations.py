"""Rewrites as demonstrations: what is among them, in which form, and how people get them."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from knox.models import AuthToken

from labeling import queue
from labeling.answers import Details
from labeling.models import Pair
from training import demonstrations


@pytest.fixture
def rewrite(project, make_pair, annotator):
    """Let somebody judge a pair of its own prompt and improve the better response."""

    def rewrite(text: str, *, choice: str = "a", held_out: bool = False, user=annotator):
        pair = make_pair(held_out=held_out)
        lease = queue.lease_next(project, user.pk)
        assert lease.slot.pair == pair
        return queue.submit(project, lease.token, user.pk, choice, Details(rewrite=text)).preference

    return rewrite


def _written(project, data_dir) -> list[dict]:
    path = data_dir / "demonstrations.jsonl"
    demonstrations.write(project=project, path=path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_demonstration_is_the_prompt_and_the_rewrite_as_one_chat(project, rewrite, data_dir):
    kept = rewrite("Better, with é.")
    rewrite("Held back.", choice="b", held_out=True)
    first, second = _written(project, data_dir)
    assert first == {
        "messages": [*kept.pair.prompt.messages, {"role": "assistant", "content": "Better, with é."}],
        "split": "train",
        "prompt_id": str(kept.pair.prompt_id),
        "pair_id": str(kept.pair_id),
        "preference_id": kept.pk,
    }
    assert (second["split"], second["messages"][-1]["content"]) == ("held_out", "Held back.")


def test_only_rewrites_of_what_counts_are_demonstrations(project, rewrite, annotator, data_dir, label):
    label(2)
    Pair.objects.filter(pk=rewrite("Taken out.").pair_id).update(is_retired=True)
    rewrite("Changed later.")
    queue.submit(project, queue.undo(project, annotator.pk).token, annotator.pk, "b", Details(rewrite="The last word."))
    assert [line["messages"][-1]["content"] for line in _written(project, data_dir)] == ["The last word."]


def test_pages_follow_each_other_and_the_whole_is_a_stream(project, rewrite, data_dir):
    written = [rewrite(f"Better {number}").pk for number in range(5)]
    seen, after = [], 0
    while after is not None:
        page = demonstrations.page(project, after, 2)
        seen += [each.preference_id for each in page.demonstrations]
        after = page.next_after
    assert seen == written
    with CaptureQueriesContext(connection) as captured:
        assert [each.preference_id for each in demonstrations.stream(project)] == written
    assert len(captured) == 2, "withdrawals that go on, and all rewrites"


def test_the_command_writes_a_file_and_replaces_none_unasked(project, rewrite, data_dir):
    rewrite("Better.")
    rewrite("Held back.", held_out=True)
    path, said = data_dir / "sft.jsonl", StringIO()
    call_command("export_demonstrations", project.slug, str(path), stdout=said)
    assert said.getvalue() == "2 demonstrations: 1 train, 1 held out.\n"
    assert len(path.read_text().splitlines()) == 2
    with pytest.raises(CommandError, match="add --force"):
        call_command("export_demonstrations", project.slug, str(path))
    call_command("export_demonstrations", project.slug, str(path), "--force", stdout=said)
    with pytest.raises(CommandError, match="There is no project “nothing”"):
        call_command("export_demonstrations", "nothing", str(path))
    with pytest.raises(CommandError, match="Cannot write"):
        call_command("export_demonstrations", project.slug, str(path / "below" / "a file"))


def test_the_api_gives_them_to_reviewers(project, reviewer, rewrite, client, monkeypatch):
    monkeypatch.setattr("training.api.DEMONSTRATIONS_PER_PAGE", 1)
    first, second = rewrite("One."), rewrite("Two.")
    _, token = AuthToken.objects.create(reviewer)
    url, headers = f"/api/v1/projects/{project.slug}/demonstrations/", {"Authorization": f"Token {token}"}
    page = client.get(url, headers=headers).json()
    assert [each["preference_id"] for each in page["results"]] == [first.pk]
    assert set(page["results"][0]) == {"messages", "split", "prompt_id", "pair_id", "preference_id"}
    assert (
        client.get(url, {"after": page["next_after"]}, headers=headers).json()["results"][0]["preference_id"]
        == second.pk
    )
    assert client.get(url, {"after": "x"}, headers=headers).json()["results"] == page["results"]
