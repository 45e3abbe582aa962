"""One answer for all who ask the same at the same time, and for nobody a time before their call."""

from __future__ import annotations

import asyncio

import pytest

from unstick.api.together import Together


class Slow:
    """An answer that is found when it is let."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def find(self, size: int) -> int:
        self.sizes.append(size)
        self.begun.set()
        await self.let.wait()
        return len(self.sizes)


async def test_all_who_ask_at_once_share_one_answer_and_others_have_their_own() -> None:
    together, one, other = Together(), Slow(), Slow()
    one.let.set()
    other.let.set()

    same = [together.get("a", one.find) for _ in range(5)]
    answers = await asyncio.gather(*same, together.get("b", other.find))

    assert answers == [1, 1, 1, 1, 1, 1]
    assert (one.sizes, other.sizes) == ([5], [1])
    assert await together.get("a", one.find) == 2  # nothing is kept


async def test_who_asks_while_an_answer_is_found_shares_the_next_one() -> None:
    """What they did before they asked must be in it."""
    together, slow = Together(), Slow()
    first = asyncio.create_task(together.get("a", slow.find))
    await slow.begun.wait()
    late = [asyncio.create_task(together.get("a", slow.find)) for _ in range(3)]
    await asyncio.sleep(0)
    assert slow.sizes == [1]
    slow.let.set()

    assert await asyncio.gather(first, *late) == [1, 2, 2, 2]
    assert slow.sizes == [1, 3]


async def test_who_is_cut_off_takes_the_answer_from_nobody_else() -> None:
    together, slow = Together(), Slow()
    begun = asyncio.create_task(together.get("a", slow.find))
    stays = asyncio.create_task(together.get("a", slow.find))
    await slow.begun.wait()
    begun.cancel()
    slow.let.set()

    assert await stays == 1
    with pytest.raises(asyncio.CancelledError):
        await begun


async def test_a_failure_is_told_to_all_who_shared_it_and_to_nobody_after() -> None:
    together = Together()
    times = 0

    async def fails_once(_: int) -> str:
        nonlocal times
        times += 1
        if times == 1:
            raise ValueError("no")
        return "yes"

    told = await asyncio.gather(*(together.get("a", fails_once) for _ in range(2)), return_exceptions=True)

    assert [type(each) for each in told] == [ValueError, ValueError]
    assert await together.get("a", fails_once) == "yes"
