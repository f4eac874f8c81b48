"""Settings, URLs and the Celery application; knows both apps, known by neither."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
