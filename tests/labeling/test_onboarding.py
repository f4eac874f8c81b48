"""The qualification set: taken once, told at once, passed by the project's rule, written by admins."""

from __future__ import annotations

import io
import json
import re
from collections import Counter

import pytest
from django.urls import reverse
from django.utils import timezone

from labeling import onboarding, own_places, queue
from labeling.desk import side_of
from labeling.exceptions import ImportRejected, LabelingError, NotQualified
from labeling.models import Preference, QualificationAnswer, QualificationItem, QualificationResult, Seat, Slot
from labeling.qualification_items import (
    InvalidItem,
    ItemContent,
    add_item_of_pair,
    add_items,
    change_item,
    import_items,
    move_item,
    parse_item,
    remove_item,
)
from labeling.review import adjudicate, make_gold
from labeling.services import add_member

HTMX = {"HX-Request": "true"}


def content(number: int = 1, choice: str = "a", **values) -> ItemContent:
    texts = {"response_a": f"Good {number}", "response_b": f"Bad {number}", "explanation": f"Because **{number}**."}
    return ItemContent([{"role": "user", "content": f"Question {number}"}], choice=choice, **(texts | values))


@pytest.fixture
def items(project):
    project.qualification_pass_percent, project.qualification_tries = 75, 2
    project.save()
    return add_items(project=project, contents=[content(number) for number in range(4)])


@pytest.fixture
def take(project):
    """Answer the whole set, ``right`` of it as expected, the rest with "both bad"."""

    def take(user, right: int) -> onboarding.Standing:
        standing = onboarding.arrive(project=project, annotator_id=user.pk)
        attempt, given = standing.attempt, 0
        while standing.item and standing.attempt == attempt and not standing.is_qualified:
            choice = standing.item.choice if given < right else "both_bad"
            onboarding.answer(
                project=project, annotator_id=user.pk, item_id=standing.item.pk, attempt=attempt, choice=choice
            )
            given += 1
            standing = onboarding.arrive(project=project, annotator_id=user.pk)
        return standing

    return take


@pytest.fixture
def url(project):
    return lambda name, *args: reverse(f"labeling:{name}", args=[project.slug, *args])


# Taking it


def test_nobody_is_given_a_pair_before_they_have_passed(project, items, annotator, make_pair, take):
    make_pair()
    with pytest.raises(NotQualified):
        queue.lease_next(project, annotator.pk)
    assert take(annotator, right=3).is_qualified
    assert queue.lease_next(project, annotator.pk)


def test_the_items_come_in_their_order_and_one_by_one(project, items, annotator):
    seen = []
    for _ in items:
        item = onboarding.arrive(project=project, annotator_id=annotator.pk).item
        assert onboarding.arrive(project=project, annotator_id=annotator.pk).item == item
        seen.append(item)
        onboarding.answer(project=project, annotator_id=annotator.pk, item_id=item.pk, attempt=1, choice="a")
    assert seen == items


@pytest.mark.parametrize(("percent", "right", "passes"), [(75, 3, True), (75, 2, False), (100, 3, False), (0, 0, True)])
def test_the_rule_decides(project, items, annotator, take, percent, right, passes):
    project.qualification_pass_percent = percent
    project.save()
    standing = take(annotator, right)
    result = QualificationResult.objects.get()
    assert (result.right, result.asked, result.is_passed) == (right, 4, passes)
    assert standing.is_qualified is passes
    assert (Seat.objects.get().qualified_at is not None) is passes


@pytest.mark.parametrize("expected", ["a", "b", "tie", "both_bad"])
@pytest.mark.parametrize("given", ["a", "b", "tie", "both_bad"])
def test_right_is_what_is_expected_and_nothing_else(project, annotator, expected, given):
    item = add_items(project=project, contents=[content(choice=expected)])[0]
    answer = onboarding.answer(project=project, annotator_id=annotator.pk, item_id=item.pk, attempt=1, choice=given)
    assert answer.is_right == (expected == given)


