"""PostgreSQL's own list of connections as a witness: a job is held by the connection that its worker holds for it.

Only for jobs that keep one connection, to the jobs' own database and not through a pooler, from the moment they are
taken to their end: then no such connection means no such worker.
Guarantee: one statement, however many jobs; a connection that began after the job is another one, by its number or
its name. Known weakness: who may not see other roles' connections learns nothing from those.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from unstick.config import BackendsSettings
from unstick.domain.errors import ConfigurationError
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId
from unstick.domain.naming import NamePattern
from unstick.domain.tenure import held_since, say_another, say_unclear
from unstick.domain.wording import Phrase
from unstick.sql.connections import Connections
from unstick.sql.times import AwareTime

_LONGEST_NAME = 63
"""PostgreSQL keeps no more of an application's name."""

_BACKENDS = sa.text(
    "SELECT pid, application_name, backend_start, state_change, datname = current_database() AS here,"
    " pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all"
    " FROM pg_stat_activity WHERE backend_type = 'client backend' OR backend_type IS NULL"  # null where it is hidden
)


class Backends:
    """The connections of a PostgreSQL server.

    Args:
        settings: what of its connection a job's `worker` holds.
        connections: transactions on the jobs' database.

    Raises:
        ConfigurationError: the database is no PostgreSQL.
    """

    name = "backend"

    def __init__(self, settings: BackendsSettings, connections: Connections) -> None:
        if connections.dialect.name != "postgresql":
            raise ConfigurationError(
                "The witness `backends` reads pg_stat_activity, which only PostgreSQL has; leave it out of the "
                "source's configuration."
            )
        self._by = settings.by
        self._pattern = NamePattern(settings.worker or f"{{{settings.by}}}")
        self._connections = connections

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Read the whole list in one statement: PostgreSQL makes all of it whichever part is wanted."""
        del now
        named = {job.id: key for job in jobs if (key := self._key(job)) is not None}
        if not named:
            return {}
        async with self._connections.reading() as (connection, seen_at):
            rows = [_Backend(*row) for row in await connection.execute(_BACKENDS)]
        by_key: dict[str, list[_Backend]] = {}
        for row in rows:
            by_key.setdefault(str(row.pid) if self._by == "pid" else row.application_name or "", []).append(row)
        sees_all = all(row.sees_all for row in rows)
        return {
            job.id: self._word(job, named[job.id], by_key.get(named[job.id], ()), seen_at, sees_all=sees_all)
            for job in jobs
            if job.id in named
        }

    def _key(self, job: Job) -> str | None:
        """Return by what a job's backend is found, None where PostgreSQL shows it in another form than it was given."""
        read = self._pattern.read(job.worker) if job.worker else None
        if read is None:
            return None
        if self._by == "pid":
            return str(int(read["pid"]))
        name = read["application_name"]
        return name[:_LONGEST_NAME] if name.isascii() and name.isprintable() else None

    def _word(
        self, job: Job, key: str, backends: "Sequence[_Backend]", seen_at: datetime, *, sees_all: bool
    ) -> Evidence:
        here = [each for each in backends if each.here]
        known = [
            (each, began_at, held_since(began_at, job)) for each in here if (began_at := each.began_at) is not None
        ]
        for each, began_at, holding in known:
            if holding is Holding.HELD:
                since = Phrase("backend %(pid)s since %(at)s", pid=each.pid, at=began_at)
                return self._says(holding, each.state_changed_at, since)
        what = Phrase("backend %(pid)s", pid=key) if self._by == "pid" else Phrase("backend of %(name)s", name=key)
        if len(known) < len(here):
            return self._says(Holding.UNKNOWN, None, Phrase("%(what)s is hidden from this role", what=what))
        if not sees_all:
            said = Phrase("this role can't see all backends: it lacks %(right)s", right="pg_read_all_stats")
            return self._says(Holding.UNKNOWN, None, said)
        if len(here) < len(backends):
            return self._says(Holding.UNKNOWN, None, Phrase("%(what)s is connected to another database", what=what))
        if not here:
            return self._says(Holding.RELEASED, seen_at, Phrase("there is no %(what)s", what=what))
        return self._another(what, known)

    def _another(self, what: str, known: "Sequence[tuple[_Backend, datetime, Holding]]") -> Evidence:
        """Tell that all backends of this number or name began later than the job."""
        _, began_at, _ = min(known, key=lambda one: one[1])
        if all(holding is Holding.RELEASED for _, _, holding in known):
            return self._says(Holding.RELEASED, began_at, say_another(what, began_at))
        return self._says(Holding.UNKNOWN, None, say_unclear(what, began_at))

    def _says(self, holding: Holding, at: datetime | None, value: str) -> Evidence:
        return Evidence(witness=self.name, holding=holding, at=at, value=value)


@dataclass(frozen=True, slots=True)
class _Backend:
    """A connection; what is hidden of it is None."""

    pid: int
    application_name: str | None
    backend_start: datetime | None
    state_change: datetime | None
    here: bool | None
    sees_all: bool

    @property
    def began_at(self) -> datetime | None:
        """When it was made."""
        return AwareTime().read(self.backend_start)

    @property
    def state_changed_at(self) -> datetime | None:
        """When it last began or ended a statement."""
        return AwareTime().read(self.state_change)
