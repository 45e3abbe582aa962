"""From a page of suspects to a verdict on each: what its row, its queue, its lease and the witnesses say.

Guarantee: no witness is asked within a transaction, and none of its words outlives the page: what it acquits is no
suspect of this pass. Where no witness is configured, none is waited for and nothing more is read. Nobody is convicted
in two scopes: who hangs and is stuck by age, too, is so in the scope that judges by age.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from unstick.domain.diagnosis import (
    STUCK,
    Diagnosis,
    Reason,
    diagnose,
    diagnose_hung,
    is_undecided,
    stands_still_since,
)
from unstick.domain.evidence import Evidence
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.suspect import Page, StuckCounts, Suspect, Unreadable, is_suspect
from unstick.pipeline.gather import gather
from unstick.pipeline.looking import Scope, look_by_age, look_for_hung
from unstick.pipeline.watched import Watched

MOST_ASKED = 10_000
"""About how many running jobs of a scope witnesses are asked to count what is stuck; beyond it counts are a least."""


class Convicted(NamedTuple):
    """A suspect that is stuck."""

    suspect: Suspect
    diagnosis: Diagnosis
    words: tuple[Evidence, ...] = ()
    """What witnesses said of it."""
    job: Job | None = None
    """What is known of it, where witnesses were asked."""

    @property
    def since(self) -> datetime:
        """Since when it is stuck: by its last sign of life, or by its progress where that has come to a halt."""
        still = stands_still_since(self.words) if self.diagnosis.reason is Reason.HUNG else None
        return self.suspect.since if still is None else still


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdicts on a page."""

    convicted: tuple[Convicted, ...]
    spared: tuple[Convicted, ...] = ()
    """Those that witnesses acquit or know nothing of, with what is to be said of them."""
    undecided: tuple[Suspect, ...] = ()
    """Age accuses them, and no witness knows: they are left alone."""
    unreadable: tuple[Unreadable, ...] = ()


def asks_witnesses(watched: Watched, scope: Scope) -> bool:
    """Tell whether running jobs of a scope are judged by more than their rows and leases."""
    return bool(watched.witnesses) and JobState.RUNNING in scope.look.states


async def judge(watched: Watched, page: Page, scope: Scope) -> Judged:
    """Judge a page of suspects; witnesses are asked of its running ones, all at once."""
    running = [suspect for suspect in page.suspects if suspect.state is JobState.RUNNING]
    if not watched.witnesses or not running:
        convicted = tuple(Convicted(suspect, _diagnosis(suspect, scope)) for suspect in page.suspects)
        return Judged(convicted=convicted, unreadable=page.unreadable)
    look = scope.look
    jobs = await watched.source.describe(look, [suspect.job_id for suspect in running])
    words = await gather(watched.witnesses, list(jobs.values()), look.taken_at)
    found: list[Convicted] = []
    spared: list[Convicted] = []
    undecided: list[Suspect] = []
    for suspect in page.suspects:
        said = words.get(suspect.job_id, ())
        job = jobs.get(suspect.job_id)
        diagnosis = _verdict(suspect, scope, said, job)
        if diagnosis is None:
            continue
        told = Convicted(suspect, diagnosis, said, job)
        if diagnosis.reason not in STUCK:
            spared.append(told)
        elif is_undecided(diagnosis, said):
            spared.append(told)
            undecided += [suspect] if _is_past(suspect, scope) else []
        else:
            found.append(told)
    if scope.hung_after is not None:
        by_age = await _convicted_by_age(watched, scope, found)
        found = [each for each in found if each.suspect.job_id not in by_age]
    return Judged(convicted=tuple(found), spared=tuple(spared), undecided=tuple(undecided), unreadable=page.unreadable)


def _verdict(suspect: Suspect, scope: Scope, words: Sequence[Evidence], job: Job | None) -> Diagnosis | None:
    """Return what this scope has to say of a suspect, None where that is nothing or another scope's to say."""
    if scope.hung_after is not None:
        return diagnose_hung(words, scope.look.taken_at, scope.hung_after)
    diagnosis = _diagnosis(suspect, scope, words)
    return None if is_undecided(diagnosis, words) and _hangs(job, scope, words) else diagnosis


