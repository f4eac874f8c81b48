"""What a promotion has moved: which pairs are looked at, what a worker keeps, and what each annotator sees of it."""

from __future__ import annotations

import re
import shutil

import pytest
from django.urls import reverse
from django.utils import timezone

from labeling import queue
from labeling.models import Pair, Preference, Slot, Withdrawal
from labeling.review import make_gold
from labeling.templatetags.formatting import percent
from training import label_effects, services, tasks
from training.execution import Effects
from training.jobspec import EffectsJob, JudgedPair, PairEffect, Result, read_job
from training.models import Gate, GatePair, Job, LabelEffect, LabelEffects, SampleBatch, TrainingRun
from training.own_effects import newest_effects, own_moves, sigmoid
from training.recipe import Decoding, Recipe
from training.rundir import LineReader, RunDir


@pytest.fixture
def better(project, policy, make_checkpoint):
    return make_checkpoint("zebra-7b", project=project, kind="dpo", parent=policy, base=policy)


@pytest.fixture
def promote(project, better):
    def promote(checkpoint=better) -> LabelEffects | None:
        promotion = services.promote_checkpoint(project=project, checkpoint=checkpoint)
        return LabelEffects.objects.filter(promotion=promotion).first()

    return promote


@pytest.fixture
def measured(promote):
    """Promote, and let the job end with these margins of A over B: {pair: (before, after)}."""

    def measured(margins: dict[Pair, tuple[float, float]], **answers: str) -> LabelEffects:
        effects = promote()
        for pair, (before, after) in margins.items():
            said = {"answer_before": "It said this.", "answer_after": "It says that."} | answers
            LabelEffect.objects.create(effects=effects, pair=pair, margin_before=before, margin_after=after, **said)
        LabelEffects.objects.update(state=Job.State.SUCCEEDED)
        return effects

    return measured


@pytest.fixture
def page(project, sign_in):
    def page(user, **headers: str) -> str:
        response = sign_in(user).get(reverse("training:my-labels", args=[project.slug]), headers=headers)
        assert response.status_code == 200
        return re.sub(r"[ \n]+", " ", response.content.decode())

    return page


# Which pairs


def test_the_first_promotion_has_nothing_to_compare_and_a_rollback_has(project, policy, label, better, promote):
    label(3)
    assert not LabelEffects.objects.exists()
    forth = promote()
    assert (forth.before, forth.promotion.checkpoint, len(forth.pair_ids)) == (policy, better, 3)
    back = services.roll_back(project=project).label_effects
    assert (back.before, back.promotion.checkpoint) == (better, policy)
    forth.refresh_from_db()
    assert forth.state == "cancelled", "nobody asks any more"


def test_without_judgements_there_is_no_job(promote, make_pair):
    make_pair(held_out=False)
    assert promote() is None


def test_a_project_says_how_many_judgements_are_looked_at(project, policy, better, label, promote):
    label(3)
    services.change_rule(project=project, effects_per_person=0)
    assert promote() is None
    services.change_rule(project=project, effects_per_person=2)
    assert len(services.roll_back(project=project).label_effects.pair_ids) == 2


def test_a_policy_of_another_family_is_not_compared(promote, label, make_checkpoint):
    label(3)
    assert promote(make_checkpoint("another family")) is None


def test_everybody_has_some_of_their_newest():
    judged = [(1, pair) for pair in range(100, 90, -1)] + [(2, 100), (2, 5), (3, 4)]
    assert label_effects.fair_choice(judged, each=2, most=60) == [100, 4, 99, 5]
    assert label_effects.fair_choice(judged, each=6, most=3) == [100, 4, 99]
    assert label_effects.fair_choice(judged, each=6, most=1) == [100, 4], "nobody is left without one"
    assert label_effects.fair_choice(judged, each=0) == []


