"""Telling a project's admins what happened: in the app, and by e-mail to those who want it.

Nothing that happens writes its notice itself. The scheduler looks at the rows of the last day and writes what nobody
has been told yet, so a notice is never lost with the process that should have written it, and never in the way of what
it is about. The name of the event, its ``key``, keeps two schedulers from telling it twice.
"""

from __future__ import annotations

import logging
import smtplib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.models import User
from django.core.mail import EmailMessage
from django.db.models import Exists, F, OuterRef, Q
from django.urls import reverse
from django.utils import timezone

from labeling.models import Membership, Preference, Project, Slot
from training.models import Gate, Job, Notice, NoticeSetting, Promotion, SampleBatch, Sweep, TrainingRun
from training.outcome import read_outcome

log = logging.getLogger(__name__)

LOOK_BACK = timedelta(days=1)
# Who counts as somebody that pairs must be there for.
LABELS_LATELY = timedelta(days=1)
# Where the policy refills the queue by itself, it is asked within seconds; only what stays empty is worth a word.
EMPTY_FOR = timedelta(minutes=2)
MAX_EMAIL_TRIES = 6
FIRST_RETRY = timedelta(minutes=1)
EMAILS_AT_ONCE = 50
# What a server that can be talked to says of one e-mail; it may take the next.
NOT_TAKEN = (
    *(smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused, smtplib.SMTPDataError),
    smtplib.SMTPNotSupportedError,
)


@dataclass(frozen=True)
class Event:
    """What is to be told. ``actor_id``: who did it, and need not be told."""

    project: Project
    kind: Notice.Kind
    key: str
    title: str
    body: str
    url: str
    actor_id: int | None = None


def notice_what_happened() -> int:
    """Write a notice of each event of the last day that has none; returns how many events were told."""
    since = timezone.now() - LOOK_BACK
    events = [*_runs(since), *_sweeps(since), *_gates(since), *_refused(since), *_promotions(since), *_empty_queues()]
    told = set(Notice.objects.filter(key__in=[event.key for event in events]).values_list("key", flat=True))
    new = [event for event in events if event.key not in told]
    for event in new:
        _tell(event)
    return len(new)


def _tell(event: Event) -> None:
    admins = Q(memberships__project=event.project, memberships__role=Membership.Role.ADMIN)
    people = User.objects.filter(admins, is_active=True).exclude(pk=event.actor_id or 0)
    silent = _without_email(event)
    Notice.objects.bulk_create(
        [
            Notice(
                user=user,
                project=event.project,
                kind=event.kind,
                key=event.key,
                title=event.title[:200],
                body=event.body,
                url=event.url,
                email_due_at=timezone.now() if _is_reachable(user) and user.pk not in silent else None,
            )
            for user in people
        ],
        ignore_conflicts=True,  # another scheduler may be telling the same
    )


def _without_email(event: Event) -> set[int]:
    choices = NoticeSetting.objects.filter(project=event.project).values_list("user_id", "not_by_email")
    return {user_id for user_id, kinds in choices if event.kind in kinds}


def _is_reachable(user: User) -> bool:
    return bool(settings.EMAIL_HOST and user.email)


# What there is to tell


def _runs(since: object) -> Iterator[Event]:
    ended = TrainingRun.objects.filter(
        finished_at__gt=since, state__in=[Job.State.SUCCEEDED, Job.State.FAILED], sweep__isnull=True
    )
    for run in ended.select_related("project", "checkpoint"):
        # A run that was resumed may end once more.
        key = f"run:{run.pk}:{run.finished_at:%Y%m%dT%H%M%S%f}"
        if run.state == Job.State.FAILED:
            title, body, kind = f"{run} has failed", f"{run.error} {run.hint}".strip(), Notice.Kind.RUN_FAILED
        else:
            title, body, kind = f"{run} has finished", _figures(run), Notice.Kind.RUN_FINISHED
        yield Event(run.project, kind, key, title, body, run.get_absolute_url())


def _figures(run: TrainingRun) -> str:
    held_out = read_outcome(run.checkpoint.details if run.checkpoint else {}).held_out
    if not held_out.accuracy:
        return f"Its checkpoint is {run.checkpoint}. No held-out preference was there to measure it by."
    return (
        f"Its checkpoint is {run.checkpoint}. It finds {held_out.accuracy} of {held_out.pairs} held-out preferences "
        f"(95 % interval {held_out.interval})."
    )


