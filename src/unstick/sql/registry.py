"""The system's own table of workers as a witness: a job's `worker` names a row, and the row says whether it lives.

Guarantee: one statement for all workers of a call, judged by the database's own clock. A worker that began after a job
was taken is another one, whatever its name.
Known weakness: a worker that its system struck from the table while it lived is taken for dead, and all workers are
where the table is emptied sooner than suspects are looked at.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.config import RegistryKey, RegistrySettings
from unstick.domain.errors import ConfigurationError
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId
from unstick.domain.tenure import held_since, say_another, say_unclear
from unstick.domain.wording import Phrase
from unstick.sql.connections import Connections
from unstick.sql.dialects import Dialect
from unstick.sql.reflection import real_table
from unstick.sql.times import TimeForm

_AHEAD = timedelta(minutes=1)
"""A heartbeat further in the future than this says nothing of now."""


class WorkerRegistry:
    """Workers that show that they live in a table beside the jobs.

    Args:
        settings: the table, its columns, and how long a worker lives after a heartbeat.
        connections: transactions on the jobs' database.
        timezone: what naive times in it mean, as an IANA name.
    """

    name = "registry"

    def __init__(self, settings: RegistrySettings, connections: Connections, timezone: str = "UTC") -> None:
        self._settings = settings
        self._connections = connections
        self._zone: tzinfo = UTC if timezone == "UTC" else ZoneInfo(timezone)
        self._mapped: _Registry | None = None

    async def check(self) -> None:
        """Hold the mapping against the real table.

        Raises:
            ConfigurationError: the table isn't there, or a column of it isn't or can't mean what the mapping says.
        """
        async with self._connections.reading() as (connection, _):
            await self._registry(connection)

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Look all their workers up in one statement, and judge them by the clock that is read with it."""
        names = {job.worker for job in jobs if job.worker}
        workers: Mapping[str, Sequence[_Worker]] = {}
        if names:
            async with self._connections.reading() as (connection, read_at):
                workers = await (await self._registry(connection)).look_up(connection, names)
                now = read_at
        return {job.id: self._word(job, workers.get(job.worker or "", ()), now) for job in jobs}

    async def _registry(self, connection: AsyncConnection) -> "_Registry":
        if self._mapped is None:
            table = await connection.run_sync(real_table, self._settings.table)
            self._mapped = _Registry.of(self._settings, table, self._connections.dialect, self._zone)
        return self._mapped

    def _word(self, job: Job, rows: "Sequence[_Worker]", now: datetime) -> Evidence:
        if not job.worker:
            struck = self._settings.unowned == "released"
            return self._says(Holding.RELEASED if struck else Holding.UNKNOWN, None, Phrase("the job names no worker"))
        if not rows:
            said = Phrase("worker %(worker)s is not in %(table)s", worker=job.worker, table=self._settings.table)
            return self._says(Holding.RELEASED, now, said)
        # Where a collation takes several for the same, the one that lives longest may be the one.
        return self._judge(job, max(rows, key=_last_sign), now)

    def _judge(self, job: Job, row: "_Worker", now: datetime) -> Evidence:
        worker = Phrase("worker %(worker)s", worker=job.worker or "")
        lives, at, words = self._life(row, now)
        if lives is Holding.UNKNOWN:
            return self._says(lives, at, Phrase("%(worker)s %(what)s", worker=worker, what=row.problem or words))
        began = Holding.HELD if row.began_at is None else held_since(row.began_at, job)
        if row.began_at is not None and began is Holding.RELEASED:
            return self._says(began, row.began_at, say_another(worker, row.began_at))
        if lives is Holding.HELD and row.began_at is not None and began is Holding.UNKNOWN:
            return self._says(began, at, say_unclear(worker, row.began_at))
        return self._says(lives, at, Phrase("%(worker)s %(what)s", worker=worker, what=words))

    def _life(self, row: "_Worker", now: datetime) -> "_Life":
        """Tell whether a worker lives, whichever jobs it has."""
        if self._settings.alive_for is not None:
            return _by_heartbeat(row.beat_at, self._settings.alive_for, now)
        if row.expires_at is None:
            return _Life(Holding.UNKNOWN, None, Phrase("doesn't say until when it lives"))
        if row.expires_at < now:
            ago = now - row.expires_at
            return _Life(Holding.RELEASED, row.expires_at, Phrase("said that it lives until %(ago)s ago", ago=ago))
        return _Life(Holding.HELD, now, Phrase("lives by its own word"))

    def _says(self, holding: Holding, at: datetime | None, value: str) -> Evidence:
        return Evidence(witness=self.name, holding=holding, at=at, value=value)


def _last_sign(row: "_Worker") -> datetime:
    return row.expires_at or row.beat_at or datetime.min.replace(tzinfo=UTC)


class _Life(NamedTuple):
    """Whether a worker lives, since when that is known, and why, to follow its name."""

    lives: Holding
    at: datetime | None
    words: str


def _by_heartbeat(beat_at: datetime | None, alive_for: timedelta, now: datetime) -> _Life:
    if beat_at is None:
        return _Life(Holding.UNKNOWN, None, Phrase("has never beaten"))
    if beat_at > now + _AHEAD:
        return _Life(Holding.UNKNOWN, beat_at, Phrase("beats in the future"))
    if now - beat_at > alive_for:
        return _Life(Holding.RELEASED, beat_at, Phrase("has not beaten for %(time)s", time=now - beat_at))
    return _Life(Holding.HELD, beat_at, Phrase("beats"))


