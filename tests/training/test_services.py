"""What people ask for: what is refused and why, what is queued, what a promotion changes."""

from __future__ import annotations

import json
from threading import Barrier

import pytest
from django.utils import timezone

from labeling.models import Preference
from tests.threads import at_once
from tests.training.test_preflight import CONFIG
from training import registry, services, snapshots, store, sweeps
from training.exceptions import CheckpointDamaged, CheckpointRemoved, Rejected
from training.models import (
    Checkpoint,
    DatasetSnapshot,
    Job,
    LoopRule,
    Promotion,
    SampleBatch,
    SampleRefusal,
    TrainingRun,
)
from training.recipe import Decoding, Recipe


def _request(project, **values) -> TrainingRun:
    return services.request_run(project=project, recipe=Recipe(), **values)


def test_a_run_freezes_its_inputs(project, policy, label, django_capture_on_commit_callbacks):
    label(10)
    with django_capture_on_commit_callbacks() as callbacks:
        run = _request(project, seed=7)
    assert (run.number, run.state, run.seed, run.reference) == (1, "queued", 7, policy)
    assert run.snapshot.train_triples == 10
    assert run.recipe == Recipe().settled(10).to_dict()
    assert len(callbacks) == 1, "the worker hears of it once the row is there"


def test_a_snapshot_that_cannot_be_written_is_told_and_queues_nothing(project, policy, label, data_dir, monkeypatch):
    label(10)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(snapshots.os, "fsync", full_disk)
        with pytest.raises(Rejected, match="could not be written: No space left on device"):
            _request(project)
    assert not TrainingRun.objects.exists()
    assert not list((data_dir / "snapshots").glob("*draft*"))
    assert _request(project).snapshot.train_triples == 10


def test_labels_are_not_frozen_for_a_run_against_a_model_whose_weights_were_deleted(
    project, policy, label, make_checkpoint
):
    label(10)
    removed = make_checkpoint("removed", project=project)
    Checkpoint.objects.filter(pk=removed.pk).update(removed_at=timezone.now())
    with pytest.raises(CheckpointRemoved):
        _request(project, reference=removed)
    with pytest.raises(CheckpointRemoved):
        sweeps.request_sweep(project=project, recipe=Recipe(), reference=removed)
    assert not DatasetSnapshot.objects.exists()
    assert not Preference.objects.filter(frozen_at__isnull=False).exists()


@pytest.mark.parametrize(
    ("choice", "reason"), [("tie", "12 ties"), ("both_bad", "12 both-bad"), (None, "Label some pairs first")]
)
def test_too_little_to_train_on_is_refused_with_the_reason(project, policy, label, choice, reason):
    if choice:
        label(12, choice)
    with pytest.raises(Rejected, match=f"not enough to train on: 0 triples.*{reason}"):
        _request(project)
    assert not TrainingRun.objects.exists()


def test_ties_that_train_do_not_make_up_for_triples_with_a_better_response(project, policy, label):
    label(12, "tie")
    label(7)
    with pytest.raises(Rejected, match=r"7 triples on 7 prompts.*12 triples of ties, which teach nothing"):
        services.request_run(project=project, recipe=Recipe(ties="half"))
    label(1)
    run = services.request_run(project=project, recipe=Recipe(ties="half"))
    assert (run.snapshot.train_triples, run.snapshot.tie_triples, run.snapshot.ties) == (20, 12, 0)


def test_labels_on_held_out_prompts_do_not_train(project, policy, label):
    label(12, held_out=True)
    with pytest.raises(Rejected, match="12 triples on held-out prompts"):
        _request(project)


def test_one_prompt_is_not_enough(project, policy, label, make_prompt):
    label(10, prompt=make_prompt(held_out=False))
    with pytest.raises(Rejected, match="10 triples on 1 prompts"):
        _request(project)


def test_without_a_model_there_is_no_run_and_no_sampling(project, label, make_prompt):
    make_prompt()
    with pytest.raises(Rejected, match="no reference model"):
        _request(project)
    with pytest.raises(Rejected, match="no policy"):
        services.request_samples(project=project, pairs=4)


def test_one_run_at_a_time(project, policy, label):
    label(10)
    _request(project)
    with pytest.raises(Rejected, match="Run 1 is still going on"):
        _request(project)


