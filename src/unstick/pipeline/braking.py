"""What holds an unattended sweep back: a gap in the watch, after which jobs have a grace, and the brake.

Guarantee: a held brake is in the ledger before anything else happens, and no unattended sweep of its source acts until
a person has released it. Known weakness: without a server to ask (SQLite), a database that was away for less than
three intervals, or for a minute, isn't noticed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from unstick.domain.brake import Brake, Pass, likely_cause, next_pass
from unstick.domain.errors import InvalidRequestError
from unstick.domain.events import BrakeReleased
from unstick.domain.job import Job, JobState
from unstick.domain.suspect import Look
from unstick.domain.wording import Phrase
from unstick.pipeline.emitting import emit
from unstick.pipeline.judging import count_stuck
from unstick.pipeline.looking import Scope
from unstick.pipeline.watched import Watched
from unstick.ports import Brakes

_SAMPLE = 1_000
"""How many suspects of each scope and state are looked at for what they have in common."""


def kept_brakes(watched: Watched) -> Brakes:
    """Return where brakes are kept; raise `InvalidRequestError` where nothing keeps them."""
    if watched.brakes is None:
        raise InvalidRequestError(
            f"Source {watched.source.name!r} has nowhere to keep a brake, so it can't be swept unattended."
        )
    return watched.brakes


async def begin_pass(watched: Watched, look: Look) -> Pass:
    """Note an unattended pass, and whether jobs have a grace at it."""
    brakes, name = kept_brakes(watched), watched.source.name
    this = await _pass_after(watched, await brakes.last_pass(name), look.taken_at)
    await brakes.note_pass(name, this)
    return this


async def expected_pass(watched: Watched, now: datetime) -> Pass | None:
    """Return what an unattended pass would be if it began now; None where there never was one."""
    last = None if watched.brakes is None else await watched.brakes.last_pass(watched.source.name)
    return None if last is None else await _pass_after(watched, last, now)


async def _pass_after(watched: Watched, last: Pass | None, now: datetime) -> Pass:
    return next_pass(last, now, watched.unattended.every, await watched.source.up_since())


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What an unattended sweep may do."""

    brake: Brake | None
    """What holds it."""
    suspects: int
    most: int
    """How many jobs it may recover, some that became suspects meanwhile among them."""


async def allow(watched: Watched, scopes: Sequence[Scope]) -> Allowed:
    """Say whether a sweep of what is stuck in these scopes may act; pull the brake if that is too much."""
    brakes, limits = kept_brakes(watched), watched.unattended.brake
    stuck = (await count_stuck(watched, scopes)).stuck
    suspects = {JobState.QUEUED: stuck.queued, JobState.RUNNING: stuck.running}
    total, brake = sum(suspects.values()), await brakes.find(watched.source.name)
    if brake is None or not (brake.is_held or brake.lets(total)):
        still_open = (await watched.source.open_jobs()).by_state
        too_many = any(limits.hold(number, still_open.get(state, 0)) for state, number in suspects.items())
        brake = await _pull(watched, [scope.look for scope in scopes], suspects, still_open) if too_many else None
    held = brake if brake is not None and brake.is_held else None
    return Allowed(brake=held, suspects=total, most=total + limits.jobs)


async def _pull(
    watched: Watched, looks: Sequence[Look], suspects: Mapping[JobState, int], still_open: Mapping[JobState, int]
) -> Brake:
    others_live = still_open.get(JobState.RUNNING, 0) > suspects[JobState.RUNNING]
    brake = Brake(
        source=watched.source.name,
        at=await watched.source.clock(),
        suspects=sum(suspects.values()),
        still_open=sum(still_open.get(state, 0) for state in suspects),
        cause=likely_cause(await _sample(watched, looks), others_live=others_live),
    )
    return await kept_brakes(watched).pull(brake)


async def end_pass(watched: Watched, allowed: Allowed, recovered: int) -> Brake | None:
    """Strike the brake that let a sweep through, or pull it where more came up than there were when it began."""
    brakes, name = kept_brakes(watched), watched.source.name
    if recovered > allowed.most:
        cause = Phrase(
            "a mass event while it swept: %(before)s were stuck when it began, %(after)s came up",
            before=allowed.suspects,
            after=recovered,
        )
        now = await watched.source.clock()
        return await brakes.pull(Brake(source=name, at=now, suspects=recovered, still_open=recovered, cause=cause))
    released = await brakes.find(name)
    if released is not None and not released.is_held:
        await brakes.strike(released)
    return None


async def _sample(watched: Watched, looks: Sequence[Look]) -> list[Job]:
    found: list[Job] = []
    for look in looks:
        for state in look.states:
            found += await watched.source.list_suspects(look, state, limit=_SAMPLE, after=None)
    return found


async def show_brake(watched: Watched) -> Brake | None:
    """Return the brake of a source, released or not; None where there is none."""
    return await kept_brakes(watched).find(watched.source.name)


async def release_brake(watched: Watched, by: str) -> Brake | None:
    """Release the brake, so that the next unattended sweep may do as much as it was held from; None if none holds."""
    released = await kept_brakes(watched).release(watched.source.name, by)
    if released is not None:
        await emit(watched, BrakeReleased(source=watched.source.name, actor=by, suspects=released.suspects))
    return released
