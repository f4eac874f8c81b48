"""The queue: who gets which pair next, and what becomes of the answer. Every write of a slot starts here or in places.

One person holds one slot of a pair at most. The database holds these truths as constraints; the advisory lock per
annotator (PostgreSQL) and IMMEDIATE transactions (SQLite) keep the flow free of errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from django.db import models
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from labeling import leases, rows
from labeling.answers import NOTHING_MORE, Details, check_answer, check_reasons, clean_comment
from labeling.claims import by_coin
from labeling.exceptions import AlreadyAnswered, Frozen, LabelingError, LeaseGone, NothingToUndo
from labeling.leases import Desk, Lease
from labeling.models import Pair, Preference, Project, Prompt, Skip, Slot
from labeling.passed_on import PassedOn, asks_nobody, passed_on_since
from labeling.places import give_back, next_place
from labeling.records import Judged, forget_skip, record_preference, record_skip, reinstate, withdraw
from labeling.tokens import TokenContent, keyed_share, make_token, read_token
from labeling.turns import take_turn, transaction_at_desk

PAIR_OF_SLOT = "id = (SELECT pair_id FROM labeling_slot WHERE id = %s) AND project_id = %s"
# What somebody says of the pair now; a second look is apart from the first.
SAID_OF_SLOT = """annotator_id = %s AND is_current
AND pair_id = (SELECT pair_id FROM labeling_slot WHERE id = %s)
AND is_repeat = (SELECT kind = 'repeat' FROM labeling_slot WHERE id = %s)"""


@dataclass(frozen=True)
class Submission:
    """What became of an answer. ``is_extra``: the slot had gone to somebody else; ``is_repeat``: counted before."""

    preference: Preference
    is_extra: bool = False
    is_repeat: bool = False


@dataclass(frozen=True)
class Turn:
    """What an answer leads to: what became of it, the pair that is looked at now, and the one after that."""

    submission: Submission | None
    now: Lease | None
    ahead: Lease | None


@dataclass(frozen=True)
class _Page:
    """What the token of a page is about: its slot, locked with its pair, and what its reader says of the pair now."""

    slot: Slot
    lease: TokenContent
    current: Preference | None

    @property
    def answer(self) -> Preference | None:
        """The current answer, if it was given under this page's lease or a later one; an undo gives a later lease.

        Nobody is given a second slot of a pair they have answered, so an answer in another slot is later than this.
        """
        said, lease = self.current, self.lease
        return said if said and (said.slot_id != lease.slot_id or said.lease_number >= lease.number) else None


class Standing(models.TextChoices):
    """How a pair stands with the person whose page shows it; the label is what the page says."""

    KEPT = "kept", ""
    OPEN = (
        "open",
        _(
            "Another tab of yours holds another pair, so this one may go to somebody else. An answer will still be "
            "saved."
        ),
    )
    TAKEN = "taken", _("Somebody else has this pair now. An answer will still be saved, as an extra vote.")
    ANSWERED = (
        "answered",
        _("You have answered this pair in another tab; that answer counts. Reload the page to go on."),
    )
    SKIPPED = (
        "skipped",
        _("You have skipped this pair in another tab. Reload the page to go on, or answer it after all."),
    )


def lease_next(project: Project, annotator_id: int) -> Lease | None:
    """Return the pair this person works on, or lease the next one; ``None`` if nothing is open for them.

    Asking twice, from two tabs for example, returns the same lease, renewed. Raises ``NotQualified`` for whoever has
    still to pass the project's qualification set.
    """
    with transaction_at_desk():
        return leases.lease_now(leases.sit_down(project, annotator_id))


def lease_ahead(project: Project, annotator_id: int) -> Lease | None:
    """Return the pair that comes after the one this person works on, leased ahead: one, however often it is asked for.

    ``None`` where nothing more is open for them, or nothing is held that it could come after.
    """
    with transaction_at_desk():
        desk = leases.sit_down(project, annotator_id)
        return leases.lease_after(desk) if desk.held else None


def turn(project: Project, token: str, annotator_id: int, choice: str, details: Details = NOTHING_MORE) -> Turn:
    """Submit an answer, go on to the next pair and lease the one after it, in one transaction."""
    with transaction_at_desk():
        submission = _submit(project, token, annotator_id, choice, details)
        desk = leases.desk_of(project, annotator_id)
        now = leases.lease_now(desk)
        return Turn(submission, now, leases.lease_after(desk) if now else None)


def submit(project: Project, token: str, annotator_id: int, choice: str, details: Details = NOTHING_MORE) -> Submission:
    """Record an answer in terms of response A and B. Labour is never thrown away.

    A lease that ran out is honoured; if the slot has gone to somebody else, the answer becomes an extra vote. The
    second answer of one lease counts as a repeat of the first. Raises ``LeaseGone`` for a foreign or damaged token,
    ``AnswerRejected`` for an answer that cannot be stored, ``Frozen`` for one that a dataset has used.
    """
    with transaction_at_desk():
        return _submit(project, token, annotator_id, choice, details)


def give_back_ahead(project: Project, annotator_id: int) -> None:
    """Open the pair that was leased ahead for the others; harmless where there is none."""
    with transaction_at_desk():
        if ahead := leases.sit_down(project, annotator_id).ahead:
            give_back(ahead)


def renew(project: Project, token: str, annotator_id: int) -> Standing:
    """Keep a lease alive while its page is looked at, and say how the pair stands with this person.

    A lease that ran out is taken back if nobody has the slot, unless this person has moved on to another pair: nobody
    holds two by leaving pages open. Raises ``LeaseGone`` for a foreign or damaged token.
    """
    with transaction_at_desk():
        page = _read_page(project, token, annotator_id, is_forgettable=True)
        if page.answer:
            return Standing.ANSWERED
        if page.slot.passed_on_at or Skip.objects.filter(pair=page.slot.pair_id, annotator=annotator_id).exists():
            return Standing.SKIPPED
        return _renew(leases.desk_of(project, annotator_id), page)


def skip(project: Project, token: str, annotator_id: int, reason: str = "", note: str = "") -> None:
    """Give a pair back for good. A judgement that was reopened by undo is withdrawn.

    A page that is older than the answer withdraws nothing: ``AlreadyAnswered``.
    """
    with transaction_at_desk():
        page = _read_page(project, token, annotator_id)
        slot = page.slot
        if page.answer:
            raise AlreadyAnswered(
                gettext("You have answered that pair already, so it is not skipped. Use Undo to change the answer.")
            )
        if page.current:
            _check_not_frozen(page.current)
            withdraw(project, page.current)
        if slot.kind != Slot.Kind.REPEAT:  # the pair is judged already; only the second look is passed on
            known = reason if reason in Skip.Reason.values else ""
            record_skip(slot.pair_id, annotator_id, known, (note if known == reason else reason)[:500])
        if mine := _own_slot(slot, annotator_id):
            give_back(mine)
        if slot.kind == Slot.Kind.REPEAT:
            Slot.objects.filter(pk=slot.pk, passed_on_at=None).update(passed_on_at=timezone.now())


def undo(project: Project, annotator_id: int) -> Lease:
    """Reopen what this person did last in the project, a judgement or a skip.

    A judgement stays valid until a new version replaces it; a skip is forgotten, and what it withdrew counts again. The
    pair that was on the screen comes after it. A skip whose pair has gone to somebody else, or is over, is stepped
    over, and the lease's notice says so. Raises ``NothingToUndo``, and ``Frozen`` for a judgement that a dataset has
    used.
    """
    with transaction_at_desk():
        take_turn(annotator_id)
        mine = Preference.objects.filter(annotator_id=annotator_id, project=project, is_current=True)
        judged = mine.select_related("slot").order_by("-pk").first()
        lately = passed_on_since(project, annotator_id, judged.created_at if judged else None)
        if lately.again:
            lease = _have_again(project, annotator_id, lately.again)
        elif judged:
            lease = _reopen(project, judged)
        else:
            raise NothingToUndo(_nothing_to_undo(lately.last))
        return replace(lease, notice=_stepped_over(lately.last)) if lately.is_stepped_over else lease


def reopen(project: Project, annotator_id: int, preference_id: int) -> Lease:
    """Reopen one of this person's judgements, as ``undo`` does with the last one."""
    with transaction_at_desk():
        take_turn(annotator_id)
        mine = Preference.objects.filter(annotator_id=annotator_id, project=project, is_current=True)
        preference = mine.select_related("slot").filter(pk=preference_id).first()
        if preference is None:
            said = gettext("That judgement has a newer version, or is not yours. Reload the page to see it.")
            raise NothingToUndo(said)
        return _reopen(project, preference)


