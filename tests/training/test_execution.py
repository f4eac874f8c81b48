"""What a worker writes for an engine, and what it keeps of what the engine writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from django.conf import settings

from labeling.models import Prompt
from training import services, store
from training.exceptions import JobFailed
from training.execution import PROBES, Sampling, Training
from training.jobspec import PromptLine, Result, SampledPair, SampledResponse, SampleJob, TrainJob, read_job
from training.models import Job, PairOrigin, SampleBatch, TrainingRun
from training.recipe import Recipe
from training.rundir import RunDir


@pytest.fixture
def batch(project, policy, make_prompt) -> SampleBatch:
    make_prompt()
    batch = services.request_samples(project=project, pairs=1)
    assert batch.claim("worker")
    RunDir.of(batch.uuid).make()
    return batch


@pytest.fixture
def start(project, policy, label):
    """Ask for a run and let a worker prepare it."""

    def start(recipe: Recipe | None = None, **values) -> Training:
        label(10)
        run = services.request_run(project=project, recipe=recipe or Recipe(), **values)
        assert run.claim("worker")
        RunDir.of(run.uuid).make()
        work = Training(run, RunDir.of(run.uuid))
        assert work.prepare()
        return work

    return start


def _job(work: Training) -> TrainJob:
    return read_job(work.run_dir.path, TrainJob)


def _probes(work: Training) -> list[PromptLine]:
    lines = work.run_dir.probes.read_text().splitlines()
    return [PromptLine.from_dict(json.loads(line)) for line in lines]


def test_the_engine_is_told_the_recipe_the_cache_and_nothing_about_labels(start, settings, tmp_path):
    settings.CACHE_DIR, settings.CACHE_MB = tmp_path / "cache", 7
    job = _job(start(Recipe(mode="fast", fast_layers=3, loss="ipo", sft_weight=0.5, ties="half", processes=2)))
    assert (job.mode, job.fast_layers, job.loss, job.sft_weight, job.processes) == ("fast", 3, "ipo", 0.5, 2)
    assert (job.cache_dir, job.cache_mb, job.micro_batch) == (str(tmp_path / "cache"), 7, 0)


def test_a_run_asked_for_by_an_earlier_version_is_prepared(start):
    work = start()
    earlier = {name: work.job.recipe[name] for name in ("method", "beta", "epochs", "lora_rank")} | {"micro_batch": 1}
    TrainingRun.objects.filter(pk=work.job.pk).update(recipe=earlier)
    again = Training(TrainingRun.objects.get(pk=work.job.pk), work.run_dir)
    assert again.prepare()
    assert (_job(again).micro_batch, _job(again).loss) == (1, "dpo")


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_snapshot_is_not_trained_on(start, damage):
    work = start()
    path = store.snapshot_path(work.job.snapshot.sha256)
    content = bytearray(path.read_bytes())
    path.chmod(0o600)
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(JobFailed, match=f"{work.job.snapshot.short_hash} is missing or was changed on disk") as caught:
        Training(work.job, work.run_dir).prepare()
    assert caught.value.code == "snapshot_damaged"
    assert "freezes a new snapshot" in caught.value.hint


def test_the_first_policy_is_told_only_where_the_reference_is_another(project, policy, start, make_checkpoint):
    job = _job(start())
    assert (job.first, job.first_is_reference) == (None, True)
    TrainingRun.objects.update(state=Job.State.CANCELLED)
    other = make_checkpoint("other", project=project, kind="dpo", parent=policy)
    job = _job(start(reference=other))
    assert job.reference.base_hash == other.content_hash
    assert job.first is not None
    assert job.first.base_hash == policy.content_hash
    assert not job.first_is_reference


def test_a_first_policy_of_another_family_is_nothing_to_measure_from(project, policy, start, make_checkpoint):
    """The two have other tokens, and a KL between different vocabularies fails."""
    stranger = make_checkpoint("another family")
    child = make_checkpoint("child", project=project, kind="dpo", base=stranger, parent=stranger)
    grandchild = make_checkpoint("grandchild", project=project, kind="dpo", base=stranger, parent=child)
    for reference in (stranger, child, grandchild):
        job = _job(start(reference=reference))
        assert (job.first, job.first_is_reference) == (None, False)
        TrainingRun.objects.update(state=Job.State.CANCELLED)


def test_the_first_policy_is_found_however_far_back_it_is(project, policy, start, make_checkpoint):
    full = make_checkpoint("full", project=project, kind="dpo", parent=policy)
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=full, parent=full)
    again = make_checkpoint("again", project=project, kind="dpo", base=full, parent=adapter)
    assert _job(start(reference=again)).first.base_hash == policy.content_hash


def test_a_damaged_first_policy_costs_no_run(project, policy, start, make_checkpoint, caplog):
    full = make_checkpoint("full", project=project, kind="dpo", parent=policy)
    (store.checkpoint_dir(policy.uuid) / "model.safetensors").write_bytes(b"other")
    job = _job(start(reference=full))
    assert (job.first, job.first_is_reference) == (None, False)
    assert "does without the first policy" in caplog.text
    TrainingRun.objects.update(state=Job.State.CANCELLED)
    shutil.rmtree(store.checkpoint_dir(policy.uuid))
    assert _job(start(reference=full)).first is None


def test_no_checkpoint_is_read_twice_for_one_run(project, policy, start, make_checkpoint, monkeypatch):
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    read, verify = [], store.verify
    monkeypatch.setattr(store, "verify", lambda uuid, *hashes: read.append(uuid) or verify(uuid, *hashes))
    job = _job(start(reference=adapter))
    assert sorted(read) == sorted([policy.uuid, adapter.uuid])
    assert job.first.base_dir == job.reference.base_dir == str(store.checkpoint_dir(policy.uuid))
    assert (job.first.adapter_dir, job.reference.adapter_hash) == (None, adapter.content_hash)


def test_probes_are_held_out_prompts_in_the_order_of_their_hashes(start, make_prompt):
    for _ in range(PROBES + 3):
        make_prompt(held_out=True)
    probes = _probes(start())
    held_out = Prompt.objects.filter(is_held_out=True).order_by("content_hash")
    assert [probe.prompt_id for probe in probes] == [str(prompt.pk) for prompt in held_out[:PROBES]]
    assert probes[0].messages == held_out[0].messages


def test_a_run_that_goes_on_keeps_its_probes(start, make_prompt):
    work = start()
    before = _probes(work)
    for _ in range(PROBES + 5):
        make_prompt(held_out=True)
    work.prepare()
    assert _probes(work) == before


def test_a_project_without_held_out_prompts_has_no_probes(start):
    work = start()
    work.run_dir.probes.unlink()
    Prompt.objects.filter(is_held_out=True).delete()
    work.prepare()
    assert _probes(work) == []


def test_probes_go_with_the_other_inputs_once_the_checkpoint_is_there(start):
    work = start(Recipe(method="full"))
    work.run_dir.checkpoint.mkdir()
    (work.run_dir.checkpoint / "model.safetensors").write_bytes(b"weights")
    work.publish(Result(ok=True, details={"mode": "exact"}))
    work.job.refresh_from_db()
    assert work.job.state == Job.State.SUCCEEDED
    assert not work.run_dir.probes.exists()
    assert not work.run_dir.dataset.exists()


def test_the_counter_of_one_phase_is_not_that_of_the_next(start):
    work = start()
    lines = [
        {"phase": "reading reference", "done": 3, "total": 9},
        {"phase": "training", "at": 1.0},
        {"phase": "training", "memory": {"micro_batch": 4}},
    ]
    work.run_dir.metrics.write_text(json.dumps(lines[0]) + "\n")
    assert work.tick() == lines[0]
    work.run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert work.tick() == {"phase": "training", "at": 1.0, "memory": {"micro_batch": 4}}


def _sampled(batch: SampleBatch, **kept) -> RunDir:
    run_dir = RunDir.of(batch.uuid)
    responses = [
        SampledResponse("One", [1, 2], "stop", 7, logps=kept.get("logps_a", [])),
        SampledResponse("Two", [1, 3, 4], "length", 8, logps=kept.get("logps_b", [])),
    ]
    prompt_ids = kept.get("prompt_token_ids", [])
    pair = SampledPair(str(batch.prompt_ids[0]), responses=responses, prompt_token_ids=prompt_ids)
    run_dir.samples.write_text(pair.to_json() + "\n")
    return run_dir


def test_what_the_sampler_kept_is_stored_with_the_pair(batch):
    kept = {"prompt_token_ids": [9, 8, 7], "logps_a": [-0.25, -1.5], "logps_b": [-3.0, -0.5, -0.125]}
    work = Sampling(batch, _sampled(batch, **kept))
    work.prepare()
    work.tick()
    origin = PairOrigin.objects.get()
    assert {name: getattr(origin, name) for name in kept} == kept
    assert origin.pair.response_a.token_ids == [1, 2]


def test_a_promotion_while_pairs_are_written_stops_the_batch_and_the_new_policys_come_first(
    batch, project, make_checkpoint
):
    work = Sampling(batch, _sampled(batch))
    work.prepare()
    services.promote_checkpoint(project=project, checkpoint=make_checkpoint("better", project=project, kind="dpo"))
    batch.refresh_from_db()
    assert batch.state == Job.State.RUNNING
    assert batch.cancel_requested_at, "its worker is told"
    work.tick()  # what was written before the engine has ended is kept
    newer = SampleBatch.objects.exclude(pk=batch.pk).get()
    assert newer.claim("worker")
    RunDir.of(newer.uuid).make()
    after = Sampling(newer, _sampled(newer))
    after.prepare()
    after.tick()
    old, new = PairOrigin.objects.select_related("pair").order_by("pk")
    assert (old.policy.name, new.policy.name) == ("base", "better")
    assert new.pair.slots.get().priority > old.pair.slots.get().priority


@pytest.mark.parametrize("logps", [[], [-0.25], [-0.25, float("nan")], [-0.25, float("-inf")]])
def test_log_probabilities_that_do_not_fit_the_tokens_are_not_kept(batch, logps):
    work = Sampling(batch, _sampled(batch, logps_a=logps, logps_b=[-1.0, -1.0, -1.0]))
    work.prepare()
    work.tick()
    origin = PairOrigin.objects.get()
    assert (origin.logps_a, origin.logps_b) == ([], [-1.0, -1.0, -1.0])


@pytest.fixture
def server(settings):
    """An inference server that holds the weights of a checkpoint: ``server(its name or hash)``."""

    def holds(named: str) -> None:
        settings.SAMPLING_SERVER_URL, settings.SAMPLING_SERVER_MODEL = "http://127.0.0.1:8000/v1", "smol"
        settings.SAMPLING_SERVER_CHECKPOINT = named

    return holds


def _sample_job(batch: SampleBatch) -> SampleJob:
    work = Sampling(batch, RunDir.of(batch.uuid))
    work.prepare()
    return read_job(work.run_dir.path, SampleJob)


def test_pairs_are_written_here_or_by_the_server_that_the_settings_name(batch, policy, server):
    assert _sample_job(batch).backend == "local"
    for named in (policy.name, policy.content_hash, policy.short_hash):
        server(named)
        job = _sample_job(batch)
        assert (job.backend, job.server_url, job.server_model) == ("server", "http://127.0.0.1:8000/v1", "smol")


@pytest.mark.parametrize("named", ["another", "b", ""])
def test_a_server_that_holds_other_weights_writes_no_pair_of_this_policy(batch, server, named):
    server(named)
    assert _sample_job(batch).backend == "local"


def test_a_server_writes_for_the_adapters_on_its_weights_and_not_for_full_fine_tunings(
    batch, project, policy, server, make_checkpoint
):
    server(policy.name)
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    full = make_checkpoint("full", project=project, kind="dpo", parent=policy)
    on_full = make_checkpoint("on full", project=project, kind="dpo", base=full, parent=full)
    for written, backend in ((adapter, "server"), (full, "local"), (on_full, "local")):
        batch.policy = written
        assert _sample_job(batch).backend == backend, written


SERVER = {"TIEBREAK_SAMPLING_SERVER_URL": "http://127.0.0.1:8000/v1"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (SERVER, "TIEBREAK_SAMPLING_SERVER_MODEL must say under which name"),
        (SERVER | {"TIEBREAK_SAMPLING_SERVER_MODEL": "smol"}, "TIEBREAK_SAMPLING_SERVER_CHECKPOINT must say by name"),
        ({"TIEBREAK_CACHE_MB": "-1"}, "TIEBREAK_CACHE_MB is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_the_start(environment, values, reason):
    command = [sys.executable, "-c", "import config.settings"]
    environment |= values
    done = subprocess.run(command, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert reason in done.stderr
