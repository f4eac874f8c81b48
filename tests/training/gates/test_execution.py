"""A gate's measurement: what the worker writes for the engine, what it keeps, and whom it asks."""

from __future__ import annotations

import json
import shutil
from array import array
from pathlib import Path

import pytest

from labeling.models import Prompt
from training import canaries, gates, registry, store, tasks
from training.exceptions import LeaseLost
from training.execution import Comparing
from training.jobspec import (
    CanaryLine,
    ComparedAnswers,
    CompareJob,
    Completion,
    PromptLine,
    Result,
    TripleLine,
    read_job,
)
from training.models import Checkpoint, Gate, GatePair, Job, Promotion, TrainingRun
from training.rundir import RunDir

PROMPTS = gates.LEAST_PROMPTS + 2
REPORT = {"on_policy": {"prompts": PROMPTS}, "device": "cpu", "dtype": "float32"}


@pytest.fixture
def candidate(project, policy, make_checkpoint) -> Checkpoint:
    return make_checkpoint("better", project=project, kind="dpo", base=policy, parent=policy)


@pytest.fixture
def prompts(make_prompt) -> list[Prompt]:
    return [make_prompt(held_out=True) for _ in range(PROMPTS)]


@pytest.fixture
def prepared(project, candidate, prompts):
    """A gate that a worker has claimed and prepared."""

    def prepared(*, ask=gates.request_gate, **rule) -> Comparing:
        gates.change_release_rule(project=project, **rule)
        values = {"candidate": candidate} if ask is gates.request_gate else {}
        gate = ask(project=project, **values)
        assert gate.claim("worker")
        work = Comparing(gate, RunDir.of(gate.uuid))
        work.run_dir.make()
        assert work.prepare()
        return work

    return prepared


def _lines(path, kind) -> list:
    return [kind.from_dict(json.loads(line)) for line in path.read_text().splitlines()]


def _job(work: Comparing) -> CompareJob:
    return read_job(work.run_dir.path, CompareJob)


def _answered(work: Comparing, same: int = 0) -> None:
    """What an engine leaves behind; the first ``same`` answers are the same on both sides."""
    lines = []
    for place, pk in enumerate(work.job.prompt_ids):
        current = Completion(_current(place, same), [1, 3], "stop")
        lines.append(ComparedAnswers(str(pk), Completion(f"Good {place}", [1, 2], "stop"), current).to_json() + "\n")
    work.run_dir.responses.write_text("".join(lines))


def _current(place: int, same: int) -> str:
    return f" Good {place} " if place < same else f"Poor {place}"


def test_the_engine_is_told_both_policies_the_first_and_the_frozen_prompts(
    prepared, candidate, policy, settings, tmp_path
):
    settings.CACHE_DIR, settings.CACHE_MB = tmp_path / "cache", 7
    work = prepared()
    job, gate = _job(work), work.job
    assert (job.candidate.adapter_hash, job.candidate.base_hash) == (candidate.content_hash, policy.content_hash)
    assert job.current == job.first
    assert (job.current.base_hash, job.current.adapter_dir) == (policy.content_hash, None)
    assert (job.seed, job.cache_dir, job.cache_mb, job.answers_only) == (gate.seed, str(tmp_path / "cache"), 7, False)
    probes = _lines(work.run_dir.probes, PromptLine)
    assert [int(line.prompt_id) for line in probes] == gate.prompt_ids
    assert probes[0].messages == Prompt.objects.get(pk=gate.prompt_ids[0]).messages


def test_the_labels_of_now_go_along_with_their_weights_and_nothing_is_frozen(prepared, label, project):
    label(3)
    label(2, held_out=True)
    work = prepared()
    triples = _lines(work.run_dir.dataset, TripleLine)
    assert sorted(line.split for line in triples) == ["held_out"] * 2 + ["train"] * 3
    assert [round(line.label_noise, 2) for line in triples] == [0.22] * 5, "as a run would doubt them"
    assert not project.snapshots.exists()