def test_a_second_answer_to_an_item_counts_once(project, items, annotator):
    who = {"project": project, "annotator_id": annotator.pk, "item_id": items[0].pk, "attempt": 1}
    first = onboarding.answer(**who, choice="a")
    assert onboarding.answer(**who, choice="b") == first
    assert QualificationAnswer.objects.get().choice == "a"


def test_a_try_that_failed_is_followed_by_another_and_then_by_none(project, items, annotator, take):
    first = take(annotator, right=1)
    assert (first.attempt, first.tries_left, first.answered, first.last.right) == (2, 1, 0, 1)
    second = take(annotator, right=0)
    assert second.is_out
    with pytest.raises(LabelingError, match="a try that is over"):
        onboarding.answer(project=project, annotator_id=annotator.pk, item_id=items[0].pk, attempt=3, choice="a")


def test_an_old_page_does_not_answer_for_a_new_try(project, items, annotator, take):
    take(annotator, right=0)
    late = onboarding.answer(project=project, annotator_id=annotator.pk, item_id=items[0].pk, attempt=1, choice="a")
    assert late.choice == "both_bad", "the first answer of that try stays"
    assert not QualificationAnswer.objects.filter(attempt=2).exists()


def test_an_admin_lets_in_or_grants_a_try(project, items, annotator, other_annotator, take):
    for user in (annotator, other_annotator):
        take(user, right=0)
        assert take(user, right=0).is_out
    assert onboarding.grant_try(project=project, annotator_id=annotator.pk) == 1
    assert take(annotator, right=4).is_qualified
    onboarding.admit(project=project, annotator_id=other_annotator.pk)
    assert onboarding.arrive(project=project, annotator_id=other_annotator.pk).is_qualified
    with pytest.raises(LabelingError, match="needs no further try"):
        onboarding.grant_try(project=project, annotator_id=other_annotator.pk)


def test_a_granted_try_is_one_more_even_if_the_rule_became_stricter(project, items, annotator, take):
    take(annotator, right=0)
    take(annotator, right=0)
    project.qualification_tries = 1
    project.save()
    assert onboarding.grant_try(project=project, annotator_id=annotator.pk) == 1
    assert not onboarding.arrive(project=project, annotator_id=annotator.pk).is_out


def test_the_sides_are_balanced_stay_and_change_with_the_try(project, annotator, other_annotator):
    items = add_items(project=project, contents=[content(number) for number in range(20)])
    orders = set()
    for user in (annotator, other_annotator):
        sides = [onboarding.shown_left(item.pk, user.pk, 1) for item in items]
        assert sides == [onboarding.shown_left(item.pk, user.pk, 1) for item in items]
        assert all(
            first != onboarding.shown_left(item.pk, user.pk, 2) for first, item in zip(sides, items, strict=True)
        )
        assert 9 <= Counter(sides)["a"] <= 11
        orders.add("".join(sides))
    assert len(orders) == 2


def test_the_side_is_stored_as_it_was_shown(project, items, annotator):
    item = items[0]
    given = onboarding.answer(project=project, annotator_id=annotator.pk, item_id=item.pk, attempt=1, choice="a")
    assert given.shown_left == onboarding.shown_left(item.pk, annotator.pk, 1)


def test_whoever_judged_before_there_was_a_set_is_in(project, annotator, make_pair):
    make_pair()
    queue.lease_next(project, annotator.pk)
    add_items(project=project, contents=[content()])
    assert onboarding.arrive(project=project, annotator_id=annotator.pk).is_qualified


def test_with_the_set_gone_nothing_keeps_anybody_out(project, items, annotator):
    for item in items:
        remove_item(item=item)
    assert onboarding.arrive(project=project, annotator_id=annotator.pk).is_qualified


