"""Jobs recovered a second by other job systems and by Unstick; and what a check costs with nothing stuck."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.filling import Filling
from benchmarks.measures import run_task
from benchmarks.neighbours import Neighbours
from benchmarks.others.running import POLICY, filled_broker, filled_tables
from benchmarks.others.systems import BEHIND_BROKERS, IN_TABLES, InTables
from benchmarks.report import Figure, Goal
from benchmarks.service import metered
from unstick.config import load_settings
from unstick.pipeline.looking import take_look
from unstick.wiring import open_watched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.databases import Site
    from benchmarks.measures import Sizes
    from benchmarks.others.running import Arena, Place
    from benchmarks.others.systems import Other

_ROUNDS = 2
"""A round takes two minutes."""
_LOOKS = 20
_SLOW_CHECKS = ("pgboss", "graphile_worker")
"""Those whose check the goal for a look is set against."""


@dataclass(kw_only=True)
class Taken:
    """What one contender took, one value a round: jobs a second, and milliseconds of a look with nothing stuck."""

    rates: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    statements: list[float] = field(default_factory=list)
    """What of a look is the database's."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A system by itself, and Unstick over the same jobs."""

    other: Other
    itself: Taken = field(default_factory=Taken)
    ours: Taken = field(default_factory=Taken)


def others(site: Site, sizes: Sizes, systems: Sequence[Other] = (*IN_TABLES, *BEHIND_BROKERS)) -> list[Figure]:
    """Jobs recovered a second by other job systems in their own tables, and by Unstick in those and in the contract's.

    Each system recovers by its own means, as its docs show, and what is stuck is queued again by all of them; in the
    contract's table Unstick also marks it failed, as it does where nothing else is said. None of the others records
    what it did. In each round all take turns. A look of Unstick's is what it asks the database to count what is stuck;
    *in the database* leaves out what Python adds. SAQ is given two jobs, for it waits five seconds for each.
    """
    if site.backend != "postgresql":
        return []
    stuck = sizes.fewer_stuck
    pairs, contract, failed = [Pair(other=each) for each in systems], Taken(), Taken()
    quiet, swept = (Filling(finished=sizes.finished, stuck=number, placement="end") for number in (0, stuck))
    with ExitStack() as stack:
        lent = stack.enter_context(site.fresh(quiet))
        neighbours = Neighbours(lent=lent)
        arenas = [
            stack.enter_context(_filled(pair.other, neighbours, site.directory, sizes.finished)) for pair in pairs
        ]
        for _ in range(min(_ROUNDS, sizes.rounds)):
            for pair, arena in zip(pairs, arenas, strict=True):
                _play(pair, arena, stuck)
            _take_look(contract, lent.config)
            with site.fresh(swept) as database:
                contract.rates.append(_sweep(_retrying(database.config), stuck))
            with site.fresh(swept) as database:
                failed.rates.append(_sweep(database.config, stuck))
    site.forget(quiet)
    site.forget(swept)
    ours = {"queued again": contract, "marked failed": failed}
    return [*_rates(pairs, ours, stuck), *_looks(pairs, contract)]


def _filled(other: Other, neighbours: Neighbours, directory: Path, finished: int) -> AbstractContextManager[Arena]:
    if isinstance(other, InTables):
        return filled_tables(other, neighbours, finished)
    return filled_broker(other, directory, finished)


def _play(pair: Pair, arena: Arena, stuck: int) -> None:
    """Have both look where nothing is stuck, and then each recover as many."""
    with arena.with_stuck(0) as place:
        pair.itself.looks.append(median(place.looks()))
        if pair.other.preset is not None:
            _take_look(pair.ours, place.config)
    own = min(stuck, pair.other.at_most or stuck)
    with arena.with_stuck(own) as place:
        pair.itself.rates.append(own / place.recover())
        _all_recovered(arena, place)
    if pair.other.preset is not None:
        with arena.with_stuck(stuck) as place:
            pair.ours.rates.append(_sweep(place.config, stuck))
            _all_recovered(arena, place)


