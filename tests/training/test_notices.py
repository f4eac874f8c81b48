"""Who is told what, once, and what of it goes out by e-mail."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import ClassVar

import pytest
from django.core import mail
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.utils import timezone

from labeling import queue
from labeling.models import Membership, Preference
from labeling.services import add_member
from training import notices, services, sweeps
from training.models import Gate, Job, Notice, Promotion, SampleBatch, TrainingRun
from training.recipe import Recipe


@pytest.fixture
def mail_server(settings) -> None:
    settings.EMAIL_HOST = "mail.example"
    settings.SITE_URL = "https://labels.example"


@pytest.fixture
def make_run(project, policy, label, make_pair) -> Callable[[], TrainingRun]:
    def make() -> TrainingRun:
        label(10)
        make_pair()  # or the queue would be empty, which is told as well
        return services.request_run(project=project, recipe=Recipe())

    return make


@pytest.fixture
def failed_run(make_run) -> TrainingRun:
    run = make_run()
    TrainingRun.objects.filter(pk=run.pk).update(
        state=Job.State.FAILED, finished_at=timezone.now(), error="Memory ran out.", hint="Use the fast mode."
    )
    run.refresh_from_db()
    return run


def test_admins_are_told_of_a_failed_run_once_and_nobody_else(failed_run, project_admin, reviewer, annotator):
    assert notices.notice_what_happened() == 1
    assert notices.notice_what_happened() == 0
    notice = Notice.objects.get()
    assert (notice.user, notice.title) == (project_admin, f"{failed_run} has failed")
    assert notice.body == "Memory ran out. Use the fast mode."
    assert notice.url == failed_run.get_absolute_url()


def test_a_run_that_was_resumed_and_fails_again_is_told_again(failed_run, project_admin):
    notices.notice_what_happened()
    TrainingRun.objects.update(finished_at=timezone.now() + timedelta(seconds=1))
    assert notices.notice_what_happened() == 1


def test_what_happened_long_ago_is_not_told(failed_run, project_admin):
    TrainingRun.objects.update(finished_at=timezone.now() - timedelta(days=2))
    assert notices.notice_what_happened() == 0


def test_a_finished_run_is_told_with_its_figures(make_run, project_admin):
    run = make_run()
    checkpoint = run.reference
    checkpoint.details = {
        "held_out": {"pairs": 40, "prompts": 30, "after": {"accuracy": 0.65}, "accuracy_interval": [0.5, 0.8]}
    }
    checkpoint.save()
    TrainingRun.objects.update(state=Job.State.SUCCEEDED, finished_at=timezone.now(), checkpoint=checkpoint)
    notices.notice_what_happened()
    body = Notice.objects.get(kind=Notice.Kind.RUN_FINISHED).body
    assert "65.0% of 40 held-out preferences (95 % interval 50.0% to 80.0%)" in body.replace("\u202f", "")


def test_a_waiting_gate_is_told(project, policy, project_admin):
    Gate.objects.create(
        project=project,
        number=1,
        candidate=policy,
        current=policy,
        rule={},
        stage=Gate.Stage.WAITING,
        outcome=Gate.Outcome.PROMOTE,
        reasons=["People preferred it.", "It is no longer than before."],
    )
    notices.notice_what_happened()
    notice = Notice.objects.get(kind=Notice.Kind.GATE_WAITING)
    assert notice.title == f"Gate 1 waits for you: promote {policy}?"
    assert notice.body == "People preferred it. It is no longer than before."


def test_a_watch_that_waits_asks_whether_to_roll_back(project, policy, make_checkpoint, project_admin):
    worse = make_checkpoint("worse", project=project)
    waiting = {"kind": "watch", "stage": "waiting", "outcome": "reject", "state": Job.State.SUCCEEDED}
    Gate.objects.create(project=project, number=4, candidate=worse, current=policy, rule={}, **waiting)
    notices.notice_what_happened()
    assert Notice.objects.get().title == f"Gate 4: the new policy worse does worse; roll back to {policy}?"


@pytest.mark.parametrize(
    ("states", "title", "body"),
    [
        (["succeeded", "failed"], "Sweep 1 has finished", "1 of its 2 runs succeeded. Look at the frontier"),
        (["failed", "cancelled"], "Sweep 1 has failed", "None of its 2 runs succeeded. The disk is full."),
        (["cancelled", "cancelled"], None, ""),
        (["succeeded", "queued"], None, ""),
    ],
)
def test_a_sweep_is_told_once_as_a_whole(project, policy, label, make_pair, project_admin, states, title, body):
    label(10)
    make_pair()
    sweep = sweeps.request_sweep(project=project, recipe=Recipe(), betas=(0.1, 0.5))
    for run, state in zip(sweep.runs.order_by("pk"), states, strict=True):
        error = "The disk is full." if state == "failed" else ""
        ended = None if state == "queued" else timezone.now()
        TrainingRun.objects.filter(pk=run.pk).update(state=state, error=error, finished_at=ended)
    notices.notice_what_happened()
    notice = Notice.objects.first()
    assert (notice.title if notice else None) == title
    assert notice is None or notice.body.startswith(body)


def test_a_promotion_is_told_to_the_other_admins_and_the_first_to_nobody(
    project, policy, make_checkpoint, project_admin, django_user_model
):
    assert notices.notice_what_happened() == 0
    other = django_user_model.objects.create_user("other-admin")
    add_member(project=project, user=other, role=Membership.Role.ADMIN)
    services.promote_checkpoint(project=project, checkpoint=make_checkpoint("second"), by=project_admin, reason="Good.")
    notices.notice_what_happened()
    notice = Notice.objects.get(kind=Notice.Kind.POLICY_CHANGED)
    assert notice.user == other
    assert notice.body == f"Promoted by {project_admin.username}. Good."


@pytest.mark.parametrize(("by_gate", "how"), [(True, "by itself"), (False, "on the command line")])
def test_a_promotion_by_nobody_is_of_a_gate_or_of_the_command_line(
    project, policy, make_checkpoint, project_admin, by_gate, how
):
    second = make_checkpoint("second")
    decided = {"stage": "decided", "state": Job.State.SUCCEEDED}
    gate = Gate.objects.create(project=project, number=1, candidate=second, current=policy, rule={}, **decided)
    services.promote_checkpoint(project=project, checkpoint=second, gate=gate if by_gate else None)
    notices.notice_what_happened()
    assert Notice.objects.get(kind=Notice.Kind.POLICY_CHANGED).body == f"Promoted {how}."


def _a_while_ago() -> None:
    Preference.objects.update(created_at=timezone.now() - notices.EMPTY_FOR - timedelta(seconds=1))


@pytest.fixture
def judge_next(project, annotator):
    def judge_next() -> None:
        lease = queue.lease_next(project, annotator.pk)
        queue.submit(project, lease.token, annotator.pk, "a")

    return judge_next


def test_an_empty_queue_is_told_once_until_somebody_labels_again(make_pair, project_admin, judge_next):
    make_pair()
    assert notices.notice_what_happened() == 0, "a pair is open"
    judge_next()
    assert notices.notice_what_happened() == 0, "it may be refilled within seconds"
    _a_while_ago()
    assert notices.notice_what_happened() == 1
    assert notices.notice_what_happened() == 0
    make_pair()
    judge_next()
    _a_while_ago()
    assert notices.notice_what_happened() == 1
    assert Notice.objects.filter(kind=Notice.Kind.QUEUE_EMPTY).count() == 2


def test_a_queue_that_is_being_filled_is_not_empty(project, policy, make_pair, project_admin, judge_next):
    make_pair()
    judge_next()
    _a_while_ago()
    services.request_samples(project=project, pairs=1)
    assert notices.notice_what_happened() == 0
    SampleBatch.objects.update(state=Job.State.CANCELLED)
    assert notices.notice_what_happened() == 1


def test_without_a_mail_server_or_an_address_nothing_is_due(failed_run, project_admin, settings):
    settings.EMAIL_HOST = ""
    notices.notice_what_happened()
    assert Notice.objects.get().email_due_at is None


def test_an_e_mail_goes_out_once_with_an_absolute_link(failed_run, project_admin, mail_server):
    project_admin.email = "admin@example.org"
    project_admin.save()
    notices.notice_what_happened()
    assert notices.send_due() == 1
    assert notices.send_due() == 0
    (message,) = mail.outbox
    assert message.to == ["admin@example.org"]
    assert message.subject == f"{failed_run.project}: {failed_run} has failed"
    assert f"https://labels.example{failed_run.get_absolute_url()}\n" in message.body


def test_who_wants_no_e_mail_of_a_kind_gets_the_notice_alone(failed_run, project_admin, mail_server):
    project_admin.email = "admin@example.org"
    project_admin.save()
    notices.choose_emails(project_admin, failed_run.project, {Notice.Kind.GATE_WAITING})
    notices.notice_what_happened()
    assert Notice.objects.get().email_due_at is None


def test_a_mail_server_that_is_down_is_asked_again_later_and_not_for_ever(
    failed_run, project_admin, mail_server, monkeypatch
):
    project_admin.email = "admin@example.org"
    project_admin.save()
    notices.notice_what_happened()

    def refuse(self, fail_silently=False):
        raise smtplib.SMTPServerDisconnected("gone")

    monkeypatch.setattr("django.core.mail.EmailMessage.send", refuse)
    waits = []
    for _ in range(notices.MAX_EMAIL_TRIES):
        assert notices.send_due() == 0
        due = Notice.objects.get().email_due_at
        waits.append(due and due - timezone.now())
        Notice.objects.filter(email_due_at__isnull=False).update(email_due_at=timezone.now())
    assert waits[-1] is None, "given up"
    assert all(later > earlier for earlier, later in pairwise(waits[:-1]))
    assert Notice.objects.get().email_tries == notices.MAX_EMAIL_TRIES


class _Server(BaseEmailBackend):
    """In place of a mail server: raises what there is to raise, and knows how often it was asked."""

    raises: Exception | None = None
    asked: ClassVar[list[str]] = []

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        self.asked.append(email_messages[0].subject)
        if self.raises:
            raise self.raises
        return 1


@pytest.fixture
def three_due(failed_run, project_admin, mail_server, settings, monkeypatch) -> type[_Server]:
    settings.EMAIL_BACKEND = f"{__name__}._Server"
    monkeypatch.setattr(_Server, "asked", [])
    type(project_admin).objects.update(email="admin@example.org")
    for number in range(3):
        Notice.objects.create(
            user=project_admin,
            project=failed_run.project,
            key=f"{number}",
            title=f"{number}",
            email_due_at=timezone.now(),
        )
    return _Server


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("timed out"),
        ConnectionRefusedError("refused"),
        smtplib.SMTPServerDisconnected("gone"),
        smtplib.SMTPConnectError(421, "later"),
        smtplib.SMTPAuthenticationError(535, "who?"),
    ],
)
def test_a_mail_server_that_cannot_be_talked_to_is_asked_once_a_round(three_due, monkeypatch, error):
    monkeypatch.setattr(three_due, "raises", error)
    for tried in (1, 2):
        assert notices.send_due() == 0
        assert len(three_due.asked) == tried
    assert sorted(Notice.objects.values_list("email_tries", flat=True)) == [0, 1, 1]
    monkeypatch.setattr(three_due, "raises", None)
    assert notices.send_due() == 1, "the others have their time"


def test_an_e_mail_that_is_not_taken_stops_no_other(three_due, monkeypatch):
    refusal = smtplib.SMTPRecipientsRefused({"admin@example.org": (550, b"unknown")})
    monkeypatch.setattr(three_due, "raises", refusal)
    assert notices.send_due() == 0
    assert len(three_due.asked) == 3
    assert list(Notice.objects.values_list("email_tries", flat=True)) == [1, 1, 1]


def test_of_two_workers_one_sends(failed_run, project_admin, mail_server):
    project_admin.email = "admin@example.org"
    project_admin.save()
    notices.notice_what_happened()
    stale = Notice.objects.select_related("user", "project").get()
    assert notices._send(stale)
    assert not notices._send(stale)
    assert len(mail.outbox) == 1


def test_the_page_shows_them_and_a_click_marks_one_as_read(failed_run, project_admin, sign_in):
    notices.notice_what_happened()
    client = sign_in(project_admin)
    page = client.get("/notices/").content.decode()
    assert "has failed" in page
    assert "unread notices" in page
    response = client.get(f"/notices/{Notice.objects.get().pk}/")
    assert response.url == failed_run.get_absolute_url()
    assert "unread notices" not in client.get("/notices/").content.decode()


def test_nobody_opens_the_notice_of_another(failed_run, project_admin, reviewer, sign_in):
    notices.notice_what_happened()
    assert sign_in(reviewer).get(f"/notices/{Notice.objects.get().pk}/").status_code == 404


def test_choices_are_kept_and_a_bad_address_is_refused(project, project_admin, sign_in):
    client = sign_in(project_admin)
    client.post("/notices/emails/", {"email": "nonsense"})
    project_admin.refresh_from_db()
    assert project_admin.email == ""
    client.post("/notices/emails/", {"email": "a@example.org", f"kinds-{project.pk}": ["gate_waiting", "made_up"]})
    page = client.get("/notices/").content.decode()
    project_admin.refresh_from_db()
    assert project_admin.email == "a@example.org"
    assert page.count("checked") == 1


def test_an_old_first_promotion_stays_silent_after_a_second(project, policy, make_checkpoint, project_admin):
    services.promote_checkpoint(project=project, checkpoint=make_checkpoint("second"))
    notices.notice_what_happened()
    told = Notice.objects.filter(kind=Notice.Kind.POLICY_CHANGED)
    assert [notice.key for notice in told] == [f"promotion:{Promotion.objects.first().pk}"]
