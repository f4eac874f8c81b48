"""Pushing to the Hugging Face Hub: the real client, in the real process, against a Hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.urls import reverse

from tests.training.tiny_hub import COMMIT, TinyHub
from training import exports, store, supervision, tasks
from training.exceptions import Rejected
from training.execution import Push
from training.jobspec import PushJob, read_job
from training.models import Checkpoint, Gate, HubPush, Job
from training.rundir import RunDir

TOKEN = "hf_secretokapi"


@pytest.fixture
def hub(monkeypatch) -> Iterator[TinyHub]:
    with TinyHub(TOKEN) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # whose server is another one
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(proxy, raising=False)
        yield hub


@pytest.fixture
def adapter(project, policy, make_checkpoint) -> Checkpoint:
    return make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)


@pytest.fixture
def push(project, adapter):
    """Ask for a push and carry it out, as a worker of exports does."""

    def push(variant: str = "adapter", **values) -> HubPush:
        asked = {"repo_id": "zoo/okapi", "variant": variant} | values
        job = exports.request_push(project=project, checkpoint=adapter, **asked)
        supervision.execute(job, Push)
        job.refresh_from_db()
        return job

    return push


def _left_on_disk() -> bytes:
    """Everything that the job's directories hold, and the database, as bytes."""
    files = [path for path in Path(settings.DATA_DIR).rglob("*") if path.is_file()]
    rows = repr(list(HubPush.objects.values())).encode()
    return b"".join(path.read_bytes() for path in files) + rows


def test_a_checkpoint_is_pushed_as_one_commit_with_its_card(push, adapter, hub):
    job = push()
    assert (job.state, job.error) == ("succeeded", "")
    assert job.commit_url == f"{hub.url}/zoo/okapi/commit/{COMMIT}"
    directory = store.checkpoint_dir(adapter.uuid)
    assert hub.files["zoo/okapi"] == {path.name: path.read_bytes() for path in directory.iterdir()}
    assert [commit["summary"] for commit in hub.commits] == [f"adapter, content hash {adapter.short_hash}"]
    assert hub.repos == {"zoo/okapi": {"private": True}}
    assert hub.cards[0] == (directory / "README.md").read_text()
    assert TOKEN.encode() not in _left_on_disk()
    assert not RunDir.of(job.uuid).path.exists()


def test_the_card_that_is_pushed_says_what_the_gate_decided(push, project, policy, adapter, hub):
    checks = [{"name": "held_out", "outcome": "fail", "title": "Held-out", "words": "It finds fewer preferences."}]
    decided = {"stage": "decided", "outcome": "reject", "checks": checks}
    Gate.objects.create(project=project, number=1, candidate=adapter, current=policy, rule={}, **decided)
    assert push().state == "succeeded"
    assert b"It finds fewer preferences." in hub.files["zoo/okapi"]["README.md"]
    published = store.checkpoint_dir(adapter.uuid) / "manifest.json"
    assert hub.files["zoo/okapi"]["manifest.json"] == published.read_bytes()


def test_merged_weights_are_pushed_from_their_archive(push, project, adapter, hub, tmp_path):
    with pytest.raises(Rejected, match="have not been prepared yet"):
        push("merged")
    merged = tmp_path / "merged"
    merged.mkdir()
    for name in ("model.safetensors", "README.md", "manifest.json"):
        (merged / name).write_text(f"merged {name}")
    store.write_archive(merged, store.archive_path(adapter.uuid, "merged"), "adapter-merged")
    job = push("merged", is_private=False)
    assert (job.state, job.error) == ("succeeded", "")
    assert hub.files["zoo/okapi"] == {path.name: path.read_bytes() for path in merged.iterdir()}
    assert hub.repos == {"zoo/okapi": {"private": False}}


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (("create", 401, "Invalid credentials"), "hub_refused", "refuses the worker's token for zoo/okapi (401)"),
        (("create", 500, f"Bearer {TOKEN} broke it"), "hub_failed", "answered 500"),
        (("validate-yaml", 400, None), "hub_refused", "- license is not a licence"),
    ],
)
def test_what_the_hub_refuses_is_told_and_no_token_is_kept(push, hub, fault, code, words):
    path, status, error = fault
    answer = {"error": error} if error else {"errors": [{"message": "license is not a licence"}]}
    hub.faults[path].append((status, answer))
    job = push()
    assert (job.state, job.error_code) == ("failed", code)
    assert words in job.error
    assert job.hint
    assert hub.commits == []
    assert TOKEN.encode() not in _left_on_disk()


