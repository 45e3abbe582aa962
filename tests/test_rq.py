"""Real RQ workers on a real broker, killed and stopped, and what Unstick makes of their jobs."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.rq_system import RqSystem, open_rq_system, until
from tests.servers import MissingServerError
from unstick.domain.diagnosis import Reason
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.domain.standing import Standing
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.pipeline.verdict import judge
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from unstick.config import Settings
    from unstick.pipeline.verdict import Verdict
    from unstick.pipeline.watched import Watched


@pytest.fixture
def system(broker: str, tmp_path: Path) -> Iterator[RqSystem]:
    try:
        with open_rq_system(broker, tmp_path) as opened:
            yield opened
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON RQ: {missing}")


@asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Watched]:
    await upgrade_database(settings)
    async with open_watched(settings) as watched:
        yield watched


async def verdict_of(watched: Watched, token: str) -> Verdict:
    verdict = await judge(watched, token)
    assert verdict is not None
    return verdict


async def until_stuck(watched: Watched, token: str) -> Verdict:
    """Wait until a job is stuck."""
    while True:
        verdict = await verdict_of(watched, token)
        if verdict.standing is Standing.STUCK:
            return verdict


async def swept(watched: Watched) -> SweepReport:
    return await sweep(watched, SweepOrder(actor="test"))


@pytest.mark.parametrize("action", CHANGES)
async def test_a_killed_workers_job_is_found_and_explained_and_runs_to_its_end_after_its_recovery(
    system: RqSystem, action: Action
) -> None:
    """RQ's own interface sees a failed or a queued job like any other, and takes it from there."""
    system.begin("essay")
    system.do("depend", "after", "essay")
    system.do("depend", "anyway", "essay", allow_failure=True)

    async with watching(system.acting(action)) as watched:
        assert (await verdict_of(watched, "essay")).standing in (Standing.BEATING, Standing.HELD)
        system.signal("essay", signal.SIGKILL)
        verdict = await until_stuck(watched, "essay")
        report = await swept(watched)

    assert verdict.reason is Reason.WORKER_GONE
    assert "its worker is gone: rq says the lease of" in verdict.sentence
    assert "that worker is not there any more" in verdict.sentence
    assert report.tally.of(outcome=Outcome.APPLIED, reason=Reason.WORKER_GONE) == 1
    shown = system.show("essay")
    assert (shown["started"], shown["executions"]) == (False, 0)
    if action is Action.MARK_FAILED:
        assert (shown["status"], shown["failed"], shown["ended"]) == ("failed", True, True)
        assert shown["result"] == "FAILED"
        assert shown["error"].startswith("Job stuck in running for more than 1 second: its worker is gone")
        assert system.show("after")["status"] == "deferred"
        system.work_off()
        assert system.show("anyway")["status"] == "finished"
        system.do("requeue", "essay")
    else:
        assert (shown["status"], shown["queued"], shown["retries"], shown["failed"]) == ("queued", 1, 1, False)
    system.let_end("essay")
    system.work_off()
    shown = system.show("essay")
    assert (shown["status"], shown["returned"], shown["failed"]) == ("finished", "essay", False)
    assert len(system.begun("essay")) == 2
    assert system.show("after")["status"] == "finished"
