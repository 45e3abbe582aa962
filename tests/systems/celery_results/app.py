"""Celery with its results in PostgreSQL. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from celery import Celery

sys.path.insert(0, str(Path(__file__).parent.parent))
from work import JOURNAL, work

_url = os.environ["DATABASE"].replace("postgresql://", "db+postgresql+psycopg://")
_folders = {name: str(JOURNAL / "messages") for name in ("data_folder_in", "data_folder_out")}
app = Celery("app", broker="filesystem://", backend=_url)
app.conf.update(
    task_track_started=True,
    result_extended=True,
    broker_transport_options={**_folders, "control_folder": str(JOURNAL / "control"), "polling_interval": 0.1},
    worker_prefetch_multiplier=1,
)


@app.task(name="hold")
def hold(token: str) -> None:
    work(token)


def main(command: str, *arguments: str) -> None:
    for folder in ("messages", "control"):
        (JOURNAL / folder).mkdir(exist_ok=True)
    if command == "migrate":
        app.backend.task_result_exists("none")
        print(json.dumps(version("celery")))
    elif command == "enqueue":
        print(json.dumps([hold.apply_async([token], queue=token).id for token in arguments]))
    elif command == "tell":
        print(json.dumps([tell(task_id) for task_id in arguments]))
    else:
        (token,) = arguments
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        app.worker_main(["worker", "--queues", token, "--concurrency", "1", "--hostname", f"{token}@%h", *quiet])


def tell(task_id: str) -> dict[str, object]:
    result = app.AsyncResult(task_id)
    if result.state != "FAILURE":
        return {"state": result.state}
    return {"state": result.state, "class": type(result.result).__name__, "error": str(result.result)}


if __name__ == "__main__":
    main(*sys.argv[1:])