def _all_recovered(arena: Arena, place: Place) -> None:
    left = arena.left(place)
    assert not left, f"{place.other.says}: {left} jobs are still stuck"


def _sweep(config: Path, stuck: int) -> float:
    said = run_task("sweep", str(config))
    assert said["jobs"] == stuck, f"{said['jobs']} jobs recovered instead of {stuck}"
    return stuck / float(said["end"] - said["begin"])


def _retrying(config: Path) -> Path:
    """Have the contract's jobs queued again, for that is what the others do."""
    policy = "\n".join(f'{key} = "{value}"' for key, value in POLICY.items())
    config.write_text(f"{config.read_text()}[policy]\n{policy}\n")
    return config


def _take_look(taken: Taken, config: Path) -> None:
    """Add the milliseconds of a look, when all is warm."""
    looks, statements = asyncio.run(_looked(config))
    taken.looks.append(looks)
    taken.statements.append(statements)


async def _looked(config: Path) -> tuple[float, float]:
    looks, statements = [], []
    async with open_watched(load_settings(config)) as watched:
        for _ in range(_LOOKS):
            with metered() as spent:
                begin = time.perf_counter()
                counts = await watched.source.count_suspects(await take_look(watched))
                looks.append((time.perf_counter() - begin) * 1000)
                statements.append(sum(spent))
        assert not counts.queued + counts.running, f"{counts} stuck where nothing is"
    return median(looks), median(statements)


def _rates(pairs: Sequence[Pair], contract: Mapping[str, Taken], stuck: int) -> list[Figure]:
    figures: list[Figure] = []
    for pair in pairs:
        number = min(stuck, pair.other.at_most or stuck)
        rate = partial(Figure, measure="recovery beside others", database=_database(pair.other), unit="jobs/s")
        figures.append(rate(name=f"{pair.other.says} itself, {number:,}", values=pair.itself.rates))
        if pair.ours.rates:
            figures.append(
                rate(
                    name=f"Unstick over it, {stuck:,}", values=pair.ours.rates,
                    ratios=_over(pair.ours.rates, pair.itself.rates), against="itself",
                )
            )  # fmt: skip
    fastest = [max(rates) for rates in zip(*(pair.itself.rates for pair in pairs), strict=True)]
    ours = partial(Figure, measure="recovery beside others", database="postgresql", unit="jobs/s")
    return [
        *figures,
        *(
            ours(
                name=f"Unstick, contract's table, {stuck:,} {done}", values=taken.rates,
                ratios=_over(taken.rates, fastest), against="the fastest other", goal=Goal(bound=2, at_least=True),
            )
            for done, taken in contract.items()
        ),
    ]  # fmt: skip


def _looks(pairs: Sequence[Pair], contract: Taken) -> list[Figure]:
    figures: list[Figure] = []
    for pair in pairs:
        look = partial(Figure, measure="a look, nothing stuck", database=_database(pair.other), unit="ms")
        figures.append(look(name=f"{pair.other.says} itself", values=pair.itself.looks))
        if pair.ours.looks:
            ratios = _over(pair.ours.looks, pair.itself.looks)
            figures.append(look(name="Unstick over it", values=pair.ours.looks, ratios=ratios, against="itself"))
    ours = partial(Figure, measure="a look, nothing stuck", database="postgresql", unit="ms")
    in_database = partial(ours, name="Unstick, contract's table, in the database", values=contract.statements)
    return [
        *figures,
        ours(name="Unstick, contract's table", values=contract.looks),
        *(
            in_database(
                ratios=_over(contract.statements, pair.itself.looks), against=pair.other.says, goal=Goal(bound=1 / 30)
            )
            for pair in pairs
            if pair.other.name in _SLOW_CHECKS
        ),
    ]


def _over(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _database(other: Other) -> str:
    return "postgresql" if isinstance(other, InTables) else "valkey"
