"""Old checkpoints: what is deleted, what never is, and who wins when both are asked for at once."""

from __future__ import annotations

import contextlib
import random
import threading
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.urls import reverse
from django.utils import timezone

from config.tasks import clear_old_checkpoints
from labeling.services import create_project
from training import exports, gates, label_effects, registry, retention, services, side_by_side, store, sweeps
from training.exceptions import CheckpointDamaged, CheckpointRemoved, Rejected
from training.models import (
    Checkpoint,
    Gate,
    HubPush,
    Job,
    LabelEffects,
    Promotion,
    RetentionRule,
    SampleBatch,
    SideBySide,
    Sweep,
    TrainingRun,
)
from training.recipe import Recipe
from training.supervision import JOB_TYPES


@pytest.fixture
def rule(project) -> RetentionRule:
    return RetentionRule.objects.create(project=project, is_on=True, keep_last=1, keep_days=7)


@pytest.fixture
def old(project, policy, make_checkpoint):
    """Make a checkpoint of the project that is older than any rule here keeps one for its age."""

    def old(name: str, **values) -> Checkpoint:
        checkpoint = make_checkpoint(name, project=project, kind="dpo", **({"base": policy, "parent": policy} | values))
        Checkpoint.objects.filter(pk=checkpoint.pk).update(created_at=timezone.now() - timedelta(days=100))
        return checkpoint

    return old


@pytest.fixture
def newest(old):
    """One that is kept for being the newest, so that the others are not."""
    return lambda: old("newest")


def _has_weights(checkpoint: Checkpoint) -> bool:
    return (store.checkpoint_dir(checkpoint.uuid) / "model.safetensors").exists()


def _gone(project) -> set[str]:
    return {each.name for each in Checkpoint.objects.filter(project=project, removed_at__isnull=False)}


def test_weights_and_archives_go_and_what_tells_of_them_stays(project, rule, old, newest):
    checkpoint = old("old")
    exports.adapter_archive(checkpoint)
    store.write_archive(store.checkpoint_dir(checkpoint.uuid), store.archive_path(checkpoint.uuid, "merged"), "merged")
    newest()
    freed = retention.preview(project, rule).total
    assert [each.name for each in retention.clear(project, rule)] == ["old"]
    directory = store.checkpoint_dir(checkpoint.uuid)
    assert {path.name for path in directory.iterdir()} == {"README.md", "config.json", "manifest.json"}
    assert not list((directory.parent.parent / "downloads").iterdir()), "neither archives nor their hashes"
    assert freed > len(b"weights of old") * 3
    checkpoint.refresh_from_db()
    assert checkpoint.removed_at is not None
    assert retention.preview(project, rule).total == 0
    assert retention.clear(project, rule) == []


def test_a_rule_is_off_until_somebody_turns_it_on(project, old, newest):
    old("old")
    newest()
    retention.rule_of(project)
    clear_old_checkpoints()
    assert _gone(project) == set()
    RetentionRule.objects.update(is_on=True, keep_last=1)
    clear_old_checkpoints()
    assert _gone(project) == {"old"}


def test_the_newest_and_the_young_are_kept(project, rule, policy, old, make_checkpoint):
    for name in ("first", "second", "third"):
        old(name)
    make_checkpoint("young", project=project, kind="dpo", base=policy)
    for name in ("fourth", "fifth"):
        old(name)
    rule.keep_last = 2
    reasons = {each.name: why for each, why in retention.preview(project, rule).kept}
    assert reasons == {
        "fourth": "It is one of the newest 2.",
        "fifth": "It is one of the newest 2.",
        "young": "It is younger than 7 days.",
    }


def test_the_policy_and_all_that_a_rollback_can_lead_to_are_kept(project, policy, rule, old, newest):
    chain = [old(name) for name in ("one", "two", "three")]
    for checkpoint in chain:
        services.promote_checkpoint(project=project, checkpoint=checkpoint)
    services.roll_back(project=project)
    newest()
    retention.clear(project, rule)
    assert _gone(project) == {"three"}, "rolled back from, so that nothing leads to it any more"
    services.roll_back(project=project)
    assert services.current_policy(project).name == "one"


