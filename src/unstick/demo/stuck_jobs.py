"""How jobs get stuck on the platform as it was: a task that is lost, a process that is killed."""

import signal
from functools import partial

from unstick.demo.scene import Scene
from unstick.demo.steps import LONG, SHORT, Case, Stage, order, order_what_fails, say_job, see
from unstick.demo.text import Kind
from unstick.demo.watch import NotSeenError, NotYetError


def get_stuck(scene: Scene) -> tuple[Case, Case]:
    """Get one job stuck in each of the two classic ways."""
    lost = lose_a_task(scene)
    long = start_long_job(scene)
    kill_platform(scene, long)
    for case in (lost, long):
        scene.watch.until(f"job {case.job_id} stuck", partial(_left, scene, case))
        see(scene, case, Stage.STUCK)
    return lost, long


def start_long_job(scene: Scene) -> Case:
    """Have a long job begin, and wait until it has come some way."""
    job = order(scene, Kind.THESIS, "how functions are called", LONG)
    scene.watch.until("a long job makes progress", partial(_progress, scene, job["id"]))
    return Case(
        job_id=job["id"],
        kind=job["job_type"],
        trouble="process killed in the middle of it",
        status="running",
        reason="silent",
        final_attempt=job["attempt"] + 1,
    )


def lose_a_task(scene: Scene, kind: Kind = Kind.SUMMARY, size: int = SHORT) -> Case:
    """Have a row committed whose task is never scheduled: the request fails in between."""
    answered, job = order_what_fails(scene, kind, size)
    if job is None:
        raise NotSeenError("a row committed by the request that failed", "no new row")
    scene.say(f"The platform answered {answered}; job {job['id']}'s row was committed, and its task never scheduled")
    return Case(
        job_id=job["id"],
        kind=job["job_type"],
        trouble="row committed, task never scheduled",
        status="queued",
        reason="never_claimed",
        final_attempt=job["attempt"],
    )


def kill_platform(scene: Scene, long: Case) -> None:
    """Kill the platform's process while it runs a job, and start it again."""
    pid, status = scene.background_tasks.pid, scene.background_tasks.kill()
    if status != -signal.SIGKILL:
        raise NotSeenError("the platform killed", f"its process ended with status {status}")
    scene.say(f"Killed the platform (process {pid}) while it ran job {long.job_id}; starting it again")
    scene.background_tasks.start()
    scene.watch.until("the platform answers again", scene.platform.newest)


def _progress(scene: Scene, job_id: int) -> None:
    job = scene.platform.job(job_id)
    if job["status"] != "running" or job["progress"] == 0:
        raise NotYetError(say_job(job))


def _left(scene: Scene, case: Case) -> None:
    job = scene.platform.job(case.job_id)
    if job["status"] != case.status or job["completed_at"] or job["scheduled_at"]:
        raise NotYetError(say_job(job))
