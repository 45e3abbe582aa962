"""RQ recovers jobs whose lease ran out by what each worker's maintenance does with its registry of running jobs.

The jobs may be retried, so they are queued again; jobs that may not would be marked failed, which is slower.
"""

import json
import logging
import os
import sys
import time

from redis import Redis
from rq import Queue, Retry
from rq.executions import Execution
from rq.registry import StartedJobRegistry

LOOKS = 20
BATCH = 1_000
FINISHED = """
for number = ARGV[1], ARGV[2] do
    local id = 'finished-' .. number
    redis.call('HSET', 'rq:job:' .. id, 'status', 'finished', 'origin', 'held', 'created_at', ARGV[3],
        'enqueued_at', ARGV[3], 'started_at', ARGV[3], 'ended_at', ARGV[3], 'data', ARGV[4], 'timeout', 180)
    redis.call('ZADD', 'rq:finished:held', 4102444800, id)
end
"""

redis = Redis.from_url(os.environ["DATABASE"])
held = Queue("held", connection=redis)
registry = StartedJobRegistry(queue=held)


def main(command: str, *numbers: str) -> None:
    logging.getLogger("rq").setLevel(logging.CRITICAL)  # a line a job would be part of the figure
    print(json.dumps(COMMANDS[command](*map(int, numbers))))


def fill(finished: int) -> None:
    """Write finished jobs as RQ would have."""
    write = redis.register_script(FINISHED)
    for first in range(1, finished + 1, BATCH):
        last = min(first + BATCH - 1, finished)
        write(args=[first, last, "2026-01-01T00:00:00.000000Z", b"x" * 100])


def stick(stuck: int) -> None:
    """Have jobs begun by a worker that says nothing more."""
    held.empty()
    for first in range(0, stuck, BATCH):
        number = min(BATCH, stuck - first)
        wanted = [Queue.prepare_data("app.work", retry=Retry(max=3), timeout=180) for _ in range(number)]
        jobs = held.enqueue_many(wanted)
        redis.ltrim(held.key, number, -1)
        with redis.pipeline() as pipeline:
            for job in jobs:
                job.prepare_for_execution("worker-1", pipeline=pipeline)
                Execution.create(job, ttl=1, pipeline=pipeline)
            pipeline.execute()
    time.sleep(2)  # until all leases have run out


def look() -> list[float]:
    taken = []
    for _ in range(LOOKS):
        begin = time.perf_counter()
        registry.cleanup()
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def recover() -> dict[str, float]:
    begin = time.perf_counter()
    registry.cleanup()
    seconds = time.perf_counter() - begin
    return {"jobs": len(held), "seconds": seconds}


def left() -> int:
    """Tell how many jobs are still with a worker."""
    return registry.get_job_count(cleanup=False)


COMMANDS = {"fill": fill, "stick": stick, "look": look, "recover": recover, "left": left}

main(*sys.argv[1:])