def test_a_try_ends_when_what_was_missing_is_taken_out(project, items, annotator):
    for item in items[:3]:
        onboarding.answer(project=project, annotator_id=annotator.pk, item_id=item.pk, attempt=1, choice="a")
    remove_item(item=items[3])
    standing = onboarding.arrive(project=project, annotator_id=annotator.pk)
    assert standing.is_qualified
    assert (standing.last.right, standing.last.asked) == (3, 3)


# Writing it


def test_an_item_that_nobody_answered_is_changed_in_place(project, items):
    changed = change_item(item=items[0], content=content(9))
    assert changed.pk == items[0].pk
    assert QualificationItem.objects.get(pk=changed.pk).response_a == "Good 9"


def test_an_answered_item_keeps_its_text_and_a_new_one_takes_its_place(project, items, annotator):
    onboarding.answer(project=project, annotator_id=annotator.pk, item_id=items[1].pk, attempt=1, choice="a")
    changed = change_item(item=items[1], content=content(9, choice="b"))
    old = QualificationItem.objects.get(pk=items[1].pk)
    assert (old.is_active, old.response_a, old.answers.count()) == (False, "Good 1", 1)
    assert [item.pk for item in onboarding.set_of(project)] == [items[0].pk, changed.pk, items[2].pk, items[3].pk]
    assert change_item(item=changed, content=content(9, choice="b")).pk == changed.pk, "nothing new"
    with pytest.raises(LabelingError, match="no longer part"):
        change_item(item=old, content=content(7))


def test_removed_items_are_kept_for_their_answers_alone(project, items, annotator):
    onboarding.answer(project=project, annotator_id=annotator.pk, item_id=items[0].pk, attempt=1, choice="a")
    remove_item(item=items[0])
    remove_item(item=items[1])
    assert list(QualificationItem.objects.values_list("pk", "is_active").order_by("pk")) == [
        (items[0].pk, False),
        (items[2].pk, True),
        (items[3].pk, True),
    ]


def test_moving_stops_at_the_ends(project, items):
    for item, by, order in ((3, -1, [0, 1, 3, 2]), (0, -1, [0, 1, 3, 2]), (2, 1, [0, 1, 3, 2]), (0, 2, [1, 3, 0, 2])):
        move_item(item=items[item], by=by)
        assert [items.index(other) for other in onboarding.set_of(project)] == order


def test_a_pair_becomes_an_item(project, make_pair, project_admin):
    pair = make_pair("One", "Two")
    item = add_item_of_pair(pair=pair, choice="b", explanation="Two is more.", admin=project_admin)
    assert (item.messages, item.response_a, item.response_b) == (pair.prompt.messages, "One", "Two")


@pytest.mark.parametrize("is_gold", [False, True])
def test_nobody_is_asked_about_a_pair_whose_answer_newcomers_are_told(
    project, make_pair, project_admin, annotator, other_annotator, is_gold
):
    """Nor those who were to read it next, nor as one whose answer is known; what was said of it stays."""
    project.judgements_per_pair = 3
    project.gold_percent = 100 if is_gold else 0
    project.save()
    pair = make_pair()
    queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
    Slot.objects.filter(pair=pair, state="open").update(priority=0)
    make_pair(priority=1)
    if is_gold:
        make_gold(pair=pair, choice="b")
        pair.refresh_from_db()
        assert own_places.reserve(project, other_annotator.pk) == 1
    else:
        queue.lease_next(project, other_annotator.pk)
        assert queue.lease_ahead(project, other_annotator.pk).slot.pair == pair
    add_item_of_pair(pair=pair, choice="b", explanation="Two is more.", admin=project_admin)
    assert set(pair.slots.values_list("state", flat=True)) == {"done", "closed"}
    Seat.objects.update(qualified_at=timezone.now())
    while lease := queue.lease_next(project, other_annotator.pk):
        assert lease.slot.pair != pair
        queue.submit(project, lease.token, other_annotator.pk, "a")
    pair.refresh_from_db()
    assert (pair.adjudicated_choice, pair.gold_choice, pair.is_retired) == ("b", "", False)
    assert Preference.objects.counted().filter(pair=pair).count() == pair.judgements_count == 1


