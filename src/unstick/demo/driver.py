"""The demo's two stories: one goes once from stuck to finished, the other leaves the stage to who watches."""

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import cycle

from rich.console import Console
from rich.table import Table

from unstick.demo.children import ChildError
from unstick.demo.faces import AnswerError, Finding, NoAnswerError, PlatformJob
from unstick.demo.scene import Scene, set_up
from unstick.demo.text import Kind
from unstick.demo.watch import NotSeenError, NotYetError, Watch

PATIENCE = 40.0
"""Seconds within which all that is awaited must have been seen."""

_SHORT = 300
_LONG = 900
"""A thesis from so many sentences is some seconds of work: time to be killed in, and soon done again."""
_UNSENDABLE_TITLE = "Iterators \N{EM DASH} an introduction"
_HEALTHY = ((Kind.SUMMARY, "how iterators and generators yield values"), (Kind.OUTLINE, "attribute access of classes"))
_LOAD_EVERY = 2
_LOSE_EVERY = 20
_INTERRUPTED = 130


class Stage(StrEnum):
    """What a stuck job goes through, in this order."""

    STUCK = "stuck"
    FOUND = "found"
    EXPLAINED = "explained"
    RECOVERED = "recovered"
    RUN_AGAIN = "run again"
    FINISHED = "finished"


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


def run(*, once: bool, port_base: int | None = None, patience: float = PATIENCE) -> int:
    """Set up the demo and play it; return the exit status."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    console = Console()
    try:
        with set_up(console, Watch(patience), port_base) as scene:
            (play_once if once else play_on)(scene)
    except (NotSeenError, ChildError, AnswerError, NoAnswerError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED if once else 0
    return 0


def play_once(scene: Scene) -> None:
    """Go from stuck to found, explained, recovered, run again and finished; raise an error where that isn't seen."""
    healthy = finish_healthy_jobs(scene)
    cases = get_stuck(scene)
    for case in cases:
        find(scene, case)
    recover(scene, cases)
    for case in cases:
        see_run_again(scene, case)
    for case in cases:
        see_finished(scene, case)
    see_untouched(scene, healthy)
    scene.console.print(_table(cases, healthy))


def play_on(scene: Scene) -> None:
    """Leave two jobs stuck, say what to open and curl, and keep a light load on until interrupted."""
    finish_healthy_jobs(scene)
    get_stuck(scene)
    scene.console.print(_guide(scene), highlight=False, markup=False, soft_wrap=True)
    for number, (kind, prompt) in enumerate(cycle(_HEALTHY), 1):
        time.sleep(_LOAD_EVERY)  # the load's rhythm
        scene.watch.check()
        if number % _LOSE_EVERY:
            order(scene, kind, prompt)
        else:
            lose_a_task(scene)


def finish_healthy_jobs(scene: Scene) -> list[PlatformJob]:
    """Have a few jobs run to their end, and return their rows."""
    ordered = [order(scene, kind, prompt) for kind, prompt in _HEALTHY * 2]
    finished = [scene.watch.until("healthy jobs finish", partial(_finished, scene, job["id"])) for job in ordered]
    scene.say(f"{len(finished)} jobs finished on the platform")
    return finished


def order(scene: Scene, kind: Kind, prompt: str, size: int = _SHORT) -> PlatformJob:
    """Order a text that nothing is wrong with."""
    accepted = partial(scene.platform.generate, kind, size, prompt=prompt, title="Notes")
    return scene.watch.at_once(f"an order of {kind} accepted", accepted)


def get_stuck(scene: Scene) -> tuple[Case, Case]:
    """Get one job stuck in each of the two classic ways."""
    lost = lose_a_task(scene)
    long = start_long_job(scene)
    kill_platform(scene, long)
    for case in (lost, long):
        scene.watch.until(f"job {case.job_id} stuck", partial(_left, scene, case))
        _see(scene, case, Stage.STUCK)
    return lost, long


def start_long_job(scene: Scene) -> Case:
    """Have a long job begin, and wait until it has come some way."""
    job = order(scene, Kind.THESIS, "how functions are called", _LONG)
    scene.watch.until("a long job makes progress", partial(_progress, scene, job["id"]))
    return Case(
        job_id=job["id"],
        kind=job["job_type"],
        trouble="process killed in the middle of it",
        status="running",
        reason="silent",
        final_attempt=job["attempt"] + 1,
    )


def lose_a_task(scene: Scene) -> Case:
    """Have a row committed whose task is never scheduled: the request fails in between."""
    before = scene.platform.newest()
    try:
        scene.platform.generate(Kind.SUMMARY, _SHORT, prompt="how objects are iterated over", title=_UNSENDABLE_TITLE)
    except AnswerError as error:
        said = error.status
    else:
        raise NotSeenError("a request that fails after its row was committed", "it was accepted")
    job = scene.platform.newest()
    if job is None or (before is not None and job["id"] == before["id"]):
        raise NotSeenError("a row committed by the request that failed", "no new row")
    scene.say(f"The platform answered {said}; job {job['id']}'s row was committed, and its task never scheduled")
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
    pid, status = scene.platform_process.pid, scene.platform_process.kill()
    if status != -signal.SIGKILL:
        raise NotSeenError("the platform killed", f"its process ended with status {status}")
    scene.say(f"Killed the platform (process {pid}) while it ran job {long.job_id}; starting it again")
    scene.platform_process.start()
    scene.watch.until("the platform answers again", scene.platform.newest)