def test_the_first_policy_is_kept_whatever_became_of_it(project, rule, make_checkpoint, old, newest):
    Promotion.objects.all().delete()
    first, second = old("first", base=None, parent=None), old("second", base=None, parent=None)
    services.promote_checkpoint(project=project, checkpoint=first)
    services.promote_checkpoint(project=project, checkpoint=second, is_rollback=True)
    newest()
    assert services.policies_behind(project) == [second.pk]
    retention.clear(project, rule)
    assert _gone(project) == set()


def test_what_something_kept_was_made_from_is_kept(project, rule, old):
    full = old("full", base=None)
    middle = old("middle", base=full, parent=full)
    old("unrelated")
    old("leaf", base=full, parent=middle)
    reasons = {each.name: why for each, why in retention.preview(project, rule).kept}
    assert reasons["middle"] == "leaf was trained from it."
    assert reasons["full"] in ("leaf is an adapter on it.", "middle is an adapter on it.")
    retention.clear(project, rule)
    assert _gone(project) == {"unrelated"}


def test_models_of_no_project_are_never_touched(project, rule, make_checkpoint, newest):
    shared = make_checkpoint("shared")
    Checkpoint.objects.update(created_at=timezone.now() - timedelta(days=1000))
    newest()
    retention.clear(project, rule)
    assert _has_weights(shared)


def test_what_a_run_trains_from_is_kept_also_while_it_can_be_resumed(project, rule, old, newest, label):
    reference = old("reference")
    newest()
    label(10)
    run = services.request_run(project=project, recipe=Recipe(), reference=reference)
    kept = {each.name: why for each, why in retention.preview(project, rule).kept}
    assert kept["reference"] == "Run 1 trains from it."
    services.cancel_job(job=run)
    assert retention.clear(project, rule) == []
    TrainingRun.objects.update(finished_at=timezone.now() - timedelta(days=20))
    assert [each.name for each in retention.clear(project, rule)] == ["reference"]
    with pytest.raises(CheckpointRemoved, match="weights of reference were deleted"):
        services.resume_job(job=run)


def _gate(project, candidate, current, **values) -> Gate:
    number = Gate.objects.count() + 1
    return Gate.objects.create(project=project, number=number, candidate=candidate, current=current, rule={}, **values)


def test_an_open_gate_keeps_its_two_and_a_decided_one_does_not(project, rule, old, newest):
    candidate, current = old("candidate"), old("current")
    newest()
    gate = _gate(project, candidate, current, state=Job.State.SUCCEEDED, stage=Gate.Stage.WAITING)
    assert retention.clear(project, rule) == []
    Gate.objects.filter(pk=gate.pk).update(stage=Gate.Stage.DECIDED)
    assert {each.name for each in retention.clear(project, rule)} == {"candidate", "current"}


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_gate_that_can_be_started_again_keeps_its_candidate(
    project, rule, policy, old, newest, state, sign_in, project_admin
):
    candidate = old("candidate")
    newest()
    stopped = {"state": state, "stage": Gate.Stage.DECIDED, "outcome": "hold", "finished_at": timezone.now()}
    gate = _gate(project, candidate, policy, **stopped)
    kept = {each.name: why for each, why in retention.preview(project, rule).kept}
    assert kept["candidate"] == "Gate 1 can be started again, and measures it."
    assert retention.clear(project, rule) == []
    client, button = sign_in(project_admin), 'id="start-again"'
    assert button in client.get(gate.get_absolute_url()).content.decode()
    gates.start_again(gate=gate)
    gate.refresh_from_db()
    assert gate.is_active
    Gate.objects.update(**stopped | {"finished_at": timezone.now() - timedelta(days=20)})
    assert [each.name for each in retention.clear(project, rule)] == ["candidate"]
    assert button not in client.get(gate.get_absolute_url()).content.decode(), "it would be refused"


def test_a_gate_that_is_no_question_any_more_keeps_nothing(project, rule, policy, old, newest, sign_in, project_admin):
    candidate = old("candidate")
    newest()
    gate = _gate(project, candidate, policy, state=Job.State.FAILED, stage="decided", finished_at=timezone.now())
    services.promote_checkpoint(project=project, checkpoint=old("other"))
    newest()
    retention.clear(project, rule)
    assert "candidate" in _gone(project)
    assert 'id="start-again"' not in sign_in(project_admin).get(gate.get_absolute_url()).content.decode()