def test_nor_for_a_second_look(project, make_pair, project_admin, annotator, monkeypatch):
    monkeypatch.setattr(own_places, "REPEAT_AFTER", 0)
    project.repeat_percent = 100
    project.save()
    for number in range(2):
        pair = make_pair()
        queue.submit(project, queue.lease_next(project, annotator.pk).token, annotator.pk, "a")
        if number:
            add_item_of_pair(pair=pair, choice="b", explanation="Two is more.", admin=project_admin)
        assert own_places.reserve(project, annotator.pk) == 1 - number
    first = Slot.objects.get(kind="repeat")
    assert first.pair != pair
    add_item_of_pair(pair=first.pair, choice="b", explanation="Two is more.", admin=project_admin)
    Seat.objects.update(qualified_at=timezone.now())
    assert queue.lease_next(project, annotator.pk) is None


def test_a_pair_that_was_taken_out_is_brought_back_first(project, make_pair, project_admin):
    pair = make_pair()
    adjudicate(pair=pair, reviewer=project_admin, verdict="retire")
    with pytest.raises(LabelingError, match="Bring it back first"):
        add_item_of_pair(pair=pair, choice="b", explanation="Two is more.", admin=project_admin)
    assert not onboarding.set_of(project).exists()


def test_an_item_that_is_refused_decides_nothing(project, make_pair, project_admin):
    pair = make_pair()
    with pytest.raises(InvalidItem):
        add_item_of_pair(pair=pair, choice="b", explanation=" ", admin=project_admin)
    pair.refresh_from_db()
    assert pair.adjudicated_choice == ""


def test_admins_use_a_pair_from_its_page(project, make_pair, project_admin, reviewer, sign_in):
    pair = make_pair("One", "Two")
    url = reverse("labeling:item-of-pair", args=[project.slug, pair.pk])
    page = reverse("labeling:pair", args=[project.slug, pair.pk])
    assert url not in sign_in(reviewer).get(page).content.decode()
    client = sign_in(project_admin)
    before = client.get(page).content.decode()
    assert url in before
    assert "nobody is asked about it any more" in before, "told beforehand"
    refused = client.post(url, {"choice": "b", "explanation": " "}, follow=True)
    assert "Not done." in refused.content.decode()
    assert not onboarding.set_of(project).exists()
    used = client.post(url, {"choice": "b", "explanation": "Two is more."}, follow=True)
    assert "added at the end of the set" in used.content.decode()
    assert "Nobody is asked about this pair any more" in used.content.decode()
    assert onboarding.set_of(project).get().choice == "b"
    assert (
        client.post(
            reverse("labeling:item-of-pair", args=[project.slug, 10**6]), {"choice": "b", "explanation": "x"}
        ).status_code
        == 404
    )


def as_file(*lines) -> io.BytesIO:
    return io.BytesIO("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode())


ROW = {"prompt": "Why?", "response_a": "So", "response_b": "Because", "choice": "b", "explanation": "It says why."}


def test_import_from_jsonl(project):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    second = {name: value for name, value in ROW.items() if name != "prompt"} | {"messages": chat, "choice": "tie"}
    assert import_items(project=project, file=as_file(ROW, "", second)) == 2
    assert [item.messages[-1]["content"] for item in onboarding.set_of(project)] == ["Why?", "c"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "a JSON object"),
        ({**ROW, "choice": "c"}, "not a choice"),
        ({**ROW, "response_a": 7}, "“response_a” is missing"),
        ({**ROW, "response_b": " so "}, "the same"),
        ({**ROW, "explanation": " "}, "is empty"),
        ({**ROW, "prompt": ""}, "message 1 is empty"),
        ({name: value for name, value in ROW.items() if name != "prompt"}, "neither"),
    ],
)
def test_a_bad_line_stops_the_whole_import_and_is_named(project, bad, why):
    with pytest.raises(ImportRejected, match=why) as refusal:
        import_items(project=project, file=as_file(ROW, bad))
    assert [problem.line for problem in refusal.value.problems] == [2]
    assert not QualificationItem.objects.exists()


