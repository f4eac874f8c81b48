"""Jobs: claims, fences, leases, and the reconciler that brings lost ones back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone
from kombu.exceptions import OperationalError

from tests.installation import wait_until
from training import services, tasks
from training.models import Job, SampleBatch
from training.supervision import _LeaseKeeper, _renewing, recover_expired


@pytest.fixture
def batch(project, policy, make_prompt) -> SampleBatch:
    make_prompt()
    return services.request_samples(project=project, pairs=1)


def _expire(batch: SampleBatch) -> None:
    SampleBatch.objects.filter(pk=batch.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def test_only_one_claim_succeeds(batch):
    twin = SampleBatch.objects.get(pk=batch.pk)
    assert batch.claim("one")
    assert not twin.claim("two")
    assert (batch.state, batch.fence, batch.attempt, batch.worker) == ("running", 1, 1, "one")


def test_a_fenced_out_worker_can_write_nothing(batch):
    assert batch.claim("one")
    old = SampleBatch.objects.get(pk=batch.pk)
    _expire(batch)
    assert recover_expired() == 1
    assert SampleBatch.objects.get(pk=batch.pk).claim("two")
    assert not old.renew({"step": 5})
    assert not old.finish(Job.State.SUCCEEDED)
    assert not old.requeue()
    now = SampleBatch.objects.get(pk=batch.pk)
    assert (now.state, now.fence, now.worker, now.progress) == ("running", 2, "two", {})


def test_recovery_happens_once_even_with_two_reconcilers(batch):
    batch.claim("one")
    _expire(batch)
    assert recover_expired() + recover_expired() == 1


def test_a_live_lease_is_left_alone(batch):
    batch.claim("one")
    assert recover_expired() == 0


def test_a_job_whose_workers_keep_dying_fails_with_a_reason_and_can_be_resumed(batch, settings):
    for _ in range(settings.JOB_MAX_ATTEMPTS):
        assert SampleBatch.objects.get(pk=batch.pk).claim("one")
        _expire(batch)
        recover_expired()
    batch.refresh_from_db()
    assert (batch.state, batch.error_code) == ("failed", "worker_lost")
    assert "disappeared 3 times" in batch.error
    services.resume_job(job=batch)
    assert SampleBatch.objects.get(pk=batch.pk).claim("one")


def test_a_job_that_was_cancelled_when_its_worker_died_is_cancelled(batch):
    batch.claim("one")
    services.cancel_job(job=batch)
    _expire(batch)
    recover_expired()
    batch.refresh_from_db()
    assert batch.state == Job.State.CANCELLED


def test_a_job_waits_until_it_is_due(batch):
    SampleBatch.objects.filter(pk=batch.pk).update(not_before=timezone.now() + timedelta(minutes=1))
    assert not SampleBatch.objects.get(pk=batch.pk).claim("one")


def test_the_reconciler_sends_a_lost_message_again_and_not_twice(batch, monkeypatch):
    sent: list[list[int]] = []
    monkeypatch.setattr(tasks.run_sampling, "apply_async", lambda args: sent.append(args))
    tasks.reconcile()
    tasks.reconcile()
    assert sent == [[batch.pk]]


def test_a_job_that_waits_long_is_asked_after_more_rarely(batch, monkeypatch):
    sent: list[list[int]] = []
    monkeypatch.setattr(tasks.run_sampling, "apply_async", lambda args: sent.append(args))
    now = timezone.now()
    seconds_since_hint = {30: 1, 120: 1, 290: 1, 310: 2}
    created = now - timedelta(hours=3)
    for seconds, expected in seconds_since_hint.items():
        SampleBatch.objects.update(created_at=created, hinted_at=now - timedelta(seconds=seconds))
        tasks.reconcile()
        assert len(sent) == expected - 1, seconds


def test_a_broker_that_is_down_loses_nothing(batch, monkeypatch, caplog):
    def refuse(args: list[int]) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(tasks.run_sampling, "apply_async", refuse)
    tasks.send_hint(batch)
    assert "broker cannot be reached" in caplog.text
    batch.refresh_from_db()
    assert (batch.state, batch.hinted_at) == ("queued", None)


def test_a_doubled_message_does_nothing(batch, data_dir):
    batch.claim("one")
    tasks.run_sampling(batch.pk)
    batch.refresh_from_db()
    assert (batch.state, batch.worker) == ("running", "one")


def test_a_message_about_a_row_that_is_gone_does_nothing(db):
    tasks.run_training(12345)


def test_a_full_disk_is_a_reason_and_can_be_resumed(batch, settings):
    settings.MINIMUM_FREE_DISK_MB = 10**9
    tasks.run_sampling(batch.pk)
    batch.refresh_from_db()
    assert (batch.state, batch.error_code) == ("failed", "disk_full")
    assert "Free some space" in batch.hint


def test_a_damaged_policy_is_refused_by_hash_with_a_reason(batch, policy):
    from training import store

    (store.checkpoint_dir(policy.uuid) / "model.safetensors").write_bytes(b"tampered")
    tasks.run_sampling(batch.pk)
    batch.refresh_from_db()
    assert (batch.state, batch.error_code) == ("failed", "refused")
    assert "changed on disk (model.safetensors)" in batch.error


@pytest.mark.django_db(transaction=True)
def test_the_lease_is_kept_while_gigabytes_are_hashed(batch, settings):
    settings.JOB_LEASE_SECONDS = 3
    batch.claim("one")
    first = batch.lease_until
    with _renewing(batch):
        wait_until(lambda: SampleBatch.objects.get(pk=batch.pk).lease_until > first, 30, "a renewal")


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgresql
def test_a_database_connection_that_drops_costs_no_job(batch, caplog):
    batch.claim("one")
    keeper = _LeaseKeeper(batch)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    other = connections.create_connection("default")
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [backend])
    other.close()
    keeper.keep(lambda: {"step": 1}, now=True)
    assert "the database does not answer" in caplog.text
    keeper.keep(lambda: {"step": 2}, now=True)
    batch.refresh_from_db()
    assert (batch.state, batch.progress) == ("running", {"step": 2})


def test_a_job_that_is_cancelled_while_it_is_queued_again_ends_cancelled(batch):
    batch.claim("one")
    services.cancel_job(job=batch)
    assert batch.requeue()
    batch.refresh_from_db()
    assert batch.state == Job.State.CANCELLED
    assert batch.finished_at is not None
