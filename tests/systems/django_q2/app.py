"""django-q2 with the ORM broker. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
if sys.argv[1] == "work":
    os.environ["Q_CLUSTER_NAME"] = sys.argv[2]

import django

django.setup()

from django.core.management import call_command
from django_q.brokers import get_broker
from django_q.models import OrmQ, Task
from django_q.tasks import async_task
from work import JOURNAL


def main(command: str, *arguments: str) -> None:
    if command == "migrate":
        call_command("migrate", verbosity=0)
        print(json.dumps(version("django-q2")))
    elif command == "enqueue":
        print(json.dumps([enqueue(token) for token in arguments]))
    elif command == "tell":
        print(json.dumps([tell(job_id) for job_id in arguments]))
    else:
        call_command("qcluster")


def enqueue(token: str) -> int:
    """Queue a task and return the number of its row, which is gone when it has succeeded."""
    async_task("tasks.hold", token, task_name=token, cluster=token)
    row = OrmQ.objects.get(key=token)
    (JOURNAL / f"row-{row.pk}").write_text(token)
    return row.pk


def tell(job_id: str) -> dict[str, object]:
    token = (JOURNAL / f"row-{job_id}").read_text()
    task, broker = Task.objects.filter(name=token).first(), get_broker(token)
    if task is not None:
        return {"state": "success" if task.success else "failure"}
    return {"state": "no result", "queued": broker.queue_size(), "locked": broker.lock_size()}


if __name__ == "__main__":
    main(*sys.argv[1:])