def test_a_set_has_an_end(project):
    with pytest.raises(ImportRejected, match="more than 200"):
        import_items(project=project, file=as_file(*[{**ROW, "prompt": str(number)} for number in range(201)]))
    with pytest.raises(InvalidItem, match="at most 200"):
        add_items(project=project, contents=[content(number) for number in range(201)])
    with pytest.raises(ImportRejected, match="empty"):
        import_items(project=project, file=as_file(""))


def test_what_is_parsed_is_cleaned():
    assert parse_item({**ROW, "response_a": " So\r\nwhat "}).response_a == "So\nwhat"


# The pages


def _form(page: str) -> dict[str, str]:
    return {name: re.search(rf'name="{name}" value="(\d+)"', page).group(1) for name in ("item", "attempt")}


def test_through_the_pages_to_the_first_pair(project, items, annotator, make_pair, sign_in, url):
    make_pair()
    client = sign_in(annotator)
    assert client.get(url("annotate"))["Location"] == url("qualify")
    assert "4 comparisons with known answers" in client.get(url("qualify")).content.decode()
    page = client.get(url("qualify") + "?start").content.decode()
    for item in items:
        form = _form(page)
        side = side_of("a", onboarding.shown_left(item.pk, annotator.pk, 1))
        response = client.post(url("answer-item"), form | {"choice": side})
        feedback = client.get(response["Location"]).content.decode()
        assert "That is the expected answer." in feedback
        assert f"<strong>{item.explanation[10:11]}</strong>" in feedback
        page = client.get(url("qualify")).content.decode()
    assert "4 of 4 right: passed" in page
    assert client.get(url("annotate")).status_code == 200


def test_the_feedback_says_what_was_expected_by_side(project, items, annotator, sign_in, url):
    client = sign_in(annotator)
    left = onboarding.shown_left(items[0].pk, annotator.pk, 1)
    wrong, expected = ("right", "left") if left == "a" else ("left", "right")
    form = _form(client.get(url("qualify") + "?start").content.decode())
    for choice in (wrong, expected):  # the second one is a double submit
        page = client.get(client.post(url("answer-item"), form | {"choice": choice})["Location"]).content.decode()
        assert f"You chose {wrong}." in page
        assert f"Expected was: {expected} is better." in page
    assert QualificationAnswer.objects.count() == 1


def test_out_of_tries_says_whom_to_ask(project, items, annotator, project_admin, take, sign_in, url):
    client = sign_in(annotator)
    take(annotator, right=0)
    assert "0 of 4 were right; 3 are needed" in client.get(url("qualify")).content.decode()
    take(annotator, right=0)
    page = client.get(url("qualify") + "?start").content.decode()
    assert "Out of tries" in page
    assert "<strong>boss</strong>" in page


@pytest.mark.parametrize("name", ["annotate", "submit", "skip"])
def test_a_fragment_request_leads_there_as_a_whole_page(project, items, annotator, make_pair, sign_in, url, name):
    make_pair()
    client = sign_in(annotator)
    response = getattr(client, "get" if name == "annotate" else "post")(url(name), headers=HTMX)
    assert response["HX-Redirect"] == url("qualify")


def test_the_api_says_it_clearly(project, items, annotator, make_pair, sign_in):
    make_pair()
    refused = sign_in(annotator).post(f"/api/v1/projects/{project.slug}/lease/")
    assert refused.status_code == 403
    assert "qualification set" in refused.json()["detail"]