def _hangs(job: Job | None, scope: Scope, words: Sequence[Evidence]) -> bool:
    """Tell whether the scope of hung jobs convicts a job."""
    look, hung_after = look_for_hung(scope), scope.policy.hung_after
    if job is None or look is None or hung_after is None:
        return False
    return is_suspect(job, look) and diagnose_hung(words, look.taken_at, hung_after) is not None


async def _convicted_by_age(watched: Watched, scope: Scope, hung: Sequence[Convicted]) -> frozenset[JobId]:
    """Return who of the hung is stuck by its sign of life, too: its lease and its row are asked once more."""
    gone = [each.suspect.job_id for each in hung if _is_gone(each)]
    look, found = replace(look_by_age(scope), only=frozenset(gone)), set[JobId]()
    if gone:
        async for page in watched.source.suspects(look):
            found |= {suspect.job_id for suspect in page.suspects}
    return frozenset(found)


def _is_gone(hung: Convicted) -> bool:
    """Tell whether a job's worker is gone, by its lease or by a witness."""
    lease_expired = hung.job is not None and hung.job.lease_beat_at is not None
    said = diagnose(JobState.RUNNING, hung.suspect.since, lease_expired=lease_expired, words=hung.words)
    return said.reason in STUCK and not is_undecided(said, hung.words)


def _diagnosis(suspect: Suspect, scope: Scope, words: Sequence[Evidence] = ()) -> Diagnosis:
    return diagnose(
        suspect.state,
        suspect.since,
        lease_expired=suspect.lease_expired,
        lost=suspect.lost,
        waiting=scope.waiting,
        words=words,
    )


def _is_past(suspect: Suspect, scope: Scope) -> bool:
    """Tell whether age alone would convict: younger ones are asked about only so that a gone worker is known soon."""
    return suspect.since < scope.look.taken_at - scope.policy.running_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many jobs are stuck."""

    stuck: StuckCounts
    undecided: int = 0
    """Running jobs that age accuses and no witness knows of."""
    exact: bool = True
    """Otherwise there are more than could be asked about."""


async def count_stuck(watched: Watched, scopes: Sequence[Scope]) -> Count:
    """Count what is stuck in all scopes: as exactly as the source can, and witnesses are asked of a bounded number."""
    queued = running = undecided = 0
    exact = True
    for scope in scopes:
        if not asks_witnesses(watched, scope):
            counts = await watched.source.count_suspects(scope.look)
            queued, running = queued + counts.queued, running + counts.running
            exact &= counts.exact
            continue
        if JobState.QUEUED in scope.look.states:
            only = replace(scope.look, states=(JobState.QUEUED,))
            waiting = await watched.source.count_suspects(only)
            queued, exact = queued + waiting.queued, exact and waiting.exact
        found = await convicted_running(watched, scope)
        running, undecided = running + len(found.convicted), undecided + found.undecided
        exact &= found.exact
    stuck = StuckCounts(queued=queued, running=running, exact=exact)
    return Count(stuck=stuck, undecided=undecided, exact=exact)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The running jobs of a scope that are stuck, so far as witnesses were asked."""

    convicted: tuple[Convicted, ...]
    undecided: int
    exact: bool


async def convicted_running(watched: Watched, scope: Scope) -> Running:
    """Ask the witnesses of a scope's running suspects, about `MOST_ASKED` of them."""
    look, asked, undecided = replace(scope.look, states=(JobState.RUNNING,)), 0, 0
    convicted: list[Convicted] = []
    async for page in watched.source.suspects(look):
        if asked >= MOST_ASKED:
            return Running(convicted=tuple(convicted), undecided=undecided, exact=False)
        judged = await judge(watched, page, scope)
        asked += len(page.suspects)
        undecided += len(judged.undecided)
        convicted += judged.convicted
    return Running(convicted=tuple(convicted), undecided=undecided, exact=True)