def test_a_hub_that_is_busy_for_a_moment_is_asked_again_and_a_later_push_goes_on(push, hub):
    hub.faults["preupload"].append((503, {"error": "busy"}))
    assert push().state == "succeeded"


def test_a_repository_that_everybody_can_see_gets_no_private_copy(push, hub):
    hub.repos["zoo/okapi"] = {"private": False}
    job = push()
    assert (job.state, job.error_code) == ("failed", "repo_is_public")
    assert hub.files == {}


def test_a_hub_that_cannot_be_reached_is_told(push, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    job = push()
    assert (job.state, job.error_code) == ("failed", "hub_unreachable")
    assert "cannot be reached from this worker" in job.error


@pytest.mark.parametrize(
    ("variable", "value", "code"), [("HF_TOKEN", "", "no_token"), ("HF_HUB_OFFLINE", "1", "hub_offline")]
)
def test_without_a_token_or_a_way_out_no_engine_is_started(push, hub, monkeypatch, variable, value, code):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(supervision, "supervise", None)
    job = push()
    assert (job.state, job.error_code) == ("failed", code)
    assert "nothing was sent" in job.error


def test_a_job_says_what_is_sent_and_not_with_which_token(project, adapter, hub):
    job = exports.request_push(project=project, checkpoint=adapter, repo_id="zoo/okapi", variant="adapter")
    RunDir.of(job.uuid).make()
    assert Push(job, RunDir.of(job.uuid)).prepare()
    written = read_job(RunDir.of(job.uuid).path, PushJob)
    assert (written.folder, written.is_private) == (str(store.checkpoint_dir(adapter.uuid)), True)
    assert TOKEN.encode() not in _left_on_disk()


def test_a_damaged_checkpoint_is_not_pushed(push, adapter, hub):
    (store.checkpoint_dir(adapter.uuid) / "model.safetensors").write_bytes(b"other")
    job = push()
    assert (job.state, job.error_code) == ("failed", "refused")
    assert hub.repos == {}


@pytest.mark.parametrize(
    "repo_id", ["okapi", "zoo/", "/okapi", "zoo/okapi/x", "zoo/../x", "zoo/o kapi", "zoo/-x", "z--o/x"]
)
def test_what_is_no_repository_is_refused_before_there_is_a_job(project, adapter, repo_id):
    with pytest.raises(Rejected, match="is no repository of the Hub"):
        exports.request_push(project=project, checkpoint=adapter, repo_id=repo_id, variant="adapter")
    assert not HubPush.objects.exists()


def test_full_weights_have_no_adapter_to_push_and_one_push_at_a_time(project, policy, adapter):
    with pytest.raises(Rejected, match="no adapter"):
        exports.request_push(project=project, checkpoint=policy, repo_id="zoo/okapi", variant="adapter")
    exports.request_push(project=project, checkpoint=policy, repo_id="zoo/okapi", variant="merged")
    with pytest.raises(Rejected, match="being pushed to zoo/okapi already"):
        exports.request_push(project=project, checkpoint=adapter, repo_id="zoo/okapi", variant="adapter")


def test_an_admin_pushes_from_the_page_privately_unless_they_say_otherwise(
    project, adapter, sign_in, project_admin, reviewer, monkeypatch, django_capture_on_commit_callbacks
):
    sent = []
    monkeypatch.setattr(tasks.run_push, "apply_async", lambda args: sent.append(args))
    url = reverse("training:push", args=[project.slug, adapter.uuid])
    client = sign_in(project_admin)
    values = {"repo_id": "zoo/okapi", "variant": "adapter", "visibility": "private"}
    with django_capture_on_commit_callbacks(execute=True):
        page = client.post(url, values, follow=True).content.decode()
    push = HubPush.objects.get()
    assert (push.is_private, push.requested_by, push.state, sent) == (
        True,
        project_admin,
        Job.State.QUEUED,
        [[push.pk]],
    )
    assert "zoo/okapi" in page
    assert "Not pushed" in client.post(url, {"repo_id": ""}, follow=True).content.decode()
    HubPush.objects.update(state=Job.State.SUCCEEDED, commit_url="https://hub.example/zoo/okapi/commit/1")
    page = sign_in(reviewer).get(reverse("training:checkpoint", args=[project.slug, adapter.uuid])).content.decode()
    assert 'href="https://hub.example/zoo/okapi/commit/1"' in page
    assert "OWNER/NAME" not in page, "the form is an admin's"