def add_reasons(project: Project, token: str, annotator_id: int, reasons: tuple[str, ...], comment: str) -> Preference:
    """Say, after the vote, why: onto the judgement that was given under this lease, while no dataset has used it."""
    with transaction_at_desk():
        check_reasons(project, reasons)
        current = _read_page(project, token, annotator_id).answer
        if current is None:
            raise LeaseGone(gettext("That judgement is no longer the one that counts, so nothing was added to it."))
        _check_not_frozen(current)
        current.reasons, current.comment = list(reasons), clean_comment(comment) or current.comment
        current.save(update_fields=["reasons", "comment"])
        return current


def asks_for_reason(project: Project, slot: Slot, annotator_id: int) -> bool:
    """Whether this is one of the judgements that must name a reason: a fixed share, that nobody can foresee."""
    if not project.reason_chips or not project.reasons_percent or slot.kind == Slot.Kind.REPEAT:
        return False
    return keyed_share("reason", annotator_id, slot.pair_id) * 100 < project.reasons_percent


def read_lease(project: Project, token: str, annotator_id: int) -> TokenContent:
    """What the token of one of this project's pages says, such as which response stood on the left."""
    lease = read_token(token, annotator_id)
    if not Slot.objects.filter(project=project, pk=lease.slot_id).exists():
        raise LeaseGone(_gone())
    return lease


