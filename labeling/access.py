"""Who may see and do what. Somebody else's project is a 404, a known one without the right is a 403."""

from __future__ import annotations

from collections.abc import Iterable

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest
from django.utils.translation import gettext

from labeling import rows
from labeling.models import Membership, Project

Role = Membership.Role


ROLE = "SELECT role FROM labeling_membership WHERE project_id = %s AND user_id = %s"


class SignedInRequest(HttpRequest):
    """What a view behind ``login_required`` receives."""

    user: User


ANYONE = (Role.ANNOTATOR, Role.REVIEWER, Role.ADMIN)
REVIEWERS = (Role.REVIEWER, Role.ADMIN)
ADMINS = (Role.ADMIN,)


def person(request: HttpRequest) -> User:
    """Who sent a request that only signed-in people can send."""
    assert isinstance(request.user, User)
    return request.user


def role_of(user: User, project: Project) -> Role | None:
    """The person's role in the project; superusers are admins everywhere."""
    if user.is_superuser:
        return Role.ADMIN
    # Page, frame and fragment of a request ask for the same; its user lives no longer than the request.
    known = user.__dict__.setdefault("roles_looked_up", {})
    if project.pk not in known:
        known[project.pk] = rows.scalar(ROLE, [project.pk, user.pk])
    return Role(known[project.pk]) if known[project.pk] else None


def project_or_404(user: User, slug: str, roles: Iterable[Role] = ANYONE) -> Project:
    """Return the project if ``user`` is in it with one of ``roles``; 404 for strangers, 403 for the others."""
    project = rows.first(rows.fetch(Project, "slug = %s", [slug]))
    role = role_of(user, project) if project else None
    if project is None or role is None:
        raise Http404("No such project")
    if role not in roles:
        names = " / ".join(str(role.label) for role in roles)
        raise PermissionDenied(gettext("This needs the role %(role)s.") % {"role": names})
    return project
