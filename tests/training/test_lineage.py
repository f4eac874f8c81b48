"""From a checkpoint to each label behind it, from a label to what it went into, and who must not see that."""

from __future__ import annotations

import json

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling import queue
from labeling.models import Pair, Preference, Slot
from labeling.services import set_guidelines
from tests.training.tiny_runs import begin, end
from training import lineage, services, store
from training.jobspec import TrainedPair
from training.models import Checkpoint, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir
from training.withdrawing import withdraw


@pytest.fixture
def run(project, policy, label, project_admin, judge, make_pair, other_annotator) -> TrainingRun:
    """Nine triples under the first guidelines, one under the second and by somebody else, one held out."""
    label(9)
    set_guidelines(project=project, text="Now in detail.", author=project_admin)
    project.refresh_from_db()
    judge(make_pair("Latest", "Least", held_out=False), other_annotator, "b")
    judge(make_pair("Kept", "Apart", held_out=True), other_annotator, "a")
    run = services.request_run(project=project, recipe=Recipe(), seed=3)
    work = begin(run)
    pairs = [
        TrainedPair(number, json.loads(line)["pair_id"], 3, (number * 7 % 11) / 100, 0.5 - number / 10)
        for number, line in enumerate(work.run_dir.dataset.read_text().splitlines(), start=1)
        if json.loads(line)["split"] == "train"
    ]
    work.run_dir.training_pairs.write_text("".join(pair.to_json() + "\n" for pair in pairs))
    end(work)
    return run


def _url(name: str, project, *rest: object) -> str:
    return reverse(f"training:{name}", args=[project.slug, *rest])


def test_who_labelled_it_under_which_guidelines(run, annotator, other_annotator):
    found = [
        (row.name, row.guidelines_version, row.judgements, row.withdrawn) for row in lineage.labellers(run.snapshot)
    ]
    assert found == [("annotator", 1, 9, 0), ("other", 2, 2, 0)]
    withdraw(project=run.project, target=annotator)
    assert [row.withdrawn for row in lineage.labellers(run.snapshot)] == [9, 0]


def test_triples_come_by_pull_or_as_they_stand(run, monkeypatch):
    monkeypatch.setattr(lineage, "TRIPLES_PER_PAGE", 4)
    first = lineage.triple_page(run, None, "pull")
    pulls = [row.pulled.pull for row in first.rows]
    assert pulls == [0.10, 0.09, 0.08, 0.07]
    assert [first.page.number, first.page.paginator.count] == [1, 10], "held-out ones pull at nothing"
    assert sum(row.share for number in "123" for row in lineage.triple_page(run, number, "pull").rows) == pytest.approx(
        1
    )
    inline = [lineage.triple_page(run, str(number), "line") for number in (1, 2, 3)]
    assert [row.line for page in inline for row in page.rows] == list(range(1, 12))
    last = inline[-1].rows[-1]
    assert (last.split, last.pulled, last.chosen) == ("held_out", None, "Kept")
    tenth = inline[-1].rows[1]
    assert (tenth.chosen, tenth.rejected) == ("Least", "Latest")
    assert [(one.name, one.guidelines_version) for one in tenth.labels] == [("other", 2)]
    assert lineage.triple_page(run, "nonsense", "nonsense").order == "line"


def test_a_run_of_an_earlier_version_shows_its_triples_without_pulls(run, project, reviewer, sign_in):
    RunDir.of(run.uuid).training_pairs.unlink()
    found = lineage.triple_page(run, None, "pull")
    assert (found.order, found.has_pulls, len(found.rows)) == ("line", False, 11)
    page = sign_in(reviewer).get(_url("checkpoint-lineage", project, run.checkpoint.uuid)).content.decode()
    assert "How hard each pair pulled was not recorded" in page


def test_the_chain_goes_back_to_the_first_and_ends(run, policy, project, make_checkpoint):
    made = run.checkpoint
    second = end(begin(services.request_run(project=project, recipe=Recipe(), reference=made)))
    steps = lineage.ancestors(second)
    assert [(step.checkpoint, step.is_base) for step in steps] == [(made, False), (policy, False)]
    assert [step.run for step in steps] == [run, None]
    full = make_checkpoint("full", project=project, kind="dpo", parent=second)
    on_full = make_checkpoint("on full", project=project, kind="dpo", base=full)
    assert [(step.checkpoint, step.is_base) for step in lineage.ancestors(on_full)][:2] == [
        (full, True),
        (second, False),
    ]
    assert lineage.ancestors(policy) == []
    Checkpoint.objects.filter(pk=policy.pk).update(parent=second)  # no such rows are written; they end no server
    assert len(lineage.ancestors(Checkpoint.objects.get(pk=second.pk))) == 2


