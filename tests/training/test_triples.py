"""Preferences to triples: the pure rule, then what is frozen."""

from __future__ import annotations

import json
import threading

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from training import services, store
from training.jobspec import Completion, TripleLine
from training.models import DatasetSnapshot
from training.triples import Judgement, TripleCounts, derive_triples

A, B = Completion("A", [1], "stop"), Completion("B", [2], "stop")


def _judgement(number: int, choice: str, pair: int = 1, *, held_out: bool = False) -> Judgement:
    return Judgement(number, pair, pair * 10, choice, held_out, [{"role": "user", "content": "x"}], A, B)


def _derive(*judgements: Judgement) -> tuple[list[TripleLine], TripleCounts]:
    counts = TripleCounts()
    return list(derive_triples(judgements, counts)), counts


@pytest.mark.parametrize(("choice", "chosen", "rejected"), [("a", A, B), ("b", B, A)])
def test_the_preferred_response_is_y_w(choice, chosen, rejected):
    (triple,), counts = _derive(_judgement(1, choice))
    assert (triple.chosen, triple.rejected, triple.preference_ids) == (chosen, rejected, [1])
    assert (counts.train, counts.held_out) == (1, 0)


def test_ties_and_both_bad_are_counted_and_give_no_triple():
    triples, counts = _derive(_judgement(1, "tie", 1), _judgement(2, "both_bad", 2))
    assert not triples
    assert (counts.ties, counts.both_bad) == (1, 1)


def test_the_majority_decides_and_a_split_vote_does_not():
    triples, counts = _derive(
        *[_judgement(1, "a", 1), _judgement(2, "b", 1), _judgement(3, "a", 1)],
        *[_judgement(4, "a", 2), _judgement(5, "b", 2)],
    )
    assert [triple.chosen for triple in triples] == [A]
    assert counts.split_votes == 1


def test_held_out_prompts_are_marked():
    (triple,), counts = _derive(_judgement(1, "a", held_out=True))
    assert triple.split == "held_out"
    assert counts.held_out == 1


@given(st.lists(st.sampled_from(["a", "b", "tie", "both_bad"]), max_size=9))
def test_swapping_the_responses_swaps_the_triple(choices):
    mirror = {"a": "b", "b": "a"}
    plain, _ = _derive(*[_judgement(n, choice) for n, choice in enumerate(choices)])
    swapped, _ = _derive(*[_judgement(n, mirror.get(choice, choice)) for n, choice in enumerate(choices)])
    assert [(t.chosen, t.rejected) for t in plain] == [(t.rejected, t.chosen) for t in swapped]


def test_a_triple_goes_to_json_and_back():
    (triple,), _ = _derive(_judgement(1, "a"))
    assert TripleLine.from_dict(json.loads(triple.to_json())) == triple


def test_a_snapshot_is_an_immutable_file_named_by_its_hash(project, data_dir, label):
    label(3)
    label(1, held_out=True)
    label(1, "tie")
    snapshot, _ = services.freeze_snapshot(project=project)
    path = store.snapshot_path(snapshot.sha256)
    assert store.hash_file(path) == snapshot.sha256
    assert (snapshot.train_triples, snapshot.held_out_triples, snapshot.ties) == (3, 1, 1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(pk for line in lines for pk in line["preference_ids"]) == sorted(
        snapshot.preferences.values_list("pk", flat=True)
    )
    assert lines[0]["chosen"]["token_ids"] == [5, 6, 7]


def test_the_same_triples_are_the_same_snapshot_and_a_new_label_is_another(project, data_dir, label):
    label(2)
    first, _ = services.freeze_snapshot(project=project)
    again, _ = services.freeze_snapshot(project=project)
    label(1)
    other, _ = services.freeze_snapshot(project=project)
    assert first == again
    assert first.sha256 != other.sha256
    assert DatasetSnapshot.objects.count() == 2


def test_only_current_versions_count(project, data_dir, make_pair, judge, annotator):
    from labeling import queue

    pair = make_pair(held_out=False)
    judge(pair, annotator, "a")
    queue.submit(project, queue.undo(project, annotator.pk).token, annotator.pk, "b")
    path = data_dir / "triples.jsonl"
    assert services.write_triples(project=project, path=path).train == 1
    assert json.loads(path.read_text())["chosen"]["text"] == "The second answer."


def test_an_export_that_fails_leaves_no_half_file(project, data_dir, label, monkeypatch):
    label(1)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(services.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        services.write_triples(project=project, path=data_dir / "triples.jsonl")
    assert not list(data_dir.glob("*triples*"))


@pytest.mark.django_db(transaction=True)
def test_two_freezes_at_once_do_not_share_a_draft(project, data_dir, label):
    label(3)
    found: list[str] = []
    errors: list[Exception] = []

    def freeze() -> None:
        try:
            found.append(services.freeze_snapshot(project=project)[0].sha256)
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=freeze) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(found) == 4
    assert set(found) == {store.hash_file(store.snapshot_path(found[0]))}