def test_what_is_no_answer_is_told(project, items, annotator, sign_in, url):
    client = sign_in(annotator)
    for form in ({}, {"item": items[0].pk, "attempt": 1, "choice": "first"}, {"item": 2**70, "attempt": 1}):
        page = client.post(url("answer-item"), form, follow=True).content.decode()
        assert "no answer this page knows" in page
    assert (
        "no longer part"
        in client.post(url("answer-item"), {"item": 10**6, "attempt": 1, "choice": "tie"}, follow=True).content.decode()
    )


def test_nobody_reads_the_set_of_another_project_or_somebody_elses_answer(
    project, items, annotator, other_annotator, sign_in, url
):
    onboarding.answer(project=project, annotator_id=annotator.pk, item_id=items[0].pk, attempt=1, choice="a")
    page = sign_in(other_annotator).get(url("qualify") + f"?after={items[0].pk}").content.decode()
    assert "Because" not in page


def test_nothing_of_it_is_a_preference(project, items, annotator, take):
    take(annotator, right=4)
    assert not Preference.objects.exists()


def test_an_admin_writes_the_set(project, project_admin, sign_in, url):
    client = sign_in(project_admin)
    form = {"prompt": "Why?", "response_a": "So", "response_b": "Because", "choice": "b", "explanation": "It says why."}
    assert client.post(url("add-item"), form).status_code == 302
    item = QualificationItem.objects.get()
    assert client.post(url("add-item"), form | {"response_b": "so"}).status_code == 400
    assert "Because" in client.get(url("edit-item", item.pk)).content.decode()
    assert client.post(url("edit-item", item.pk), form | {"choice": "tie"}).status_code == 302
    item.refresh_from_db()
    assert item.choice == "tie"
    page = client.get(url("qualification")).content.decode()
    assert "It says why." in page
    client.post(url("order-item", item.pk), {"do": "remove"})
    assert not QualificationItem.objects.exists()


def test_the_earlier_turns_of_a_conversation_survive_an_edit(project, project_admin, sign_in, url):
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    item = add_items(project=project, contents=[ItemContent(chat, "1", "2", "a", "!")])[0]
    form = {"prompt": "New?", "response_a": "1", "response_b": "2", "choice": "a", "explanation": "!"}
    assert sign_in(project_admin).post(url("edit-item", item.pk), form).status_code == 302
    item.refresh_from_db()
    assert [message["content"] for message in item.messages] == ["system", "user", "assistant", "New?"]


def test_import_through_the_page(project, project_admin, sign_in, url):
    client = sign_in(project_admin)
    bad = client.post(url("import-qualification"), {"file": as_file("nonsense")})
    assert bad.status_code == 400
    assert "Line 1" in bad.content.decode()
    assert client.post(url("import-qualification"), {"file": as_file(ROW)}).status_code == 302
    assert QualificationItem.objects.count() == 1


def test_the_results_by_person(project, items, annotator, project_admin, take, sign_in, url):
    take(annotator, right=1)
    take(annotator, right=2)
    client = sign_in(project_admin)
    page = client.get(url("qualification")).content.decode()
    assert "1 of 4 right" in page
    assert "2 of 4 right" in page
    assert "out of tries" in page
    client.post(url("admit-person", annotator.pk), {"do": "grant"})
    assert not onboarding.arrive(project=project, annotator_id=annotator.pk).is_out
    client.post(url("admit-person", annotator.pk), {"do": "admit"})
    assert Seat.objects.get(annotator=annotator).qualified_at
    assert client.post(url("admit-person", 10**6), {"do": "admit"}).status_code == 404


def test_an_item_of_another_project_is_out_of_reach(project, items, project_admin, sign_in):
    from labeling.services import create_project

    other = create_project(name="Other", slug="other")
    add_member(project=other, user=project_admin, role="admin")
    address = reverse("labeling:edit-item", args=["other", items[0].pk])
    assert sign_in(project_admin).get(address).status_code == 404