def _read_page(project: Project, token: str, annotator_id: int, *, is_forgettable: bool = False) -> _Page:
    """Take the person's turn and read what the token is about, in one way to the database and back.

    The pair is locked before the slot: two people's slots of it may have changed hands.
    """
    lease = read_token(token, annotator_id)
    slot_id = lease.slot_id
    with rows.pipelined():
        take_turn(annotator_id, is_forgettable=is_forgettable)
        pairs = rows.ask(Pair, PAIR_OF_SLOT, [slot_id, project.pk], lock="FOR NO KEY UPDATE")
        slots = rows.ask(Slot, "id = %s", [slot_id], lock="FOR UPDATE")
        said = rows.ask(Preference, SAID_OF_SLOT, [annotator_id, slot_id, slot_id])
    pair, slot = rows.first(pairs()), rows.first(slots())
    if pair is None or slot is None:
        raise LeaseGone(_gone())
    if pair.is_retired and not Prompt.objects.in_use().filter(pk=pair.prompt_id).exists():
        raise LeaseGone(gettext("This pair was withdrawn, so nothing was saved. Reload the page to go on."))
    slot.pair = pair
    return _Page(slot, lease, rows.first(said()))


def _gone() -> str:
    return gettext("This pair is no longer part of the project. Reload the page to go on.")


def _check_not_frozen(preference: Preference) -> None:
    if preference.frozen_at:
        day = date_format(timezone.localtime(preference.frozen_at))
        raise Frozen(gettext("That judgement went into a dataset on %(day)s, so it stays as it is.") % {"day": day})


# Answers


