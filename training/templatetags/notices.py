"""How many notices somebody has not read."""

from __future__ import annotations

from typing import Any

from django import template

from training.models import Notice

MOST_COUNTED = 99

register = template.Library()


@register.simple_tag
def unread_notices(user: Any) -> int:
    """At most ``MOST_COUNTED``: beyond it nobody counts any more."""
    return Notice.objects.filter(user=user, read_at=None)[:MOST_COUNTED].count()
