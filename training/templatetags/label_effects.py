"""For pages of labeling, which know nothing of training: whether there is something to see of one's own labels."""

from __future__ import annotations

from django import template
from django.contrib.auth.models import User

from labeling.models import Project
from training.own_effects import newest_effects, own_of

register = template.Library()


@register.simple_tag
def has_changed_something(project: Project, user: User) -> bool:
    effects = newest_effects(project)
    return effects is not None and own_of(effects, user.pk).exists()