def _submit(project: Project, token: str, annotator_id: int, choice: str, details: Details) -> Submission:
    details = check_answer(project, choice, details)
    page = _read_page(project, token, annotator_id)
    if page.answer:
        return Submission(page.answer, is_extra=page.answer.slot.kind == Slot.Kind.EXTRA, is_repeat=True)
    if page.current:
        _check_not_frozen(page.current)
    if asks_for_reason(project, page.slot, annotator_id) and not (details.reasons or details.comment):
        raise LabelingError(gettext("This judgement needs a reason: choose at least one, or write a comment."))
    slot, lease = _slot_to_fill(page.slot, annotator_id), page.lease
    if slot.lease_number != lease.number or slot.leased_at is None:
        slot.leased_at = lease.began  # the slot may have been somebody else's meanwhile
    slot.lease_number = max(slot.lease_number, lease.number)
    preference = record_preference(slot, Judged(project, annotator_id, lease, choice, details, page.current))
    return Submission(preference, is_extra=slot.kind == Slot.Kind.EXTRA)


def _own_slot(slot: Slot, annotator_id: int) -> Slot | None:
    """This person's slot of the pair: the one given or another one, for instance leased in another tab since."""
    if slot.annotator_id == annotator_id:
        return slot
    own = Slot.objects.select_for_update().filter(pair_id=slot.pair_id, annotator_id=annotator_id)
    mine = own.exclude(kind=Slot.Kind.REPEAT).first()
    if mine:
        mine.pair = slot.pair
    return mine


def _slot_to_fill(slot: Slot, annotator_id: int) -> Slot:
    """The slot an answer goes to: its own, this person's other slot of the pair, the reopened one, or an extra one."""
    if mine := _own_slot(slot, annotator_id):
        return mine
    if slot.state == Slot.State.OPEN:
        return slot
    return Slot(
        project_id=slot.project_id,
        pair=slot.pair,
        place=next_place(slot.pair_id),
        kind=Slot.Kind.EXTRA,
        leased_at=slot.leased_at,
    )


# Pages that are looked at, or again


def _renew(desk: Desk, page: _Page) -> Standing:
    slot, lease, annotator_id = page.slot, page.lease, desk.annotator_id
    others = [held for held in desk.held if not held.is_ahead and held.pair_id != slot.pair_id]
    if mine := _own_slot(slot, annotator_id):
        has_ended = page.current is None and not (mine.lease_until and mine.lease_until > desk.now)
        if has_ended and others:
            return Standing.OPEN  # the next sweep opens it for the others; one's own place is given again
        if has_ended and mine.state == Slot.State.DONE:
            leases.take(mine, annotator_id, lease.shown_left, lease.began, desk.until)
        # One that an undo had reopened may be done again by now; it is nobody else's, so it needs no lease.
        Slot.objects.filter(pk=mine.pk, state=Slot.State.LEASED).update(lease_until=desk.until)
        if ahead := desk.ahead:  # what ran out meanwhile may have a successor, so this is of what did not
            Slot.objects.filter(pk=ahead.pk).update(lease_until=desk.until)
        return Standing.KEPT
    if slot.state != Slot.State.OPEN:
        return Standing.TAKEN
    if others:
        return Standing.OPEN
    slot.lease_number = max(slot.lease_number, lease.number)
    leases.take(slot, annotator_id, lease.shown_left, lease.began, desk.until)
    return Standing.KEPT


def _reopen(project: Project, preference: Preference) -> Lease:
    _check_not_frozen(preference)
    desk, slot = leases.desk_of(project, preference.annotator_id), preference.slot
    leases.make_room(desk, besides=slot)
    slot.lease_number = max(slot.lease_number, preference.lease_number) + 1
    leases.take(slot, desk.annotator_id, preference.shown_left, desk.now, desk.until)
    return Lease(slot, make_token(slot), previous=preference)


