"""Callers who ask the same at once are answered together, and by nothing older than their question."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.api_support import CLEANUP, STUCK, MemorySource, World, client, job, service
from tests.jobs import open_bench
from tests.servers import EACH_KIND, Database
from unstick.api.together import Together
from unstick.domain.access import Role
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.job import JobState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DATABASES = EACH_KIND


class Held:
    """A question that is answered when it is let go; each answer is the number of its round and of who asked."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.let_go = asyncio.Event()
        self.together = Together[tuple[int, int]]()

    async def answer(self, asked: int) -> tuple[int, int]:
        self.begun += 1
        begun = self.begun
        try:
            await self.let_go.wait()
        finally:
            self.ended += 1
        return begun, asked

    def ask(self) -> asyncio.Task[tuple[int, int]]:
        return asyncio.create_task(self.together.ask("?", self.answer))


async def moved_on() -> None:
    """Let everybody come as far as they do by themselves."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_asks_meanwhile_is_answered_by_the_next_round_and_all_by_one() -> None:
    held = Held()
    first = held.ask()
    await moved_on()
    later = [held.ask() for _ in range(9)]
    await moved_on()
    assert held.begun == 1
    held.let_go.set()
    assert await first == (1, 1)
    assert await asyncio.gather(*later) == [(2, 9)] * 9


async def test_different_questions_do_not_wait_for_each_other() -> None:
    held = Held()
    first = held.ask()
    await moved_on()

    async def at_once(asked: int) -> tuple[int, int]:
        return 0, asked

    assert await held.together.ask("!", at_once) == (0, 1)
    held.let_go.set()
    await first


async def test_one_who_leaves_takes_nobody_with_them_and_the_last_ends_it() -> None:
    held = Held()
    leaving, staying = held.ask(), held.ask()
    await moved_on()
    leaving.cancel()
    await moved_on()
    assert not staying.done()
    held.let_go.set()
    assert await staying == (1, 2)
    held.let_go.clear()
    last = held.ask()
    await moved_on()
    last.cancel()
    with suppress(asyncio.CancelledError):
        await last
    await moved_on()
    assert (held.begun, held.ended) == (2, 2)


async def test_a_round_that_everybody_left_before_it_began_is_in_nobodys_way() -> None:
    held = Held()
    first = held.ask()
    await moved_on()
    leaving = held.ask()
    await moved_on()
    leaving.cancel()
    await moved_on()
    staying = held.ask()
    await moved_on()
    held.let_go.set()
    assert (await first, await staying) == ((1, 1), (2, 1))


async def test_a_round_that_fails_fails_for_its_own_askers_alone() -> None:
    together = Together[int]()

    async def fails(_asked: int) -> int:
        raise ValueError("no")

    async def works(asked: int) -> int:
        return asked

    found = await asyncio.gather(*(together.ask("?", fails) for _ in range(2)), return_exceptions=True)
    assert [type(each) for each in found] == [ValueError, ValueError]
    assert await together.ask("?", works) == 1


async def test_reads_are_counted_together_in_one_row(database: Database) -> None:
    bench = await open_bench(database)
    read = AuditEntry(actor="ada", call="jobs.stuck", outcome=AuditOutcome.DONE)
    for times in (3, 2):
        await bench.ledger.count_read(read, times)
    counted = [row.repeats for row in await bench.audit()]
    await bench.close()
    assert counted in ([5], [3, 2])  # a minute may have passed between them


def counting(source: MemorySource) -> list[int]:
    """Count the looks that are taken, each of which now lasts a few turns of the loop."""
    looks: list[int] = []
    clock: Callable[[], Awaitable[Any]] = source.clock

    async def slow_clock() -> Any:  # noqa: ANN401
        looks.append(1)
        await moved_on()
        return await clock()

    source.clock = slow_clock  # type: ignore[method-assign]
    return looks


@pytest.fixture
def world() -> World:
    world = World()
    world.source.jobs = {2: job(2, JobState.RUNNING, 90)}
    return world


async def test_calls_at_once_share_looks_and_each_is_in_the_audit_log(world: World) -> None:
    looks = counting(world.source)
    async with client(service(world), Role.ADMIN) as caller:
        answers = await asyncio.gather(*(caller.get(STUCK) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["stuck_jobs"]["total"] for answer in answers} == {1}
    assert len(looks) < 10
    assert sum(count for _, count in world.ledger.reads.values()) == 40


async def test_other_parameters_are_another_question(world: World) -> None:
    async with client(service(world), Role.ADMIN) as caller:
        plain, later = await asyncio.gather(caller.get(STUCK), caller.get(f"{STUCK}?threshold_minutes=120"))
    assert plain.json()["threshold_minutes"] != later.json()["threshold_minutes"]


async def test_who_cleaned_up_sees_it_however_many_ask_at_the_same_time(world: World) -> None:
    counting(world.source)

    async def ask_on() -> None:
        while True:
            await caller.get(STUCK)

    async with client(service(world), Role.ADMIN) as caller:
        others = [asyncio.create_task(ask_on()) for _ in range(5)]
        await moved_on()
        assert (await caller.post(CLEANUP)).json()["cleaned_jobs"]["total"] == 1
        assert (await caller.get(STUCK)).json()["stuck_jobs"]["total"] == 0
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
