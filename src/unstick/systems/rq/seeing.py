"""What a job's image says besides its own fields: why it failed, and who waits for it."""

from collections.abc import Mapping, Sequence

from unstick.systems.rq import keys
from unstick.systems.rq.broker import Answer, Broker, pairs, parts, texts
from unstick.systems.rq.changes import Seen, unpacked
from unstick.systems.rq.kept import Kept

_FAILED = "2"
"""RQ's word for a result that is a failure."""


async def see(broker: Broker, jobs: Sequence[Kept]) -> list[Seen]:
    """Read what is known of jobs besides."""
    results = await newest_results(broker, [kept.id for kept in jobs])
    dependents = await broker.ask_all([("SMEMBERS", keys.dependents(kept.id)) for kept in jobs])
    return [
        Seen(kept=kept, error=_error(results.get(kept.id, {})), dependents=tuple(sorted(texts(answer))))
        for kept, answer in zip(jobs, dependents, strict=True)
    ]


async def newest_results(broker: Broker, job_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what came of the newest attempt of each job, as RQ wrote it; nothing where there is none."""
    answers = await broker.ask_all([("XREVRANGE", keys.results(job_id), "+", "-", "COUNT", 1) for job_id in job_ids])
    return {job_id: _result(answer) for job_id, answer in zip(job_ids, answers, strict=True)}


def _result(answer: Answer) -> dict[str, str]:
    """Read the first of a list of results."""
    for entry in parts(answer):
        _, said = parts(entry)
        return dict(pairs(said))
    return {}


def _error(result: Mapping[str, str]) -> str | None:
    return unpacked(result["exc_string"]) if result.get("type") == _FAILED and "exc_string" in result else None
