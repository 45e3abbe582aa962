"""A Django project with nothing but tasks in it."""

import os
from urllib.parse import parse_qs, unquote, urlsplit

import pymysql

pymysql.install_as_MySQLdb()

_ENGINES = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql"}
_url = urlsplit(os.environ["DATABASE"])
_options = {key: values[0] for key, values in parse_qs(_url.query).items()}
_sqlite = _url.scheme == "sqlite"

DATABASES = {
    "default": {
        "ENGINE": f"django.db.backends.{_ENGINES[_url.scheme]}",
        "NAME": unquote(_url.path[1:]),
        "USER": _url.username or "",
        "HOST": _options.get("host") or _options.get("unix_socket") or "",
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20} if _sqlite else {},
    }
}
INSTALLED_APPS = ["django_tasks", "django_tasks_db"]
QUEUES = ["default", "failed", "retried", "healthy"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": QUEUES}}
USE_TZ = True
SECRET_KEY = "of a project that serves nobody"
