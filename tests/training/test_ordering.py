"""Uncertain pairs first: where a pair comes in the queue, and what that has brought beside the control."""

from __future__ import annotations

import itertools

import pytest
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling import queue
from labeling.models import Pair, Slot
from labeling.quality import wilson
from labeling.services import NewResponse, add_pair
from training import ordering, services
from training.execution import Sampling
from training.jobspec import SampledPair, SampledResponse, SampleJob, read_job
from training.models import PairOrigin, SampleBatch, TrainingRun
from training.ordering import order_report
from training.recipe import Recipe
from training.rundir import RunDir


@pytest.fixture(autouse=True)
def no_report_kept():
    cache.clear()
    yield
    cache.clear()


# Where a pair comes


@pytest.fixture
def sampling(project, policy, make_prompt):
    """A batch of some prompts that a worker has taken: ``sampling(prompts)``."""

    def sampling(prompts: int = 1, by=policy) -> Sampling:
        for _ in range(prompts):
            make_prompt()
        if services.current_policy(project) != by:
            services.promote_checkpoint(project=project, checkpoint=by)
        batch = SampleBatch.objects.active().first() or services.request_samples(project=project, pairs=prompts)
        assert batch.claim("worker")
        RunDir.of(batch.uuid).make()
        work = Sampling(batch, RunDir.of(batch.uuid))
        assert work.prepare()
        return work

    return sampling


def _written(work: Sampling, margins: list[float | None], **kept) -> None:
    lines = []
    for prompt_id, margin in zip(work.job.prompt_ids, margins, strict=True):
        a = SampledResponse(f"One {prompt_id}", [1, 2], "stop", 7, **kept)
        b = SampledResponse(f"Two {prompt_id}", [1, 3], "stop", 8, **kept)
        lines.append(SampledPair(str(prompt_id), [a, b], margin=margin).to_json() + "\n")
    work.run_dir.samples.write_text("".join(lines))
    work.tick()


def test_the_most_uncertain_pair_is_served_first(project, sampling, annotator):
    margins = [3.0, -0.5, None, -7.0, 0.25]
    work = sampling(len(margins))
    _written(work, margins)
    assert [origin.margin for origin in PairOrigin.objects.order_by("pair")] == margins
    served = []
    for _ in margins:
        lease = queue.lease_next(project, annotator.pk)
        served.append(PairOrigin.objects.get(pair=lease.slot.pair).margin)
        queue.submit(project, lease.token, annotator.pk, "a")
    assert served == [0.25, -0.5, None, 3.0, -7.0], "what has no margin is in the middle"


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
def test_a_margin_that_is_no_number_is_none(sampling, margin):
    _written(sampling(), [margin])
    assert PairOrigin.objects.get().margin is None
    assert Slot.objects.get().priority == 1.5


def test_a_pair_that_divides_opinions_comes_before_the_most_uncertain_one(
    project, sampling, judge, annotator, other_annotator, reviewer
):
    project.judgements_per_pair = 2
    project.save()
    _written(sampling(2), [4.0, 0.0])
    divided, uncertain = Pair.objects.order_by("pk")
    judge(divided, annotator, "a")
    judge(divided, other_annotator, "b")
    assert queue.lease_next(project, reviewer.pk).slot.pair == divided
    assert uncertain.slots.filter(state="open").count() == 2


def test_pairs_with_a_known_answer_are_in_neither_order(project, sampling, judge, annotator, other_annotator):
    project.judgements_per_pair = 2
    project.save()
    _written(sampling(3), [1.0, 2.0, 3.0])
    for number, pair in enumerate(Pair.objects.order_by("pk")):
        judge(pair, annotator, "a")
        judge(pair, other_annotator, "a")
        if number == 0:
            Pair.objects.filter(pk=pair.pk).update(gold_choice="a")
        if number == 1:
            pair.slots.update(kind=Slot.Kind.GOLD)
    arm = order_report(project).ordered
    assert (arm.judged, arm.scored, arm.conflicts.of) == (1, 1, 1)


def test_the_control_is_in_random_order_whatever_the_margins(project, sampling):
    project.control_percent = 100
    project.save()
    _written(sampling(3), [1.0, 2.0, 3.0])
    assert set(Slot.objects.values_list("priority", "is_control")) == {(1.0, True)}
    prompt = Pair.objects.first().prompt
    pair = add_pair(prompt=prompt, responses=(NewResponse("x"), NewResponse("y")), priority=2.7)
    assert pair.slots.get().priority == 2.0


def test_the_engine_is_told_the_beta_of_the_run_that_made_the_adapter(
    project, policy, sampling, label, make_checkpoint
):
    def told(by) -> float:
        work = sampling(1, by)
        SampleBatch.objects.filter(pk=work.job.pk).update(state="succeeded")
        return read_job(work.run_dir.path, SampleJob).beta

    assert told(policy) == 0, "full weights are their own reference"
    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    assert told(adapter) == 0.1
    label(10)
    run = services.request_run(project=project, recipe=Recipe(beta=0.4))
    trained = make_checkpoint("trained", project=project, kind="dpo", base=policy, parent=policy)
    TrainingRun.objects.filter(pk=run.pk).update(checkpoint=trained, state="succeeded")
    assert told(trained) == 0.4


