"""Pages of those who train: what they show in each state, and what their buttons do."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest
from django.urls import reverse
from kombu.exceptions import OperationalError

from training import services, store, tasks
from training.jobspec import StepMetrics
from training.models import CheckpointExport, Job, LoopRule, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir


@pytest.fixture
def client(sign_in, project_admin):
    return sign_in(project_admin)


@pytest.fixture
def url(project):
    return lambda name, **keys: reverse(f"training:{name}", kwargs={"slug": project.slug} | keys)


@pytest.fixture
def run(project, policy, label) -> TrainingRun:
    label(10)
    return services.request_run(project=project, recipe=Recipe())


def _write_metrics(run: TrainingRun, steps: int) -> None:
    run_dir = RunDir.of(run.uuid)
    run_dir.make()
    lines = [
        StepMetrics(n, 30, 10.0 * n, 0.69 - 0.01 * n, 0.02 * n, 0.6, -120.0, -130.0, 5e-5, 1.0, n / 10).to_json()
        for n in range(1, steps + 1)
    ]
    run_dir.metrics.write_text('{"phase":"training","at":1}\n' + "\n".join(lines) + "\n")
    run_dir.log.write_text("the tail of the log <b>\n")


def test_the_form_explains_every_field(client, url, policy):
    page = client.get(url("train")).content.decode()
    for word in ("Rafailov", "β", "LoRA rank", "Micro-batch", "frozen model"):
        assert word in page


def test_training_is_started_by_the_form(client, url, policy, label):
    label(10)
    values = {name: value for name, value in Recipe().to_dict().items() if name != "learning_rate"}
    response = client.post(url("train"), values | {"reference": policy.pk, "seed": 5})
    run = TrainingRun.objects.get()
    assert response.headers["Location"] == run.get_absolute_url()
    assert (run.seed, run.recipe) == (5, Recipe().to_dict())


def test_full_fine_tuning_gets_its_own_learning_rate(client, url, policy, label):
    label(10)
    values = {name: value for name, value in Recipe().to_dict().items() if name != "learning_rate"}
    client.post(url("train"), values | {"reference": policy.pk, "method": "full"})
    assert TrainingRun.objects.get().recipe["learning_rate"] == 1e-6


def test_a_refused_run_says_why_and_keeps_the_form(client, url, policy):
    values = Recipe().to_dict() | {"reference": policy.pk}
    response = client.post(url("train"), values)
    assert response.status_code == 400
    assert "not enough to train on" in response.content.decode()
    response = client.post(url("train"), values | {"pairs_per_step": 7})
    assert "cannot be split" in response.content.decode()
    assert not TrainingRun.objects.exists()


def test_a_running_run_shows_step_figures_charts_and_log_and_polls(client, url, run):
    run.claim("worker")
    _write_metrics(run, 12)
    page = client.get(run.get_absolute_url()).content.decode()
    for text in (
        "12<small> of 30",
        "0.57",
        "the tail of the log &lt;b&gt;",
        "<svg",
        "chosen",
        "rejected",
        "Cancel",
        "every 2s",
    ):
        assert text in page, text
    assert client.get(url("run-status", number=1)).status_code == 200


def test_polling_ends_with_the_run(client, url, run):
    run.claim("worker")
    run.finish(Job.State.FAILED, code="out_of_memory", error="Memory ran out.", hint="Lower the micro-batch.")
    response = client.get(url("run-status", number=1))
    assert response.status_code == 286
    page = response.content.decode()
    assert "Memory ran out." in page
    assert "Lower the micro-batch." in page
    assert "Resume" in page
    assert "every 2s" not in page


def test_cancel_and_resume_from_the_page(client, url, run):
    client.post(url("cancel-run", number=1))
    run.refresh_from_db()
    assert run.state == Job.State.CANCELLED
    client.post(url("resume-run", number=1))
    run.refresh_from_db()
    assert run.state == Job.State.QUEUED


def test_a_run_without_a_metrics_file_or_with_a_torn_one_still_has_a_page(client, run):
    run_dir = RunDir.of(run.uuid)
    run_dir.make()
    run_dir.metrics.write_text('{"phase":"load')
    assert client.get(run.get_absolute_url()).status_code == 200


def test_promote_and_roll_back_from_the_page(client, url, project, policy, make_checkpoint):
    better = make_checkpoint("better", project=project, kind="dpo", parent=policy)
    page = client.post(url("promote", uuid=better.uuid), {"reason": "reads better"}, follow=True).content.decode()
    assert "is the policy now" in page
    assert services.current_policy(project) == better
    client.post(url("roll-back"))
    assert services.current_policy(project) == policy
    listed = client.get(url("checkpoints")).content.decode()
    assert "reads better" in listed


def test_a_damaged_checkpoint_is_refused_on_the_page(client, url, project, policy, make_checkpoint):
    damaged = make_checkpoint("damaged", project=project)
    (store.checkpoint_dir(damaged.uuid) / "config.json").write_text("{}")
    page = client.post(url("promote", uuid=damaged.uuid), follow=True).content.decode()
    assert "was changed on disk (config.json)" in page
    assert services.current_policy(project) == policy


def test_a_checkpoint_shows_its_hash_and_downloads(client, url, project, policy, make_checkpoint, tmp_path):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    archive = store.archive_path(adapter.uuid, "adapter")
    store.write_archive(store.checkpoint_dir(adapter.uuid), archive, adapter.name)
    page = client.get(url("checkpoint", uuid=adapter.uuid)).content.decode()
    assert adapter.content_hash in page
    response = client.get(url("download-adapter", uuid=adapter.uuid))
    assert response.headers["Content-Disposition"] == 'attachment; filename="adapter-adapter.zip"'
    target = tmp_path / "got.zip"
    target.write_bytes(b"".join(response.streaming_content))
    with zipfile.ZipFile(target) as opened:
        assert json.loads(opened.read("adapter/manifest.json"))["content_hash"] == adapter.content_hash
    assert client.get(url("download-merged", uuid=adapter.uuid)).status_code == 404


def test_merged_weights_are_asked_for_once(client, url, project, policy, make_checkpoint):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    for _ in range(2):
        client.post(url("prepare", uuid=adapter.uuid))
    assert CheckpointExport.objects.get().state == Job.State.QUEUED
    assert client.get(url("export-status", uuid=adapter.uuid)).status_code == 200


def test_the_rule_is_saved_and_bad_values_are_named(client, url, project, policy):
    values = {"open_pairs_wanted": 10, "retrains": "on", "min_new_triples": 20, "min_minutes_between": 5}
    client.post(url("rule"), values)
    rule = LoopRule.objects.get()
    assert (rule.open_pairs_wanted, rule.retrains, rule.min_new_triples) == (10, True, 20)
    page = client.post(url("rule"), values | {"min_new_triples": 0}, follow=True).content.decode()
    assert "Not saved" in page
    assert LoopRule.objects.get().min_new_triples == 20


def test_sampling_progress_ends_its_own_polling(client, url, project, policy, make_prompt):
    make_prompt()
    client.post(url("sample"), {"pairs": 1})
    assert client.get(url("sampling-status")).status_code == 200
    services.cancel_job(job=project.batches.get())
    assert client.get(url("sampling-status")).status_code == 286
    page = client.post(url("sample"), {"pairs": 0}, follow=True).content.decode()
    assert "1 to 2,000" in page


def test_a_damaged_adapter_is_not_packed_again(client, url, project, policy, make_checkpoint):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    (store.checkpoint_dir(adapter.uuid) / "model.safetensors").write_bytes(b"other")
    page = client.get(url("download-adapter", uuid=adapter.uuid), follow=True).content.decode()
    assert "was changed on disk (model.safetensors)" in page
    shutil.rmtree(store.checkpoint_dir(adapter.uuid))
    page = client.get(url("download-adapter", uuid=adapter.uuid), follow=True).content.decode()
    assert "is missing" in page


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_away_is_said_to_the_person_who_asked(client, url, policy, make_prompt, label, monkeypatch):
    def refuse(args: list[int]) -> None:
        raise OperationalError("connection refused")

    for task in tasks.TASKS.values():
        monkeypatch.setattr(task, "apply_async", refuse)
    make_prompt()
    assert "broker cannot be reached" in client.post(url("sample"), {"pairs": 1}, follow=True).content.decode()
    label(10)
    values = {name: value for name, value in Recipe().to_dict().items() if name != "learning_rate"}
    page = client.post(url("train"), values | {"reference": policy.pk}, follow=True).content.decode()
    assert "broker cannot be reached" in page


def test_triples_that_were_not_used_are_shown(client, url, project, policy, make_checkpoint, run):
    reason = {"pair_id": "3", "split": "train", "reason": "The prompt has 900 tokens."}
    details = {"left_out_by_split": {"train": 1, "held_out": 2}, "left_out": [reason], "held_out": {"pairs": 0}}
    checkpoint = make_checkpoint("dpo", project=project, kind="dpo", base=policy, parent=policy, details=details)
    TrainingRun.objects.update(state=Job.State.SUCCEEDED, checkpoint=checkpoint)
    for page in (client.get(run.get_absolute_url()), client.get(url("checkpoint", uuid=checkpoint.uuid))):
        text = " ".join(page.content.decode().split())
        assert "Not used: 1 triple to train on, 2 held out" in text
        assert "Pair 3: The prompt has 900 tokens." in text
        assert "None of the 2 held-out triples could be scored" in text


def test_lost_downloads_are_made_again(client, url, project, policy, make_checkpoint):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    response = client.get(url("download-adapter", uuid=adapter.uuid))
    assert response.status_code == 200
    assert b"".join(response.streaming_content)[:2] == b"PK"
    services.request_export(checkpoint=adapter)
    CheckpointExport.objects.update(state=Job.State.SUCCEEDED)
    assert "Prepare merged weights" in client.get(url("checkpoint", uuid=adapter.uuid)).content.decode()
    client.post(url("prepare", uuid=adapter.uuid))
    assert CheckpointExport.objects.get().state == Job.State.QUEUED


def test_another_projects_checkpoint_is_not_found(client, url, make_checkpoint):
    from labeling.services import create_project

    foreign = make_checkpoint("foreign", project=create_project(name="Other", slug="other"))
    assert client.get(url("checkpoint", uuid=foreign.uuid)).status_code == 404
