"""How fast stuck jobs are recovered, and with how much memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import contenders, measures
from benchmarks.filling import Backend, Filling
from benchmarks.measures import Sizes, Taken
from benchmarks.report import Figure, Goal

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.databases import Database, Site

_GOALS: dict[Backend, Goal] = {
    "postgresql": Goal(bound=0.7, at_least=True),
    "sqlite": Goal(bound=0.35, at_least=True),
}
_ORM_GOAL = Goal(bound=8, at_least=True)


def recovery(site: Site, sizes: Sizes) -> list[Figure]:
    """Jobs recovered a second by `unstick sweep`, each with its record, without the time the command takes to start.

    Beside it one bare UPDATE that records nothing, the same with the least record in one transaction, and a loop over
    ORM objects as people write it.
    """
    return [figure for stuck in (sizes.fewer_stuck, sizes.stuck) for figure in _recovery(site, sizes, stuck)]


def _recovery(site: Site, sizes: Sizes, stuck: int) -> list[Figure]:
    filling = Filling(finished=sizes.finished, stuck=stuck, placement=sizes.placement)
    looped = min(stuck, sizes.orm_stuck)
    runs: tuple[Callable[[Database], float], ...] = (
        lambda database: _limit(database, contenders.bare, stuck),
        lambda database: _limit(database, contenders.audited, stuck),
        lambda database: _rate(measures.run_task("sweep", str(database.config)), stuck),
        lambda database: _rate(measures.run_task("orm", database.url, str(looped)), looped),
    )
    bare, audited, ours, loop = taken = tuple(Taken() for _ in runs)
    for _ in range(sizes.rounds):
        for run, one in zip(runs, taken, strict=True):
            with site.fresh(filling) as database:
                one.values.append(run(database))
    rate = partial(Figure, measure=f"recovery of {stuck:,}", database=site.backend, unit="jobs/s")
    sweep = partial(rate, name="unstick sweep", values=ours.values)
    return [
        rate(name="bare UPDATE, nothing recorded", values=bare.values),
        rate(name="UPDATE and audit rows, at once", values=audited.values, ratios=audited.over(bare), against="bare"),
        rate(name=f"ORM loop over {looped:,}", values=loop.values),
        sweep(ratios=ours.over(bare), against="bare", goal=_GOALS.get(site.backend) if stuck == sizes.stuck else None),
        sweep(ratios=ours.over(audited), against="audited"),
        sweep(ratios=ours.over(loop), against="ORM loop", goal=_ORM_GOAL if site.backend == "postgresql" else None),
    ]


def _limit(database: Database, statements: Callable[[Backend], tuple[str, ...]], stuck: int) -> float:
    seconds = database.execute(*statements(database.backend))
    failed = database.count("SELECT count(*) FROM ai_generation_jobs WHERE status = 'failed'")
    assert failed == stuck, f"{failed} jobs recovered instead of {stuck}"
    return stuck / seconds


def _rate(said: dict[str, Any], stuck: int) -> float:
    return stuck / float(_all(said, stuck)["end"] - said["begin"])


def _all(said: dict[str, Any], stuck: int) -> dict[str, Any]:
    assert said["jobs"] == stuck, f"{said['jobs']} jobs recovered instead of {stuck}"
    return said


def memory(site: Site, sizes: Sizes) -> list[Figure]:
    """The peak memory of a sweep's process, with few stuck jobs and with many, and of a loop over ORM objects."""
    most = sizes.memory_stuck
    few, many = (_peak(site, stuck, "sweep") for stuck in (sizes.fewer_stuck, most))
    figure = partial(Figure, measure="memory of a recovery", database=site.backend, unit="MB")
    figures = [
        figure(name=f"unstick sweep, {sizes.fewer_stuck:,} stuck", values=[few]),
        figure(
            name=f"unstick sweep, {most:,} stuck", values=[many],
            ratios=[many / few], against=f"{sizes.fewer_stuck:,}", goal=Goal(bound=1.2),
        ),
    ]  # fmt: skip
    if site.backend != "postgresql":
        return figures
    ours, loop = (_peak(site, sizes.stuck, task) for task in ("sweep", "orm"))
    return [
        *figures,
        figure(name=f"ORM loop, {sizes.stuck:,} stuck", values=[loop]),
        figure(
            name=f"unstick sweep, {sizes.stuck:,} stuck", values=[ours],
            ratios=[ours / loop], against="ORM loop", goal=Goal(bound=0.2),
        ),
    ]  # fmt: skip


def _peak(site: Site, stuck: int, task: str) -> float:
    """Recover jobs among few others, for how many these are makes no difference to memory."""
    filling = Filling(finished=stuck // 10, stuck=stuck)
    with site.fresh(filling) as database:
        told = [str(database.config)] if task == "sweep" else [database.url, str(stuck)]
        said = measures.run_task(task, *told)
    site.forget(filling)
    return float(_all(said, stuck)["memory"])