@pytest.mark.parametrize("job", ["export", "gguf", "push", "side by side", "effects"])
def test_a_job_that_reads_the_weights_keeps_them(project, rule, policy, old, newest, job, settings):
    settings.GGUF_CONVERTER = "convert"
    checkpoint, promoted = old("wanted"), old("promoted")
    newest()
    same = {"project": project, "left": checkpoint, "right": policy, "prompts": [], "decoding": {}}
    promotion = Promotion.objects.create(project=project, checkpoint=promoted)
    Promotion.objects.create(project=project, checkpoint=policy, is_rollback=True)
    made = {
        "export": lambda: exports.request_export(checkpoint=checkpoint),
        "gguf": lambda: exports.request_export(checkpoint=checkpoint, variant="gguf"),
        "push": lambda: exports.request_push(
            project=project, checkpoint=checkpoint, repo_id="some/where", variant="adapter"
        ),
        "side by side": lambda: SideBySide.objects.create(**same),
        "effects": lambda: LabelEffects.objects.create(
            project=project, promotion=promotion, before=checkpoint, pair_ids=[]
        ),
    }[job]()
    expected = {"promoted", "wanted"}
    kept_for_now = {"promoted", "wanted"} if job == "effects" else {"wanted"}
    retention.clear(project, rule)
    assert _gone(project) == expected - kept_for_now
    type(made).objects.update(state=Job.State.SUCCEEDED)
    retention.clear(project, rule)
    assert _gone(project) == expected


def test_the_points_of_a_sweep_wait_for_somebody_to_pick_one(project, rule, policy, old, newest, label):
    label(10)
    run = services.request_run(project=project, recipe=Recipe())
    sweep = Sweep.objects.create(project=project, number=1, snapshot=run.snapshot, reference=policy, recipe={})
    points = [old("point one"), old("point two")]
    TrainingRun.objects.filter(pk=run.pk).update(sweep=sweep, checkpoint=points[0], state=Job.State.SUCCEEDED)
    TrainingRun.objects.create(
        project=project, number=2, snapshot=run.snapshot, reference=policy, recipe={}, sweep=sweep,
        checkpoint=points[1], state=Job.State.SUCCEEDED,
    )  # fmt: skip
    newest()
    Checkpoint.objects.filter(pk=points[1].pk).update(created_at=timezone.now() - timedelta(days=6))
    assert retention.clear(project, rule) == []
    Sweep.objects.update(picked=run)
    assert [each.name for each in retention.clear(project, rule)] == ["point one"]
    Sweep.objects.update(picked=None)
    Checkpoint.objects.filter(pk=points[1].pk).update(created_at=timezone.now() - timedelta(days=8))
    assert [each.name for each in retention.clear(project, rule)] == ["point two"]


def test_whoever_asks_for_removed_weights_is_told_why_there_are_none(project, rule, policy, old, newest, label):
    removed = old("old")
    newest()
    label(10)
    label(10, held_out=True)
    retention.clear(project, rule)
    again = Checkpoint.objects.select_related("base", "project").get(pk=removed.pk)
    asked = [
        lambda: registry.weights_of(again),
        lambda: services.promote_checkpoint(project=project, checkpoint=again),
        lambda: services.promote_checkpoint(project=project, checkpoint=removed),  # as it was before
        lambda: services.request_run(project=project, recipe=Recipe(), reference=removed),
        lambda: exports.request_export(checkpoint=removed),
        lambda: exports.adapter_archive(again),
        lambda: exports.request_push(project=project, checkpoint=removed, repo_id="some/where", variant="adapter"),
        lambda: gates.request_gate(project=project, candidate=removed),
        lambda: sweeps.request_sweep(project=project, recipe=Recipe(), reference=removed),
        lambda: _side_by_side(project, removed, policy),
        lambda: _side_by_side(project, policy, removed),
    ]
    for ask in asked:
        with pytest.raises(Rejected, match=r"old|changed on disk"):
            ask()
    assert removed not in services.usable_checkpoints(project)
    assert removed in services.known_checkpoints(project)
    assert not HubPush.objects.exists()
    assert not TrainingRun.objects.exists()
    assert not Gate.objects.exists()
    assert not SideBySide.objects.exists()


