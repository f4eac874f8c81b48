"""Two checkpoints side by side: what is asked of whom, the work, and the pages."""

from __future__ import annotations

import json
import shutil

import pytest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from labeling.models import Prompt
from labeling.services import create_project
from training import registry, services, tasks
from training.exceptions import LeaseLost, Rejected
from training.execution import Answering
from training.jobspec import PromptLine, Result, SideBySideJob, read_job
from training.models import Checkpoint, Gate, GatePair, Job, SampleBatch, SideBySide
from training.recipe import AnswerDecoding
from training.rundir import RunDir
from training.services import promote_checkpoint
from training.side_by_side import (
    MOST_PROMPT_CHARACTERS,
    MOST_PROMPTS,
    held_out_prompts,
    request_side_by_side,
    usual_opposite,
    usual_sides,
)


@pytest.fixture
def other(project, policy, make_checkpoint) -> Checkpoint:
    return make_checkpoint("other", project=project, kind="dpo", parent=policy)


@pytest.fixture
def ask(project, policy, other):
    def ask(**values) -> SideBySide:
        return request_side_by_side(
            **({"project": project, "left": policy, "right": other, "prompts": ["Why?"]} | values)
        )

    return ask


# What may be asked


def test_what_is_asked_is_kept_with_its_decoding_and_one_seed(ask, reviewer):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    asked = ask(prompts=["Why?", chat], decoding=AnswerDecoding(temperature=0), seed=5, by=reviewer)
    assert asked.prompts == [[{"role": "user", "content": "Why?"}], chat]
    assert asked.decoding == {"temperature": 0, "top_p": SideBySideJob.top_p, "max_new_tokens": 256}
    assert (asked.seed, asked.requested_by, asked.state, asked.answers) == (5, reviewer, "queued", [])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_checkpoint_that_cannot_answer_is_refused_with_the_reason(ask, side, base, make_checkpoint, project):
    gone = make_checkpoint("gone", project=project, kind="dpo")
    on_gone = make_checkpoint("on gone", project=project, kind="dpo", base=gone)
    Checkpoint.objects.filter(pk=gone.pk).update(removed_at=timezone.now())
    elsewhere = create_project(name="Elsewhere", slug="elsewhere")
    theirs = make_checkpoint("theirs", project=elsewhere, kind="dpo")
    reward = make_checkpoint("reward", project=project, kind="reward")
    gone.refresh_from_db()
    on_gone = Checkpoint.objects.get(pk=on_gone.pk)
    for checkpoint, reason in (
        (gone, "The files of gone were removed"),
        (on_gone, "The files of gone were removed, so on gone cannot answer"),
        (theirs, "belongs to another project"),
        (reward, "is a reward model"),
    ):
        with pytest.raises(Rejected, match=reason):
            ask(**{side: checkpoint})
    assert not SideBySide.objects.exists()


def test_the_same_weights_are_no_two_sides(ask, policy):
    with pytest.raises(Rejected, match="Both sides are the same weights"):
        ask(right=policy)


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ([], "Ask 1 to 8 prompts"),
        (["?"] * (MOST_PROMPTS + 1), "Ask 1 to 8 prompts"),
        (["  "], "message 1 is empty"),
        ([[{"role": "assistant", "content": "Hello"}]], "the last message must be the user's"),
        (["a" * (MOST_PROMPT_CHARACTERS + 1)], "20,001 characters"),
    ],
)
def test_prompts_out_of_bounds_are_refused(ask, prompts, reason):
    with pytest.raises(Rejected, match=reason):
        ask(prompts=prompts)


@pytest.mark.parametrize("values", [{"temperature": -1}, {"temperature": 6.0}, {"max_new_tokens": 1025}, {"top_p": 0}])
def test_decoding_out_of_bounds_is_refused(ask, values):
    with pytest.raises(Rejected, match=next(iter(values))):
        ask(decoding=AnswerDecoding(**values))


