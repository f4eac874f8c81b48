"""Scheduled tasks that ask for things, which the tasks of training may not."""

from celery import shared_task

from training.loop import evaluate_rules
from training.retention import apply_rules


@shared_task
def turn_the_loop() -> None:
    evaluate_rules()


@shared_task
def clear_old_checkpoints() -> None:
    apply_rules()
