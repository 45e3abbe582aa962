"""The demo's two stories: one goes once from stuck to finished, the other leaves the stage to who watches."""

import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle

from rich.console import Console
from rich.table import Table

from unstick.demo.children import ChildError
from unstick.demo.faces import AnswerError, NoAnswerError, PlatformJob
from unstick.demo.on_the_kit import (
    leave_nothing_half_done,
    move_onto_kit,
    order_twice,
    see_late_result_refused,
    stop_in_the_middle,
)
from unstick.demo.scene import Scene, set_up
from unstick.demo.steps import LONG, Case, Stage, finished, order, see_through, see_untouched
from unstick.demo.stuck_jobs import get_stuck, lose_a_task
from unstick.demo.text import Kind
from unstick.demo.watch import NotSeenError, Watch

PATIENCE = 60.0
"""Seconds within which all that is awaited must have been seen."""

_HEALTHY = ((Kind.SUMMARY, "how iterators and generators yield values"), (Kind.OUTLINE, "attribute access of classes"))
_LOAD_EVERY = 2
_LOSE_EVERY = 20
_INTERRUPTED = 130


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
    """Go from stuck to finished, and on the kit to a late result refused; raise an error where that isn't seen."""
    scene.say("The platform runs its jobs in background tasks")
    healthy = finish_healthy_jobs(scene)
    cases = get_stuck(scene)
    see_through(scene, cases)
    lost = lose_a_task(scene, Kind.THESIS, LONG)
    with scene.deaf_worker(lost.job_id) as worker:
        stopped, name = stop_in_the_middle(scene, worker, lost.job_id)
        move_onto_kit(scene)
        leave_nothing_half_done(scene)
        healthy.append(order_twice(scene))
        see_through(scene, [stopped])
        see_late_result_refused(scene, worker, stopped, name)
    see_untouched(scene, healthy)
    scene.console.print(_table([*cases, stopped], healthy))


def play_on(scene: Scene) -> None:
    """Leave two jobs stuck, offer the console and what to curl, and keep a light load on until interrupted."""
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
    jobs = [scene.watch.until("healthy jobs finish", partial(finished, scene, job["id"])) for job in ordered]
    scene.say(f"{len(jobs)} jobs finished on the platform")
    return jobs


def _table(cases: Sequence[Case], healthy: Sequence[PlatformJob]) -> Table:
    table = Table("stage", title="When each stage was seen, in seconds after the start")
    for case in cases:
        table.add_column(f"job {case.job_id}, {case.kind}\n{case.trouble}", justify="right")
    for reached in Stage:
        table.add_row(reached, *(f"{case.seen[reached]:.1f}" if reached in case.seen else "" for case in cases))
    table.caption = f"{len(healthy)} healthy jobs are what they were."
    return table


def _guide(scene: Scene) -> str:
    return "\n".join(_guide_lines(scene))


def _guide_lines(scene: Scene) -> Iterator[str]:
    service, admin = scene.service.url, f"{scene.service.url}/api/v1/admin"
    yield "\nTwo jobs are stuck; in three seconds Unstick knows. See them, and why, in its console:"
    yield f"  {scene.sign_in_link()}"
    yield "\nThat link signs you in as an admin, once and within ten minutes; later the token below does. Open also:"
    yield f"  {scene.platform.url}/   the platform's jobs\n  {service}/openapi.json   Unstick's API"
    yield "\nOr paste (the admin's token):"
    yield f"  TOKEN={scene.service.token}"
    yield f'  curl -H "Authorization: Bearer $TOKEN" "{admin}/jobs/stuck"'
    yield f'  curl -H "Authorization: Bearer $TOKEN" -X POST "{admin}/jobs/cleanup?action=retry"'
    yield f'  curl -H "Authorization: Bearer $TOKEN" "{admin}/stats"'
    yield "\nThe platform goes on working, and now and then loses another task. Ctrl-C ends all of it."
