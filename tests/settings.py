"""The product's settings over a data directory of the tests' own.

Nothing that is set on this machine, in the environment or in ``.env``, reaches a test: it might be a real database.
"""

import atexit
import os
import shutil
import tempfile

from tests.services import DATABASE_VARIABLE

_DATA_DIR = tempfile.mkdtemp(prefix="tiebreak-test-")
atexit.register(shutil.rmtree, _DATA_DIR, ignore_errors=True)

for _name in [name for name in os.environ if name.startswith(("TIEBREAK_", "CELERY_", "DATABASE_URL"))]:
    del os.environ[_name]
os.environ |= {"TIEBREAK_DATA_DIR": _DATA_DIR, "TIEBREAK_ENV_FILE": ""}
if DATABASE_VARIABLE in os.environ:
    os.environ["DATABASE_URL"] = os.environ[DATABASE_VARIABLE]

os.mkdir(f"{_DATA_DIR}/static")  # whitenoise warns without it

from config.settings import *  # noqa: E402, F403

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):  # noqa: F405
    # A file, as in production: an in-memory database is shared by other rules, and threads must share this one.
    DATABASES["default"]["TEST"] = {"NAME": f"{_DATA_DIR}/test.sqlite3"}  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
WHITENOISE_AUTOREFRESH = True
MINIMUM_FREE_DISK_MB = 1