def test_what_must_not_be_shown_is_not_looked_at(project, policy, label, make_pair, judge, annotator, other_annotator):
    def one(choice: str = "a", **values) -> Pair:
        return label(1, choice, **values)[0]

    fine, gold, retired, withdrawn, gone, reopened, promised = (one() for _ in range(7))
    held_out, tie, bad = one(held_out=True), one("tie"), one("both_bad")
    make_gold(pair=gold, choice="a")
    Pair.objects.filter(pk=retired.pk).update(is_retired=True)
    taken = Withdrawal.objects.create(project=project, kind="preference")
    Preference.objects.filter(pair=withdrawn).update(withdrawal=taken, is_current=False)
    type(gone.prompt).objects.filter(pk=gone.prompt_id).update(withdrawn_at=timezone.now())
    queue.reopen(project, annotator.pk, reopened.preferences.get().pk)
    Slot.objects.create(
        project=project, pair=promised, place=9, kind=Slot.Kind.REPEAT, state=Slot.State.DONE, annotator=annotator
    )
    assert {pair.pk for pair in (held_out, tie, bad)}.isdisjoint(label_effects.choose_pairs(project, 6))
    assert label_effects.choose_pairs(project, 6) == [fine.pk]


def test_a_prompt_of_an_open_gate_is_not_looked_at(project, policy, better, label, make_pair):
    (judged,) = label(1)
    gate = Gate.objects.create(project=project, number=1, candidate=better, current=policy, rule={})
    asked = make_pair("One more", "And another", prompt=judged.prompt)
    GatePair.objects.create(pair=asked, gate=gate, prompt=judged.prompt, candidate_side="a")
    assert label_effects.choose_pairs(project, 6) == []
    Gate.objects.update(stage=Gate.Stage.DECIDED)
    assert label_effects.choose_pairs(project, 6) == [judged.pk]


# The job


def test_a_worker_prepares_what_the_engine_reads_and_keeps_what_it_writes(project, policy, better, label, promote):
    pairs = label(3)
    effects = promote()
    SampleBatch.objects.create(
        project=project, policy=policy, prompt_ids=[], decoding={"max_new_tokens": 40}, state="succeeded"
    )
    assert effects.claim("worker")
    run_dir = RunDir.of(effects.uuid)
    run_dir.make()
    work = Effects(effects, run_dir)
    assert work.prepare()
    job = read_job(run_dir.path, EffectsJob)
    assert (job.before.base_hash, job.after.adapter_hash) == (policy.content_hash, better.content_hash)
    assert (job.first.base_hash, job.first.adapter_hash, job.seed) == (policy.content_hash, None, effects.seed)
    assert (job.max_new_tokens, job.temperature) == (40, Decoding.temperature), "as pairs are written now"
    lines = [JudgedPair.from_dict(line) for line in LineReader(run_dir.dataset).new_lines()]
    assert [(line.pair_id, line.response_a.text) for line in lines] == [
        (str(pair.pk), pair.response_a.text) for pair in pairs
    ]
    found = [PairEffect(str(pair.pk), 0.0, 1.5 - number, "then", "now") for number, pair in enumerate(pairs)]
    found[1] = PairEffect(str(pairs[1].pk), 0.0, float("nan"))
    run_dir.effects.write_text("".join(effect.to_json() + "\n" for effect in found))
    Pair.objects.filter(pk=pairs[2].pk).update(is_retired=True)
    work.publish(Result(ok=True))
    (row,) = LabelEffect.objects.all()
    assert (row.pair, row.margin_after, row.answer_before, row.answer_after) == (pairs[0], 1.5, "then", "now")
    effects.refresh_from_db()
    assert (effects.state, run_dir.path.exists()) == ("succeeded", False)


def test_a_job_that_fails_leaves_the_promotion_as_it_is(project, policy, better, label, promote):
    from training import store

    label(3)
    effects = promote()
    (store.checkpoint_dir(better.uuid) / "model.safetensors").write_bytes(b"other")
    SampleBatch.objects.update(state=Job.State.CANCELLED)
    tasks.run_label_effects(effects.pk)
    effects.refresh_from_db()
    assert effects.state == "failed"
    assert services.current_policy(project) == better


