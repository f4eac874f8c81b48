"""What the admins of a project decide: its settings and its members. The only writers of these rows beside creation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext

from labeling.exceptions import LabelingError
from labeling.models import Membership, Project
from labeling.services import add_member

HOW_OFTEN = (
    "judgements_per_pair",
    "most_judgements",
    "calibration_percent",
    "control_percent",
    "repeat_percent",
    "gold_percent",
    "lease_minutes",
)
WHAT_IS_SAID = ("asks_strength", "criteria", "reason_chips", "reasons_percent", "allows_rewrites")
WHO_MAY = ("qualification_pass_percent", "qualification_tries")
SETTINGS = ("name", "is_paused", *HOW_OFTEN, *WHAT_IS_SAID, *WHO_MAY)


def check_settings(project: Project) -> None:
    """Raise ``ValidationError``, by field, for settings that contradict each other. Each by itself is its field's."""
    problems = {}
    if project.most_judgements < project.judgements_per_pair:
        told = {"wanted": project.judgements_per_pair}
        problems["most_judgements"] = (
            gettext("Each pair is judged by %(wanted)d people, so conflicts need at least as many.") % told
        )
    if project.reasons_percent and not project.reason_chips:
        problems["reasons_percent"] = gettext("Name the reasons first, or ask for none: set this to 0.")
    if problems:
        raise ValidationError(problems)


@transaction.atomic
def change_settings(*, project: Project, changes: Mapping[str, Any]) -> Project:
    """Change some of ``SETTINGS``, all or none. Pairs that exist keep what was decided when they were made.

    Raises ``ValidationError`` by field.
    """
    if unknown := sorted(set(changes) - set(SETTINGS)):
        told = {"names": ", ".join(unknown)[:200]}
        raise ValidationError(gettext("Not a setting of a project: %(names)s") % told)
    locked = Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    for name, value in changes.items():
        setattr(locked, name, _trimmed(value))
    locked.full_clean(exclude={field.name for field in Project._meta.fields} - set(changes))
    check_settings(locked)
    locked.save(update_fields=list(changes))
    project.refresh_from_db(fields=list(changes))
    return project


def add_person(*, project: Project, username: str, role: str) -> Membership:
    """Let somebody who has an account into the project. Raises ``LabelingError`` if there is none, or they are in."""
    user = User.objects.filter(username=username.strip(), is_active=True).first()
    if user is None:
        told = {"name": username.strip()[:60]}
        raise LabelingError(
            gettext("Nobody is called “%(name)s” here. Names tell capitals apart; accounts are made under Operations.")
            % told
        )
    if Membership.objects.filter(project=project, user=user).exists():
        told = {"name": user.get_username()}
        raise LabelingError(gettext("%(name)s is in the project already. Change the role in the list.") % told)
    _check_role(role)
    return add_member(project=project, user=user, role=role)


@transaction.atomic
def change_role(*, project: Project, user_id: int, role: str) -> Membership:
    """Give a member another role; the last admin stays one."""
    _check_role(role)
    membership = _member(project, user_id)
    if role != Membership.Role.ADMIN:
        _check_not_last_admin(membership)
    return add_member(project=project, user=membership.user, role=role)


@transaction.atomic
def remove_member(*, project: Project, user_id: int) -> None:
    """Take somebody out of the project. What they judged stays, and so does their seat, should they come back.

    A pair that they hold goes to others when its lease ends.
    """
    membership = _member(project, user_id)
    _check_not_last_admin(membership)
    membership.delete()


def _member(project: Project, user_id: int) -> Membership:
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)  # two admins may be removing each other
    membership = Membership.objects.filter(project=project, user_id=user_id).select_related("user").first()
    if membership is None:
        raise LabelingError(gettext("That person is not in the project any more."))
    return membership


def _check_role(role: str) -> None:
    if role not in Membership.Role.values:
        told = {"role": role[:40], "known": ", ".join(Membership.Role.values)}
        raise LabelingError(gettext("“%(role)s” is not a role; use one of %(known)s.") % told)


def _check_not_last_admin(membership: Membership) -> None:
    admins = Membership.objects.filter(project_id=membership.project_id, role=Membership.Role.ADMIN)
    if membership.role == Membership.Role.ADMIN and not admins.exclude(pk=membership.pk).exists():
        told = {"name": membership.user.get_username()}
        raise LabelingError(
            gettext("%(name)s is the last admin of this project. Make somebody else an admin first.") % told
        )


def _trimmed(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return [item.strip() if isinstance(item, str) else item for item in value]
    return value