def _side_by_side(project, left: Checkpoint, right: Checkpoint) -> SideBySide:
    return side_by_side.request_side_by_side(project=project, left=left, right=right, prompts=["Why?"])


@pytest.fixture
def ended(project, policy, old):
    """A job of each kind that was cancelled, by what it reads."""

    def ended(kind: str, wanted: Checkpoint) -> Job:
        asked = {"state": Job.State.CANCELLED, "finished_at": timezone.now() - timedelta(days=100), "project": project}
        if kind == "effects":
            promotion = Promotion.objects.create(project=project, checkpoint=policy)
            return LabelEffects.objects.create(promotion=promotion, before=wanted, pair_ids=[], **asked)
        return {
            "gate": lambda: _gate(candidate=wanted, current=policy, stage="decided", **asked),
            "side by side": lambda: SideBySide.objects.create(
                left=policy, right=wanted, prompts=[], decoding={}, **asked
            ),
            "push": lambda: HubPush.objects.create(checkpoint=wanted, variant="adapter", repo_id="a/b", **asked),
            "batch": lambda: SampleBatch.objects.create(policy=wanted, prompt_ids=[], decoding={}, **asked),
        }[kind]()

    return ended


@pytest.mark.parametrize("kind", ["gate", "side by side", "push", "batch", "effects"])
def test_what_has_ended_is_not_started_again_without_its_weights(project, rule, old, newest, ended, kind):
    wanted = old("old")
    newest()
    job = ended(kind, wanted)
    retention.clear(project, rule)
    assert _gone(project) == {"old"}
    again = gates.start_again if kind == "gate" else services.resume_job
    with pytest.raises(CheckpointRemoved, match="The weights of old were deleted"):
        again(**{"gate" if kind == "gate" else "job": job})
    job.refresh_from_db()
    assert job.state == Job.State.CANCELLED


def test_every_kind_of_job_says_what_it_reads_and_the_rule_knows_it():
    assert set(retention.READERS) == set(JOB_TYPES)
    assert all(kind.reads for kind in JOB_TYPES)


def test_a_promotion_after_a_removed_policy_goes_through_without_its_effects(project, policy, old, label):
    label(3)
    before = old("before")
    promotion = Promotion.objects.create(project=project, checkpoint=old("after"))
    assert label_effects.request(promotion, before, 6) is not None
    LabelEffects.objects.all().delete()
    before.removed_at = timezone.now()
    assert label_effects.request(promotion, before, 6) is None


def test_a_deletion_that_broke_off_is_gone_on_with(project, rule, old, newest, monkeypatch):
    checkpoint = old("old")
    newest()

    def dies(checkpoint: Checkpoint) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(retention, "delete_files", dies)
        with pytest.raises(KeyboardInterrupt):
            retention.clear(project, rule)
    assert _has_weights(checkpoint)
    clear_old_checkpoints()
    assert not _has_weights(checkpoint)