def _sweeps(since: object) -> Iterator[Event]:
    for sweep in Sweep.objects.filter(runs__finished_at__gt=since).distinct().select_related("project"):
        runs = list(sweep.runs.all())
        if any(run.is_active for run in runs):
            continue
        done = sum(run.state == Job.State.SUCCEEDED for run in runs)
        failed = next((run for run in runs if run.state == Job.State.FAILED), None)
        if not done and not failed:
            continue  # cancelled, by somebody who knows
        last = max(run.finished_at for run in runs if run.finished_at)
        yield Event(
            project=sweep.project,
            kind=Notice.Kind.RUN_FINISHED if done else Notice.Kind.RUN_FAILED,
            key=f"sweep:{sweep.pk}:{last:%Y%m%dT%H%M%S%f}",
            title=f"{sweep} has {'finished' if done else 'failed'}",
            body=_points(done, len(runs), failed),
            url=sweep.get_absolute_url(),
        )


def _points(done: int, runs: int, failed: TrainingRun | None) -> str:
    if done:
        return f"{done} of its {runs} runs succeeded. Look at the frontier and pick a point."
    return f"None of its {runs} runs succeeded. {failed.error} {failed.hint}".strip() if failed else ""


def _gates(since: object) -> Iterator[Event]:
    for gate in Gate.objects.filter(stage=Gate.Stage.WAITING).select_related("project", "candidate", "current"):
        title = f"{gate} waits for you: {gate.get_outcome_display().lower() or 'no outcome'} {gate.candidate}?"
        if gate.kind == Gate.Kind.WATCH:
            title = f"{gate}: the new policy {gate.candidate} does worse; roll back to {gate.current}?"
        body = " ".join(map(str, gate.reasons))
        yield Event(
            gate.project, Notice.Kind.GATE_WAITING, f"gate:{gate.pk}:waiting", title, body, gate.get_absolute_url()
        )
    failed = Gate.objects.filter(state=Job.State.FAILED, finished_at__gt=since)
    for gate in failed.select_related("project", "candidate"):
        key = f"gate:{gate.pk}:{gate.finished_at:%Y%m%dT%H%M%S%f}"
        title = f"{gate} could not measure {gate.candidate}"
        body = f"{gate.error} {gate.hint}".strip()
        yield Event(gate.project, Notice.Kind.RUN_FAILED, key, title, body, gate.get_absolute_url())


def _refused(since: object) -> Iterator[Event]:
    """What the release rule wants and could not begin; tried again beside this, and told once."""
    runs = TrainingRun.objects.filter(finished_at__gt=since, gates=None, sweep=None).exclude(not_compared="")
    for run in runs.select_related("project", "checkpoint"):
        title = f"{run.checkpoint} was not compared with the policy"
        key = f"run:{run.pk}:not-compared"
        yield Event(run.project, Notice.Kind.RUN_FAILED, key, title, run.not_compared, run.get_absolute_url())
    watching = Promotion.objects.filter(project__release_rule__watches=True).exclude(not_watched="")
    newer = Promotion.objects.filter(project=OuterRef("project"), pk__gt=OuterRef("pk"))
    for promotion in watching.exclude(Exists(newer)).select_related("project", "checkpoint"):
        title = f"The policy {promotion.checkpoint} is not watched"
        key = f"promotion:{promotion.pk}:not-watched"
        url = reverse("training:gates", args=[promotion.project.slug])
        yield Event(promotion.project, Notice.Kind.RUN_FAILED, key, title, promotion.not_watched, url)


def _promotions(since: object) -> Iterator[Event]:
    rows = Promotion.objects.filter(created_at__gt=since).select_related("project", "checkpoint", "promoted_by")
    for promotion in rows:
        if not Promotion.objects.filter(project=promotion.project_id, pk__lt=promotion.pk).exists():
            continue  # the first policy, which somebody has just set up
        did = "was rolled back to" if promotion.is_rollback else "is the policy now"
        yield Event(
            project=promotion.project,
            kind=Notice.Kind.POLICY_CHANGED,
            key=f"promotion:{promotion.pk}",
            title=f"{promotion.checkpoint} {did}",
            body=f"Promoted {_by(promotion)}. {promotion.reason}".strip(),
            url=reverse("training:checkpoints", args=[promotion.project.slug]),
            actor_id=promotion.promoted_by_id,
        )


