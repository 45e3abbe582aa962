"""Every witness is asked of every suspect, all at once and for so long.

Guarantee: each job gets a word from each witness, in the order of the witnesses, whatever they do: one that is late,
fails, answers nonsense or says nothing has said UNKNOWN, with the reason as its value. Nobody waits for a witness
longer than the deadline and a moment. Known weakness: one that blocks the event loop blocks everything.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from unstick.domain.errors import UnstickError
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.wording import Phrase
from unstick.ports import Witness

DEADLINE = timedelta(seconds=2)
"""How long a witness may take to answer."""
_MOMENT_SECONDS = 0.25
_LONGEST_REASON = 200

_log = logging.getLogger("unstick")
_Answer = Mapping[JobId, Evidence] | str
"""What a witness said of each job, or why it said nothing at all."""
_leaving: set[asyncio.Task[object]] = set()
"""Those who were told to stop and haven't yet: nobody else remembers them."""


async def gather(
    witnesses: Sequence[Witness], jobs: Sequence[Job], now: datetime, deadline: timedelta = DEADLINE
) -> Mapping[JobId, tuple[Evidence, ...]]:
    """Ask all witnesses of these jobs, and return a word of each on every one of them.

    Only running jobs are asked about: a worker that a queued one still names had it before.
    """
    running = tuple(job for job in jobs if job.state is JobState.RUNNING)
    answers = await _ask(witnesses, running, now, deadline) if running else [{} for _ in witnesses]
    return {
        job.id: tuple(_word(witness, answer, job) for witness, answer in zip(witnesses, answers, strict=True))
        for job in jobs
    }


async def _ask(
    witnesses: Sequence[Witness], jobs: Sequence[Job], now: datetime, deadline: timedelta
) -> Sequence[_Answer]:
    asked = [asyncio.ensure_future(_asked(witness, jobs, now)) for witness in witnesses]
    if not asked:
        return ()
    try:
        await asyncio.wait(asked, timeout=deadline.total_seconds())
    finally:
        late = [task for task in asked if not task.done()]
        for task in late:
            task.cancel()
            _leaving.add(task)
            task.add_done_callback(_left)
    if late:
        # Who stops at once gives its connection back before the next witness wants it; who doesn't isn't waited for.
        await asyncio.wait(late, timeout=_MOMENT_SECONDS)
    silence = _silence(deadline)
    return [silence if task in late else _answer(witness, task) for witness, task in zip(witnesses, asked, strict=True)]


def _silence(deadline: timedelta) -> Phrase:
    if deadline < timedelta(seconds=1):
        return Phrase("no answer in time")
    return Phrase("no answer within %(time)s", time=deadline)


async def _asked(witness: Witness, jobs: Sequence[Job], now: datetime) -> object:
    """Ask, and promise nothing of the answer: a witness may be anybody's code."""
    return await witness.ask(jobs, now)


def _left(task: asyncio.Task[object]) -> None:
    _leaving.discard(task)
    if not task.cancelled():
        task.exception()  # looked at, or asyncio would complain that nobody did


def _answer(witness: Witness, task: asyncio.Task[object]) -> _Answer:
    if task.cancelled():
        return Phrase("it gave up")
    error = task.exception()
    if error is None:
        said = task.result()
        if isinstance(said, Mapping) and all(_is_sound(evidence) for evidence in said.values()):
            return said
        _log.error("The witness %s answered what is no evidence; its word counts as unknown.", witness.name)
        return Phrase("its answer is no evidence")
    if isinstance(error, UnstickError):
        _log.warning("The witness %s couldn't be asked: %s", witness.name, error)
    else:
        _log.error("The witness %s failed; its word counts as unknown.", witness.name, exc_info=error)
    return _first_line(error)


def _is_sound(said: object) -> bool:
    """Tell whether evidence can be weighed: a time without a zone would stop whoever compares it."""
    if not isinstance(said, Evidence):
        return False
    holding: object = said.holding
    at: object = said.at
    return isinstance(holding, Holding) and (at is None or (isinstance(at, datetime) and at.tzinfo is not None))


def _word(witness: Witness, answer: _Answer, job: Job) -> Evidence:
    if job.state is not JobState.RUNNING:
        return _unknown(witness, Phrase("not asked: the job isn't running"))
    if isinstance(answer, str):
        return _unknown(witness, answer)
    return answer.get(job.id) or _unknown(witness, Phrase("knows nothing of it"))


def _unknown(witness: Witness, reason: str) -> Evidence:
    return Evidence(witness=witness.name, holding=Holding.UNKNOWN, at=None, value=reason)


def _first_line(error: BaseException) -> str:
    said = next(iter(str(error).strip().splitlines()), "")
    kind = "" if isinstance(error, UnstickError) else type(error).__name__
    return ": ".join(part for part in (kind, said) if part)[:_LONGEST_REASON]
