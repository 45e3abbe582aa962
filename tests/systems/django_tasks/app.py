"""Django's tasks with the database backend. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"

import django

django.setup()

from django.core.management import call_command
from django.db import connection
from django_tasks_db.models import DBTaskResult
from tasks import hold


def main(command: str, *arguments: str) -> None:
    if command == "migrate":
        call_command("migrate", verbosity=0)
        print(json.dumps(version("django-tasks-db")))
    elif command == "enqueue":
        print(json.dumps([stored(hold.using(queue_name=token).enqueue(token).id) for token in arguments]))
    elif command == "tell":
        print(json.dumps([tell(job_id) for job_id in arguments]))
    else:
        call_command("db_worker", queue_name=arguments[0], interval=0.1, startup_delay=False, reload=False)


def stored(task_id: str) -> str:
    """Return an id as the table has it: SQLite keeps no UUIDs."""
    return task_id.replace("-", "") if connection.vendor == "sqlite" else task_id


def tell(job_id: str) -> dict[str, object]:
    result = DBTaskResult.objects.get(id=job_id).task_result
    errors = [{"error": error.traceback, "class": error.exception_class_path} for error in result.errors]
    return {"state": result.status.name} | (errors[0] if errors else {})


main(*sys.argv[1:])
