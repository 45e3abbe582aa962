"""The steps that the demo's stories are made of: each does something, or waits until it is seen, or says it wasn't."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from unstick.demo.faces import AnswerError, Finding, PlatformJob
from unstick.demo.scene import Scene
from unstick.demo.text import Kind
from unstick.demo.watch import NotSeenError, NotYetError

SHORT = 300
LONG = 900
"""A thesis from so many sentences is some seconds of work: time to be interrupted in, and soon done again."""

_UNSENDABLE_TITLE = "Iterators \N{EM DASH} an introduction"


class Stage(StrEnum):
    """What a stuck job goes through, in this order."""

    STUCK = "stuck"
    FOUND = "found"
    EXPLAINED = "explained"
    RECOVERED = "recovered"
    RUN_AGAIN = "run again"
    FINISHED = "finished"
    REFUSED = "late result refused"


@dataclass(kw_only=True)
class Case:
    """A job that got stuck, what is expected of it, and when each stage was seen."""

    job_id: int
    kind: str
    trouble: str
    status: str
    reason: str
    final_attempt: int
    """What its row's attempt is to be in the end: one more if it had been started, else as it was."""
    seen: dict[Stage, float] = field(default_factory=dict)


def order(scene: Scene, kind: Kind, prompt: str, size: int = SHORT) -> PlatformJob:
    """Order a text that nothing is wrong with."""
    accepted = partial(scene.platform.generate, kind, size, prompt=prompt, title="Notes")
    return scene.watch.at_once(f"an order of {kind} accepted", accepted)


def order_what_fails(scene: Scene, kind: Kind, size: int) -> tuple[int, PlatformJob | None]:
    """Order a text under a title that no header can bear; return what was answered, and the row there is of it."""
    before = scene.platform.newest()
    try:
        scene.platform.generate(kind, size, prompt="how objects are iterated over", title=_UNSENDABLE_TITLE)
    except AnswerError as error:
        answered = error.status
    else:
        raise NotSeenError("a request that fails", "it was accepted")
    job = scene.platform.newest()
    return answered, None if job is None or (before is not None and job["id"] == before["id"]) else job


def see_through(scene: Scene, cases: Sequence[Case]) -> None:
    """Go with stuck jobs from found to finished; raise an error where that isn't seen."""
    for case in cases:
        find(scene, case)
    recover(scene, cases)
    for case in cases:
        see_run_again(scene, case)
    for case in cases:
        see_finished(scene, case)


def find(scene: Scene, case: Case) -> None:
    """Wait until the service says that the job is stuck, and why."""
    finding = scene.watch.until(f"job {case.job_id} found", partial(_finding, scene, case))
    see(scene, case, Stage.FOUND)
    if finding["reason"] != case.reason or not finding["sentence"]:
        raise NotSeenError(f"job {case.job_id} explained as {case.reason}", f"{finding}")
    see(scene, case, Stage.EXPLAINED, f"{case.reason}: {finding['sentence']}")


def recover(scene: Scene, cases: Sequence[Case]) -> None:
    """Have the service recover what is stuck, by retry."""
    recovered = f"{len(cases)} jobs recovered"
    cleaned = scene.watch.at_once(recovered, partial(scene.service.cleanup, "retry"))
    if cleaned["total"] != len(cases):
        raise NotSeenError(recovered, f"{cleaned}")
    for case in cases:
        see(scene, case, Stage.RECOVERED)


def see_run_again(scene: Scene, case: Case) -> None:
    """Wait until the platform has started the job again."""
    scene.watch.until(f"job {case.job_id} run again", partial(_started_again, scene, case))
    see(scene, case, Stage.RUN_AGAIN)


def see_finished(scene: Scene, case: Case) -> None:
    """Wait until the job is finished, with a result and as the attempt that it should be."""
    job = scene.watch.until(f"job {case.job_id} finished", partial(finished, scene, case.job_id))
    if job["attempt"] != case.final_attempt:
        raise NotSeenError(f"job {case.job_id} finished as attempt {case.final_attempt}", say_job(job))
    see(scene, case, Stage.FINISHED)


def see_untouched(scene: Scene, healthy: Sequence[PlatformJob]) -> None:
    """Check that every healthy job's row is what it was, column by column."""
    for before in healthy:
        untouched = f"job {before['id']} untouched"
        if (after := scene.watch.at_once(untouched, partial(scene.platform.job, before["id"]))) != before:
            raise NotSeenError(untouched, f"{before} became {after}")


def see(scene: Scene, case: Case, seen: Stage, more: str = "") -> None:
    """Tell that a stage was seen, and remember when."""
    case.seen[seen] = scene.watch.elapsed
    scene.say(f"Job {case.job_id} {seen}{more and f', {more}'}")


def finished(scene: Scene, job_id: int) -> PlatformJob:
    """Return a job's row when it is finished, with a result."""
    job = scene.platform.job(job_id)
    if job["status"] == "failed":
        raise NotSeenError(f"job {job_id} completed", say_job(job))
    if job["status"] != "completed" or not job["success"] or not job["result"]:
        raise NotYetError(say_job(job))
    return job


def say_job(job: PlatformJob) -> str:
    """Say where a job is."""
    return f"job {job['id']} is {job['status']} at {job['progress']} %, attempt {job['attempt']}"


def _finding(scene: Scene, case: Case) -> Finding:
    stuck = scene.service.stuck()
    for finding in stuck["queued_jobs"] if case.status == "queued" else stuck["running_jobs"]:
        if str(finding["id"]) == str(case.job_id):
            return finding
    said = [f"{finding['id']} ({finding['reason']})" for finding in (*stuck["queued_jobs"], *stuck["running_jobs"])]
    raise NotYetError(f"the service says that these are stuck: {', '.join(said) or 'none'}")


def _started_again(scene: Scene, case: Case) -> None:
    job = scene.platform.job(case.job_id)
    if job["started_at"] is None:  # as the retry left it
        raise NotYetError(say_job(job))