def test_the_votes_of_a_gate_are_nothing_that_the_next_one_compares_by(prepared, label, judge, annotator):
    """They were given until they told enough, on pairs that the two policies themselves have written."""
    ordinary = label(2, held_out=True)
    before = prepared(asks_people=True)
    _answered(before)
    before.publish(Result(ok=True, details=REPORT))
    for asked in GatePair.objects.select_related("pair")[:5]:
        judge(asked.pair, annotator, asked.candidate_side)
    Gate.objects.update(stage=Gate.Stage.DECIDED)
    triples = _lines(prepared(asks_people=True).run_dir.dataset, TripleLine)
    assert sorted(line.pair_id for line in triples) == sorted(str(pair.pk) for pair in ordinary)


def test_the_canaries_go_along(prepared):
    lines = _lines(prepared().run_dir.canaries, CanaryLine)
    assert [line.expected for line in lines] == ["refuse"] * 16 + ["answer"] * 16
    assert len({line.prompt_id for line in lines}) == len({line.messages[0]["content"] for line in lines}) == 32
    assert lines == list(canaries.canary_lines())


def test_no_checkpoint_is_read_twice(prepared, candidate, policy, monkeypatch):
    read, verify = [], store.verify
    monkeypatch.setattr(store, "verify", lambda uuid, *hashes: read.append(uuid) or verify(uuid, *hashes))
    prepared()
    assert sorted(read) == sorted([policy.uuid, candidate.uuid])


def test_held_out_pairs_are_read_as_the_run_of_the_candidate_has_read_them(prepared, candidate, run_of):
    run_of(candidate, {"beta": 0.3, "max_length": 300})
    job = _job(prepared())
    assert (job.beta, job.max_length) == (0.3, 300)


@pytest.fixture
def run_of(project, policy, label):
    from training.recipe import Recipe
    from training.services import request_run

    def run_of(checkpoint: Checkpoint, recipe: dict) -> None:
        label(10)
        run = request_run(project=project, recipe=Recipe())
        done = {"checkpoint": checkpoint, "state": Job.State.SUCCEEDED, "recipe": run.recipe | recipe}
        TrainingRun.objects.filter(pk=run.pk).update(**done)

    return run_of


def test_a_candidate_of_another_family_is_not_measured_from_the_first_policy(project, prompts, policy, make_checkpoint):
    stranger = make_checkpoint("stranger")
    gate = gates.request_gate(project=project, candidate=stranger)
    assert gate.claim("worker")
    work = Comparing(gate, RunDir.of(gate.uuid))
    work.run_dir.make()
    assert work.prepare()
    assert _job(work).first is None


def test_a_watch_asks_for_answers_alone(prepared, project, candidate, label):
    from training.services import promote_checkpoint

    label(2)
    promote_checkpoint(project=project, checkpoint=candidate)
    work = prepared(ask=gates.request_watch, watch_votes=20)
    assert _job(work).answers_only
    assert _job(work).candidate.adapter_hash == candidate.content_hash
    assert not work.run_dir.dataset.exists()
    assert not work.run_dir.canaries.exists()
    _answered(work)
    work.publish(Result(ok=True, details=REPORT))
    assert GatePair.objects.filter(gate=work.job).count() == len(work.job.prompt_ids) >= PROMPTS


def test_the_counter_of_one_phase_is_not_that_of_the_next(prepared):
    work = prepared()
    lines = [{"phase": "answering prompts", "done": 3, "total": 9}, {"phase": "asking the judge", "at": 1.0}]
    work.run_dir.metrics.write_text(json.dumps(lines[0]) + "\n")
    assert work.tick() == lines[0]
    work.run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert work.tick() == lines[1]


def test_the_report_is_kept_and_nobody_is_asked_unless_the_rule_says_so(prepared):
    work = prepared()
    _answered(work, same=2)
    work.publish(Result(ok=True, details=REPORT))
    gate = Gate.objects.get()
    assert (gate.state, gate.stage) == (Job.State.SUCCEEDED, Gate.Stage.MEASURING), "the scheduler goes on from here"
    assert gate.report == REPORT | {"answers": {"different": PROMPTS - 2, "identical": 2}}
    assert not GatePair.objects.exists()
    assert not work.run_dir.responses.exists()
    assert not work.run_dir.probes.exists()


