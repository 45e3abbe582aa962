"""A jobs table as a source of suspects, and the guarded writes that recover them.

Guarantee: reads are short, bounded and without locks; a write finds the row as the look saw it or leaves it.
Known weakness: a job's words for its states are compared as the database compares them; two words that differ
only in letter case are one.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.aftermath import Finished, Recovered
from unstick.domain.errors import InvalidRequestError, SourceUnavailableError
from unstick.domain.events import QueueState
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.policy import Ruling
from unstick.domain.queue import Flows, QueueFlow, Workers
from unstick.domain.recovery import Batch, BatchResult, Intent, Ruled
from unstick.domain.story import JobRow
from unstick.domain.suspect import (
    ACCUSED_STATES,
    NOT_OUR_CURSOR,
    GroupedSuspects,
    Look,
    Mark,
    Page,
    Position,
    Stretch,
    StuckCounts,
    SuspectGroup,
    Unreadable,
)
from unstick.domain.undo import UndoBatch, UndoResult
from unstick.domain.wording import Phrase
from unstick.ports import Capabilities, OpenClasses, OpenJobs, Usage
from unstick.sql import finding, rulings, statements, writes
from unstick.sql.connections import Connections
from unstick.sql.finished import FinishedReader, bound_jobs, finished_among
from unstick.sql.mapping import JobTable, MappedTable
from unstick.sql.reading import JobReader, Row, SuspectReader, as_text, by_state, job_class, plain_id, read_mark
from unstick.sql.reflection import mapped_table
from unstick.sql.rescue import NotAllChangedError, Rescue, RuledRescue, said_by_database
from unstick.sql.undo import Undoing
from unstick.sql.writes import bound_rows

STRIDE = 200_000
"""Ids read at once: what a sweep holds in memory however many jobs are stuck."""

RULED_FROM = 500
"""Fewer jobs alike than this are looked at and recorded one by one, each with a record of its own."""

_TRIES = 3
_Done = TypeVar("_Done")


class SqlSource:
    """Jobs in a SQL table.

    Args:
        name: what it is called in configuration, ledger and reports.
        declared: the table and what is what in it.
        connections: transactions on its database.
        records: the ledger is in the same database, and each change is recorded with it.
        ruled_from: fewer jobs alike than this are looked at and recorded one by one.
    """

    def __init__(
        self,
        name: str,
        declared: JobTable,
        connections: Connections,
        *,
        records: bool = True,
        ruled_from: int = RULED_FROM,
    ) -> None:
        self.name = name
        self._records = records
        self._ruled_from = ruled_from
        self._declared = declared
        self._connections = connections
        self._read_only: str | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What the mapping lets this source do."""
        has = self._declared.keys
        waits = {"scheduled_at", "started_at", "enqueued_at"} & has
        return Capabilities(
            heartbeats="heartbeat_at" in has,
            attempts="attempt" in has,
            mark_failed=bool(self._declared.states.get(JobState.FAILED)),
            retry=bool(waits) and bool(self._declared.states.get(JobState.QUEUED)),
            records=self._records,
            rulings=self._records and self._connections.side_by_side and self._declared.preset is None,
            reads_beside_writes=self._connections.side_by_side,
            read_only=self._read_only,
        )

    async def clock(self) -> datetime:
        """Return the database's time; the mapping is held against the table here first."""
        async with self._reading() as (_, _, now):
            return now

    async def up_since(self) -> datetime | None:
        """Tell since when the database has been up."""
        async with self._reading() as (connection, _, _):
            return await self._connections.dialect.up_since(connection)

    async def open_classes(self, most: int | None = None) -> OpenClasses:
        """Tell the kinds and queues of the jobs that are not over; the cost follows their number only, and `most`."""
        async with self._reading() as (connection, mapped, _):
            rows = (await connection.execute(statements.open_classes(mapped, most))).all()
        return OpenClasses(
            found=frozenset(job_class(kind, queue) for kind, queue, _ in rows),
            complete=most is None or sum(number for *_, number in rows) < most,
        )

    async def flows(self, look: Look) -> Flows:
        """Tell how queues move, from a bounded number of their newest claims, and whether a worker of ours lives."""
        async with self._reading() as (connection, mapped, _):
            living = await _living(connection, look.taken_at) if mapped.leases else None
            served = None if living is None else bool(living)
            if not statements.can_flow(mapped):
                return Flows(by_queue={}, served=served)
        try:
            return Flows(by_queue=await self._by_queue(look), served=served)
        except (DBAPIError, ValueError, OverflowError) as error:
            # A time that can't be read leaves the queue's flow unknown, and its jobs to their age.
            if not _is_rows_fault(self._connections, error):
                raise
            return Flows(by_queue={}, served=served)

    async def _by_queue(self, look: Look) -> Mapping[str | None, QueueFlow]:
        async with self._reading() as (connection, mapped, _):
            values = statements.look_values(mapped, look)
            rows = (await connection.execute(statements.flows(mapped, whole=False), values)).all()
            if any(more for *_, more in rows):
                rows = (await connection.execute(statements.flows(mapped, whole=True), values)).all()
        return {
            None if queue is None else str(queue): QueueFlow(recent_claims=int(recent), reached=reached)
            for queue, recent, raw, _ in rows
            if (reached := mapped.since_form.read(raw)) is not None
        }

    async def find(self, job_id: JobId) -> JobRow | None:
        """Read one job by its key; a row that the driver can't fetch is told with the problem."""
        try:
            return await self._find(job_id)
        except (DBAPIError, ValueError, OverflowError) as error:
            if not _is_rows_fault(self._connections, error):
                raise
            problem = Phrase("its row can't be fetched: %(problem)s", problem=_first_line(error))
        async with self._reading() as (connection, mapped, now):
            key = statements.known_id(mapped, job_id)
            word = (await connection.execute(statements.state_of_one(mapped), {"id": key})).scalar()
        return JobRow(job_id=plain_id(key), read_at=now, status=str(word), job=None, problem=problem)

    async def _find(self, job_id: JobId) -> JobRow | None:
        async with self._reading() as (connection, mapped, now):
            key = statements.known_id(mapped, job_id)
            if key is None:
                return None
            row = (await connection.execute(finding.one_job(mapped), finding.one_job_values(key, now))).one_or_none()
            return None if row is None else finding.read_job(mapped, row, now)

    async def count_suspects(self, look: Look) -> StuckCounts:
        """Count by the table's own word, in one statement."""
        async with self._judging(look) as (connection, mapped):
            counted = statements.count_suspects(mapped)
            rows = await connection.execute(counted, statements.look_values(mapped, look))
            found = by_state(mapped, rows)
        return StuckCounts(queued=found.get(JobState.QUEUED, 0), running=found.get(JobState.RUNNING, 0))

    async def suspects_by_queue(self, look: Look) -> GroupedSuspects:
        """Count by queue in one statement."""
        found: Counter[SuspectGroup] = Counter()
        async with self._judging(look) as (connection, mapped):
            counted = statements.suspects_by_queue(mapped)
            for queue, word, expired, number in await connection.execute(counted, statements.look_values(mapped, look)):
                state = mapped.state_of(word)
                if state is not None:
                    found[SuspectGroup(as_text(queue), state, bool(expired))] += number
        return GroupedSuspects(counts=found)

    async def list_suspects(
        self, look: Look, state: JobState, *, limit: int, after: Position | None
    ) -> tuple[Job, ...]:
        """Read a state's suspects, oldest first; a row that can't be read is left to a sweep to report."""
        async with self._judging(look) as (connection, mapped):
            if state not in mapped.judges:
                return ()
            statement = statements.suspects_by_age(mapped, state, after=after is not None)
            values = statements.look_values(mapped, look) | {"page_size": limit} | _position(mapped, after)
            rows = (await connection.execute(statement, values)).all()
        reader = JobReader(mapped, state)
        return tuple(job for row in rows if (job := reader.read(row)) is not None)

    async def stretch(
        self, look: Look, state: JobState, *, size: int, after: Mark | None = None, newest_first: bool = False
    ) -> Stretch:
        """Read the suspects that began first or last, by an index and not by a sort of all."""
        async with self._judging(look) as (connection, mapped):
            if state not in mapped.judges:
                return Stretch(jobs=(), end=None)
            statement = statements.stretch(mapped, state, after=after, newest_first=newest_first)
            values = statements.look_values(mapped, look) | {"page_size": size} | _mark(mapped, after)
            rows = (await connection.execute(statement, values)).all()
        reader = JobReader(mapped, state)
        jobs = tuple(job for row in rows if (job := reader.read(row)) is not None)
        return Stretch(jobs=jobs, end=read_mark(rows[-1]) if len(rows) == size else None)

    async def describe(self, look: Look, job_ids: Sequence[JobId]) -> Mapping[JobId, Job]:
        """Read jobs by their ids, in whatever state they are; one that can't be read or isn't there is left out."""
        found: dict[JobId, Job] = {}
        size = self._connections.dialect.batch_size
        for start in range(0, len(job_ids), size):
            async with self._judging(look) as (connection, mapped):
                ids = [(statements.typed_id(mapped, job_id),) for job_id in job_ids[start : start + size]]
                values = statements.look_values(mapped, look) | bound_rows(ids)
                rows = (await connection.execute(statements.jobs_among(mapped), values)).all()
            reader = JobReader(mapped)
            found |= {job.id: job for row in rows if (job := reader.read(row)) is not None}
        return found

    async def suspects(self, look: Look) -> AsyncIterator[Page]:
        """Yield suspects in pages by ascending id; none is read before it is asked for."""
        async for ids in self._pages_of_ids(look, *ACCUSED_STATES):
            page = await self._page(look, ids)
            if page.suspects or page.unreadable:
                yield page

    async def recover_by_rule(self, ruling: Ruling, look: Look, operation_id: int) -> AsyncIterator[Ruled]:
        """Apply a ruling in batches of jobs alike, one transaction each."""
        async with self._judging(look) as (_, mapped):
            rescue = RuledRescue(mapped=mapped, source=self.name, ruling=ruling, look=look, operation_id=operation_id)
        if not mapped.can_rule:
            yield Ruled(recovered=0, left=True)
            return
        last: object = None
        while True:
            stride = await self._stride(ruling.state, look, last)
            ruled_on = recovered = 0
            for batch in stride.batches:
                done = await self._rule_on(rescue, batch)
                ruled_on, recovered = ruled_on + batch.count, recovered + done
                yield Ruled(recovered=done, left=done < batch.count)
            if ruled_on < stride.count:
                yield Ruled(recovered=0, left=True)
            # Rows that a trigger keeps move on to higher addresses each time they are tried, and come up again.
            if stride.count < STRIDE or not recovered:
                break
            last = stride.last
        if mapped.leases and ruling.state is JobState.RUNNING:
            yield Ruled(recovered=0, left=True)  # there may be jobs whose worker's lease ran out

    async def recover(self, batch: Batch) -> BatchResult:
        """Carry out a batch in one transaction.

        A deadlock or serialization failure is tried again, three times in all. A row that is refused only when the
        transaction commits (a deferred constraint) would take the others with it: then each row is checked at once.
        """

        async def once(connection: AsyncConnection, mapped: MappedTable, now: datetime) -> BatchResult:
            return await self._rescue(connection, mapped, batch, now).carry_out()

        return await self._tried(once)

    async def undo(self, batch: UndoBatch) -> UndoResult:
        """Put jobs back in one transaction, tried again as `recover` is."""

        async def once(connection: AsyncConnection, mapped: MappedTable, now: datetime) -> UndoResult:
            return await self._undoing(connection, mapped, batch, now).carry_out()

        return await self._tried(once)

    async def _tried(self, work: Callable[[AsyncConnection, MappedTable, datetime], Awaitable[_Done]]) -> _Done:
        each_row = False
        for _ in range(_TRIES):
            try:
                async with self._connections.writing() as (connection, now):
                    if each_row:
                        await self._connections.dialect.check_each_row(connection)
                    mapped = await self._mapped(connection)
                    if mapped.read_only is not None:
                        raise SourceUnavailableError(f"Nothing may be changed: {mapped.read_only}")
                    return await work(connection, mapped, now)
            except DBAPIError as error:
                refused, last = self._connections.dialect.refuses_row(error), error
                if each_row or not (refused or self._connections.dialect.is_transient(error)):
                    break
                each_row = refused
        raise SourceUnavailableError(said_by_database(last)) from last

    def _rescue(self, connection: AsyncConnection, mapped: MappedTable, batch: Batch, now: datetime) -> Rescue:
        return Rescue(
            connection=connection,
            mapped=mapped.judging(batch.look),
            source=self.name,
            batch=batch,
            now=batch.at or now,
            recorded=self._records,
        )

    def _undoing(self, connection: AsyncConnection, mapped: MappedTable, batch: UndoBatch, now: datetime) -> Undoing:
        return Undoing(
            connection=connection, mapped=mapped, source=self.name, batch=batch, now=now, recorded=self._records
        )

    async def intend_undo(self, batch: UndoBatch) -> tuple[Sequence[Intent], Mapping[JobId, str]]:
        """Tell what undoing a batch would do, without doing it, and why each other job would be left alone."""
        async with self._reading() as (connection, mapped, now):
            return await self._undoing(connection, mapped, batch, now).intend()

    async def intend(self, batch: Batch) -> Sequence[Intent]:
        """Tell what carrying out a batch would do, without doing it."""
        async with self._reading() as (connection, mapped, now):
            return await self._rescue(connection, mapped, batch, now).intend()

    async def images(self, intents: Sequence[Intent]) -> Mapping[JobId, str]:
        """Return what stands now where these intents would write."""
        found: dict[JobId, str] = {}
        async with self._reading() as (connection, mapped, _):
            for statement, alike in _image_statements(mapped, intents):
                by_text = {str(each.job_id): each.job_id for each in alike}
                rows = [(statements.typed_id(mapped, job_id), text) for text, job_id in by_text.items()]
                there = await connection.execute(statement, bound_rows(rows))
                found |= {by_text[text]: image for text, image in there}
        return found

    async def finished_among(self, recovered: Sequence[Recovered]) -> Sequence[Finished]:
        """Look recovered jobs up by their keys, a batch at a time, and read only those that are succeeded."""
        size = self._connections.dialect.batch_size
        found: list[Finished] = []
        for start in range(0, len(recovered), size):
            found += await self._finished(recovered[start : start + size])
        return found

    async def _finished(self, recovered: Sequence[Recovered]) -> list[Finished]:
        """Read one batch, or in halves where a row can't even be fetched, until that row stands alone and is left."""
        try:
            async with self._reading() as (connection, mapped, _):
                rows = (await connection.execute(finished_among(mapped), bound_jobs(mapped, recovered))).all()
        except (DBAPIError, ValueError, OverflowError) as error:
            if not _is_rows_fault(self._connections, error):
                raise
            if len(recovered) == 1:
                return []
            middle = len(recovered) // 2
            return await self._finished(recovered[:middle]) + await self._finished(recovered[middle:])
        reader = FinishedReader(mapped, recovered)
        return [finished for row in rows for finished in reader.read(row)]

    async def open_jobs(self) -> OpenJobs:
        """Count what is not over; with a partial index on it, the cost follows that number only."""
        async with self._reading() as (connection, mapped, now):
            rows = (await connection.execute(statements.open_jobs(mapped))).all()
            living = await _living(connection, now) if mapped.leases else None
        return OpenJobs(
            queued_since=_oldest(mapped, JobState.QUEUED, rows, place=2),
            running_since=_oldest(mapped, JobState.RUNNING, rows, place=3),
            by_queue=_by_queue(mapped, rows),
            workers=Workers(living=living),
        )

    async def usage(self) -> Usage:
        """Sum up the newest jobs."""
        async with self._reading() as (connection, mapped, _):
            rows = (await connection.execute(statements.usage(mapped))).all()
        return _usage(mapped, rows)

    async def _pages_of_ids(self, look: Look, *states: JobState) -> AsyncIterator[list[object]]:
        """Yield the ids of suspects, read in long strides: finding them costs a sort of all that are left."""
        size = self._connections.dialect.batch_size
        last: list[object] = []
        while True:
            ids = await self._ids(look, states, last)
            for start in range(0, len(ids), size):
                yield ids[start : start + size]
            if len(ids) < STRIDE:
                return
            last = ids[-1:]

    async def _ids(self, look: Look, states: Sequence[JobState], last: Sequence[object]) -> list[object]:
        async with self._judging(look) as (connection, mapped):
            if not mapped.judges & set(states):
                return []
            statement = statements.suspect_ids(mapped, *states, after=bool(last))
            values = (
                statements.look_values(mapped, look) | {"stride": STRIDE} | dict(zip(("after",), last, strict=False))
            )
            return list((await connection.execute(statement, values)).scalars())

    async def _page(self, look: Look, ids: Sequence[object]) -> Page:
        """Read those of the ids that are suspects still.

        One row that the driver can't even fetch (a year 12000, broken text) fails the whole fetch: the page is
        then read in halves until that row stands alone.
        """
        try:
            return await self._fetch(look, ids)
        except (DBAPIError, ValueError, OverflowError) as error:
            if not _is_rows_fault(self._connections, error):
                raise
            if len(ids) == 1:
                return await self._unfetchable(ids[0], error)
        middle = len(ids) // 2
        first, second = await self._page(look, ids[:middle]), await self._page(look, ids[middle:])
        return Page(suspects=first.suspects + second.suspects, unreadable=first.unreadable + second.unreadable)

    async def _fetch(self, look: Look, ids: Sequence[object]) -> Page:
        async with self._judging(look) as (connection, mapped):
            values = statements.look_values(mapped, look) | bound_rows([(key,) for key in ids])
            rows = (await connection.execute(statements.suspects_among(mapped), values)).all()
        return SuspectReader(mapped).page(rows)

    async def _unfetchable(self, key: object, error: Exception) -> Page:
        async with self._reading() as (connection, mapped, _):
            word = (await connection.execute(statements.state_of_one(mapped), {"id": key})).scalar()
        problem = Phrase("its row can't be fetched: %(problem)s", problem=_first_line(error))
        state = mapped.state_of(word) or JobState.RUNNING
        return Page(suspects=(), unreadable=(Unreadable(job_id=plain_id(key), state=state, problem=problem),))

    async def _stride(self, state: JobState, look: Look, last: object) -> rulings.Stride:
        """Read a stride of a state's suspects after the last one of the stride before."""
        async with self._judging(look) as (connection, mapped):
            if state not in mapped.judges:
                return rulings.Stride(0, None, ())
            size, least, after = mapped.dialect.batch_size, self._ruled_from, last is not None
            values = statements.look_values(mapped, look) | {"stride": STRIDE} | ({"after": last} if after else {})
            if mapped.dialect.one_statement:
                found = await connection.execute(
                    rulings.addresses(mapped, state, after=after), values | {"size": size, "least": least}
                )
                return rulings.stride_of_addresses(mapped, found.all())
            rows = await connection.stream(rulings.ids(mapped, state, after=after), values)
            return await rulings.stride_of_ids(mapped, rows, size=size, least=least)

    async def _rule_on(self, rescue: RuledRescue, batch: rulings.Alike) -> int:
        """Carry out one batch; one that fails for a row's sake, or is in somebody's way, is left to be looked at."""
        dialect = self._connections.dialect
        for skip_held in (False, True):
            try:
                async with self._connections.writing() as (connection, now):
                    return await rescue.carry_out(connection, now, batch, skip_held=skip_held)
            except NotAllChangedError:
                break
            except DBAPIError as error:
                if (dialect.is_held(error) or dialect.is_slow(error)) and not skip_held:
                    continue
                passing = dialect.is_held(error) or dialect.is_slow(error) or dialect.is_transient(error)
                if error.connection_invalidated or not (passing or dialect.refuses_row(error)):
                    raise SourceUnavailableError(said_by_database(error)) from error
                break
        return 0

    @asynccontextmanager
    async def _judging(self, look: Look) -> AsyncIterator[tuple[AsyncConnection, MappedTable]]:
        async with self._reading() as (connection, mapped, _):
            yield connection, mapped.judging(look)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[tuple[AsyncConnection, MappedTable, datetime]]:
        async with self._connections.reading() as (connection, now):
            yield connection, await self._mapped(connection), now

    async def _mapped(self, connection: AsyncConnection) -> MappedTable:
        mapped = await mapped_table(self._connections, connection, self._declared)
        self._read_only = mapped.read_only
        return mapped


