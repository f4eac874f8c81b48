"""The top layer as a Django app: it owns the commands that need both apps."""

from django.apps import AppConfig


class ConfigConfig(AppConfig):
    name = "config"
    label = "tiebreak_config"
    verbose_name = "Tiebreak"