@dataclass(frozen=True, slots=True)
class _EpochTime:
    """Whole seconds since 1970."""

    def read(self, raw: object) -> datetime | None:
        """Return what a stored value means."""
        return None if raw is None else datetime.fromtimestamp(int(str(raw)), UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """A row of the table."""

    beat_at: datetime | None = None
    expires_at: datetime | None = None
    began_at: datetime | None = None
    problem: str | None = None


def _form(dialect: Dialect, key: RegistryKey, column: sa.Column[Any], zone: tzinfo) -> TimeForm | _EpochTime | None:
    """Return what a column's values mean; a number is a time only where the mapping says that it is one to come."""
    if key == "expires_at" and isinstance(column.type, sa.Integer):
        return _EpochTime()
    return dialect.time_form(column, zone)


@dataclass(frozen=True, slots=True)
class _Registry:
    """The mapping held against the real table."""

    columns: Mapping[RegistryKey, sa.Column[Any]]
    times: Mapping[RegistryKey, TimeForm | _EpochTime]
    dialect: Dialect

    @classmethod
    def of(cls, settings: RegistrySettings, table: sa.Table, dialect: Dialect, zone: tzinfo) -> "_Registry":
        """Find the columns; raise ConfigurationError where one isn't there or is of the wrong type."""
        for key, name in settings.columns.items():
            if name not in table.c:
                raise ConfigurationError(
                    f"Table {settings.table} has no column {name!r}, which the mapping of the registry names for "
                    f"{key!r}. It has: {', '.join(table.c.keys())}."
                )
        columns = {key: table.c[name] for key, name in settings.columns.items()}
        if not isinstance(columns["id"].type, sa.Integer | sa.String | sa.Uuid):
            raise ConfigurationError(
                f"Column {columns['id'].name!r} of {settings.table} is {dialect.type_name(columns['id'].type)}; the id "
                f"of a worker must be an integer, text or UUID."
            )
        forms = {key: _form(dialect, key, column, zone) for key, column in columns.items() if key != "id"}
        for key, form in forms.items():
            if form is None:
                raise ConfigurationError(
                    f"Column {columns[key].name!r} of {settings.table} is {dialect.type_name(columns[key].type)}, not "
                    f"a date and time, so it can't be {key!r} of the registry."
                )
        return cls(columns, {key: form for key, form in forms.items() if form is not None}, dialect)

    async def look_up(self, connection: AsyncConnection, names: Iterable[str]) -> Mapping[str, Sequence[_Worker]]:
        """Return each worker's rows by the name it was asked by."""
        asked_by: dict[str, set[str]] = {}
        keys: set[int | str | UUID] = set()
        for name in names:
            for key in self._keys(name):
                keys.add(key)
                asked_by.setdefault(str(key), set()).add(name)
        if not keys:
            return {}
        found: dict[str, list[_Worker]] = {}
        bound = {"unstick_seen": json.dumps([[key] for key in keys], default=str)}
        for key, *times in await connection.execute(self._statement(), bound):
            for name in asked_by.get(str(key), ()):
                found.setdefault(name, []).append(self._read(times))
        return found

    def _keys(self, name: str) -> set[int | str | UUID]:
        """Return a name in the type of the table's key, none where no key is written like that.

        A name from a CHAR column is filled up with blanks, which the table's may be without.
        """
        type_ = self.columns["id"].type
        try:
            if isinstance(type_, sa.Integer):
                number = int(name)
                return {number} if str(number) == name.strip() and -(2**63) <= number < 2**63 else set()
            if isinstance(type_, sa.Uuid):
                return {UUID(name.strip())}
        except ValueError:
            return set()
        return {name, name.rstrip(" ")}

    def _statement(self) -> sa.Select[Any]:
        """Join the names to the table, so that the database compares them as it compares its own."""
        key = self.columns["id"]
        given = self.dialect.rows({"id": self._key_type()}).subquery("given")
        times = [
            sa.type_coerce(self.columns[each], sa.String()) if self.dialect.name == "sqlite" else self.columns[each]
            for each in self.times
        ]
        return sa.select(given.c.id, *times).select_from(given.join(key.table, key == given.c.id))

    def _key_type(self) -> sa.types.TypeEngine[Any]:
        """Return a type that holds any name: in the column's own, one that is too long would be cut to another's."""
        type_ = self.columns["id"].type
        if self.dialect.name == "mysql" or isinstance(type_, sa.Uuid):
            return type_
        return sa.BigInteger() if isinstance(type_, sa.Integer) else sa.Text()

    def _read(self, times: Sequence[object]) -> _Worker:
        raw = dict(zip(self.times, times, strict=True))
        try:
            read = {key: form.read(raw[key]) for key, form in self.times.items()}
        except (ValueError, TypeError, OverflowError) as error:
            return _Worker(problem=Phrase("can't be read: %(problem)s", problem=str(error)))
        return _Worker(
            beat_at=read.get("heartbeat_at"), expires_at=read.get("expires_at"), began_at=read.get("started_at")
        )
