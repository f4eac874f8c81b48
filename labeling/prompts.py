"""What a prompt is: a chat, its checks, its content hash and the split that follows from it. Pure functions."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from django.utils.formats import number_format
from django.utils.translation import gettext

from labeling.exceptions import LabelingError

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
MAX_PROMPT_CHARACTERS = 200_000
MAX_MESSAGES = 200
# The share of prompts whose preferences are never trained on. Changing it would move prompts across the split, so it is
# a constant and not a setting.
HELD_OUT_PERCENT = 20
# Two rounds of folding suffice for nearly every text, three for the rest of today's Unicode.
MAX_FOLDS = 8


class InvalidPrompt(LabelingError):
    """A prompt that is not a chat a model can be asked to continue."""


def parse_prompt(value: Any) -> list[Message]:
    """Return the chat in ``value``: a string (one user message) or a list of ``{"role", "content"}``.

    Raises ``InvalidPrompt`` with a sentence for the person who wrote it.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InvalidPrompt(gettext("a prompt is a text or a list of messages with “role” and “content”."))
    if len(value) > MAX_MESSAGES:
        told = {"count": len(value), "most": MAX_MESSAGES}
        raise InvalidPrompt(gettext("%(count)d messages; at most %(most)d are allowed.") % told)
    messages = [_parse_message(number, item) for number, item in enumerate(value, 1)]
    _check_turns(messages)
    if (characters := sum(len(message["content"]) for message in messages)) > MAX_PROMPT_CHARACTERS:
        figures = {"count": _grouped(characters), "most": _grouped(MAX_PROMPT_CHARACTERS)}
        raise InvalidPrompt(gettext("%(count)s characters; at most %(most)s are allowed.") % figures)
    return messages


def _parse_message(number: int, item: Any) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or not isinstance(item.get("content"), str):
        told = {"number": number}
        raise InvalidPrompt(gettext("message %(number)d needs a “role” and a “content”, both texts.") % told)
    if item["role"] not in ROLES:
        names = {"number": str(number), "role": item["role"][:40], "known": ", ".join(ROLES)}
        raise InvalidPrompt(gettext("message %(number)s has the role “%(role)s”; use %(known)s.") % names)
    content = clean_text(item["content"])
    if not content:
        raise InvalidPrompt(gettext("message %(number)d is empty.") % {"number": number})
    return {"role": item["role"], "content": content}


def _grouped(number: int) -> str:
    return number_format(number, force_grouping=True)


def _check_turns(messages: Sequence[Message]) -> None:
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise InvalidPrompt(gettext("a system message can only be the first message."))
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns[-1] != "user":
        raise InvalidPrompt(gettext("the last message must be the user's, because the model writes the next one."))
    if any(role != ("user", "assistant")[index % 2] for index, role in enumerate(turns)):
        raise InvalidPrompt(gettext("user and assistant must take turns, the user first."))


def clean_text(text: str) -> str:
    """Return ``text`` in NFC with Unix line ends and without blank edges; refuse what no database or model can hold."""
    if "\x00" in text:
        raise InvalidPrompt(gettext("the text contains a NUL character; remove it."))
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise InvalidPrompt(gettext("the text contains half of a surrogate pair; save it as valid UTF-8."))
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def normalise(text: str) -> str:
    """Fold what does not make two texts different to a reader: case, compatibility forms and whitespace.

    Folding the case may leave a text that composes again, so this goes on until nothing changes.
    """
    for _ in range(MAX_FOLDS):
        folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        if folded == text:
            break
        text = folded
    return text


def content_hash(messages: Sequence[Message]) -> str:
    """The sha256 (hex) of the normalised chat: what makes a prompt the same prompt, and what decides its split."""
    folded = [[message["role"], normalise(message["content"])] for message in messages]
    return hashlib.sha256(json.dumps(folded, ensure_ascii=False).encode()).hexdigest()


def is_held_out(prompt_hash: str) -> bool:
    """Whether the preferences on a prompt serve evaluation only. A function of the hash alone, hence fixed for ever."""
    return int(prompt_hash[:8], 16) % 100 < HELD_OUT_PERCENT
