"""From rows as stored to jobs and suspects; what can't be understood becomes an `Unreadable`, never an exception."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from unstick.config import ColumnKey
from unstick.domain.job import Job, JobClass, JobId, JobState, queued_since, running_since
from unstick.domain.suspect import Mark, Page, Suspect, Unreadable
from unstick.sql import statements
from unstick.sql.mapping import MappedTable

Row = Sequence[Any]
ReadTime = Callable[[Row], datetime | None]

UNDERSTOOD = (ValueError, TypeError, OverflowError)
"""What a value raises that can't be what its column says."""


class SuspectReader:
    """Reads rows of `statements.suspects_page`: no more of each than a decision and a write need."""

    def __init__(self, mapped: MappedTable) -> None:
        place = {key: at for at, key in enumerate(statements.suspect_columns(mapped))}
        self._id, self._state = place["id"], place["state"]
        self._mapped = mapped
        self._state_of: dict[str, JobState] = {}
        read = _time_readers(mapped, place)
        self._queued = (read["enqueued_at"], read["scheduled_at"], read["started_at"])
        self._running = (read["started_at"], read["heartbeat_at"])
        self._attempt = place.get("attempt")
        self._width = len(place)

    def page(self, rows: Iterable[Row]) -> Page:
        """Read a page of rows."""
        read = [self.read(row) for row in rows]
        return Page(
            suspects=tuple(each for each in read if type(each) is Suspect),
            unreadable=tuple(each for each in read if type(each) is Unreadable),
        )

    def read(self, row: Row) -> Suspect | Unreadable:
        """Return the suspect a row is."""
        raw_id, word = row[self._id], row[self._state]
        job_id = raw_id if type(raw_id) is int else plain_id(raw_id)
        state = self._state_of.get(word) or self._state_meant(word)
        try:
            if state is JobState.QUEUED:
                enqueued_at, scheduled_at, started_at = self._queued
                since = queued_since(enqueued_at(row), scheduled_at(row), started_at(row))
            else:
                started_at, heartbeat_at = self._running
                since = running_since(started_at(row), heartbeat_at(row))
        except UNDERSTOOD as error:
            return Unreadable(job_id=job_id, state=state, problem=f"its row can't be read: {error}")
        if since is None:
            return Unreadable(job_id=job_id, state=state, problem="its row can't be read: no time tells its age")
        attempt = None if self._attempt is None else row[self._attempt]
        if not self._mapped.leases:
            return Suspect(job_id, state, since, tuple(row), attempt=attempt)
        beat_at = row[self._width]
        seen = tuple(row[: self._width])
        return Suspect(job_id, state, since if beat_at is None else beat_at, seen, beat_at is not None, attempt)

    def _state_meant(self, word: Any) -> JobState:  # noqa: ANN401 - text or a number
        """Remember what a word means; the statement only lets words of two states through."""
        return self._state_of.setdefault(word, self._mapped.state_of(word) or JobState.RUNNING)


class JobReader:
    """Reads rows of `statements.suspects_by_age`: all that a person wants to know of each."""

    def __init__(self, mapped: MappedTable, state: JobState | None = None) -> None:
        """Read jobs that are known to be in a state, or else those whose word means one."""
        self._place = {key: at for at, key in enumerate(statements.job_columns(mapped))}
        self._times = _time_readers(mapped, self._place)
        self._mapped = mapped
        self._state = state

    def read(self, row: Row) -> Job | None:
        """Return the job a row is, None where it can't be understood; a sweep reports such rows."""
        try:
            return self.understand(row)
        except UNDERSTOOD:
            return None

    def understand(self, row: Row) -> Job:
        """Return the job a row is; raise one of `UNDERSTOOD` where a value can't be what its column says."""
        known: dict[str, Any] = {key: read(row) for key, read in self._times.items()}
        known |= {key: convert(row[self._place[key]]) for key, convert in _PLAIN.items() if key in self._place}
        if self._mapped.leases:
            known["lease_beat_at"] = row[len(self._place)]
        job_id, status = plain_id(row[self._place["id"]]), str(row[self._place["state"]]).rstrip()
        state = self._state or self._mapped.state_of(status)
        if state is None:
            raise ValueError(f"its state {status!r} has no meaning under `states`")
        return Job(id=job_id, state=state, status=status, **known)


def _time_readers(mapped: MappedTable, place: Mapping[ColumnKey, int]) -> dict[str, ReadTime]:
    """Return what reads each time of a row; a time the table doesn't have reads as None."""

    def reader(key: ColumnKey) -> ReadTime:
        if key not in place:
            return lambda _row: None
        at, read = place[key], mapped.times[key].read
        return lambda row: None if (raw := row[at]) is None else read(raw)

    keys: tuple[ColumnKey, ...] = ("enqueued_at", "scheduled_at", "started_at", "heartbeat_at", "completed_at")
    return {key: reader(key) for key in keys}


def as_text(raw: object) -> str | None:
    """Read a value that is text to us, whatever it is to the table."""
    return None if raw is None else str(raw)


def _number(raw: Any) -> int | None:  # noqa: ANN401 - whatever the driver gives for a number
    return None if raw is None else int(raw)


_PLAIN: Mapping[ColumnKey, Callable[[Any], Any]] = {
    "kind": as_text,
    "queue": as_text,
    "worker": as_text,
    "progress": as_text,
    "attempt": _number,
    "max_attempts": _number,
}


def plain_id(raw: object) -> JobId:
    """Return a key as a job id: integers and text as they are, UUIDs as text."""
    return raw if isinstance(raw, int | str) else str(raw)


def read_mark(row: Row) -> Mark:
    """Return the mark that the last row of `statements.stretch` is."""
    *_, begun, job_id = row
    told = None if begun is None else begun.isoformat() if isinstance(begun, datetime) else str(begun)
    return Mark(told, plain_id(job_id))


def by_state(mapped: MappedTable, rows: Iterable[Row]) -> dict[JobState, int]:
    """Add up counts by the table's own word to counts by state; words nobody mapped are left out."""
    found: dict[JobState, int] = {}
    for word, number, *_ in rows:
        state = mapped.state_of(word)
        if state is not None:
            found[state] = found.get(state, 0) + number
    return found


def job_class(kind: object, queue: object) -> JobClass:
    """Return the class of jobs that a kind and a queue name."""
    return JobClass(as_text(kind), as_text(queue))