def test_a_person_asks_one_at_a_time_and_others_are_free(ask, reviewer, project_admin):
    first = ask(by=reviewer)
    with pytest.raises(Rejected, match="still being answered"):
        ask(by=reviewer)
    ask(by=project_admin)
    ask()  # a command is nobody
    services.cancel_job(job=first)
    ask(by=reviewer)


def test_what_most_people_want_to_compare_comes_first(project, policy, make_checkpoint):
    assert usual_sides(project) == (None, policy)
    candidate = make_checkpoint("candidate", project=project, kind="dpo", parent=policy)
    assert usual_sides(project) == (policy, candidate)
    promote_checkpoint(project=project, checkpoint=candidate)
    assert usual_sides(project) == (policy, candidate), "the policy of now and its parent"


def test_each_checkpoint_is_put_beside_the_policy_and_the_policy_beside_its_parent(project, policy, other):
    assert usual_opposite(project, other) == policy
    assert usual_opposite(project, policy) is None
    promote_checkpoint(project=project, checkpoint=other)
    assert usual_opposite(project, other) == policy
    Checkpoint.objects.filter(pk=policy.pk).update(removed_at=timezone.now())
    assert usual_opposite(project, other) is None


# Held-out prompts


@pytest.fixture
def gate(project, policy, other):
    def make(**values) -> Gate:
        return Gate.objects.create(
            **({"project": project, "number": 1, "candidate": other, "current": policy, "rule": {}} | values)
        )

    return make


def _chosen(project) -> set[str]:
    return {chat[-1]["content"] for chat in held_out_prompts(project, MOST_PROMPTS)}


def test_held_out_prompts_are_taken_and_no_others(project, make_prompt):
    for held_out in (True, True, True, False):
        make_prompt(held_out=held_out)
    held_out_ones = Prompt.objects.filter(project=project, is_held_out=True)  # one that was not wanted may be there too
    assert _chosen(project) == {str(prompt.messages[-1]["content"]) for prompt in held_out_ones}
    assert len(held_out_prompts(project, 2)) == 2


def test_a_prompt_that_was_withdrawn_is_not_shown(project, make_prompt):
    withdrawn, kept = make_prompt(held_out=True), make_prompt(held_out=True)
    Prompt.objects.filter(pk=withdrawn.pk).update(withdrawn_at=timezone.now())
    assert _chosen(project) == {kept.messages[-1]["content"]}


@pytest.mark.parametrize("stage", ["asking", "waiting"])
def test_prompts_of_pairs_that_a_gate_asks_about_are_not_shown(project, make_pair, gate, stage):
    asked, free = (make_pair(held_out=True).prompt for _ in range(2))
    open_gate = gate(stage=stage)
    GatePair.objects.create(pair=asked.pairs.get(), gate=open_gate, prompt=asked, candidate_side="a")
    assert _chosen(project) == {free.messages[-1]["content"]}
    Gate.objects.update(stage="decided")
    assert len(_chosen(project)) == 2


@pytest.mark.parametrize(
    ("values", "are_free"),
    [
        ({"rule": {"asks_people": True}}, False),
        ({"rule": {"asks_people": True}, "stage": "asking"}, False),
        ({"kind": "watch"}, False),
        ({"rule": {"asks_people": False}}, True),
        ({"rule": {"asks_people": True}, "stage": "decided"}, True),
    ],
)
def test_prompts_that_a_gate_will_ask_about_are_not_shown_either(project, make_prompt, gate, values, are_free):
    prompts = [make_prompt(held_out=True) for _ in range(2)]
    gate(prompt_ids=[prompt.pk for prompt in prompts], **values)
    if are_free:
        assert len(_chosen(project)) == 2
        return
    with pytest.raises(Rejected, match="asked about every held-out prompt just now"):
        _chosen(project)