def test_cancel_before_a_worker_took_it_and_resume(project, policy, label):
    label(10)
    run = _request(project)
    services.cancel_job(job=run)
    run.refresh_from_db()
    assert run.state == Job.State.CANCELLED
    with pytest.raises(Rejected, match="nothing to cancel"):
        services.cancel_job(job=run)
    services.resume_job(job=run)
    run.refresh_from_db()
    assert (run.state, run.cancel_requested_at) == ("queued", None)
    with pytest.raises(Rejected, match="Only what was cancelled"):
        services.resume_job(job=run)


def test_resuming_while_another_run_is_active_is_refused(project, policy, label):
    label(10)
    first = _request(project)
    services.cancel_job(job=first)
    _request(project)
    with pytest.raises(Rejected, match="still going on"):
        services.resume_job(job=first)


def test_promotion_and_roll_back_are_rows_and_new_pairs_come_from_the_new_policy(
    project, policy, make_checkpoint, make_prompt, project_admin
):
    for _ in range(3):
        make_prompt()
    old_batch = services.request_samples(project=project, pairs=3)
    better = make_checkpoint("better", project=project, kind="dpo", parent=policy)
    services.promote_checkpoint(project=project, checkpoint=better, by=project_admin, reason="wins")
    assert services.current_policy(project) == better
    old_batch.refresh_from_db()
    assert old_batch.state == Job.State.CANCELLED
    batch = SampleBatch.objects.get(policy=better)
    assert batch.state == Job.State.QUEUED
    services.roll_back(project=project, by=project_admin)
    assert services.current_policy(project) == policy
    assert list(Promotion.objects.values_list("is_rollback", flat=True)) == [True, False, False]
    assert services.default_reference(project) == policy


def test_rolling_back_twice_goes_two_policies_back(project, policy, make_checkpoint):
    second, third = (make_checkpoint(name, project=project) for name in ("second", "third"))
    for checkpoint in (second, third):
        services.promote_checkpoint(project=project, checkpoint=checkpoint)
    for expected in (second, policy):
        services.roll_back(project=project)
        assert services.current_policy(project) == expected
    with pytest.raises(Rejected, match="base is the first policy"):
        services.roll_back(project=project)
    services.promote_checkpoint(project=project, checkpoint=third)
    services.roll_back(project=project)
    assert services.current_policy(project) == policy


@pytest.fixture
def three(project, policy, make_checkpoint) -> list[Checkpoint]:
    """Policies one behind the other, the last of them in force."""
    made = [make_checkpoint(name, project=project) for name in ("second", "third")]
    for checkpoint in made:
        services.promote_checkpoint(project=project, checkpoint=checkpoint)
    return [policy, *made]


def test_the_same_rollback_asked_for_twice_goes_one_policy_back(project, three):
    _, second, third = three
    services.roll_back(project=project, leaves=third, to=second)
    with pytest.raises(Rejected, match=r"third is not the policy any more: that is second now\. Nothing"):
        services.roll_back(project=project, leaves=third, to=second)
    assert services.current_policy(project) == second
    assert Promotion.objects.filter(is_rollback=True).count() == 1


@pytest.mark.parametrize("is_named", [True, False])
def test_what_was_promoted_meanwhile_is_not_rolled_back(project, three, make_checkpoint, monkeypatch, is_named):
    """Also if it comes while the bytes of what is to come back are read, which takes minutes of a large model."""
    _, second, third = three
    fourth, weights_of = make_checkpoint("fourth", project=project), registry.weights_of

    def slow(checkpoint):
        if checkpoint == second:
            services.promote_checkpoint(project=project, checkpoint=fourth)
        return weights_of(checkpoint)

    monkeypatch.setattr(registry, "weights_of", slow)
    with pytest.raises(Rejected, match="third is not the policy any more: that is fourth now"):
        services.roll_back(project=project, **({"leaves": third, "to": second} if is_named else {}))
    assert services.current_policy(project) == fourth
    assert not Promotion.objects.filter(is_rollback=True).exists()


