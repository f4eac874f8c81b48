"""Celery's view of labeling: what runs now and then. No task holds logic or state."""

from celery import shared_task


@shared_task
def reserve_places() -> None:
    from labeling.own_places import reserve_all

    reserve_all()


@shared_task
def finish_withdrawals() -> None:
    from labeling.withdrawals import carry_out_unfinished

    carry_out_unfinished()


@shared_task
def measure_quality() -> None:
    from labeling.measure import measure_all  # with numpy, which no other process needs

    measure_all()