async def _living(connection: AsyncConnection, now: datetime) -> int | None:
    """Count the workers of ours that live; None where there never was one."""
    ever, living = (await connection.execute(statements.lease_counts(now))).one()
    return int(living) if ever else None


def _image_statements(
    mapped: MappedTable, intents: Sequence[Intent]
) -> Iterator[tuple[sa.Select[Any], Sequence[Intent]]]:
    """Yield what reads the columns that intents would write, and of which intents."""
    by_names: dict[tuple[str, ...], list[Intent]] = {}
    for each in intents:
        by_names.setdefault(tuple(json.loads(each.post_image)), []).append(each)
    for names, alike in by_names.items():
        if all(name in mapped.table.c for name in names):
            yield writes.images_now(mapped, names), alike


def _position(mapped: MappedTable, after: Position | None) -> statements.Values:
    try:
        return statements.position_values(mapped, after)
    except ValueError as error:
        raise InvalidRequestError(NOT_OUR_CURSOR) from error


def _mark(mapped: MappedTable, after: Mark | None) -> statements.Values:
    try:
        return statements.mark_values(mapped, after)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(NOT_OUR_CURSOR) from error


def _is_rows_fault(connections: Connections, error: Exception) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    unfit = isinstance(error, DataError) or "decode" in str(error.orig).lower()
    return not error.connection_invalidated and (unfit or connections.dialect.refuses_row(error))


