"""Withdrawing labels that checkpoints were made of: what is said before, what is marked, what a rebuild trains on."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from labeling import withdrawals
from labeling.models import Pair, Preference, Withdrawal
from tests.training.tiny_runs import RECIPE, begin, carry_out, end, tiny_policy
from training import (
    demonstrations,
    lineage,
    rebuilding,
    retention,
    services,
    snapshots,
    store,
    sweeps,
    taints,
    withdrawing,
)
from training.exceptions import CheckpointRemoved, LeaseLost, Rejected
from training.execution import Sampling
from training.jobspec import Result
from training.models import Checkpoint, DatasetSnapshot, Job, RetentionRule, Taint, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir
from training.snapshots import judgements
from training.views import withdrawals as withdrawal_pages
from training.withdrawing import can_rebuild, preview, request_rebuild, withdraw

RULE_BY_VOTES = Recipe(label_noise="votes")


@pytest.fixture
def labelled(project, policy, label, make_pair, judge, annotator, other_annotator) -> list[Pair]:
    """Ten pairs of one annotator, ten of another, and two of both, one of these held out."""
    mine = label(10)
    theirs = [make_pair(f"Fine {number}", f"Bad {number}", held_out=False) for number in range(10)]
    for pair in theirs:
        judge(pair, other_annotator, "b")
    type(project).objects.update(judgements_per_pair=2)
    project.refresh_from_db()
    both = [make_pair(f"Both {number}", f"Neither {number}", held_out=bool(number)) for number in range(2)]
    for pair in both:
        judge(pair, annotator, "a")
        judge(pair, other_annotator, "a")
    return [*mine, *theirs, *both]


@pytest.fixture
def run(project, labelled) -> TrainingRun:
    return services.request_run(project=project, recipe=RULE_BY_VOTES, seed=11)


def _lines(snapshot: DatasetSnapshot) -> list[str]:
    return store.snapshot_path(snapshot.sha256).read_text().splitlines()


def _next_run(project, reference: Checkpoint) -> TrainingRun:
    return services.request_run(project=project, recipe=RULE_BY_VOTES, reference=reference)


# Before


def test_the_effect_is_told_in_words_and_numbers_and_nothing_is_written(project, run, annotator):
    first = end(begin(run))
    second = end(begin(_next_run(project, first)))
    services.promote_checkpoint(project=project, checkpoint=second)
    effect = preview(project, annotator)
    assert effect.sentences == [
        "Withdraws 12 judgements of annotator, on 12 pairs.",
        "Run 1 trained on 11 of them, and 1 more only measure it.",
        "Run 2 trained on 11 of them, and 1 more only measure it.",
        f"{first} and {second} came of these runs and will be marked.",
        f"{second} is the policy of now: it stays so until another is promoted.",
    ]
    assert not Withdrawal.objects.exists()
    assert Preference.objects.counted().count() == 24


def test_of_a_prompt_and_of_one_judgement_it_is_told_alike(project, run, labelled, annotator):
    prompt = labelled[0].prompt
    said = preview(project, prompt).sentences
    assert said[0] == (
        "Withdraws 1 judgement on this prompt, which nobody is asked about again and no policy either, on 1 pair."
    )
    goes_on = "Run 1 goes on; its checkpoint will be marked. You may cancel it."
    assert said[1:] == ["Run 1 trains on 1 of them.", goes_on]
    (one,) = labelled[3].preferences.all()
    assert preview(project, one).sentences[0] == (
        "Withdraws 1 judgement of annotator with its former versions, on 1 pair."
    )


def test_what_no_run_has_used_reaches_nothing(project, policy, make_pair, judge, annotator):
    judge(make_pair(), annotator, "tie")
    assert preview(project, annotator).sentences[-1] == "No run has used any of them."
    withdraw(project=project, target=annotator)
    assert not Taint.objects.exists()


# The act


def test_every_descendant_is_marked_and_nothing_else(project, run, annotator, policy, make_checkpoint):
    """By its own snapshot, by its reference, by the base below it, however far."""
    first = end(begin(run))
    bystander = make_checkpoint("bystander", project=project, kind="dpo", base=policy, parent=policy)
    full = make_checkpoint("full", project=project, kind="dpo", parent=first)
    on_full = make_checkpoint("on full", project=project, kind="dpo", base=full, parent=full)
    withdrawal = withdraw(project=project, target=annotator, reason="Consent taken back.")
    assert withdrawal.finished_at is not None
    found = dict(Taint.objects.values_list("checkpoint", "preferences"))
    assert found == {first.pk: 12, full.pk: 0, on_full.pk: 0}
    assert lineage.tainted([first, full, on_full, bystander, policy]) == {first.pk, full.pk, on_full.pk}
    assert [taint.withdrawal for taint in lineage.taints_of(on_full)] == [withdrawal]
    assert lineage.taints_of(bystander) == []


def test_somebody_withdrawn_in_the_middle_of_a_run_marks_its_checkpoint(
    project, run, annotator, sign_in, project_admin
):
    """The run goes on, its page says so, and whatever comes of it is marked in the moment in which it is there."""
    work = begin(run)
    withdraw(project=project, target=annotator)
    assert not Taint.objects.exists()
    page = sign_in(project_admin).get(run.get_absolute_url()).content.decode()
    assert "Labels that it is made of were withdrawn since: 12 judgements of its snapshot." in page
    assert "It goes on, and its checkpoint will be marked." in page
    assert not can_rebuild(run), "it is still going on"
    made = end(work)
    assert [(taint.checkpoint, taint.preferences) for taint in Taint.objects.all()] == [(made, 12)]
    child = end(begin(request_child(project, made, run)))
    (taint,) = lineage.taints_of(child)
    assert taint.preferences == 0, "its own snapshot is clean; what it was trained from is not"


def request_child(project, reference: Checkpoint, run: TrainingRun) -> TrainingRun:
    """A run on labels that nobody has withdrawn, against a marked reference."""
    clean = services.request_run(project=project, recipe=RULE_BY_VOTES, reference=reference)
    assert not set(clean.snapshot.preferences.values_list("pk", flat=True)) & set(
        Preference.objects.filter(withdrawal__isnull=False).values_list("pk", flat=True)
    )
    return clean


def test_a_checkpoint_that_is_lost_leaves_no_mark(project, run, annotator, monkeypatch):
    """The mark is in the transaction of the row: a worker that has lost its run writes neither."""
    work = begin(run)
    withdraw(project=project, target=annotator)
    work.run_dir.checkpoint.mkdir()
    (work.run_dir.checkpoint / "adapter_model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(TrainingRun, "finish", lambda *args, **values: False)
    with pytest.raises(LeaseLost):
        work.publish(Result(ok=True, details={}))
    assert not Taint.objects.exists()
    assert Checkpoint.objects.filter(kind="dpo").count() == 0


def test_a_withdrawal_that_is_not_done_yet_counts_for_runs_already(project, run, annotator):
    """What has to be taken out pair by pair is in no new snapshot from the first moment on."""
    work = begin(run)
    begun = withdrawals.begin(Withdrawal(project=project, kind="annotator", annotator=annotator))
    assert begun.finished_at is None
    assert Preference.objects.counted().filter(annotator=annotator).count() == 12
    used = {one.preference_id for one in judgements(project)}
    assert not used & set(annotator.preferences.values_list("pk", flat=True))
    assert taints.reaching(run) == {begun.pk: 12}
    end(work)
    assert Taint.objects.get().preferences == 12
    assert list(demonstrations.stream(project)) == []


def test_labels_withdrawn_while_a_snapshot_is_written_are_in_none(project, labelled, annotator, monkeypatch):
    real = snapshots.write_lines

    def write_lines(path, lines):
        real(path, lines)
        withdraw(project=project, target=annotator)

    monkeypatch.setattr(snapshots, "write_lines", write_lines)
    with pytest.raises(Rejected, match="withdrawn while the snapshot was written"):
        services.request_run(project=project, recipe=RULE_BY_VOTES)
    assert not DatasetSnapshot.objects.exists()
    assert not list((store.snapshot_path("x").parent).glob("draft-*"))


def test_a_withdrawn_prompt_is_sampled_probed_and_trained_on_no_more(project, policy, labelled, make_prompt):
    held_out = make_prompt(held_out=True)
    for prompt in (labelled[0].prompt, held_out):
        withdraw(project=project, target=prompt)
    ids = services._prompts_to_sample(project, policy, services.Decoding(), 1000)
    assert not {labelled[0].prompt_id, held_out.pk} & set(ids)
    work = begin(services.request_run(project=project, recipe=RULE_BY_VOTES))
    probes, rows = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (work.run_dir.probes, work.run_dir.dataset)
    )
    assert str(held_out.pk) not in [line["prompt_id"] for line in probes]
    assert str(labelled[0].pk) not in [line["pair_id"] for line in rows]


def test_a_batch_writes_no_pair_to_a_prompt_that_was_withdrawn_since(project, policy, make_prompt, annotator):
    prompt = make_prompt()
    batch = services.request_samples(project=project, pairs=1)
    withdraw(project=project, target=prompt)
    assert batch.claim("worker")
    RunDir.of(batch.uuid).make()
    assert not Sampling(batch, RunDir.of(batch.uuid)).prepare()


# The rebuild


def test_a_rebuild_has_the_same_recipe_seed_and_reference_without_the_labels(project, run, annotator, project_admin):
    end(begin(run))
    withdraw(project=project, target=annotator)
    assert can_rebuild(run)
    again = request_rebuild(run=run, by=project_admin)
    assert (again.rebuild_of, again.recipe, again.seed, again.reference) == (run, run.recipe, 11, run.reference)
    assert "made of no label that was withdrawn" in again.reference_reason
    assert again.forecast["reference"] == {"sampled": 0, "cached": 12, "forwards": 0}, "of its own triples"
    assert not can_rebuild(run), "it is being done"
    old, new = _lines(run.snapshot), _lines(again.snapshot)
    assert (len(old), len(new)) == (22, 12)
    assert set(new[:10]) <= set(old), "what none of it was behind keeps its bytes"
    derived = [json.loads(line) for line in new[10:]]
    assert [len(line["preference_ids"]) for line in derived] == [1, 1]
    gone = set(annotator.preferences.values_list("pk", flat=True))
    assert not gone & {pk for line in new for pk in json.loads(line)["preference_ids"]}
    assert not gone & set(again.snapshot.preferences.values_list("pk", flat=True))
    assert (again.snapshot.train_triples, again.snapshot.held_out_triples) == (11, 1)
    made = end(begin(again))
    assert lineage.taints_of(made) == []


def test_what_a_run_to_make_again_trains_from_keeps_its_weights_until_it_is_made(
    project, policy, labelled, annotator, make_checkpoint
):
    def later() -> None:
        """Everything is old, and another is the newest."""
        make_checkpoint(f"newest {Checkpoint.objects.count()}", project=project, kind="dpo", base=policy, parent=policy)
        Checkpoint.objects.update(created_at=timezone.now() - timedelta(days=100))

    rule = RetentionRule.objects.create(project=project, is_on=True, keep_last=1, keep_days=7)
    reference = make_checkpoint("reference", project=project, kind="dpo", base=policy, parent=policy)
    run = _next_run(project, reference)
    made = end(begin(run))
    later()
    withdraw(project=project, target=annotator)
    kept = dict(retention.preview(project, rule).kept)
    assert kept[reference] == "Run 1 can be made again without what was withdrawn, and trains from it."
    assert retention.clear(project, rule) == [made], "which nobody needs"
    again = request_rebuild(run=run)
    assert again.reference == reference
    end(begin(again))
    later()
    assert reference in retention.clear(project, rule)


def test_a_label_is_derived_again_by_the_rule_of_the_run(
    project, policy, make_pair, judge, label, annotator, other_annotator, reviewer
):
    """Two for A and one for B, of which one for A goes: no majority is left, and no triple."""
    label(10, prompt=None)
    type(project).objects.update(judgements_per_pair=3)
    project.refresh_from_db()
    split, sure = make_pair("Split", "Parted", held_out=False), make_pair("Sure", "Certain", held_out=False)
    for pair, choices in ((split, "aab"), (sure, "aaa")):
        for user, choice in zip((annotator, other_annotator, reviewer), choices, strict=True):
            judge(pair, user, choice)
    run = services.request_run(project=project, recipe=RULE_BY_VOTES)
    before = {json.loads(line)["pair_id"]: json.loads(line) for line in _lines(run.snapshot)}
    assert before[str(split.pk)]["label_noise"] == pytest.approx(1 / 3)
    end(begin(run))
    for pair in (split, sure):
        withdraw(project=project, target=pair.preferences.get(annotator=other_annotator))
    snapshot, rebuilt = rebuilding.rebuild_snapshot(run, policy.content_hash)
    after = {json.loads(line)["pair_id"]: json.loads(line) for line in _lines(snapshot)}
    assert (rebuilt.kept, rebuilt.derived_again, rebuilt.gone) == (10, 1, 1)
    assert str(split.pk) not in after
    assert after[str(sure.pk)]["label_noise"] == 0
    assert len(after[str(sure.pk)]["preference_ids"]) == 2


def test_nothing_that_was_judged_since_comes_in(project, run, labelled, annotator, label, make_pair, judge, reviewer):
    end(begin(run))
    label(3)
    both = labelled[-2]
    withdraw(project=project, target=both.preferences.get(annotator=annotator))
    judge(both, reviewer, "b")  # one for each response now, and the line is of the older one alone
    snapshot, rebuilt = rebuilding.rebuild_snapshot(run, run.reference.content_hash)
    assert (rebuilt.kept, rebuilt.derived_again, rebuilt.gone) == (21, 1, 0)
    line = next(json.loads(line) for line in _lines(snapshot) if json.loads(line)["pair_id"] == str(both.pk))
    assert (line["chosen"]["text"], line["label_noise"]) == ("Both 0", 0)
    assert snapshot.last_preference_id == run.snapshot.last_preference_id


def test_a_marked_reference_is_replaced_by_its_rebuild_or_else_by_the_first_policy(project, run, annotator, policy):
    first = end(begin(run))
    second_run = _next_run(project, first)
    end(begin(second_run))
    withdraw(project=project, target=annotator)
    again = request_rebuild(run=second_run)
    assert (again.reference, again.reference_reason) == (
        policy,
        f"{first} was made of withdrawn labels and has no rebuild, so the first policy, {policy}.",
    )
    services.cancel_job(job=again)
    rebuilt = end(begin(request_rebuild(run=run)))
    again = request_rebuild(run=second_run)
    assert again.reference == rebuilt
    assert again.reference_reason == f"{first} was made of withdrawn labels; {rebuilt} is its rebuild without them."


def test_a_rebuild_is_refused_in_words(project, run, annotator, other_annotator):
    with pytest.raises(Rejected, match="Run 1 is still going on"):
        request_rebuild(run=run)
    end(begin(run))
    with pytest.raises(Rejected, match="has been withdrawn, so there is nothing to make again"):
        request_rebuild(run=run)
    withdraw(project=project, target=annotator)
    path = store.snapshot_path(run.snapshot.sha256)
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:-1])
    with pytest.raises(Rejected, match="missing or was changed on disk"):
        request_rebuild(run=run)
    path.write_bytes(content)
    withdraw(project=project, target=other_annotator)
    with pytest.raises(Rejected, match="not enough to train on"):
        request_rebuild(run=run)
    assert TrainingRun.objects.count() == 1


def test_a_rebuild_against_a_reference_that_was_deleted_meanwhile_is_refused(project, run, annotator):
    end(begin(run))
    withdraw(project=project, target=annotator)
    assert run.reference.removed_at is None, "as it was read"
    Checkpoint.objects.filter(pk=run.reference_id).update(removed_at=timezone.now())
    with pytest.raises(CheckpointRemoved, match="were deleted"):
        request_rebuild(run=run)
    assert not TrainingRun.objects.filter(rebuild_of=run).exists()


def test_of_a_rebuild_and_a_sweep_that_were_asked_for_at_the_same_moment_one_is_refused(
    project, run, annotator, monkeypatch
):
    """Both have looked before either was there; the rebuild looks once more under the lock."""
    end(begin(run))
    withdraw(project=project, target=annotator)
    real = rebuilding.rebuild_snapshot

    def slow(*values):
        rebuilt = real(*values)
        sweeps.request_sweep(project=project, recipe=RULE_BY_VOTES, betas=(0.1, 0.5))
        return rebuilt

    monkeypatch.setattr(rebuilding, "rebuild_snapshot", slow)
    with pytest.raises(Rejected, match="Sweep 1 is still going on"):
        request_rebuild(run=run)
    assert not TrainingRun.objects.filter(rebuild_of=run).exists()


def test_a_rebuild_of_a_run_of_before_there_were_rules_for_labels_takes_majorities_for_certain(project, run, annotator):
    first = end(begin(run))
    second_run = _next_run(project, first)
    end(begin(second_run))
    said = {name: value for name, value in second_run.recipe.items() if name not in Recipe.ABOUT_DATA}
    TrainingRun.objects.filter(pk=second_run.pk).update(recipe=said)
    second_run.refresh_from_db()
    withdraw(project=project, target=annotator)
    again = request_rebuild(run=second_run)
    assert again.reference != first
    assert {name: again.recipe[name] for name in Recipe.ABOUT_DATA} == {
        "ties": "drop", "label_noise": "none", "pair_weight": "equal",
    }  # fmt: skip


@pytest.mark.parametrize("asked", ["run", "rebuild"])
def test_labels_withdrawn_in_the_last_moment_before_a_snapshot_is_recorded_are_in_none(
    project, run, annotator, other_annotator, asked, monkeypatch
):
    end(begin(run))
    withdraw(project=project, target=annotator.preferences.first())
    real = store.hash_file

    def hash_file(path):
        if path.name.startswith("draft-"):
            withdraw(project=project, target=other_annotator.preferences.first())
        return real(path)

    monkeypatch.setattr(store, "hash_file", hash_file)
    with pytest.raises(Rejected, match="withdrawn while the snapshot was written"):
        request_rebuild(run=run) if asked == "rebuild" else _next_run(project, run.reference)
    assert TrainingRun.objects.get() == run
    assert [path.name for path in store.snapshot_path("x").parent.iterdir()] == [f"{run.snapshot.sha256}.jsonl"]


def test_labels_withdrawn_after_a_rebuild_has_looked_at_what_remains_are_in_none(
    project, run, annotator, other_annotator, monkeypatch
):
    end(begin(run))
    withdraw(project=project, target=annotator.preferences.first())
    real = rebuilding._parts

    def parts(*values):
        withdraw(project=project, target=other_annotator.preferences.first())
        return real(*values)

    monkeypatch.setattr(rebuilding, "_parts", parts)
    with pytest.raises(Rejected, match="withdrawn while the snapshot was written"):
        request_rebuild(run=run)


def test_a_rebuild_that_failed_may_be_asked_for_again(project, run, annotator):
    end(begin(run))
    withdraw(project=project, target=annotator)
    again = request_rebuild(run=run)
    TrainingRun.objects.filter(pk=again.pk).update(state=Job.State.FAILED)
    assert can_rebuild(run)


@pytest.mark.slow
def test_a_rebuild_makes_no_forward_of_the_reference(
    project, tiny_model, data_dir, settings, label, make_pair, judge, annotator, other_annotator
):
    settings.CACHE_DIR = data_dir / "cache"
    tiny_policy(project, tiny_model, data_dir)
    label(9)
    for number in range(3):
        judge(make_pair(f"Fine {number}", f"Bad {number}", held_out=False), other_annotator, "b")
    label(2, held_out=True)
    run = services.request_run(project=project, recipe=RECIPE)
    first = carry_out(run)
    assert first.details["reference_logps"]["forwards"] == 14
    withdraw(project=project, target=other_annotator)
    second = carry_out(request_rebuild(run=run))
    assert second.details["triples"]["train"] == 9
    assert second.details["reference_logps"]["forwards"] == 0
    assert second.content_hash != first.content_hash
    assert lineage.taints_of(second) == []
    pulled = lineage.trained_pairs(TrainingRun.objects.get(checkpoint=first))
    assert len(pulled) == 12
    assert all(pair.visits == 8 and pair.pull > 0 for pair in pulled.values())


# Pages


@pytest.fixture
def admin(sign_in, project_admin):
    return sign_in(project_admin)


def _url(name: str, project, *rest: object) -> str:
    return reverse(f"training:{name}", args=[project.slug, *rest])


def test_the_effect_is_named_before_and_the_act_is_on_record(project, run, annotator, admin, sign_in, reviewer):
    made = end(begin(run))
    url = _url("withdraw-annotator", project, annotator.pk)
    page = admin.get(url).content.decode()
    assert "Withdraws 12 judgements of annotator, on 12 pairs." in page
    assert f"{made.name} came of these runs and will be marked." in page
    assert "Withdraw 12 judgements" in page
    assert not Withdrawal.objects.exists(), "looking changes nothing"
    done = admin.post(url, {"reason": "They asked for it."}, follow=True).content.decode()
    assert "12 judgements are withdrawn and count nowhere any more." in done
    assert "They asked for it." in done
    assert made.name in done
    assert 'action="' + _url("rebuild-run", project, run.number) in done
    read = sign_in(reviewer).get(_url("withdrawals", project)).content.decode()
    assert "An admin can rebuild it." in read
    assert "There is no judgement to withdraw" in admin.post(url, follow=True).content.decode()


def test_the_button_makes_the_run_again(project, run, annotator, admin, monkeypatch):
    end(begin(run))
    withdraw(project=project, target=annotator)
    assert "Run 1 does not tell how long it takes." in admin.get(_url("withdrawals", project)).content.decode()
    monkeypatch.setattr(withdrawal_pages.forecast, "time_taken", lambda run: 720.0)
    for page in (_url("withdrawals", project), run.get_absolute_url()):
        words = " ".join(admin.get(page).content.decode().split())
        assert "At most 21 triples. About 12 min, as Run 1 took." in words
    page = admin.post(_url("rebuild-run", project, run.number), follow=True).content.decode()
    assert "Run 2 makes Run 1 again on 11 triples in place of 21." in page
    assert "without what was withdrawn" in page
    refused = admin.post(_url("rebuild-run", project, run.number), follow=True).content.decode()
    assert "Run 2 is still going on" in refused


def test_runs_are_made_again_from_the_oldest_on_and_none_is_hidden_by_those_that_were(
    project, run, annotator, admin, monkeypatch
):
    """Each is trained on from the one before, whose rebuild must be there to stand in for it."""
    monkeypatch.setattr(withdrawal_pages, "RUNS_LISTED", 2)
    second = _next_run(project, end(begin(run)))
    third = _next_run(project, end(begin(second)))
    end(begin(third))
    withdraw(project=project, target=annotator)

    def listed() -> list[int]:
        page = admin.get(_url("withdrawals", project)).content.decode()
        return [number for number in range(1, 9) if 'action="' + _url("rebuild-run", project, number) in page]

    assert listed() == [1, 2]
    assert "1 more, once these are made again." in admin.get(_url("withdrawals", project)).content.decode()
    rebuilt = end(begin(request_rebuild(run=run)))
    assert listed() == [2, 3]
    again = request_rebuild(run=second)
    assert again.reference == rebuilt
    end(begin(again))
    assert listed() == [3]


@pytest.mark.parametrize("kind", ["prompt", "judgement"])
def test_a_prompt_and_a_judgement_are_withdrawn_from_where_they_stand(project, run, labelled, admin, kind):
    end(begin(run))
    (one,) = labelled[0].preferences.all()
    url = _url(f"withdraw-{kind}", project, labelled[0].prompt_id if kind == "prompt" else one.pk)
    where = (
        reverse("labeling:prompts", args=[project.slug])
        if kind == "prompt"
        else reverse("labeling:pair", args=[project.slug, one.pair_id])
    )
    assert f'href="{url}"' in admin.get(where).content.decode()
    assert "What would change" in admin.get(url).content.decode()
    admin.post(url)
    one.refresh_from_db()
    assert one.withdrawal is not None
    assert one.withdrawal.kind == ("prompt" if kind == "prompt" else "preference")
    assert Taint.objects.get().preferences == 1


def test_marks_are_on_the_list_the_page_and_the_run(project, run, annotator, admin):
    made = end(begin(run))
    withdraw(project=project, target=annotator)
    assert "withdrawn labels" in admin.get(_url("checkpoints", project)).content.decode()
    page = admin.get(_url("checkpoint", project, made.uuid)).content.decode()
    assert "Labels that it was made of were withdrawn." in page
    assert "12 judgements in its own snapshot" in page
    assert "12 judgements of its snapshot" in admin.get(run.get_absolute_url()).content.decode()


def test_many_judgements_are_left_to_the_background(project, run, annotator, admin, monkeypatch):
    monkeypatch.setattr(withdrawing, "AT_ONCE", 5)
    page = admin.post(_url("withdraw-annotator", project, annotator.pk), follow=True).content.decode()
    assert "5 judgements are withdrawn so far; the others are being taken out" in page
    assert "being taken out</span>" in page
    assert withdrawals.carry_out_unfinished() == 1
    assert Withdrawal.objects.get().judgements == 12