@pytest.mark.parametrize(
    ("values", "is_refused"),
    [
        ({"rule": {"asks_people": True}}, True),
        ({"rule": {"asks_people": True}, "stage": "asking"}, True),
        ({"kind": "watch"}, True),
        ({"rule": {"asks_people": False}}, False),
        ({"rule": {"asks_people": True}, "stage": "decided"}, False),
    ],
)
def test_a_typed_prompt_that_a_gate_asks_about_is_refused(ask, make_prompt, gate, values, is_refused):
    """However it is typed: what is the same prompt to the import is the same here."""
    prompt = make_prompt(held_out=True)
    gate(prompt_ids=[prompt.pk], **values)
    typed = f"  {prompt.messages[-1]['content'].upper()}\n"
    if not is_refused:
        assert ask(prompts=[typed]).prompts
        return
    with pytest.raises(Rejected, match="A gate that is open asks people about this prompt"):
        ask(prompts=[typed])
    with pytest.raises(Rejected, match="about one of these prompts"):
        ask(prompts=["Why?", typed])
    assert ask(prompts=["Why?"]).prompts, "another one is free"
    assert SideBySide.objects.count() == 1


def test_a_typed_prompt_of_a_pair_whose_gate_waits_for_an_admin_is_refused(ask, make_pair, gate):
    """Whoever reads the pair just now may finish."""
    asked = make_pair(held_out=True)
    waiting = gate(stage="waiting")
    GatePair.objects.create(pair=asked, gate=waiting, prompt=asked.prompt, candidate_side="a")
    with pytest.raises(Rejected, match="wait until the gate is decided"):
        ask(prompts=[asked.prompt.messages])


def test_a_project_without_held_out_prompts_says_so(project, make_prompt):
    make_prompt(held_out=False)
    with pytest.raises(Rejected, match="has no held-out prompts"):
        _chosen(project)


# The work


@pytest.fixture
def work(ask) -> Answering:
    asked = ask(prompts=["One?", "Two?"], decoding=AnswerDecoding(max_new_tokens=9), seed=3)
    assert asked.claim("worker")
    RunDir.of(asked.uuid).make()
    work = Answering(asked, RunDir.of(asked.uuid))
    assert work.prepare()
    return work


def _answers(text: str, finish_reason: str = "") -> str:
    side = {"text": text, "tokens": 2, "finish_reason": finish_reason}
    return json.dumps([{"prompt_id": number, "left": side, "right": side, "refused": ""} for number in ("0", "1")])


def test_the_engine_is_told_both_policies_and_the_prompts(work, policy, other):
    job = read_job(work.run_dir.path, SideBySideJob)
    assert (job.left.base_hash, job.right.base_hash) == (policy.content_hash, other.content_hash)
    assert (job.seed, job.max_new_tokens) == (3, 9)
    lines = [PromptLine.from_dict(json.loads(line)) for line in work.run_dir.dataset.read_text().splitlines()]
    assert [(line.prompt_id, line.messages[0]["content"]) for line in lines] == [("0", "One?"), ("1", "Two?")]


def test_the_row_has_what_is_written_so_far_and_is_written_only_when_that_is_new(work, django_assert_num_queries):
    assert work.tick() == {"phase": "starting"}
    work.run_dir.answers.write_text(_answers("Because"))
    work.run_dir.metrics.write_text('{"phase":"answering"}\n')
    assert work.tick() == {"phase": "answering"}
    row = SideBySide.objects.get()
    assert [answer["left"]["text"] for answer in row.answers] == ["Because", "Because"]
    with django_assert_num_queries(0):
        work.tick()


def test_a_worker_that_lost_the_job_writes_nothing(work):
    SideBySide.objects.update(fence=work.job.fence + 1)
    work.run_dir.answers.write_text(_answers("Because"))
    with pytest.raises(LeaseLost):
        work.tick()
    assert SideBySide.objects.get().answers == []


