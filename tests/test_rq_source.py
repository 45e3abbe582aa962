"""RQ's jobs behind a real broker: what every source must do, and what RQ's own keys ask of it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.rq_jobs import RqBench, open_rq_bench
from unstick.testing.conformance import JobSourceConformance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def bench(broker: str) -> AsyncIterator[RqBench]:
    async with AsyncExitStack() as stack:
        yield await open_rq_bench(broker, stack)


class TestRqSource(JobSourceConformance):
    """The shipped suite, with a ledger beside it."""