def test_a_file_that_cannot_be_deleted_does_not_keep_those_of_other_projects(
    project, rule, old, newest, make_checkpoint, monkeypatch, caplog
):
    stuck, broken_off = old("stuck"), old("broken off")
    Checkpoint.objects.filter(pk=broken_off.pk).update(removed_at=timezone.now())
    newest()
    other = create_project(name="Other", slug="other")
    RetentionRule.objects.create(project=other, is_on=True, keep_last=1, keep_days=7)
    theirs = make_checkpoint("theirs", project=other)
    make_checkpoint("their newest", project=other)
    Checkpoint.objects.filter(project=other).update(created_at=timezone.now() - timedelta(days=100))
    real = retention._weight_files

    def read_only(checkpoint: Checkpoint):
        if checkpoint.pk == stuck.pk:
            raise PermissionError(13, "Permission denied")
        return real(checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(retention, "_weight_files", read_only)
        retention.apply_rules()
        assert "stuck: its weights could not be deleted" in caplog.text
        assert (_has_weights(stuck), _has_weights(theirs), _has_weights(broken_off)) == (True, False, False)
    retention.apply_rules()
    assert not _has_weights(stuck)


def test_weights_that_were_made_again_come_back_only_if_they_are_the_same(project, rule, old, newest, tmp_path):
    checkpoint = old("old")
    newest()
    retention.clear(project, rule)
    made = tmp_path / "made"
    made.mkdir()
    kept = store.checkpoint_dir(checkpoint.uuid) / "config.json"
    (made / "config.json").write_bytes(kept.read_bytes())
    (made / "model.safetensors").write_bytes(b"others")
    with pytest.raises(CheckpointDamaged, match="other weights"):
        retention.bring_back(checkpoint, made)
    assert _gone(project) == {"old"}
    (made / "model.safetensors").write_bytes(b"weights of old")
    retention.bring_back(checkpoint, made)
    registry.weights_of(Checkpoint.objects.get(pk=checkpoint.pk))
    retention.apply_rules()
    assert _gone(project) == {"old"}, "the rule still holds"
    assert not _has_weights(checkpoint)


@pytest.fixture
def wishes(project):
    """What makes something need a checkpoint."""
    return {
        "promotion": lambda c: services.promote_checkpoint(project=project, checkpoint=c),
        "run": lambda c: services.request_run(project=project, recipe=Recipe(), reference=c),
        "export": lambda c: exports.request_export(checkpoint=c),
        "gate": lambda c: gates.request_gate(project=project, candidate=c),
        "sweep": lambda c: sweeps.request_sweep(project=project, recipe=Recipe(), reference=c),
        "side by side": lambda c: _side_by_side(project, services.current_policy(project), c),
    }


def _both(first, second) -> dict[str, object]:
    """Call both at the same moment, each in a thread of its own; what each returned or raised."""
    outcome: dict[str, object] = {}
    start = threading.Barrier(2)

    def call(name: str, act) -> None:
        start.wait()
        try:
            outcome[name] = act()
        except Rejected as refusal:
            outcome[name] = refusal
        finally:
            connection.close()

    threads = [threading.Thread(target=call, args=pair) for pair in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("wish", ["promotion", "run", "export"])
def test_of_a_wish_and_a_deletion_at_once_one_knows_of_the_other(project, rule, old, label, wishes, wish):
    label(10)
    for number in range(4):
        checkpoint = old(f"wanted {number}")
        old(f"newest {number}")
        got = _both(lambda c=checkpoint: wishes[wish](c), lambda: retention.clear(project, rule))
        checkpoint.refresh_from_db()
        if isinstance(got["first"], Rejected):
            assert checkpoint.removed_at is not None, got
            assert not _has_weights(checkpoint)
        else:
            assert checkpoint.removed_at is None, got
            assert _has_weights(checkpoint)
        TrainingRun.objects.all().delete()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("wish", ["promotion", "run", "export", "gate", "sweep", "side by side"])
def test_a_wish_that_is_being_written_down_is_waited_for(project, rule, old, newest, label, wishes, wish, monkeypatch):
    """The other way round by force: the rule comes while the lock is held, and finds the need when it has the lock."""
    label(10)
    label(10, held_out=True)
    checkpoint = old("wanted")
    newest()
    held, wanted = threading.Event(), registry.refuse_removed

    def slowly(*checkpoints: Checkpoint) -> None:
        wanted(*checkpoints)
        if connection.in_atomic_block:  # before that it is asked without the lock
            held.set()
            threading.Event().wait(0.3)

    monkeypatch.setattr(registry, "refuse_removed", slowly)
    got = _both(lambda: wishes[wish](checkpoint), lambda: held.wait() and retention.clear(project, rule))
    assert not isinstance(got["first"], Rejected)
    assert checkpoint not in got["second"]
    assert _has_weights(checkpoint)


def _needed_for_sure(project) -> set[int]:
    """By other means than the rule's own: everything that any later request could reach by a rollback or a job."""
    needed = {run.reference_id for run in TrainingRun.objects.active()}
    for gate in Gate.objects.exclude(stage=Gate.Stage.DECIDED):
        needed |= {gate.candidate_id, gate.current_id}
    needed.add(Promotion.objects.order_by("pk").first().checkpoint_id)
    while True:  # roll back until there is nothing to roll back to, then undo it all
        needed.add(services.current_policy(project).pk)
        try:
            Promotion.objects.create(
                project=project, checkpoint_id=services.policies_behind(project)[-2], is_rollback=True
            )
        except IndexError:
            break
    for pk in list(needed):
        checkpoint = Checkpoint.objects.get(pk=pk)
        while (checkpoint := checkpoint.base or checkpoint.parent) is not None:
            needed.add(checkpoint.pk)
    return needed


@pytest.fixture
def acts(project, rule, policy, old):
    """What may happen to a project, by name: each takes two of its usable checkpoints and the next number."""

    def make(one: Checkpoint, other: Checkpoint, number: int) -> None:
        old(f"c{number}", base=[None, one.base or one][number % 2], parent=other)

    def compare(one: Checkpoint, other: Checkpoint, number: int) -> None:
        if not Gate.objects.exclude(stage=Gate.Stage.DECIDED).filter(candidate=one, current=other).exists():
            _gate(project, one, other)

    return {
        "make": make,
        "make another": make,
        "promote": lambda one, other, number: services.promote_checkpoint(project=project, checkpoint=one),
        "roll back": lambda one, other, number: services.roll_back(project=project),
        "run": lambda one, other, number: services.request_run(project=project, recipe=Recipe(), reference=one),
        "end the run": lambda one, other, number: TrainingRun.objects.update(state=Job.State.SUCCEEDED),
        "compare": compare,
        "decide": lambda one, other, number: Gate.objects.update(stage="decided", state=Job.State.SUCCEEDED),
        "clear": lambda one, other, number: retention.clear(project, rule),
    }


@pytest.mark.parametrize("seed", range(6))
def test_after_any_history_what_is_needed_has_its_weights(project, rule, old, label, acts, seed):
    chance = random.Random(seed)
    label(10)
    for number in range(30):
        usable = list(services.usable_checkpoints(project).select_related("base").order_by("pk"))
        with contextlib.suppress(Rejected):
            acts[chance.choice(list(acts))](chance.choice(usable), chance.choice(usable), number)
    old("nobody's")
    old("newest")
    retention.clear(project, rule)
    assert "nobody's" in _gone(project), "what nothing needs does go"
    with transaction.atomic():
        needed = _needed_for_sure(project)
        transaction.set_rollback(True)
    for checkpoint in Checkpoint.objects.filter(pk__in=needed).select_related("base"):
        registry.weights_of(checkpoint)


def test_the_page_says_what_would_go_and_why_the_rest_stays(
    project, rule, old, newest, sign_in, reviewer, project_admin
):
    old("old")
    newest()
    url = reverse("training:retention", args=[project.slug])
    page = sign_in(reviewer).get(url).content.decode()
    assert "It is one of the newest 1." in page
    assert "Delete the weights" not in page
    client = sign_in(project_admin)
    assert "Delete the weights of 1 checkpoint now" in client.get(url).content.decode()
    client.post(url, {"is_on": "", "keep_last": 3, "keep_days": 9})
    changed = RetentionRule.objects.get()
    assert (changed.is_on, changed.keep_last, changed.keep_days) == (False, 3, 9)
    assert client.post(url, {"keep_last": 0, "keep_days": 9}).status_code == 400
    assert RetentionRule.objects.get().keep_last == 3
    delete = reverse("training:delete-old", args=[project.slug])
    assert "Nothing was deleted" in client.post(delete, follow=True).content.decode()
    RetentionRule.objects.update(keep_last=1)
    assert "Deleted the weights of old" in client.post(delete, follow=True).content.decode()
    listed = client.get(reverse("training:checkpoints", args=[project.slug])).content.decode()
    assert "weights deleted" in listed


def test_the_page_of_a_removed_checkpoint_offers_what_is_left(project, rule, old, newest, sign_in, project_admin):
    checkpoint = old("old")
    newest()
    retention.clear(project, rule)
    client = sign_in(project_admin)
    page = client.get(reverse("training:checkpoint", args=[project.slug, checkpoint.uuid])).content.decode()
    assert "The weights were deleted by the retention rule" in page
    assert "manifest.json</a>" in page
    assert "Its weights were deleted, so it cannot be promoted." in page
    for missing in ("Prepare merged", ">Push<", ">Promote<"):
        assert missing not in page
    download = reverse("training:download-adapter", args=[project.slug, checkpoint.uuid])
    assert "were deleted by the project" in client.get(download, follow=True).content.decode()
    with_token = reverse("api:download-adapter", args=[project.slug, checkpoint.uuid])
    refused = client.get(with_token)
    assert refused.status_code == 409
    assert "retention rule" in refused.json()["detail"]
