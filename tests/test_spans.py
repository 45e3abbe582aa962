"""Sweeps and recoveries as spans of OpenTelemetry, by the SDK's own provider."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.jobs import SqlBench, open_bench
from unstick.domain.brake import BrakeLimits, Pass, Unattended
from unstick.domain.errors import ConfigurationError
from unstick.domain.events import SweepFailed, Trigger
from unstick.domain.recovery import Action
from unstick.pipeline.recovering import RecoverOrder, recover_job
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.undo import UndoOrder, undo
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections
from unstick.telemetry.spans import SpanListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.servers import Database
    from unstick.pipeline.watched import Watched


class Traced:
    """A source whose listener makes spans, and what was made."""

    def __init__(self, bench: SqlBench) -> None:
        self.bench = bench
        self.made = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.made))

    @property
    def watched(self) -> Watched:
        brakes = SqlBrakes(EngineConnections(self.bench.engine))
        return replace(self.bench.watched(), brakes=brakes, listeners=(SpanListener(self.provider),))

    def one(self) -> ReadableSpan:
        [span] = self.made.get_finished_spans()
        return span


@pytest.fixture
async def traced(sqlite_database: Database) -> AsyncIterator[Traced]:
    traced = Traced(await open_bench(sqlite_database))
    yield traced
    traced.provider.shutdown()
    await traced.bench.close()


async def test_a_sweep_is_a_span_with_how_many_jobs_came_to_what(traced: Traced) -> None:
    await traced.bench.put({}, {}, {"status": "queued"})
    report = await sweep(traced.watched, SweepOrder(actor="ada"))
    span = traced.one()
    assert span.name == "unstick.sweep"
    assert dict(span.attributes or {}) == {
        "unstick.source": "main",
        "unstick.trigger": "requested",
        "unstick.actor": "ada",
        "unstick.action": "mark_failed",
        "unstick.operation_id": report.operation_id,
        "unstick.braked": False,
        "unstick.late_finishes": 0,
        "unstick.outcome.applied": 3,
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_its_events_say_what_was_done_and_why(traced: Traced) -> None:
    await traced.bench.put({}, {}, {"status": "queued"})
    await sweep(traced.watched, SweepOrder(actor="ada"))
    told = [dict(event.attributes or {}) for event in traced.one().events]
    common = {"unstick.action": "mark_failed", "unstick.outcome": "applied"}
    assert sorted(told, key=lambda each: str(each["unstick.reason"])) == [
        {**common, "unstick.reason": "never_claimed", "unstick.jobs": 1},
        {**common, "unstick.reason": "silent", "unstick.jobs": 2},
    ]


async def test_it_lasts_as_long_as_the_sweep_and_lies_within_the_span_of_whoever_asked(traced: Traced) -> None:
    await traced.bench.put({})
    with traced.provider.get_tracer("test").start_as_current_span("a request") as request:
        await sweep(traced.watched, SweepOrder(actor="ada"))
    span, asked = traced.made.get_finished_spans()
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
    assert None not in (span.start_time, span.end_time, asked.start_time, asked.end_time)
    # Its beginning is told by the clock that never stands still, which drifts from the other by far less than this.
    slack = 1_000_000
    assert (asked.start_time or 0) - slack <= (span.start_time or 0) < (span.end_time or 0) <= (asked.end_time or 0)


async def test_a_span_begins_as_long_before_its_end_as_the_sweep_took(traced: Traced) -> None:
    took = timedelta(seconds=3)
    problem = SweepFailed(source="main", took=took, trigger=Trigger.UNATTENDED, actor="runner", problem="no answer")
    await SpanListener(traced.provider).hear(problem)
    span = traced.one()
    assert 3_000_000_000 <= (span.end_time or 0) - (span.start_time or 0) < 4_000_000_000


async def test_a_sweep_that_a_brake_holds_says_so(traced: Traced) -> None:
    now = await traced.bench.source.clock()
    this = replace(traced.watched, unattended=Unattended(brake=BrakeLimits(share=0, jobs=1)))
    assert this.brakes is not None
    await this.brakes.note_pass("main", Pass(at=now - timedelta(minutes=1), back_at=now - timedelta(days=9)))
    await traced.bench.put({}, {}, {})
    await sweep(this, SweepOrder(actor="cron", unattended=True))
    attributes = traced.one().attributes or {}
    assert attributes["unstick.trigger"] == "unattended"
    assert attributes["unstick.braked"] is True
    assert attributes["unstick.outcome.braked"] == 3
    assert "unstick.operation_id" not in attributes


async def test_a_sweep_that_failed_is_an_error_with_its_words(traced: Traced) -> None:
    await traced.bench.execute("DROP TABLE ai_generation_jobs")
    with pytest.raises(ConfigurationError):
        await sweep(traced.watched, SweepOrder(actor="ada"))
    span = traced.one()
    assert span.name == "unstick.sweep"
    assert span.status.status_code is StatusCode.ERROR
    assert "There is no table" in (span.status.description or "")


async def test_the_recovery_of_one_job_and_an_undo_are_spans_too(traced: Traced) -> None:
    await traced.bench.put({}, {})
    done = await recover_job(traced.watched, RecoverOrder(actor="ada", job_id="1", action=Action.RETRY))
    await undo(traced.watched, UndoOrder(actor="bob", operation_id=done.operation_id))
    recovered, undone = traced.made.get_finished_spans()
    assert recovered.name == "unstick.recover"
    assert dict(recovered.attributes or {}) == {
        "unstick.source": "main",
        "unstick.trigger": "requested",
        "unstick.actor": "ada",
        "unstick.operation_id": done.operation_id,
        "unstick.job_id": "1",
        "unstick.action": "retry",
        "unstick.reason": "silent",
        "unstick.outcome": "applied",
    }
    assert undone.name == "unstick.undo"
    attributes = undone.attributes or {}
    assert (attributes["unstick.actor"], attributes["unstick.undoes"]) == ("bob", done.operation_id)
    assert attributes["unstick.outcome.applied"] == 1


PROGRAM = """
import asyncio
from datetime import timedelta
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from unstick.domain.events import SweepFailed, Trigger
from unstick.telemetry.spans import SpanListener

listener, made = SpanListener(), InMemorySpanExporter()
failed = SweepFailed(source="main", took=timedelta(0), trigger=Trigger.REQUESTED, actor="ada", problem="no answer")
asyncio.run(listener.hear(failed))
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(made))
trace.set_tracer_provider(provider)
asyncio.run(listener.hear(failed))
print(len(made.get_finished_spans()))
"""


def test_spans_are_made_by_the_applications_provider_from_when_it_is_configured() -> None:
    """Of two failures, the one before it made no span and no trouble."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("1\n", "")


WATCH = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from unstick.config import Settings
from unstick.wiring import keep_watch

async def main():
    async with asyncio.timeout(60), keep_watch(Settings()):
        while not made.get_finished_spans():
            await asyncio.sleep(0.02)

made = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(made))
trace.set_tracer_provider(provider)
asyncio.run(main())
print(made.get_finished_spans()[0].name)
"""


def test_the_watch_that_unstick_keeps_makes_spans(tmp_path: Path) -> None:
    """Over the embedded table, whose first sweep is due at once."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("UNSTICK_")}
    command = [sys.executable, "-c", WATCH]
    ran = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("unstick.sweep\n", "")
