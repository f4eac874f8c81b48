"""The Celery application.

Queues: ``default`` for chores, which must not wait; ``sampling``, ``training`` and ``exports`` to supervise engines,
each with a worker of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_ready, worker_shutting_down

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("tiebreak")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.on_after_configure.connect
def make_queue_folders(sender: Celery, **kwargs: Any) -> None:
    """The filesystem broker does not make its folders, and message payloads are nobody else's business."""
    options = sender.conf.broker_transport_options or {}
    for key in ("data_folder_in", "data_folder_out", "processed_folder", "control_folder"):
        if folder := options.get(key):
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)


@worker_init.connect
def forget_old_control_messages(sender: Any, **kwargs: Any) -> None:
    """Control messages to a node that is gone stay in the filesystem broker's folder for ever."""
    folder = (app.conf.broker_transport_options or {}).get("data_folder_in")
    for path in Path(folder).glob("*.pidbox.msg") if folder else ():
        path.unlink(missing_ok=True)


@worker_ready.connect
def reconcile_at_start(**kwargs: Any) -> None:
    app.send_task("training.tasks.reconcile")


@worker_shutting_down.connect
def stop_engines(**kwargs: Any) -> None:
    """A warm shutdown waits for running tasks, so the engine processes are told to save and stop."""
    from training.process import stop_all

    stop_all()