def test_the_last_state_is_kept_when_the_job_ends(work):
    work.run_dir.answers.write_text(_answers("Because it is.", "stop"))
    work.publish(Result(ok=True))
    row = SideBySide.objects.get()
    assert row.state == Job.State.SUCCEEDED
    assert row.answers[1]["right"] == {"text": "Because it is.", "tokens": 2, "finish_reason": "stop"}
    assert not work.run_dir.path.exists()


def test_the_reconciler_knows_the_job(ask, monkeypatch):
    asked = ask()
    sent: list[list[int]] = []
    monkeypatch.setattr(tasks.run_side_by_side, "apply_async", lambda args: sent.append(args))
    tasks.reconcile()
    assert sent == [[asked.pk]]


@pytest.fixture
def twins(project, tiny_model, data_dir) -> list[Checkpoint]:
    """One model twice, with different hashes: with the same random numbers it must write the same."""
    found = []
    for name in ("one", "two"):
        source = shutil.copytree(tiny_model, data_dir / f"source-{name}")
        config = json.loads((source / "generation_config.json").read_text()) | {"temperature": 0.1 * len(found) + 0.5}
        (source / "generation_config.json").write_text(json.dumps(config))
        found.append(registry.register(staging_name=name, source=source, kind=Checkpoint.Kind.BASE, name=name))
        found[-1].save()
    return found


@pytest.mark.django_db(transaction=True)
def test_a_real_engine_lets_both_answer_with_the_same_random_numbers(project, twins):
    asked = request_side_by_side(
        project=project, left=twins[0], right=twins[1], prompts=["Why is the sky blue?", "Name a bird."], seed=1
    )
    tasks.run_side_by_side(asked.pk)
    asked.refresh_from_db()
    assert (asked.state, asked.error) == ("succeeded", "")
    assert [answer["prompt_id"] for answer in asked.answers] == ["0", "1"]
    for answer in asked.answers:
        assert answer["left"] == answer["right"]
        assert answer["left"]["finish_reason"] == "stop"
    assert asked.answers[0]["left"]["text"] != asked.answers[1]["left"]["text"]


@pytest.mark.django_db(transaction=True)
def test_a_comparison_that_is_cancelled_ends(project, twins, monkeypatch):
    asked = request_side_by_side(project=project, left=twins[0], right=twins[1], prompts=["Why?"])
    tick = Answering.tick

    def cancelled_meanwhile(work: Answering) -> dict:
        if SideBySide.objects.filter(cancel_requested_at__isnull=True).exists():
            services.cancel_job(job=SideBySide.objects.get())
        return tick(work)

    monkeypatch.setattr(Answering, "tick", cancelled_meanwhile)
    tasks.run_side_by_side(asked.pk)
    asked.refresh_from_db()
    assert asked.state == Job.State.CANCELLED


# The pages


@pytest.fixture
def client(sign_in, reviewer):
    return sign_in(reviewer)


@pytest.fixture
def url(project):
    return lambda name, **keys: reverse(f"training:{name}", kwargs={"slug": project.slug} | keys)


@pytest.fixture
def form(policy, other):
    typed = {"prompt": "Why is the sky blue?", "temperature": "0", "max_new_tokens": "64", "held_out": "2"}
    return {"left": str(policy.uuid), "right": str(other.uuid)} | typed


def test_the_form_starts_with_what_the_address_or_the_project_says(
    client, url, policy, other, make_checkpoint, project
):
    third = make_checkpoint("third", project=project, kind="dpo")
    page = client.get(url("compare"))
    assert page.context["form"]["left"].value() == policy.uuid
    assert page.context["form"]["right"].value() == third.uuid
    page = client.get(url("compare"), {"left": other.uuid, "right": policy.uuid}).content.decode()
    assert f'<option value="{other.uuid}" selected>' in page
    assert client.get(url("compare"), {"left": "nonsense"}).status_code == 200


def test_one_checkpoint_alone_cannot_be_compared(client, url, policy):
    assert "There are not two to compare" in client.get(url("compare")).content.decode()