def test_a_rollback_to_another_than_the_policy_before_is_refused(project, three):
    first, second, third = three
    with pytest.raises(Rejected, match=r"The policy before third is second and not base\. .* third is the policy"):
        services.roll_back(project=project, leaves=third, to=first)
    services.promote_checkpoint(project=project, checkpoint=second)
    with pytest.raises(Rejected, match="The policy before second is third and not base"):
        services.roll_back(project=project, leaves=second, to=first)
    assert services.current_policy(project) == second


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_named", [True, False])
def test_two_rollbacks_at_once_go_one_policy_back(project, three, is_named):
    _, second, third = three
    asked = {"leaves": third, "to": second} if is_named else {}
    read = Barrier(2)

    def both_have_looked(checkpoint):
        read.wait(timeout=20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "weights_of", both_have_looked)
        errors = at_once(*[lambda: services.roll_back(project=project, **asked)] * 2)
    assert [str(error) for error in errors] == [
        "third is not the policy any more: that is second now. Nothing was rolled back."
    ]
    assert services.current_policy(project) == second


def test_promotions_that_make_no_sense_are_refused(project, policy, make_checkpoint):
    with pytest.raises(Rejected, match="is the policy already"):
        services.promote_checkpoint(project=project, checkpoint=policy)
    with pytest.raises(Rejected, match="nothing to roll back"):
        services.roll_back(project=project)


def test_a_checkpoint_of_another_project_cannot_be_promoted(project, make_checkpoint):
    from labeling.services import create_project

    other = create_project(name="Other", slug="other")
    foreign = make_checkpoint("foreign", project=other)
    with pytest.raises(Rejected, match="another project"):
        services.promote_checkpoint(project=project, checkpoint=foreign)


def test_a_damaged_checkpoint_cannot_be_promoted(project, policy, make_checkpoint):
    damaged = make_checkpoint("damaged", project=project)
    (store.checkpoint_dir(damaged.uuid) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointDamaged, match=r"changed on disk \(model\.safetensors\)"):
        services.promote_checkpoint(project=project, checkpoint=damaged)
    assert services.current_policy(project) == policy


def test_sampling_asks_for_the_prompts_with_the_fewest_pairs(project, policy, make_prompt):
    prompts = [make_prompt() for _ in range(4)]
    batch = services.request_samples(project=project, pairs=10)
    assert sorted(batch.prompt_ids) == sorted(prompt.pk for prompt in prompts)
    with pytest.raises(Rejected, match="already writing pairs"):
        services.request_samples(project=project, pairs=1)


def test_a_prompt_that_was_refused_is_asked_again_with_another_decoding(project, policy, make_prompt):
    prompt = make_prompt()
    narrow = Decoding(temperature=0.05, max_new_tokens=1)
    batch = services.request_samples(project=project, pairs=1, decoding=narrow)
    SampleRefusal.objects.create(batch=batch, prompt=prompt, reason="Always the same answer.")
    SampleBatch.objects.update(state=Job.State.SUCCEEDED)
    with pytest.raises(Rejected, match="base could write no pair for any prompt"):
        services.request_samples(project=project, pairs=1, decoding=narrow)
    assert services.request_samples(project=project, pairs=1).prompt_ids == [prompt.pk]


def test_the_counts_of_a_snapshot_follow_what_gives_no_triple(project, policy, label):
    label(10)
    snapshot, _ = snapshots.freeze_snapshot(project=project)
    label(7, choice="tie")
    again, _ = snapshots.freeze_snapshot(project=project)
    assert again == snapshot
    assert (snapshot.ties, again.ties) == (0, 7)


def test_split_votes_are_not_new_triples(project, policy, label, judge, other_annotator):
    project.judgements_per_pair = 2
    project.save()
    pairs = label(4)
    for pair in pairs[:3]:
        pair.project.judgements_per_pair = 2
        judge(pair, other_annotator, "b")
    assert services.count_new_triples(project, 0) == 1


def test_continuing_an_adapter_records_the_rank_it_is_trained_at(project, policy, label, make_checkpoint):
    label(10)
    first = services.request_run(project=project, recipe=Recipe(lora_rank=4, lora_alpha=8))
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    TrainingRun.objects.filter(pk=first.pk).update(state=Job.State.SUCCEEDED, checkpoint=adapter)
    second = services.request_run(project=project, recipe=Recipe(), reference=adapter)
    assert (second.recipe["lora_rank"], second.recipe["lora_alpha"]) == (4, 8)