def test_pairs_that_people_wait_for_come_first(label, promote, make_prompt, monkeypatch):
    carried_out = []
    monkeypatch.setattr(tasks.supervision, "execute", lambda job, work: carried_out.append(job))
    label(3)
    effects = promote()
    assert SampleBatch.objects.due().exists(), "a promotion asks for pairs"
    tasks.run_label_effects(effects.pk)
    assert carried_out == []
    SampleBatch.objects.update(state=Job.State.RUNNING)
    tasks.run_label_effects(effects.pk)
    assert carried_out == [effects]
    assert LabelEffects in tasks.supervision.JOB_TYPES, "the reconciler asks again"


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_from_a_promotion_to_the_page_with_the_real_engine(
    project, data_dir, tiny_model, label, annotator, page, settings, make_prompt
):
    from training import registry

    settings.ENGINE_THREADS, settings.ENGINE_DEVICE = 1, "cpu"
    first, again = (
        registry.register(
            staging_name=name,
            source=shutil.copytree(tiny_model, data_dir / name),  # which is moved
            kind=kind,
            name=name,
            project=project,
        )
        for name, kind in (("first", "sft"), ("again", "dpo"))
    )
    for checkpoint in (first, again):
        checkpoint.save()
    services.promote_checkpoint(project=project, checkpoint=first)
    label(2)
    promotion = services.promote_checkpoint(project=project, checkpoint=again)
    SampleBatch.objects.update(state=Job.State.CANCELLED)
    tasks.run_label_effects(promotion.label_effects.pk)
    effects = newest_effects(project)
    assert effects.rows.count() == 2
    assert {(row.margin_before, row.margin_after) for row in effects.rows.all()} == {(0.0, 0.0)}, "the same weights"
    assert all(row.answer_before == row.answer_after != "" for row in effects.rows.all())
    assert "The same before and after" in page(annotator)


# The page


def test_the_preference_is_that_of_the_runs_beta_for_the_side_that_was_chosen(
    project, policy, label, measured, annotator, better
):
    label(10)
    run = services.request_run(project=project, recipe=Recipe(beta=0.5))
    TrainingRun.objects.filter(pk=run.pk).update(state=Job.State.SUCCEEDED, checkpoint=better)
    (for_a,), (for_b,) = label(1, "a"), label(1, "b")
    effects = measured({for_a: (-1.0, 2.0), for_b: (-1.0, 2.0)})
    moved_b, moved_a = own_moves(effects, annotator.pk)
    assert (moved_a.before, moved_a.after, moved_a.way) == (sigmoid(-0.5), sigmoid(1.0), "towards")
    assert (moved_b.before, moved_b.after, moved_b.way) == (sigmoid(0.5), sigmoid(-1.0), "away")
    assert (moved_a.chosen, moved_b.chosen) == (for_a.response_a.text, for_b.response_b.text)


def test_sigmoid_is_a_probability_whatever_comes():
    assert (sigmoid(0), sigmoid(1e4), sigmoid(-1e4)) == (0.5, 1.0, 0.0)
    assert sigmoid(3) + sigmoid(-3) == pytest.approx(1)


def test_each_sees_their_own_pairs_and_what_became_of_them(label, measured, annotator, other_annotator, page):
    towards, away, hardly = label(1)[0], label(1)[0], label(1)[0]
    measured({towards: (-5.0, 5.0), away: (5.0, -5.0), hardly: (1.0, 1.01)})
    text = page(annotator)
    assert "On 1 of your 3 pairs here the model moved your way." in text
    little, much, equal = (percent(share) for share in (0.378, 0.622, 0.5252))
    assert f"<strong>more than before</strong>: from {little} to {much}." in text
    assert f"<strong>less than before</strong>: from {much} to {little}." in text
    assert f"about as much as before: {equal}." in text
    assert "Why does it move the other way?" in text
    assert "It said this." in text
    assert towards.prompt.last_message["content"] in text
    other = page(other_annotator)
    assert "Nothing to see yet" in other
    assert "It said this." not in other


def test_it_says_that_a_rollback_is_a_step_back_and_when_it_is_still_being_found_out(
    project, label, measured, annotator, page
):
    (pair,) = label(1)
    assert "Nothing to see yet" in page(annotator)
    services.change_rule(project=project, effects_per_person=0)
    assert "Turned off in this project" in page(annotator)
    services.change_rule(project=project, effects_per_person=6)
    measured({pair: (0.0, 4.0)})
    assert "put back" not in page(annotator)
    back = services.roll_back(project=project)
    assert "What that changed is being found out" in page(annotator)
    LabelEffect.objects.create(effects=back.label_effects, pair=pair, margin_before=4.0, margin_after=0.0)
    LabelEffects.objects.update(state=Job.State.SUCCEEDED)
    text = page(annotator)
    assert "An earlier model was put back" in text
    assert "What it answers to this" not in text, "there is no answer"