def test_a_typed_prompt_is_asked_of_both(client, url, form, reviewer):
    response = client.post(url("compare"), form)
    asked = SideBySide.objects.get()
    assert response.headers["Location"] == asked.get_absolute_url()
    assert asked.prompts == [[{"role": "user", "content": "Why is the sky blue?"}]]
    assert (asked.decoding["temperature"], asked.decoding["max_new_tokens"]) == (0, 64)
    assert asked.requested_by == reviewer


def test_without_a_typed_prompt_held_out_ones_are_asked(client, url, form, make_prompt):
    held_out = [make_prompt(held_out=True) for _ in range(3)]
    client.post(url("compare"), form | {"prompt": " "})
    asked = SideBySide.objects.get()
    assert len(asked.prompts) == 2
    assert all(chat in [prompt.messages for prompt in held_out] for chat in asked.prompts)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "", "held_out": ""}, "Type a prompt, or say how many held-out ones to ask."),
        ({"prompt": ""}, "The project has no held-out prompts."),
        ({"temperature": "9"}, "temperature is 9.0; it must lie between 0 and 5."),
        ({"max_new_tokens": "5000"}, "max_new_tokens is 5000; it must lie between 1 and 1024."),
        ({"right": "left"}, "Both sides are the same weights"),
        ({"left": "7ad8b3d2-0000-4000-8000-000000000000"}, "Select a valid choice"),
    ],
)
def test_a_refusal_is_said_above_the_form_and_nothing_is_lost(client, url, form, values, words):
    values = {name: form["left"] if value == "left" else value for name, value in values.items()}
    response = client.post(url("compare"), form | values)
    assert response.status_code == 400
    page = response.content.decode()
    assert escape(words) in page
    if "prompt" not in values:
        assert "Why is the sky blue?" in page
    assert not SideBySide.objects.exists()


def _set(asked: SideBySide, **values) -> None:
    SideBySide.objects.filter(pk=asked.pk).update(**values)


def _side(text: str, tokens: int, finish_reason: str = "") -> dict:
    return {"text": text, "tokens": tokens, "finish_reason": finish_reason}


@pytest.fixture
def asked(ask, reviewer) -> SideBySide:
    return ask(prompts=["Why is **the sky** blue?", "<b>Name</b> a bird."], by=reviewer)


def test_the_page_follows_the_answers_and_its_polling_ends_itself(client, url, asked):
    page, status = (url(name, side_by_side_id=asked.pk) for name in ("side-by-side", "side-by-side-status"))
    waiting = client.get(page).content.decode()
    assert "Waiting for the worker of exports" in waiting
    assert f'hx-get="{status}"' in waiting
    answers = [{"prompt_id": "0", "left": _side("Because *light*", 3), "right": _side("No.", 2, "stop")}]
    _set(asked, state="running", progress={"phase": "answering"}, answers=answers)
    response = client.get(status)
    assert response.status_code == 200
    writing = response.content.decode()
    assert "Both are writing" in writing
    assert "Because <em>light</em>" in writing
    assert "<strong>the sky</strong>" in writing
    assert "<b>Name" not in writing
    assert "not yet begun" in writing
    _set(asked, state="succeeded", finished_at=timezone.now())
    done = client.get(status)
    assert done.status_code == 286
    assert "hx-get" not in done.content.decode()


def test_a_comparison_behind_a_batch_says_what_it_waits_for(client, url, asked, project, policy):
    address = url("side-by-side", side_by_side_id=asked.pk)
    assert "It is writing pairs." not in client.get(address).content.decode()
    SampleBatch.objects.create(project=project, policy=policy, prompt_ids=[], decoding={}, state="running")
    assert "It is writing pairs." in client.get(address).content.decode()
    _set(asked, state="running")
    assert "It is writing pairs." not in client.get(address).content.decode()


