"""The keys of the annotate page: the usual ones, those that a person chose, and which ones cannot be chosen.

A key is written as the page sees it: one character in lower case ("s", "1", "?"), or a name ("space", "ArrowLeft").
Digits are meant by their place on the keyboard, so that they work on every layout; letters by what they say, and on
layouts without Latin letters by their place too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from django.contrib.auth.models import AnonymousUser, User
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling.exceptions import LabelingError
from labeling.models import KeyMap

USUAL: dict[str, tuple[str, ...]] = {
    "left": ("1", "ArrowLeft"),
    "right": ("2", "ArrowRight"),
    "tie": ("3",),
    "both_bad": ("4",),
    "skip": ("s",),
    "comment": ("c",),
    "rewrite": ("e",),
    "why": ("w",),
    "difference": ("d",),
    "undo": ("u",),
    "guidelines": ("g",),
    "help": ("?",),
    "raw": ("r",),
    "focus": ("space",),
}
ACTIONS = {
    "left": _("Left is better"),
    "right": _("Right is better"),
    "tie": _("Equally good"),
    "both_bad": _("Both bad"),
    "skip": _("Skip the pair"),
    "comment": _("Write a comment"),
    "rewrite": _("Improve the better response"),
    "why": _("Say why, after an answer"),
    "difference": _("Show what differs"),
    "undo": _("Undo"),
    "guidelines": _("Guidelines"),
    "help": _("Help"),
    "raw": _("Show the text as it was written"),
    "focus": _("Go to the other response"),
}
NAMED = {
    "space": _("Space"),
    "ArrowLeft": "←",
    "ArrowRight": "→",
    "ArrowUp": "↑",
    "ArrowDown": "↓",
}
# What a person may type for a key, beside its own name.
ALSO_CALLED = {
    "": "",
    " ": "space",
    "spacebar": "space",
    "left": "ArrowLeft",
    "right": "ArrowRight",
    "up": "ArrowUp",
    "down": "ArrowDown",
    "←": "ArrowLeft",
    "→": "ArrowRight",
    "↑": "ArrowUp",
    "↓": "ArrowDown",
    **{name.casefold(): name for name in NAMED},
}
RESERVED = {
    *("tab", "enter", "return", "escape", "esc", "shift", "control", "ctrl", "alt", "altgraph", "meta", "capslock"),
    *("backspace", "delete", "insert"),
    *("home", "end", "pageup", "pagedown", "contextmenu", "printscreen", "dead", "process", "unidentified"),
    *(f"f{number}" for number in range(1, 25)),
}
MOST_KEYS = 2


class KeysRejected(LabelingError):
    """Keys that cannot be used; ``problems`` says by action why."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__(" ".join(self.problems.values()))


def keys_of(user: User | AnonymousUser) -> dict[str, list[str]]:
    """This person's keys by action. One that they gave to another action is no longer the usual one's."""
    row = KeyMap.objects.filter(user_id=user.pk).first() if user.pk else None
    own = {action: keys for action, keys in (row.keys if row else {}).items() if action in USUAL}
    taken = {key for keys in own.values() for key in keys}
    return {
        action: list(own[action]) if action in own else [key for key in usual if key not in taken]
        for action, usual in USUAL.items()
    }


def save_keys(*, user: User, keys: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Keep these keys for the person, and return all of theirs. An action without any has its usual ones again."""
    chosen = check_keys(keys)
    own = {action: list(given) for action, given in chosen.items() if given != USUAL[action]}
    KeyMap.objects.update_or_create(user=user, defaults={"keys": own})
    return keys_of(user)


def reset_keys(*, user: User) -> None:
    """Back to the usual keys."""
    KeyMap.objects.filter(user=user).delete()


def check_keys(keys: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Return the whole map with each key as it is kept, or raise ``KeysRejected``."""
    problems = {action: _unknown_action(action) for action in keys if action not in USUAL}
    chosen: dict[str, tuple[str, ...]] = {}
    for action, usual in USUAL.items():
        try:
            given = tuple(dict.fromkeys(key for raw in keys.get(action, ()) if (key := check_key(raw))))
        except LabelingError as error:
            problems[action] = str(error)
            continue
        if len(given) > MOST_KEYS:
            problems[action] = gettext("At most %(most)d keys for one action.") % {"most": MOST_KEYS}
        chosen[action] = given or usual
    problems |= _twice(chosen)
    if problems:
        raise KeysRejected(problems)
    return chosen


def check_key(raw: str) -> str:
    """Return a key as it is kept, empty for nothing; raise ``LabelingError`` for one that cannot be used."""
    text = raw if raw == " " else raw.strip()
    folded = text.casefold()
    names = ALSO_CALLED | {str(name).casefold(): key for key, name in NAMED.items()}  # in the reader's language, too
    if folded in names:
        return names[folded]
    if folded in RESERVED:
        raise LabelingError(gettext("“%(key)s” belongs to the browser or the keyboard.") % {"key": text})
    text = unicodedata.normalize("NFC", text).lower()
    if len(text) != 1 or not text.isprintable() or unicodedata.combining(text):
        told = {"key": text[:20]}
        raise LabelingError(gettext("“%(key)s” is not one key. Type one character, or a name such as Space.") % told)
    return text


def name_of(key: str) -> str:
    """A key as people read it."""
    if key in NAMED:
        return str(NAMED[key])
    return key.upper() if key.upper().lower() == key and len(key.upper()) == 1 else key


def _unknown_action(action: str) -> str:
    return gettext("“%(action)s” is not an action of the page.") % {"action": action[:40]}


def _twice(chosen: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """What is wrong where a key stands for two actions, said at the later one."""
    seen: dict[str, str] = {}
    problems = {}
    for action, keys in chosen.items():
        for key in keys:
            if key in seen:
                told = {"key": name_of(key), "action": ACTIONS[seen[key]]}
                problems[action] = gettext("%(key)s is the key for “%(action)s” already.") % told
            seen.setdefault(key, action)
    return problems
