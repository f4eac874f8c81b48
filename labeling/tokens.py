"""A lease's token: sealed, so that a late answer is recognised, whatever has become of its slot since.

It names slot, lease number, person and the moment of the lease, and carries which side was shown left. Nobody else can
read it: a pair with a known answer and a second look get slots of their own, whose numbers are the newest and whose
lease is the first, so a readable number would tell them from the others, as a readable side would tell the order.

The seal is a synthetic initialisation vector (Rogaway and Shrimpton, "A Provable-Security Treatment of the Key-Wrap
Problem", 2006; RFC 5297) with HMAC-SHA256 as both of its functions: a tag over the content, and the content under a
keystream that the tag begins. Equal content gives the equal token, and nothing else of it can be learnt or changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings
from django.utils.translation import gettext

from labeling.exceptions import LeaseGone
from labeling.models import Slot

MAX_TOKEN_LENGTH = 400
CONTENT = struct.Struct(">QIQd?")  # slot, lease number, person, began, whether B stood on the left
TAG_BYTES = 16


@dataclass(frozen=True)
class TokenContent:
    """What a lease's token says: which slot, the how-manieth lease of it, since when, and what was shown left."""

    slot_id: int
    number: int
    began: datetime
    shown_left: str


def make_token(slot: Slot) -> str:
    began = slot.leased_at.timestamp() if slot.leased_at else 0.0
    is_b = slot.shown_left == Slot.Side.B
    content = CONTENT.pack(slot.pk, slot.lease_number, slot.annotator_id or 0, began, is_b)
    tag = _tag(content)
    return base64.urlsafe_b64encode(tag + _under_keystream(tag, content)).rstrip(b"=").decode()


def lease_key(slot: Slot) -> str:
    """A name of this lease for its page: always the same, and saying nothing about the slot."""
    message = f"lease:{slot.pk}:{slot.lease_number}:{slot.annotator_id}".encode()
    return hmac.digest(settings.SECRET_KEY.encode(), message, hashlib.sha256).hex()[:16]


def read_token(token: str, annotator_id: int) -> TokenContent:
    """Return what this person's token says, or raise ``LeaseGone``."""
    content = _opened(token)
    if content is None:
        raise LeaseGone(gettext("This pair could not be recognised. Reload the page to go on."))
    slot_id, number, holder_id, began, is_b = CONTENT.unpack(content)
    if holder_id != annotator_id:
        raise LeaseGone(gettext("This pair was given to another account. Reload the page to go on."))
    return TokenContent(slot_id, number, datetime.fromtimestamp(began, tz=UTC), Slot.Side.B if is_b else Slot.Side.A)


def keyed_share(purpose: str, *numbers: int | None) -> float:
    """A number in [0, 1) that looks random, is always the same for the same numbers, and that nobody can foresee."""
    message = ":".join([purpose, *map(str, numbers)]).encode()
    digest = hmac.digest(settings.SECRET_KEY.encode(), message, hashlib.sha256)
    return int.from_bytes(digest[:6], "big") / 2**48


def _opened(token: str) -> bytes | None:
    """The content of a token, or ``None`` for what was never one."""
    try:
        sealed = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    if len(sealed) != TAG_BYTES + CONTENT.size:
        return None
    tag = sealed[:TAG_BYTES]
    content = _under_keystream(tag, sealed[TAG_BYTES:])
    return content if hmac.compare_digest(_tag(content), tag) else None


def _tag(content: bytes) -> bytes:
    return _keyed("lease tag", content)[:TAG_BYTES]


def _under_keystream(tag: bytes, content: bytes) -> bytes:
    """The content hidden, or the hidden content. One block of the keystream covers it."""
    return bytes(one ^ other for one, other in zip(content, _keyed("lease keystream", tag), strict=False))


def _keyed(purpose: str, message: bytes) -> bytes:
    key = hmac.digest(settings.SECRET_KEY.encode(), f"labeling.{purpose}".encode(), hashlib.sha256)
    return hmac.digest(key, message, hashlib.sha256)