def test_how_long_each_answer_is_and_how_it_ended_is_said(client, url, asked, policy, other):
    answers = [
        {"prompt_id": "0", "left": _side("One two", 3, "stop"), "right": _side("One two three", 4, "length")},
        {"prompt_id": "1", "refused": "The prompt has 600 tokens; the model reads at most 512."},
    ]
    _set(asked, state="succeeded", answers=answers)
    page = client.get(url("side-by-side", side_by_side_id=asked.pk)).content.decode()
    text = " ".join(page.split())
    assert "3 tokens, ended by itself" in text
    assert "4 tokens, cut at the length limit" in text
    assert "Not asked: The prompt has 600 tokens" in text
    assert "Both wrote the same" not in text
    for checkpoint in (policy, other):
        assert f'<code title="{checkpoint.content_hash}">{checkpoint.short_hash}</code>' in page


def test_equal_answers_are_called_equal_and_differences_are_shown_when_asked_for(client, url, asked):
    same = _side("One and the same <text>", 5, "stop")
    apart = {"left": _side("The sky is blue today", 6, "stop"), "right": _side("The sky is red today", 6, "stop")}
    answers = [{"prompt_id": "0", "left": same, "right": same}, {"prompt_id": "1"} | apart]
    _set(asked, state="succeeded", answers=answers)
    address = url("side-by-side", side_by_side_id=asked.pk)
    page = client.get(address).content.decode()
    assert page.count("Both wrote the same, word for word.") == 1
    assert "?difference" in page
    assert "<del>" not in page
    compared = client.get(f"{address}?difference").content.decode()
    assert "<del>blue</del>" in compared
    assert "<ins>red</ins>" in compared
    assert "the same &lt;text&gt;" in compared


def test_a_failure_is_said_in_words(client, url, asked):
    _set(asked, state="failed", error="There was not enough memory.", hint="Lower the length.")
    page = client.get(url("side-by-side", side_by_side_id=asked.pk)).content.decode()
    assert "There was not enough memory." in page
    assert "Lower the length." in page
    assert "Nothing was written." in page


def test_who_has_asked_may_cancel_and_so_may_an_admin(client, url, ask, asked, project_admin, sign_in):
    client.post(url("cancel-side-by-side", side_by_side_id=asked.pk))
    asked.refresh_from_db()
    assert asked.state == Job.State.CANCELLED
    admins = ask(by=project_admin)
    assert client.post(url("cancel-side-by-side", side_by_side_id=admins.pk)).status_code == 403
    page = client.get(url("side-by-side", side_by_side_id=admins.pk)).content.decode()
    assert "Cancel</button>" not in page
    others = ask(by=asked.requested_by)
    sign_in(project_admin).post(url("cancel-side-by-side", side_by_side_id=others.pk))
    others.refresh_from_db()
    assert others.state == Job.State.CANCELLED


def test_a_comparison_of_another_project_is_not_there(client, url, asked):
    _set(asked, project=create_project(name="Elsewhere", slug="elsewhere"))
    assert client.get(url("side-by-side", side_by_side_id=asked.pk)).status_code == 404


def test_the_tree_leads_to_the_form_and_so_does_each_checkpoint(client, url, policy, other):
    tree = client.get(url("checkpoints")).content.decode()
    assert f'action="{url("compare")}"' in tree
    for side, checkpoint in (("left", policy), ("right", other)):
        radios = [tag for tag in tree.split("<input")[1:] if f'name="{side}"' in tag]
        chosen = [tag for tag in radios if "checked" in tag.split(">")[0]]
        assert len(radios) == 2
        assert [str(checkpoint.uuid) in tag for tag in chosen] == [True]
    page = client.get(url("checkpoint", uuid=other.uuid)).content.decode()
    assert f"{url('compare')}?left={policy.uuid}&amp;right={other.uuid}" in page


def test_the_prompts_of_a_project_do_not_change(client, url, form, make_prompt):
    """A typed prompt is asked, not imported: it would be sampled and labelled."""
    client.post(url("compare"), form)
    assert not Prompt.objects.exists()
