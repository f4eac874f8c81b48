"""What the frame of every page of a project says of the person who reads it."""

from __future__ import annotations

from django import template
from django.contrib.auth.models import User

from labeling.models import Project
from labeling.sent_back import count_of

register = template.Library()


@register.simple_tag
def to_look_at_again(project: Project, user: User) -> int:
    return count_of(project.pk, user.pk)
