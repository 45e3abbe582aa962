"""What the same platform shows on the kit: nothing half done, nothing done twice, and a late result refused."""

import secrets
from functools import partial

from unstick.demo.children import Child
from unstick.demo.faces import PlatformJob
from unstick.demo.records import LateFinish
from unstick.demo.scene import Scene
from unstick.demo.steps import SHORT, Case, Stage, finished, order_what_fails, say_job, see
from unstick.demo.text import Kind
from unstick.demo.watch import NotSeenError, NotYetError


def move_onto_kit(scene: Scene) -> None:
    """Restart the platform, on the same database, with its jobs on the kit."""
    scene.background_tasks.stop()
    scene.kit.start()
    scene.watch.until("the platform answers again, on the kit", scene.platform.newest)
    scene.say("The platform runs its jobs on the kit now, on the same table")


def leave_nothing_half_done(scene: Scene) -> None:
    """Repeat the order whose task was lost: what fails now leaves no row."""
    answered, job = order_what_fails(scene, Kind.SUMMARY, SHORT)
    if job is not None:
        raise NotSeenError("no row of the request that failed", say_job(job))
    scene.say(f"The platform answered {answered} to the same order; no row was committed")


def order_twice(scene: Scene) -> PlatformJob:
    """Order the same twice under one key, and return the one job that is made of it, finished."""
    place = partial(
        scene.platform.generate,
        Kind.SUMMARY,
        SHORT,
        prompt="how iterators and generators yield values",
        title="Notes",
        key=secrets.token_hex(8),
    )
    first, second = (scene.watch.at_once("an order accepted under its key", place) for _ in range(2))
    newest = scene.watch.at_once("one job of two orders", scene.platform.newest)
    if newest is None or not first["id"] == second["id"] == newest["id"]:
        raise NotSeenError("one job of two orders", f"jobs {first['id']} and {second['id']}")
    job = scene.watch.until(f"job {first['id']} finished", partial(finished, scene, first["id"]))
    scene.say(f"Ordered twice under one key: both times job {job['id']}, which finished once")
    return job


def stop_in_the_middle(scene: Scene, worker: Child, job_id: int) -> tuple[Case, str]:
    """Stop a worker with SIGSTOP while it runs a job; return also what the job calls it."""
    job, name = scene.watch.until(f"job {job_id} claimed by a worker", partial(_claimed, scene, worker, job_id))
    scene.watch.until("the worker stopped", partial(_stopped, scene, worker))
    if (stopped := scene.platform.job(job_id)) != job:
        raise NotSeenError("the worker stopped in the middle of its job", say_job(stopped))
    scene.say(f"Worker {name}, on the kit, claimed job {job_id}; stopped it in the middle (SIGSTOP)")
    case = Case(
        job_id=job_id,
        kind=job["job_type"],
        trouble="worker stopped in the middle of it",
        status="running",
        reason="lease_expired",
        final_attempt=job["attempt"] + 1,
    )
    see(scene, case, Stage.STUCK)
    return case, name


def see_late_result_refused(scene: Scene, worker: Child, case: Case, name: str) -> None:
    """Continue the stopped worker, and see its result refused, the refusal recorded, and the row left as it is."""
    before = scene.watch.at_once(f"job {case.job_id} finished", partial(scene.platform.job, case.job_id))
    if before["worker"] in {None, name}:
        raise NotSeenError(f"job {case.job_id} done by another worker", f"it was done by {before['worker']}")
    worker.resume()
    scene.say(f"Continued worker {name} (SIGCONT); job {case.job_id} was done by {before['worker']} meanwhile")
    scene.watch.until("the continued worker came to its end", partial(_ended, worker))
    said = worker.last_said()
    if "finished too late" not in said:
        raise NotSeenError("a late result refused", f"the worker said {said or 'nothing'}")
    see(scene, case, Stage.REFUSED, f"the worker said: {said}")
    _see_recorded(scene, case, name)
    after = scene.watch.at_once(f"job {case.job_id} as it was", partial(scene.platform.job, case.job_id))
    if after != before:
        raise NotSeenError(f"job {case.job_id} untouched by the late result", f"{before} became {after}")
    scene.say(f"Job {case.job_id} still holds the result of attempt {after['attempt']}, by {after['worker']}")


def _see_recorded(scene: Scene, case: Case, name: str) -> None:
    expected = LateFinish(job_id=str(case.job_id), worker=name, attempt=case.final_attempt - 1, ended="succeeded")
    recorded = scene.records.late_finishes()
    if recorded != [expected]:
        raise NotSeenError("one late result recorded", f"unstick_late_finishes holds {recorded}")
    scene.say(f"unstick_late_finishes holds it: job {expected.job_id}, attempt {expected.attempt}, {expected.ended}")


def _claimed(scene: Scene, worker: Child, job_id: int) -> tuple[PlatformJob, str]:
    worker.check()
    job = scene.platform.job(job_id)
    if job["status"] != "running" or job["worker"] is None:
        raise NotYetError(say_job(job))
    return job, job["worker"]


def _stopped(scene: Scene, worker: Child) -> None:
    """Stop the worker, but not within a transaction, with which it would hold SQLite's one write lock."""
    worker.suspend()
    if not scene.records.can_be_written():
        worker.resume()
        raise NotYetError("it was stopped while it wrote")


def _ended(worker: Child) -> None:
    if not worker.has_ended():
        raise NotYetError("it runs still")
