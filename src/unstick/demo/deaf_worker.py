"""`python -m unstick.demo.deaf_worker JOB` runs one job as a worker that doesn't hear that it was taken.

It beats for its job as every worker does, but, as a thread may, never asks the heartbeat whether the job is still its
own. The runner's jobs are stopped there; this one goes on to its end and writes its result, and only that is refused.
"""

import asyncio
import os
import sys

from unstick import LateFinishError, open_worker
from unstick.demo.drafting import advance, outcome
from unstick.demo.jobs_on_kit import BEAT_EVERY, JOBS, LEASE, steps_of
from unstick.demo.settings import URL_VARIABLE
from unstick.demo.text import Draft


async def main(job_id: int) -> str | None:
    """Claim the job, do it and write its result; return what there is to complain about."""
    async with open_worker(url=os.environ[URL_VARIABLE], jobs=JOBS, beat_every=BEAT_EVERY, lease=LEASE) as worker:
        job = await worker.claim_one(job_id)
        if job is None:
            return f"Job {job_id} can't be claimed: it isn't queued."
        steps = steps_of(job)
        try:
            with worker.heartbeat(job):
                while not isinstance(reached := await asyncio.to_thread(advance, steps), Draft):
                    pass
                await worker.finish(job, outcome(reached))
        except LateFinishError as error:
            return str(error)
    return None


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]))))