def _by(promotion: Promotion) -> str:
    if promotion.promoted_by:
        return f"by {promotion.promoted_by.get_username()}"
    return "by itself" if promotion.gate_id else "on the command line"


def _empty_queues() -> Iterator[Event]:
    """Projects that people label in, with nothing open and nobody writing more. Told once an emptiness."""
    now = timezone.now()
    open_somewhere = Slot.objects.filter(state__in=[Slot.State.OPEN, Slot.State.LEASED]).values("project")
    writing = SampleBatch.objects.active().values("project")
    empty = Project.objects.filter(is_paused=False).exclude(pk__in=open_somewhere).exclude(pk__in=writing)
    for project in empty:
        newest = Preference.objects.filter(project=project).order_by("-pk").values_list("pk", "created_at").first()
        if newest is None or not EMPTY_FOR < now - newest[1] < LABELS_LATELY:
            continue
        yield Event(
            project=project,
            kind=Notice.Kind.QUEUE_EMPTY,
            key=f"queue:{project.pk}:{newest[0]}",  # stays the same until somebody has labelled again
            title="Nobody has anything to label",
            body="Every pair is judged and no policy writes more. Ask for pairs, or import prompts.",
            url=reverse("training:overview", args=[project.slug]),
        )


# By e-mail


def send_due() -> int:
    """Send the e-mails that are due; returns how many went out.

    Each is claimed by the time that it is due at, which is put off before it is sent: of two workers one sends it. A
    worker that dies in between leaves it to be sent again, so an e-mail may come twice and is never lost.

    Where the server itself cannot be talked to, the round ends: each further e-mail might wait for it as long, on a
    worker that has other things to do. They stay due.
    """
    due = Notice.objects.filter(email_due_at__lte=timezone.now()).select_related("user", "project")
    sent = 0
    for notice in due.order_by("email_due_at")[:EMAILS_AT_ONCE]:
        try:
            sent += _send(notice)
        except OSError as error:
            log.warning("The mail server cannot be talked to, so e-mails wait for the next turn: %s", error)
            break
    return sent


def _send(notice: Notice) -> bool:
    """``OSError``, which those of smtplib are as well, where it is not for this one e-mail that the server is sorry."""
    again = timezone.now() + FIRST_RETRY * 4**notice.email_tries
    claimed = Notice.objects.filter(pk=notice.pk, email_due_at=notice.email_due_at).update(
        email_due_at=again if notice.email_tries + 1 < MAX_EMAIL_TRIES else None, email_tries=F("email_tries") + 1
    )
    if not claimed or not notice.user.is_active:
        return False
    try:
        _email(notice).send()
    except NOT_TAKEN as error:
        log.warning("The e-mail “%s” to %s was not taken: %s", notice.title, notice.user, error)
        return False
    Notice.objects.filter(pk=notice.pk).update(email_due_at=None, emailed_at=timezone.now())
    return True


def _email(notice: Notice) -> EmailMessage:
    paragraphs = [
        notice.body,
        f"{settings.SITE_URL}{notice.url}",
        f"You get this as an admin of {notice.project}. Choose what comes by e-mail: "
        f"{settings.SITE_URL}{reverse('notices')}",
    ]
    return EmailMessage(
        subject=f"{notice.project}: {notice.title}".replace("\n", " "),
        body="\n\n".join(filter(None, paragraphs)) + "\n",
        to=[notice.user.email],
    )


# By the person who reads them


def mark_read(user: User, notice_id: int | None = None) -> None:
    """One notice, or all."""
    unread = Notice.objects.filter(user=user, read_at=None)
    unread.filter(**({"pk": notice_id} if notice_id else {})).update(read_at=timezone.now())


def choose_emails(user: User, project: Project, kinds: set[str]) -> None:
    """Have e-mails of these kinds of event in a project, and of no other."""
    without = [kind for kind in Notice.Kind.values if kind not in kinds]
    NoticeSetting.objects.update_or_create(user=user, project=project, defaults={"not_by_email": without})
