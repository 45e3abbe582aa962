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
from unstick.demo.scene import Scene, scene
from unstick.demo.text import Kind
from unstick.demo.watch import NotSeenError, NotYetError, Watch

PATIENCE = 40.0
"""Seconds within which all that is awaited must have been seen."""

_LONG = 1200
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
    sentence: str = ""
    seen: dict[Stage, float] = field(default_factory=dict)


def run(*, once: bool, port_base: int | None = None, patience: float = PATIENCE) -> int:
    """Set up the demo and play it; return the exit status."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    console = Console()
    try:
        with scene(console, Watch(patience), port_base) as stage:
            (play_once if once else play_on)(stage)
    except (NotSeenError, ChildError, AnswerError, NoAnswerError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED if once else 0
    return 0


def play_once(stage: Scene) -> None:
    """Go from stuck to found, explained, recovered, run again and finished; raise an error where that isn't seen."""
    healthy = finish_healthy_jobs(stage)
    cases = get_stuck(stage)
    for case in cases:
        find(stage, case)
    recover(stage, cases)
    for case in cases:
        see_run_again(stage, case)
    for case in cases:
        see_finished(stage, case)
    see_untouched(stage, healthy)
    stage.console.print(_table(cases, healthy))


def play_on(stage: Scene) -> None:
    """Leave two jobs stuck, say what to open and curl, and keep a light load on until interrupted."""
    finish_healthy_jobs(stage)
    get_stuck(stage)
    stage.console.print(_guide(stage), highlight=False, markup=False, soft_wrap=True)
    for number, (kind, prompt) in enumerate(cycle(_HEALTHY), 1):
        time.sleep(_LOAD_EVERY)  # the load's rhythm
        stage.watch.check()
        if number % _LOSE_EVERY:
            stage.platform.generate(kind, 300, prompt=prompt, title="Notes")
        else:
            lose_a_task(stage)


def finish_healthy_jobs(stage: Scene) -> list[PlatformJob]:
    """Have a few jobs run to their end, and return their rows."""
    ordered = [stage.platform.generate(kind, 300, prompt=prompt, title="Notes") for kind, prompt in _HEALTHY * 2]
    finished = [stage.watch.until("healthy jobs finish", partial(_finished, stage, job["id"])) for job in ordered]
    stage.say(f"{len(finished)} jobs finished on the platform")
    return finished


def get_stuck(stage: Scene) -> tuple[Case, Case]:
    """Get one job stuck in each of the two classic ways."""
    lost = lose_a_task(stage)
    long = start_long_job(stage)
    kill_platform(stage, long)
    for case in (lost, long):
        stage.watch.until(f"job {case.job_id} stuck", partial(_left, stage, case))
        _see(stage, case, Stage.STUCK)
    return lost, long


def start_long_job(stage: Scene) -> Case:
    """Have a long job begin, and wait until it has come some way."""
    job = stage.platform.generate(Kind.THESIS, _LONG, prompt="how functions are called", title="Calls")
    stage.watch.until("a long job makes progress", partial(_progress, stage, job["id"]))
    return Case(
        job_id=job["id"],
        kind=job["job_type"],
        trouble="process killed in the middle of it",
        status="running",
        reason="silent",
        final_attempt=job["attempt"] + 1,
    )


def lose_a_task(stage: Scene) -> Case:
    """Have a row committed whose task is never scheduled: the request fails in between."""
    before = stage.platform.newest()
    try:
        stage.platform.generate(Kind.SUMMARY, 300, prompt="how objects are iterated over", title=_UNSENDABLE_TITLE)
    except AnswerError as error:
        said = error.status
    else:
        raise NotSeenError("Not seen: a request that fails after its row was committed. Instead: it was accepted.")
    job = stage.platform.newest()
    if job is None or job == before:
        raise NotSeenError("Not seen: a row committed by the request that failed. Instead: no new row.")
    stage.say(f"The platform answered {said}; job {job['id']}'s row was committed, and its task never scheduled")
    return Case(
        job_id=job["id"],
        kind=job["job_type"],
        trouble="row committed, task never scheduled",
        status="queued",
        reason="never_claimed",
        final_attempt=job["attempt"],
    )


def kill_platform(stage: Scene, long: Case) -> None:
    """Kill the platform's process while it runs a job, and start it again."""
    pid, status = stage.platform_process.pid, stage.platform_process.kill()
    if status != -signal.SIGKILL:
        raise NotSeenError(f"Not seen: the platform killed. Instead: its process ended with status {status}.")
    stage.say(f"Killed the platform (process {pid}) while it ran job {long.job_id}; starting it again")
    stage.platform_process.start()
    stage.watch.until("the platform answers again", stage.platform.newest)