def test_continuing_an_adapter_keeps_the_layers_that_it_has(project, policy, label, make_checkpoint):
    """An adapter of the fast mode has matrices in upper layers alone, so that "exact" would train no others."""
    label(10)
    fast = services.request_run(project=project, recipe=Recipe(mode="fast", fast_layers=2))
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    TrainingRun.objects.filter(pk=fast.pk).update(state=Job.State.SUCCEEDED, checkpoint=adapter)
    again = services.request_run(project=project, recipe=Recipe(), reference=adapter)
    assert (again.recipe["mode"], again.recipe["fast_layers"]) == ("fast", 2)
    services.cancel_job(job=again)
    full = services.request_run(project=project, recipe=Recipe(method="full"), reference=adapter)
    assert full.recipe["mode"] == "exact", "the adapter is folded in, and every weight can move"


def test_continuing_an_adapter_of_an_earlier_version(project, policy, label, make_checkpoint):
    label(10)
    first = services.request_run(project=project, recipe=Recipe())
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    TrainingRun.objects.filter(pk=first.pk).update(
        state=Job.State.SUCCEEDED, checkpoint=adapter, recipe={"method": "lora", "lora_rank": 4, "lora_alpha": 8}
    )
    recipe = services.continued(Recipe(mode="fast"), adapter)
    assert (recipe.mode, recipe.lora_rank, recipe.lora_alpha) == ("exact", 4, 8)


def test_several_processes_are_refused_where_training_is_on_a_cpu(project, policy, label, settings):
    label(10)
    settings.ENGINE_DEVICE = "cpu"
    with pytest.raises(Rejected, match=r"2 GPUs was asked for.*on the CPU.*Leave GPUs at 1"):
        services.request_run(project=project, recipe=Recipe(processes=2))
    assert services.request_run(project=project, recipe=Recipe(processes=0)).recipe["processes"] == 0
    TrainingRun.objects.update(state=Job.State.CANCELLED)
    settings.ENGINE_DEVICE = "auto"
    assert services.request_run(project=project, recipe=Recipe(processes=2)).recipe["processes"] == 2


def test_fsdp_and_the_fast_mode_do_not_go_together(project, policy, label, make_checkpoint):
    label(10)
    recipe = Recipe(mode="fast", sharding="fsdp", processes=2)
    with pytest.raises(Rejected, match="which a model that FSDP shares out cannot do"):
        services.request_run(project=project, recipe=recipe)
    run = services.request_run(project=project, recipe=Recipe(mode="fast", fast_layers=2))
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    TrainingRun.objects.filter(pk=run.pk).update(checkpoint=adapter, state=Job.State.SUCCEEDED)
    with pytest.raises(Rejected, match="is trained on in the fast mode"):
        services.request_run(project=project, recipe=Recipe(sharding="fsdp", processes=2), reference=adapter)
    assert TrainingRun.objects.count() == 1


def test_more_layers_than_the_model_has_are_refused(project, policy, label, make_checkpoint):
    (store.checkpoint_dir(policy.uuid) / "config.json").write_text(json.dumps(CONFIG))
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    label(10)
    for reference in (policy, adapter):
        with pytest.raises(Rejected, match="is to train 31 layers, and the model has 30"):
            services.request_run(project=project, recipe=Recipe(mode="fast", fast_layers=31), reference=reference)
    services.request_run(project=project, recipe=Recipe(fast_layers=31))


@pytest.mark.parametrize("pairs", [0, -3, 5000])
def test_the_number_of_pairs_is_bounded(project, policy, make_prompt, pairs):
    make_prompt()
    with pytest.raises(Rejected, match="1 to 2,000"):
        services.request_samples(project=project, pairs=pairs)


def test_a_run_moves_the_watermark(project, policy, label):
    rule = services.loop_rule(project)
    label(10)
    assert services.count_new_triples(project, rule.trained_preference_id) == 10
    _request(project)
    rule = LoopRule.objects.get(pk=rule.pk)
    assert services.count_new_triples(project, rule.trained_preference_id) == 0