def _first_line(error: Exception) -> str:
    return said_by_database(error) if isinstance(error, DBAPIError) else str(error)


def _oldest(mapped: MappedTable, state: JobState, rows: Sequence[Row], place: int) -> datetime | None:
    if state not in mapped.judges:
        return None
    form = mapped.since_form
    found = [form.read(row[place]) for row in rows if mapped.state_of(row[0]) is state]
    return min((since for since in found if since is not None), default=None)


def _by_queue(mapped: MappedTable, rows: Sequence[Row]) -> Mapping[QueueState, int]:
    found: Counter[QueueState] = Counter()
    for row in rows:
        state = mapped.state_of(row[0])
        if state is not None:
            found[QueueState(as_text(row[4]), state)] += row[1]
    return found


def _usage(mapped: MappedTable, rows: Sequence[Row]) -> Usage:
    """Merge figures by the table's own word; durations are those of jobs that succeeded."""
    succeeded = [row for row in rows if mapped.state_of(row[0]) is JobState.SUCCEEDED]
    average, longest = _durations([(row[2], row[3], row[4]) for row in succeeded])
    oldest, newest = _span(mapped, rows)
    tokens = _total([row[5] for row in rows])
    return Usage(
        window_jobs=sum(row[1] for row in rows),
        window_basis=f"at most {statements.USAGE_JOBS} jobs, {mapped.newest_first[1]}",
        oldest_at=oldest,
        newest_at=newest,
        jobs_by_state=by_state(mapped, rows),
        average_duration=average,
        longest_duration=longest,
        tokens=None if tokens is None else round(tokens),
        cost=_total([row[6] for row in rows]),
    )


def _durations(figures: Sequence[tuple[Any, Any, Any]]) -> tuple[timedelta | None, timedelta | None]:
    known = [(int(number), float(mean), float(longest)) for number, mean, longest in figures if number]
    if not known:
        return None, None
    total = sum(number for number, _, _ in known)
    mean = sum(number * each for number, each, _ in known) / total
    return timedelta(seconds=mean), timedelta(seconds=max(longest for _, _, longest in known))


def _total(figures: Sequence[Any]) -> float | None:
    known = [float(each) for each in figures if each is not None]
    return sum(known) if known else None


def _span(mapped: MappedTable, rows: Sequence[Row]) -> tuple[datetime | None, datetime | None]:
    key = statements.span_key(mapped)
    if key is None:
        return None, None
    read = mapped.times[key].read
    oldest = [at for row in rows if (at := read(row[7])) is not None]
    newest = [at for row in rows if (at := read(row[8])) is not None]
    return min(oldest, default=None), max(newest, default=None)
