"""How numbers, days and lengths of time are written on pages, in the page's language."""

from __future__ import annotations

from datetime import date, datetime

from django import template
from django.utils import timezone
from django.utils.formats import date_format, get_format
from django.utils.translation import gettext, ngettext, pgettext

register = template.Library()

MINUS = "\N{MINUS SIGN}"


def in_the_language(number: str) -> str:
    """``12,345.6`` as the page's language writes it: ``12.345,6`` in German."""
    marks = {",": get_format("THOUSAND_SEPARATOR"), ".": get_format("DECIMAL_SEPARATOR")}
    return number.translate(str.maketrans(marks))


@register.filter
def short_day(day: date | None) -> str:
    """``3 Mar``; nothing for no day."""
    return date_format(day, pgettext("date", "j M")) if day else ""


@register.filter
def duration(seconds: float | None) -> str:
    """``3725`` as ``1 h 2 min``: two units at most, nothing for nothing."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


@register.filter
def ago(moment: datetime | None) -> str:
    """``5 min ago``, in one unit; the last minute is ``just now``."""
    if moment is None:
        return ""
    seconds = (timezone.now() - moment).total_seconds()
    if seconds < 60:
        return gettext("just now")
    if seconds < 3600:
        return gettext("%(count)d min ago") % {"count": seconds // 60}
    if seconds < 86_400:
        hours = int(seconds // 3600)
        return ngettext("%(count)d hour ago", "%(count)d hours ago", hours) % {"count": hours}
    days = int(seconds // 86_400)
    return ngettext("%(count)d day ago", "%(count)d days ago", days) % {"count": days}


@register.filter
def decimals(value: float | None, places: int = 3) -> str:
    """A number with that many decimals and a true minus sign; a dash where there is none."""
    return "–" if value is None else in_the_language(f"{value:.{places}f}".replace("-", MINUS))


@register.filter
def signed(value: float | None, places: int = 3) -> str:
    """Like ``decimals``, with the sign always written; zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.{places}f}"
    return in_the_language(text[1:] if float(text) == 0 else text.replace("-", MINUS))


@register.filter
def percent(share: float | None, places: int = 0) -> str:
    return "–" if share is None else in_the_language(f"{100 * share:.{places}f}") + "\N{NARROW NO-BREAK SPACE}%"


@register.filter
def count(number: float) -> str:
    """``12345.6`` as ``12,346``, in German as ``12.346``."""
    return in_the_language(f"{number:,.0f}")


@register.filter
def of_ten(count: int) -> int:
    """How far the current ten has come: 1 to 10, and 0 only before the first."""
    return (count - 1) % 10 + 1 if count > 0 else 0