def _nothing_to_undo(last: PassedOn | None) -> str:
    if last is None:
        return gettext("You have no judgement here that could be undone.")
    if asks_nobody(last):
        return gettext("Nobody is asked about that pair any more, so it needs you no more.")
    return gettext("That pair has gone to somebody else since you skipped it, so it needs you no more.")


def _stepped_over(last: PassedOn | None) -> str:
    if last and asks_nobody(last):
        return gettext("Nobody is asked any more about the pair that you skipped; this is what you did before it.")
    return gettext("The pair that you skipped has gone to somebody else; this is what you did before it.")


def _have_again(project: Project, annotator_id: int, passed: PassedOn) -> Lease:
    return _reopen_skipped(project, passed) if isinstance(passed, Skip) else _reopen_look(project, annotator_id, passed)


def _reopen_look(project: Project, annotator_id: int, look: Slot) -> Lease:
    """Lease a second look again that its person skipped; it was made for nobody else."""
    desk = leases.desk_of(project, annotator_id)
    leases.make_room(desk, besides=look)
    withdrawn = _unless_for_good(look.preferences.order_by("-pk").first())
    look.passed_on_at = None
    look.lease_number += 1
    leases.take(look, annotator_id, look.shown_left, desk.now, desk.until)
    if withdrawn:
        reinstate(project, withdrawn)
    return Lease(look, make_token(look), previous=withdrawn)


def _reopen_skipped(project: Project, skipped: Skip) -> Lease:
    """Lease the pair of a skip again: its open slot, or one that another person's lease does not need."""
    annotator_id = skipped.annotator_id
    pair = Pair.objects.select_for_update(no_key=True).get(pk=skipped.pair_id)
    slots = list(Slot.objects.filter(pair=pair).select_for_update().order_by("place"))
    withdrawn = _withdrawn_by(skipped)
    own = next((slot for slot in slots if slot.annotator_id == annotator_id and slot.kind != Slot.Kind.REPEAT), None)
    free = [slot for slot in slots if slot.state == Slot.State.OPEN]
    free.sort(key=lambda slot: withdrawn is None or slot.pk != withdrawn.slot_id)
    slot = own or rows.first(free)
    if slot is None or pair.is_retired or pair.adjudicated_choice:  # since a moment ago; the next undo steps over it
        skipped.pair = pair
        raise NothingToUndo(_nothing_to_undo(skipped))
    desk = leases.desk_of(project, annotator_id)
    leases.make_room(desk, besides=slot)
    forget_skip(pair, annotator_id)
    slot.lease_number += 1
    leases.take(slot, annotator_id, _side_seen(desk, slots), desk.now, desk.until)
    if withdrawn is None or withdrawn.slot_id != slot.pk:  # its place is somebody else's: this one is judged anew
        return Lease(slot, make_token(slot))
    reinstate(project, withdrawn)
    return Lease(slot, make_token(slot), previous=withdrawn)


def _withdrawn_by(skipped: Skip) -> Preference | None:
    """The judgement that a skip has withdrawn: had there been one since, the skip would be forgotten."""
    mine = Preference.objects.filter(pair_id=skipped.pair_id, annotator_id=skipped.annotator_id, is_repeat=False)
    return _unless_for_good(mine.order_by("-pk").first())


def _unless_for_good(withdrawn: Preference | None) -> Preference | None:
    """What may count again: an admin's withdrawal is nobody's to undo."""
    return None if withdrawn is None or withdrawn.withdrawal_id else withdrawn


def _side_seen(desk: Desk, slots: list[Slot]) -> str:
    """The left side of a pair as this person saw it; where somebody else has been shown its slot since, by the coin."""
    seen = next((slot.shown_left for slot in slots if slot.shown_to == desk.annotator_id), "")
    if not seen and desk.seat:
        seen = by_coin(desk.seat)
        desk.seat.a_left += 1 if seen == Slot.Side.A else -1
        rows.update(desk.seat, ("a_left",))
    return seen or Slot.Side.A
