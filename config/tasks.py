"""The scheduled task that turns the loop. It asks for things, which the tasks of training may not."""

from celery import shared_task

from training.loop import evaluate_rules


@shared_task
def turn_the_loop() -> None:
    evaluate_rules()