def test_from_a_pair_to_the_runs_and_checkpoints_of_each_judgement(run, project, judge, make_pair, annotator):
    used = Pair.objects.get(response_a__text="Good 0")
    (use,) = lineage.uses_of(used)
    assert [one.number for one in use.runs] == [1]
    assert list(lineage.later_than([use])) == [run.checkpoint]
    again = services.request_run(project=project, recipe=Recipe(), reference=run.checkpoint)
    (use,) = lineage.uses_of(used)
    assert [one.number for one in use.runs] == [2, 1], "an active run has used it as well"
    end(begin(again))
    assert len(list(lineage.later_than(lineage.uses_of(used)))) == 2
    fresh = make_pair()
    judge(fresh, annotator, "a")
    assert [one.runs for one in lineage.uses_of(fresh)] == [[]]
    assert lineage.uses_of(make_pair()) == []


# Pages


def test_the_page_says_all_that_it_was_made_of(run, project, reviewer, sign_in, policy):
    page = sign_in(reviewer).get(_url("checkpoint-lineage", project, run.checkpoint.uuid)).content.decode()
    for told in (
        run.snapshot.short_hash, policy.short_hash, "<dd>3</dd>", "commit", "cpu float32", "torch 0.1", "version 2",
        "The pairs that moved it most", "Good 2", "over</span> Poor 2", "trained from",
        f"manage.py reproduce {run.checkpoint.short_hash}",
    ):  # fmt: skip
        assert told in page, told
    assert page.index("0.100") < page.index("0.090") < page.index("0.080")
    base = sign_in(reviewer).get(_url("checkpoint-lineage", project, policy.uuid)).content.decode()
    assert "It is the first: a model that was added" in base
    assert "The pairs that moved it most" not in base


def test_a_changed_manifest_is_named_and_nothing_of_it_is_shown(run, project, reviewer, sign_in):
    path = store.checkpoint_dir(run.checkpoint.uuid) / store.MANIFEST
    path.write_text(path.read_text().replace("cpu float32", "cpu another"))
    page = sign_in(reviewer).get(_url("checkpoint-lineage", project, run.checkpoint.uuid)).content.decode()
    assert "manifest.json of checkpoint" in page
    assert "was changed on disk" in page
    assert "cpu another" not in page
    assert "Who labelled it" in page, "the rows are still there"


def test_a_snapshot_that_is_gone_takes_the_triples_and_not_the_page(run, project, reviewer, sign_in):
    store.snapshot_path(run.snapshot.sha256).unlink()
    page = sign_in(reviewer).get(_url("checkpoint-lineage", project, run.checkpoint.uuid)).content.decode()
    assert "The snapshot file of this run cannot be read" in page
    assert "Who labelled it" in page


def test_the_page_asks_the_database_no_more_often_for_more_triples(run, project, reviewer, sign_in, monkeypatch):
    client, url = sign_in(reviewer), _url("checkpoint-lineage", project, run.checkpoint.uuid)
    counts = []
    for size in (2, 10):
        monkeypatch.setattr(lineage, "TRIPLES_PER_PAGE", size)
        client.get(url)
        with CaptureQueriesContext(connection) as captured:
            client.get(url)
        counts.append(len(captured))
    assert counts[0] == counts[1]


@pytest.fixture
def held(run, project, reviewer) -> Pair:
    """A pair of the run that a reviewer has still to judge."""
    pair = Pair.objects.get(response_a__text="Latest")
    Slot.objects.create(project=project, pair=pair, place=2, priority=99.0)
    assert queue.lease_next(project, reviewer.pk).slot.pair == pair
    return pair


def test_what_others_said_of_a_pair_is_kept_from_who_has_still_to_judge_it(run, project, held, reviewer, sign_in):
    client = sign_in(reviewer)
    pair = client.get(_url("pair-lineage", project, held.pk)).content.decode()
    assert "What others said appears once you have judged it." in pair
    assert "other:" not in pair
    assert "Run 1" not in pair.split("<main", 1)[1]
    by_line = client.get(_url("checkpoint-lineage", project, run.checkpoint.uuid), {"order": "line"}).content.decode()
    assert "You have this pair to judge." in by_line
    assert "Latest" not in by_line, "nor in which order its responses stand"
    hidden = lineage.triple_page(run, None, "pull", {held.pk}).rows
    assert [row.pair_id for row in hidden][-1] == held.pk, "its place says nothing either"
    queue.submit(project, queue.lease_next(project, reviewer.pk).token, reviewer.pk, "a")
    assert "other:" in client.get(_url("pair-lineage", project, held.pk)).content.decode()


def test_the_pair_page_leads_here_and_back(run, project, project_admin, sign_in):
    judged = Preference.objects.filter(pair__response_a__text="Good 0").get()
    client = sign_in(project_admin)
    url = _url("pair-lineage", project, judged.pair_id)
    assert url in client.get(reverse("labeling:pair", args=[project.slug, judged.pair_id])).content.decode()
    page = client.get(url).content.decode()
    for link in (
        run.get_absolute_url(),
        _url("checkpoint-lineage", project, run.checkpoint.uuid),
        _url("withdraw-judgement", project, judged.pk),
    ):
        assert f'href="{link}"' in page, link
