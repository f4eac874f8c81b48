"""Django settings. Every value comes from the environment or a file; the defaults run on one machine with SQLite.

``docs/settings.md`` describes each variable; a test holds the two together.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from environs import Env

from config.secret_key import read_or_create_secret_key

BASE_DIR = Path(__file__).resolve().parent.parent

env = Env()
ENV_FILE = env.str("TIEBREAK_ENV_FILE", ".env")
# The one beside manage.py may be missing. One that somebody has named may not: the defaults in its place would be
# another database.
if ENV_FILE and not env.read_env(BASE_DIR / ENV_FILE, recurse=False) and "TIEBREAK_ENV_FILE" in os.environ:
    raise ImproperlyConfigured(f"TIEBREAK_ENV_FILE names {BASE_DIR / ENV_FILE}, which does not exist.")

# Where everything that is not code lies: database, keys, queue, logs, job directories, checkpoints.
DATA_DIR = Path(env.str("TIEBREAK_DATA_DIR", "") or BASE_DIR / "var").resolve()

# It holds password hashes, prompts and votes: for the account that runs Tiebreak and nobody else. Checkpoints are
# given readable modes of their own.
os.umask(0o077)
DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)

DEBUG = env.bool("TIEBREAK_DEBUG", False)
ALLOWED_HOSTS = env.list("TIEBREAK_ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS: list[str] = env.list("TIEBREAK_CSRF_TRUSTED_ORIGINS", [])
# Over HTTPS cookies, redirects and HSTS are strict. A loopback server has no certificate, so it is off by default.
HTTPS = env.bool("TIEBREAK_HTTPS", False)
BEHIND_PROXY = env.bool("TIEBREAK_BEHIND_PROXY", False)
SECRET_KEY = env.str("TIEBREAK_SECRET_KEY", "") or read_or_create_secret_key(DATA_DIR)

INSTALLED_APPS = [
    "config.apps.ConfigConfig",
    "training.apps.TrainingConfig",
    "labeling.apps.LabelingConfig",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "csp",
    "django_htmx",
    "template_partials",
    "rest_framework",
    "knox",
    "drf_spectacular",
]

MIDDLEWARE = [
    "config.health.HealthMiddleware",  # first: it answers whatever the name or the scheme of the request
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "config.middleware.SamePersonMiddleware",
    "config.middleware.HtmxLoginMiddleware",
    "config.middleware.QualificationMiddleware",
    "config.middleware.NoStoreMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# The path of the SQLite file never passes through a URL, in which `#`, `?` and `%` would mean something else.
DATABASES: dict[str, dict[str, Any]] = {
    "default": env.dj_db_url("DATABASE_URL", conn_max_age=60)
    if env.str("DATABASE_URL", "")
    else {"ENGINE": "django.db.backends.sqlite3", "NAME": str(DATA_DIR / "tiebreak.sqlite3"), "CONN_MAX_AGE": 60}
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # A deferred transaction that turns from reading to writing fails at once with "database is locked", whatever
        # the timeout; one that begins as a writer waits its turn.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
    }
else:
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    if env.bool("TIEBREAK_PREPARE_STATEMENTS", True):
        # PostgreSQL plans the claim of the next pair several times as long as it runs it; prepared, it plans it once.
        DATABASES["default"].setdefault("OPTIONS", {}).update(server_side_binding=True, prepare_threshold=5)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en"
# Chosen in the user menu and kept in a cookie; before that, what the browser asks for.
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
LOCALE_PATHS = [BASE_DIR / "locale"]
LANGUAGE_COOKIE_AGE = 365 * 24 * 3600
LANGUAGE_COOKIE_HTTPONLY = True
LANGUAGE_COOKIE_SAMESITE = "Lax"
TIME_ZONE = env.str("TIEBREAK_TIME_ZONE", "UTC")
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}

# Security headers. htmx, our scripts and our styles are files, so nothing inline is ever allowed.
_SELF = "'self'"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": [_SELF],
        "style-src": [_SELF],
        "img-src": [_SELF, "data:"],
        "connect-src": [_SELF],
        "font-src": [_SELF],
        "form-action": [_SELF],
        "base-uri": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
}
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = LANGUAGE_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
if HTTPS:
    SECURE_HSTS_SECONDS = env.int("TIEBREAK_HSTS_SECONDS", 365 * 24 * 3600)
    SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_NAME = "__Host-sessionid"
    CSRF_COOKIE_NAME = "__Host-csrftoken"
if BEHIND_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# Uploads are JSONL files of prompts: read in a stream, line by line, with their own limits.
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 2**20
FILE_UPLOAD_MAX_MEMORY_SIZE = 2 * 2**20

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "labeling.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["config.api_errors.BoundedJSONParser"],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.CursorPagination",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "config.api_errors.exception_handler",
    "PAGE_SIZE": 100,
}
REST_KNOX = {"TOKEN_TTL": None, "TOKEN_PREFIX": "tb_"}
SPECTACULAR_SETTINGS = {
    "ENUM_NAME_OVERRIDES": {
        "GateKindEnum": "training.models.Gate.Kind",
        "GateOutcomeEnum": "training.models.Gate.Outcome",
    },
    "TITLE": "Tiebreak",
    "VERSION": "1",
    "DESCRIPTION": "Blind A/B labels in, better checkpoints out.",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SCHEMA_PATH_PREFIX": "/api/v1",
}

# Celery. The database row of a job is the truth and a message only a hint to look at it, so losing or doubling a
# message is harmless: no result backend, early acknowledgement, ids only.
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", "filesystem://localhost")
if CELERY_BROKER_URL.startswith("filesystem://"):
    QUEUE_DIR = DATA_DIR / "queue"
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
        "data_folder_in": str(QUEUE_DIR / "messages"),
        "data_folder_out": str(QUEUE_DIR / "messages"),
        "processed_folder": str(QUEUE_DIR / "processed"),
        "control_folder": str(QUEUE_DIR / "control"),
        "polling_interval": 0.2,
    }
else:
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "visibility_timeout": 6 * 3600,
        "global_keyprefix": "tiebreak:",
        "socket_timeout": 10,
        "socket_keepalive": True,
        # Somebody who presses a button waits this long for an unreachable Redis, and once: the row is there, and the
        # reconciler sends the message again. Workers and scheduler have their own, patient, way to reconnect.
        "socket_connect_timeout": 2,
        "max_retries": 0,
    }
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_TASK_ROUTES = {
    "training.tasks.run_training": {"queue": "training"},
    "training.tasks.run_sampling": {"queue": "sampling"},
    "training.tasks.run_side_by_side": {"queue": "exports"},
    "training.tasks.run_export": {"queue": "exports"},
    "training.tasks.run_label_effects": {"queue": "sampling"},
    "training.tasks.run_gate": {"queue": "sampling"},
    "training.tasks.run_push": {"queue": "exports"},
}
CELERY_TASK_PUBLISH_RETRY = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULE = {
    "reconcile": {"task": "training.tasks.reconcile", "schedule": 10.0, "options": {"expires": 10}},
    "turn-the-loop": {"task": "config.tasks.turn_the_loop", "schedule": 10.0, "options": {"expires": 10}},
    "sweep-leases": {"task": "training.tasks.sweep_leases", "schedule": 60.0, "options": {"expires": 60}},
    "reserve-places": {"task": "labeling.tasks.reserve_places", "schedule": 30.0, "options": {"expires": 30}},
    "measure-quality": {"task": "labeling.tasks.measure_quality", "schedule": 60.0, "options": {"expires": 60}},
    "tell-people": {"task": "training.tasks.tell_people", "schedule": 20.0, "options": {"expires": 20}},
    "clear-old-checkpoints": {"task": "config.tasks.clear_old_checkpoints", "schedule": 24 * 3600.0},
    "withdrawals": {"task": "labeling.tasks.finish_withdrawals", "schedule": 30.0, "options": {"expires": 30}},
    "forget-ended": {"task": "training.tasks.forget_ended_jobs", "schedule": 3600.0, "options": {"expires": 3600}},
}

# Models and jobs
MODEL_DIRECTORIES = [Path(str(path)).resolve() for path in env.list("TIEBREAK_MODEL_DIRECTORIES", [], subcast=str)]
MODEL_HUB_IDS: list[str] = env.list("TIEBREAK_MODEL_HUB_IDS", [])
# What a fresh installation starts with: empty for SmolLM2-135M-Instruct, or what add_model takes.
DEFAULT_MODEL = env.str("TIEBREAK_DEFAULT_MODEL", "")
JOB_LEASE_SECONDS = env.int("TIEBREAK_JOB_LEASE_SECONDS", 20)
JOB_MAX_ATTEMPTS = env.int("TIEBREAK_JOB_MAX_ATTEMPTS", 3)
ENGINE_THREADS = env.int("TIEBREAK_ENGINE_THREADS", 0)
ENGINE_DEVICE = env.str("TIEBREAK_DEVICE", "auto")
# What training runs of this machine have computed and later ones can use: it may be deleted at any time.
CACHE_DIR = Path(env.str("TIEBREAK_CACHE_DIR", "") or DATA_DIR / "cache").resolve()
CACHE_MB = env.int("TIEBREAK_CACHE_MB", 20_000)
if CACHE_MB < 0:
    raise ImproperlyConfigured(f"TIEBREAK_CACHE_MB is {CACHE_MB}; it is a number of megabytes, and 0 keeps nothing.")
# An inference server that writes the pairs of policies on its weights; empty: the sampling worker does. Its key, if it
# wants one, goes from the environment to the sampling engine and is a value of no other process.
SAMPLING_SERVER_URL = env.str("TIEBREAK_SAMPLING_SERVER_URL", "")
SAMPLING_SERVER_MODEL = env.str("TIEBREAK_SAMPLING_SERVER_MODEL", "")
SAMPLING_SERVER_CHECKPOINT = env.str("TIEBREAK_SAMPLING_SERVER_CHECKPOINT", "")
if SAMPLING_SERVER_URL and not SAMPLING_SERVER_MODEL:
    raise ImproperlyConfigured(
        "TIEBREAK_SAMPLING_SERVER_URL is set, so TIEBREAK_SAMPLING_SERVER_MODEL must say under which name that server "
        "knows the model that it holds."
    )
if SAMPLING_SERVER_URL and not SAMPLING_SERVER_CHECKPOINT:
    raise ImproperlyConfigured(
        "TIEBREAK_SAMPLING_SERVER_URL is set, so TIEBREAK_SAMPLING_SERVER_CHECKPOINT must say by name or content hash "
        "which checkpoint has the weights that the server holds. Policies on other weights are sampled without it."
    )
# What turns full weights into GGUF: llama.cpp's convert_hf_to_gguf.py, or a command that takes its arguments.
GGUF_CONVERTER = env.str("TIEBREAK_GGUF_CONVERTER", "")
GGUF_CONVERTER_MINUTES = env.int("TIEBREAK_GGUF_CONVERTER_MINUTES", 60)
MINIMUM_FREE_DISK_MB = env.int("TIEBREAK_MINIMUM_FREE_DISK_MB", 1024)

# Where people reach the pages, for the links in e-mails; and the mail server. Empty: no e-mail is sent.
SITE_URL = env.str("TIEBREAK_SITE_URL", "http://127.0.0.1:8000").rstrip("/")
EMAIL_HOST = env.str("TIEBREAK_EMAIL_HOST", "")
EMAIL_PORT = env.int("TIEBREAK_EMAIL_PORT", 25)
EMAIL_HOST_USER = env.str("TIEBREAK_EMAIL_USER", "")
EMAIL_HOST_PASSWORD = env.str("TIEBREAK_EMAIL_PASSWORD", "")
EMAIL_USE_TLS = env.bool("TIEBREAK_EMAIL_STARTTLS", False)
EMAIL_USE_SSL = env.bool("TIEBREAK_EMAIL_TLS", False)
EMAIL_TIMEOUT = 20  # seconds; one server that hangs must not hold the worker of all chores
DEFAULT_FROM_EMAIL = env.str("TIEBREAK_EMAIL_FROM", "tiebreak@localhost")
if EMAIL_USE_TLS and EMAIL_USE_SSL:
    raise ImproperlyConfigured(
        "TIEBREAK_EMAIL_STARTTLS and TIEBREAK_EMAIL_TLS are both set. The first begins in the clear and is usual on "
        "port 587, the second is encrypted from the start and usual on port 465: set one."
    )

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": env.str("TIEBREAK_LOG_LEVEL", "INFO")},
}
logging.captureWarnings(True)