def find(scene: Scene, case: Case) -> None:
    """Wait until the service says that the job is stuck, and why."""
    finding = scene.watch.until(f"job {case.job_id} found", partial(_finding, scene, case))
    _see(scene, case, Stage.FOUND)
    if finding["reason"] != case.reason or not finding["sentence"]:
        raise NotSeenError(f"job {case.job_id} explained as {case.reason}", f"{finding}")
    _see(scene, case, Stage.EXPLAINED, f"{case.reason}: {finding['sentence']}")


def recover(scene: Scene, cases: Sequence[Case]) -> None:
    """Have the service recover what is stuck, by retry."""
    recovered = f"{len(cases)} jobs recovered"
    cleaned = scene.watch.at_once(recovered, partial(scene.service.cleanup, "retry"))
    if cleaned["total"] != len(cases):
        raise NotSeenError(recovered, f"{cleaned}")
    for case in cases:
        _see(scene, case, Stage.RECOVERED)


def see_run_again(scene: Scene, case: Case) -> None:
    """Wait until the platform has started the job again."""
    scene.watch.until(f"job {case.job_id} run again", partial(_started_again, scene, case))
    _see(scene, case, Stage.RUN_AGAIN)


def see_finished(scene: Scene, case: Case) -> None:
    """Wait until the job is finished, with a result and as the attempt that it should be."""
    job = scene.watch.until(f"job {case.job_id} finished", partial(_finished, scene, case.job_id))
    if job["attempt"] != case.final_attempt:
        raise NotSeenError(f"job {case.job_id} finished as attempt {case.final_attempt}", _say(job))
    _see(scene, case, Stage.FINISHED)


def see_untouched(scene: Scene, healthy: Sequence[PlatformJob]) -> None:
    """Check that every healthy job's row is what it was, column by column."""
    for before in healthy:
        untouched = f"job {before['id']} untouched"
        if (after := scene.watch.at_once(untouched, partial(scene.platform.job, before["id"]))) != before:
            raise NotSeenError(untouched, f"{before} became {after}")


def _see(scene: Scene, case: Case, seen: Stage, more: str = "") -> None:
    case.seen[seen] = scene.watch.elapsed
    scene.say(f"Job {case.job_id} {seen}{more and f', {more}'}")


def _progress(scene: Scene, job_id: int) -> None:
    job = scene.platform.job(job_id)
    if job["status"] != "running" or job["progress"] == 0:
        raise NotYetError(_say(job))


def _left(scene: Scene, case: Case) -> None:
    job = scene.platform.job(case.job_id)
    if job["status"] != case.status or job["completed_at"] or job["scheduled_at"]:
        raise NotYetError(_say(job))


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
        raise NotYetError(_say(job))


def _finished(scene: Scene, job_id: int) -> PlatformJob:
    job = scene.platform.job(job_id)
    if job["status"] == "failed":
        raise NotSeenError(f"job {job_id} completed", _say(job))
    if job["status"] != "completed" or not job["success"] or not job["result"]:
        raise NotYetError(_say(job))
    return job


def _say(job: PlatformJob) -> str:
    return f"job {job['id']} is {job['status']} at {job['progress']} %, attempt {job['attempt']}"


def _table(cases: Sequence[Case], healthy: Sequence[PlatformJob]) -> Table:
    table = Table("stage", title="When each stage was seen, in seconds after the start")
    for case in cases:
        table.add_column(f"job {case.job_id}, {case.kind}\n{case.trouble}", justify="right")
    for reached in Stage:
        table.add_row(reached, *(f"{case.seen[reached]:.1f}" for case in cases))
    table.caption = f"{len(healthy)} healthy jobs are what they were."
    return table


def _guide(scene: Scene) -> str:
    return "\n".join(_guide_lines(scene))


def _guide_lines(scene: Scene) -> Iterator[str]:
    service, admin = scene.service.url, f"{scene.service.url}/api/v1/admin"
    yield "\nTwo jobs are stuck; in three seconds Unstick knows. Open:"
    yield f"  {scene.platform.url}/   the platform's jobs\n  {service}/openapi.json   Unstick's API"
    yield "\nOr paste (an admin's token):"
    yield f"  TOKEN={scene.service.token}"
    yield f'  curl -H "Authorization: Bearer $TOKEN" "{admin}/jobs/stuck"'
    yield f'  curl -H "Authorization: Bearer $TOKEN" -X POST "{admin}/jobs/cleanup?action=retry"'
    yield f'  curl -H "Authorization: Bearer $TOKEN" "{admin}/stats"'
    yield "\nThe platform goes on working, and now and then loses another task. Ctrl-C ends all of it."