def test_what_the_reference_said_of_an_adapters_pairs_goes_along_to_runs_against_it(
    project, policy, sampling, make_checkpoint, judge, annotator
):
    from training.snapshots import judgements

    adapter = make_checkpoint("adapter", project=project, kind="dpo", base=policy, parent=policy)
    _written(sampling(1, adapter), [1.0], logps=[-1.0, -2.0], reference_logps=[-1.5, -2.5])
    judge(Pair.objects.get(), annotator, "a")
    expected = {policy: [-1.5, -2.5], adapter: [-1.0, -2.0]}
    for reference, logps in expected.items():
        (judged,) = judgements(project, reference_hash=reference.content_hash)
        assert (judged.response_a.logps, judged.response_b.logps) == (logps, logps)
        assert judged.response_a.policy_hash == reference.content_hash
    (judged,) = judgements(project, reference_hash="another")
    assert (judged.response_a.logps, judged.response_a.policy_hash) == ([], "")


@pytest.mark.parametrize("logps", [[-1.0], [-1.0, float("nan")]])
def test_values_of_the_reference_that_do_not_fit_the_tokens_are_not_kept(sampling, logps):
    _written(sampling(), [1.0], reference_logps=logps)
    origin = PairOrigin.objects.get()
    assert (origin.reference_logps_a, origin.reference_logps_b, origin.margin) == ([], [], 1.0)


# What it has brought

_numbers = itertools.count(1)


@pytest.fixture
def judged(project, policy, make_pair, judge, annotator, other_annotator):
    """A judged pair with its margin: ``judged("ab", margin=0.5, control=True)``; t is a tie, x both bad."""
    people = [annotator, other_annotator]
    named = {"t": "tie", "x": "both_bad"}

    def judged(choices: str, *, margin: float | None = None, control: bool = False, **values) -> Pair:
        project.judgements_per_pair = len(choices)
        project.save()
        pair = make_pair(f"One {next(_numbers)}", f"Two {next(_numbers)}")
        for person, choice in zip(people, choices, strict=False):
            judge(pair, person, named.get(choice, choice))
        Pair.objects.filter(pk=pair.pk).update(is_control=control, **values)
        if margin is not None:
            batch = SampleBatch.objects.first() or services.request_samples(project=project, pairs=1)
            PairOrigin.objects.create(
                pair=pair, batch=batch, policy=policy, prompt=pair.prompt, seed_a=1, seed_b=2, margin=margin
            )
        return pair

    return judged


def test_both_orders_side_by_side(project, judged):
    judged("a", margin=0.5)
    judged("b", margin=0.1)
    judged("b", margin=-0.3)
    judged("a", margin=0.0)
    judged("t", margin=0.1)
    judged("a")
    judged("ab", margin=-0.2)
    judged("x", margin=9.0)
    judged("a", margin=9.0, is_retired=True)
    judged("a", margin=4.0, control=True)
    judged("bb", margin=-2.0, control=True)
    judged("tt", control=True)
    report = order_report(project)
    ordered, control = report.arms
    assert (ordered.judged, ordered.scored) == (7, 6)
    assert ordered.mean_margin == pytest.approx((0.5 + 0.1 + 0.3 + 0 + 0.1 + 0.2) / 6)
    assert (ordered.agreement, ordered.ties, ordered.conflicts) == (wilson(2, 3), wilson(1, 7), wilson(1, 1))
    assert (control.judged, control.scored, control.mean_margin) == (3, 2, 3.0)
    assert (control.agreement, control.ties, control.conflicts) == (wilson(2, 2), wilson(1, 3), wilson(0, 2))
    assert report.has_order


def test_a_verdict_stands_for_the_people_but_does_not_undo_that_they_disagreed(project, judged):
    judged("ab", margin=0.5, adjudicated_choice="b")
    judged("aa", margin=0.5, adjudicated_choice="tie")
    ordered = order_report(project).ordered
    assert (ordered.agreement, ordered.ties, ordered.conflicts) == (wilson(0, 1), wilson(1, 2), wilson(1, 2))


def test_two_queries_however_many_pairs_and_none_while_a_large_count_is_kept(project, judged, monkeypatch):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            order_report(project)
        return len(captured)

    for _ in range(3):
        judged("a", margin=1.0)
    assert queries() == 2
    monkeypatch.setattr(ordering, "LARGE", 3)
    assert (queries(), queries()) == (2, 0)


def test_the_overview_shows_the_table_once_there_is_an_order(project, judged, sign_in, reviewer):
    client, url = sign_in(reviewer), reverse("training:overview", args=[project.slug])
    judged("a")
    assert "Uncertain pairs first" not in client.get(url).content.decode()
    judged("a", margin=0.5)
    judged("b", margin=2.0, control=True)
    page = " ".join(client.get(url).content.decode().split())
    assert "Uncertain pairs first" in page
    assert "honest control" in page
    row = page.partition("People chose as the policy would</th>")[2].partition("</tr>")[0]
    assert row.count("</td>") == 2
    assert "100 % of 1 <br>" in row
    assert "0 % to 79 %" in row
