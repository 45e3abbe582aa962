"""From rows as stored to suspects; a row that can't be understood becomes an `Unreadable`, never an exception."""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from unstick.config import ColumnKey
from unstick.domain.job import Job, JobId, JobState, queued_since, running_since
from unstick.domain.suspect import Suspect, Unreadable
from unstick.sql import statements
from unstick.sql.mapping import MappedTable

Row = Sequence[Any]


class SuspectReader:
    """Reads rows of `statements.suspects_page` and `statements.oldest_suspects`."""

    def __init__(self, mapped: MappedTable) -> None:
        self._place = {key: place for place, key in enumerate(statements.read_columns(mapped))}
        self._seen = itemgetter(self._place["id"], *(self._place[key] for key in mapped.fence))
        self._state_of = mapped.state_of
        job_keys = [key for key in statements.JOB_KEYS if mapped.has(key)]
        self._times = [(key, self._place[key], mapped.times[key].read) for key in job_keys if key in mapped.times]
        self._plain = [(key, self._place[key], _READ[key]) for key in job_keys if key in _READ]

    def read(self, row: Row) -> Suspect | Unreadable:
        """Return the suspect a row is."""
        job_id = plain_id(row[self._place["id"]])
        word = str(row[self._place["state"]])
        state = self._state_of(word) or JobState.RUNNING
        try:
            return self._suspect(job_id, word, state, row)
        except (ValueError, TypeError, OverflowError) as error:
            return Unreadable(job_id=job_id, state=state, problem=f"its row can't be read: {error}")

    def _suspect(self, job_id: JobId, word: str, state: JobState, row: Row) -> Suspect:
        known: dict[str, Any] = {key: read(row[place]) for key, place, read in self._times}
        for key, place, convert in self._plain:
            raw = row[place]
            known[key] = None if raw is None else convert(raw)
        job = Job(id=job_id, state=state, status=word, **known)
        since = queued_since(job) if state is JobState.QUEUED else running_since(job)
        if since is None:
            raise ValueError("no time tells its age")
        return Suspect(job=job, since=since, seen=self._seen(row))


_READ: dict[ColumnKey, type[str] | type[int]] = {
    "kind": str,
    "queue": str,
    "worker": str,
    "attempt": int,
    "max_attempts": int,
}


def plain_id(raw: object) -> JobId:
    """Return a key as a job id: integers and text as they are, UUIDs as text."""
    return raw if isinstance(raw, int | str) else str(raw)


def by_state(mapped: MappedTable, rows: Iterable[Row]) -> dict[JobState, int]:
    """Add up counts by the table's own word to counts by state; words nobody mapped are left out."""
    found: dict[JobState, int] = {}
    for word, number, *_ in rows:
        state = mapped.state_of(word)
        if state is not None:
            found[state] = found.get(state, 0) + number
    return found