@pytest.mark.parametrize("why", ["failed", "cancelled", "turned off", "rolled back", "under way"])
def test_of_a_later_change_that_was_not_looked_at_it_is_not_said_that_the_model_now_prefers(
    project, label, measured, annotator, page, make_checkpoint, better, why
):
    towards, away, hardly = label(1)[0], label(1)[0], label(1)[0]
    measured({towards: (-5.0, 5.0), away: (5.0, -5.0), hardly: (1.0, 1.01)})
    assert "The model now prefers" in page(annotator)
    if why in ("turned off", "rolled back"):
        services.change_rule(project=project, effects_per_person=0)
    if why == "rolled back":
        services.roll_back(project=project)
    else:
        latest = make_checkpoint("latest", project=project, kind="dpo", parent=better, base=better)
        services.promote_checkpoint(project=project, checkpoint=latest)
    if why in ("failed", "cancelled"):
        LabelEffects.objects.filter(state=Job.State.QUEUED).update(state=why)
    text = page(annotator)
    assert "The model now prefers" not in text
    assert "The model prefers" not in text
    assert ("what that changed was not looked at" in text) == (why != "under way")
    assert ("What that changed is being found out" in text) == (why == "under way")
    for share in ("more than before", "less than before"):
        assert f"After that change the model preferred the one you chose <strong>{share}</strong>: from" in text
    assert "After that change the model preferred the one you chose about as much as before:" in text
    assert "What it answered to this" in text
    german = page(annotator, **{"Accept-Language": "de"})
    assert "Das Modell hat sich seitdem noch einmal geändert" in german
    assert "Nach dieser Änderung bevorzugte das Modell die von Ihnen gewählte Antwort" in german
    assert "jetzt" not in german.split("</h1>")[1].split("</main>")[0]


def test_while_the_first_is_being_found_out_the_page_says_so(label, promote, annotator, page):
    label(1)
    promote()
    assert "Being found out" in page(annotator)


def test_a_pair_that_comes_back_to_its_annotator_is_not_shown_until_it_is_done(
    project, label, measured, annotator, page
):
    """A second look, or a change of mind: what the model makes of it would be an answer whispered."""
    first, second = label(2)
    measured({first: (0.0, 4.0), second: (0.0, 4.0)})
    queue.reopen(project, annotator.pk, first.preferences.get().pk)
    assert "On 1 of your 1 pair here" in page(annotator)
    Slot.objects.create(
        project=project, pair=second, place=9, kind=Slot.Kind.REPEAT, state=Slot.State.DONE, annotator=annotator
    )
    assert "Nothing to see yet" in page(annotator)


def test_it_names_no_model_and_no_training(label, measured, annotator, page, better, policy):
    (pair,) = label(1)
    effects = measured({pair: (0.0, 4.0)})
    text = page(annotator)
    for secret in (better.name, policy.short_hash, better.short_hash, str(effects.uuid), str(effects.seed)):
        assert secret not in text
    assert f"/pairs/{pair.pk}" not in text
    assert "<time" not in text


def test_ones_own_page_leads_there_when_there_is_something_to_see(
    project, label, measured, annotator, other_annotator, sign_in
):
    (pair,) = label(1)
    link = reverse("training:my-labels", args=[project.slug])
    mine = reverse("labeling:me", args=[project.slug])
    assert link not in sign_in(annotator).get(mine).content.decode()
    measured({pair: (0.0, 4.0)})
    assert link in sign_in(annotator).get(mine).content.decode()
    assert link not in sign_in(other_annotator).get(mine).content.decode()


def test_it_is_in_german_too(label, measured, annotator, page):
    (pair,) = label(1)
    measured({pair: (0.0, 4.0)})
    text = page(annotator, **{"Accept-Language": "de"})
    assert "Bei 1 von Ihrem 1 Paar hier hat sich das Modell in Ihre Richtung bewegt." in text
    assert "mehr als vorher" in text


def test_the_page_does_not_grow_in_queries(label, measured, annotator, project, sign_in, django_assert_num_queries):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    pairs = label(6)
    effects = measured({pairs[0]: (0.0, 4.0)})
    client, url = sign_in(annotator), reverse("training:my-labels", args=[project.slug])
    client.get(url)
    with CaptureQueriesContext(connection) as few:
        client.get(url)
    for pair in pairs[1:]:
        LabelEffect.objects.create(effects=effects, pair=pair, margin_before=0.0, margin_after=1.0)
    with CaptureQueriesContext(connection) as many:
        client.get(url)
    assert len(many) == len(few)
