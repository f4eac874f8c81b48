"""A lease's token: signed, so that a late answer is recognised, whatever has become of its slot since.

It names slot, lease number, person and the moment of the lease, and carries which side was shown left. That side is
masked with a keyed hash: who takes a token apart learns nothing about the order of the pair.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings
from django.core import signing
from django.utils.translation import gettext

from labeling.exceptions import LeaseGone
from labeling.models import Slot

TOKEN_SALT = "labeling.lease"  # noqa: S105  (a namespace, not a secret)
MAX_TOKEN_LENGTH = 400


@dataclass(frozen=True)
class TokenContent:
    """What a lease's token says: which slot, the how-manieth lease of it, since when, and what was shown left."""

    slot_id: int
    number: int
    began: datetime
    shown_left: str


def make_token(slot: Slot) -> str:
    began = slot.leased_at.timestamp() if slot.leased_at else 0.0
    side = int(slot.shown_left == Slot.Side.B) ^ _mask(slot.pk, slot.lease_number, slot.annotator_id)
    return signing.dumps([slot.pk, slot.lease_number, slot.annotator_id, began, side], salt=TOKEN_SALT)


def lease_key(slot: Slot) -> str:
    """A name of this lease for its page: always the same, and saying nothing about the slot."""
    message = f"lease:{slot.pk}:{slot.lease_number}:{slot.annotator_id}".encode()
    return hmac.digest(settings.SECRET_KEY.encode(), message, hashlib.sha256).hex()[:16]


def read_token(token: str, annotator_id: int) -> TokenContent:
    """Return what this person's token says, or raise ``LeaseGone``."""
    try:
        slot_id, number, holder_id, began, side = signing.loads(token, salt=TOKEN_SALT)
    except (signing.BadSignature, ValueError, TypeError):
        raise LeaseGone(gettext("This pair could not be recognised. Reload the page to go on.")) from None
    if holder_id != annotator_id:
        raise LeaseGone(gettext("This pair was given to another account. Reload the page to go on."))
    is_b = side ^ _mask(slot_id, number, annotator_id)
    return TokenContent(slot_id, number, datetime.fromtimestamp(began, tz=UTC), Slot.Side.B if is_b else Slot.Side.A)


def keyed_share(purpose: str, *numbers: int | None) -> float:
    """A number in [0, 1) that looks random, is always the same for the same numbers, and that nobody can foresee."""
    message = ":".join([purpose, *map(str, numbers)]).encode()
    digest = hmac.digest(settings.SECRET_KEY.encode(), message, hashlib.sha256)
    return int.from_bytes(digest[:6], "big") / 2**48


def _mask(slot_id: int, number: int, annotator_id: int | None) -> int:
    return int(keyed_share("side", slot_id, number, annotator_id) >= 0.5)