def find(stage: Scene, case: Case) -> None:
    """Wait until the service says that the job is stuck, and why."""
    finding = stage.watch.until(f"job {case.job_id} found", partial(_finding, stage, case))
    _see(stage, case, Stage.FOUND)
    if finding["reason"] != case.reason or not finding["sentence"]:
        raise NotSeenError(f"Not seen: job {case.job_id} explained as {case.reason}. Instead: {finding}.")
    case.sentence = finding["sentence"]
    _see(stage, case, Stage.EXPLAINED, f"{case.reason}: {case.sentence}")


def recover(stage: Scene, cases: Sequence[Case]) -> None:
    """Have the service recover what is stuck, by retry."""
    cleaned = stage.service.cleanup("retry")
    if cleaned["total"] != len(cases):
        raise NotSeenError(f"Not seen: {len(cases)} jobs recovered. Instead: {cleaned}.")
    for case in cases:
        _see(stage, case, Stage.RECOVERED)


def see_run_again(stage: Scene, case: Case) -> None:
    """Wait until the platform has started the job again."""
    stage.watch.until(f"job {case.job_id} run again", partial(_started_again, stage, case))
    _see(stage, case, Stage.RUN_AGAIN)


def see_finished(stage: Scene, case: Case) -> None:
    """Wait until the job is finished, with a result and as the attempt that it should be."""
    job = stage.watch.until(f"job {case.job_id} finished", partial(_finished, stage, case.job_id))
    if job["attempt"] != case.final_attempt:
        raise NotSeenError(
            f"Not seen: job {case.job_id} finished as attempt {case.final_attempt}. Instead: {_say(job)}."
        )
    _see(stage, case, Stage.FINISHED)


def see_untouched(stage: Scene, healthy: Sequence[PlatformJob]) -> None:
    """Check that every healthy job's row is what it was, column by column."""
    for before in healthy:
        if (after := stage.platform.job(before["id"])) != before:
            raise NotSeenError(f"Not seen: job {before['id']} untouched. Instead: {before} became {after}.")


def _see(stage: Scene, case: Case, seen: Stage, more: str = "") -> None:
    case.seen[seen] = stage.watch.elapsed
    stage.say(f"Job {case.job_id} {seen}{more and f', {more}'}")


def _progress(stage: Scene, job_id: int) -> None:
    job = stage.platform.job(job_id)
    if job["status"] != "running" or job["progress"] == 0:
        raise NotYetError(_say(job))


def _left(stage: Scene, case: Case) -> None:
    job = stage.platform.job(case.job_id)
    if job["status"] != case.status or job["completed_at"] or job["scheduled_at"]:
        raise NotYetError(_say(job))


def _finding(stage: Scene, case: Case) -> Finding:
    stuck = stage.service.stuck()
    for finding in stuck["queued_jobs"] if case.status == "queued" else stuck["running_jobs"]:
        if str(finding["id"]) == str(case.job_id):
            return finding
    said = [f"{finding['id']} ({finding['reason']})" for finding in (*stuck["queued_jobs"], *stuck["running_jobs"])]
    raise NotYetError(f"the service says that these are stuck: {', '.join(said) or 'none'}")


def _started_again(stage: Scene, case: Case) -> None:
    job = stage.platform.job(case.job_id)
    if job["started_at"] is None:  # as the retry left it
        raise NotYetError(_say(job))


def _finished(stage: Scene, job_id: int) -> PlatformJob:
    job = stage.platform.job(job_id)
    if job["status"] == "failed":
        raise NotSeenError(f"Not seen: job {job_id} completed. Instead: {_say(job)}.")
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


def _guide(stage: Scene) -> str:
    return "\n".join(_guide_lines(stage))


def _guide_lines(stage: Scene) -> Iterator[str]:
    service, admin = stage.service.url, f"{stage.service.url}/api/v1/admin"
    yield "\nTwo jobs are stuck; in three seconds Unstick knows. Open:"
    yield f"  {stage.platform.url}/   the platform's jobs\n  {service}/docs   Unstick's API"
    yield "\nOr paste (an admin's token):"
    yield f"  TOKEN={stage.service.token}"
    yield f'  curl -H "Authorization: Bearer $TOKEN" "{admin}/jobs/stuck"'
    yield f'  curl -H "Authorization: Bearer $TOKEN" -X POST "{admin}/jobs/cleanup?action=retry"'
    yield f'  curl -H "Authorization: Bearer $TOKEN" "{admin}/stats"'
    yield "\nThe platform goes on working, and now and then loses another task. Ctrl-C ends all of it."