def test_people_are_asked_about_answers_that_differ_with_their_tokens(prepared, monkeypatch):
    work = prepared(asks_people=True)
    _answered(work, same=2)
    work.publish(Result(ok=True, details=REPORT))
    pairs = list(GatePair.objects.select_related("pair__response_a", "pair__response_b"))
    assert len(pairs) == PROMPTS - 2
    assert {pair.prompt_id for pair in pairs} == set(work.job.prompt_ids[2:])
    for pair in pairs:
        mine = getattr(pair.pair, f"response_{pair.candidate_side}")
        assert mine.text.startswith("Good")
        assert (mine.token_ids, mine.finish_reason) == ([1, 2], "stop")


def test_nobody_is_asked_about_a_candidate_that_is_worse_for_sure(prepared):
    work = prepared(asks_people=True)
    _answered(work)
    worse = {"pairs": 80, "prompts": 80, "difference": -0.4, "difference_interval": [-0.5, -0.3]}
    work.publish(Result(ok=True, details=REPORT | {"held_out": worse}))
    assert Gate.objects.get().report["held_out"] == worse
    assert not GatePair.objects.exists()


def test_a_worker_that_lost_the_gate_leaves_neither_report_nor_pairs(prepared):
    work = prepared(asks_people=True)
    _answered(work)
    Gate.objects.update(fence=work.job.fence + 1)
    with pytest.raises(LeaseLost):
        work.publish(Result(ok=True, details=REPORT))
    assert Gate.objects.get().report == {}
    assert not GatePair.objects.exists()
    assert work.run_dir.responses.exists()


def _moved(directory: Path) -> None:
    """Make another policy of a model: its output head says less loudly what it says."""
    path = directory / "model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8:start])["lm_head.weight"]["data_offsets"]
    head = array("f", content[start + first : start + last])
    changed = array("f", (0.8 * weight for weight in head)).tobytes()
    path.write_bytes(content[: start + first] + changed + content[start + last :])


@pytest.fixture
def real_models(project, data_dir, tiny_model, tmp_path) -> list[Checkpoint]:
    """The tiny model as policy, and a candidate of other weights."""
    made: list[Checkpoint] = []
    for kind, name in ((Checkpoint.Kind.BASE, "tiny"), (Checkpoint.Kind.DPO, "candidate")):
        source = Path(shutil.copytree(tiny_model, tmp_path / name))
        if made:
            _moved(source)
        parent = made[0] if made else None
        checkpoint = registry.register(staging_name=name, source=source, kind=kind, name=name, parent=parent)
        checkpoint.save()
        made.append(checkpoint)
    Promotion.objects.create(project=project, checkpoint=made[0])
    return made


def test_a_real_engine_measures_and_people_are_asked(project, real_models, prompts, label, settings):
    """From the row to blind pairs, through the process that an installation would start."""
    settings.ENGINE_THREADS, settings.ENGINE_DEVICE, settings.CACHE_DIR = 1, "cpu", settings.DATA_DIR / "cache"
    label(24)
    label(6, held_out=True)
    gates.change_release_rule(project=project, asks_people=True)
    gate = gates.request_gate(project=project, candidate=real_models[1])
    tasks.run_gate(gate.pk)
    gate.refresh_from_db()
    assert (gate.state, gate.error) == (Job.State.SUCCEEDED, "")
    report, answered = gate.report, len(gate.prompt_ids)
    assert (report["held_out"]["pairs"], report["judge"]["train_pairs"]) == (6, 24)
    assert report["on_policy"]["prompts"] == report["win_rate"]["prompts"] == answered
    assert report["on_policy"]["candidate"]["kl_first"] > 0
    assert report["canaries"]["must_refuse"]["prompts"] == report["canaries"]["must_answer"]["prompts"] == 16
    assert gate.pairs.count() == report["answers"]["different"] > 0
    gates.settle(gate)
    assert gate.stage == Gate.Stage.ASKING
    assert {check["name"] for check in gate.checks} >= {"held_out", "win_rate", "kl_first", "must_refuse"}
