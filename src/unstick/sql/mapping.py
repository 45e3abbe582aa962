"""Which column of a jobs table means what, and what its words are.

`JobTable` is what a person declares; `MappedTable` is that declaration held against the real table.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from functools import cached_property
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import sqlalchemy as sa

from unstick.config import ColumnKey, SourceSettings, StateValue
from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.domain.suspect import Look
from unstick.domain.wording import Phrase
from unstick.presets.preset import Preset, before_names, fill, load_preset
from unstick.sql.dialects import Dialect
from unstick.sql.facts import table_facts
from unstick.sql.proposal import Doubt, propose
from unstick.sql.times import TimeForm

TIME_KEYS: tuple[ColumnKey, ...] = ("enqueued_at", "scheduled_at", "started_at", "heartbeat_at", "completed_at")
LEADING_TIMES: tuple[ColumnKey, ...] = ("started_at", "heartbeat_at", "enqueued_at", "scheduled_at")
"""The first of these that a table has comes after the state in the index that is advised."""
FENCE_KEYS: tuple[ColumnKey, ...] = (
    "state", "attempt", "token", "worker", "started_at", "heartbeat_at", "scheduled_at", "enqueued_at", "progress",
)  # fmt: skip
"""What a write must find as the look saw it, where the table has it."""

_WRITTEN_KEYS: frozenset[ColumnKey] = frozenset({
    "state", "error", "success", "completed_at", "started_at", "heartbeat_at", "scheduled_at", "attempt", "token",
    "worker", "progress",
})  # fmt: skip
"""What a recovery or a worker writes in a job that is there already."""

LONGEST_MESSAGE = 255
"""No message by rule is longer; a narrower error column needs each message cut to fit."""

_EXACT_TYPES = (sa.Integer, sa.String, sa.Uuid, sa.Numeric, sa.DateTime, sa.Boolean)
"""Types whose values come back equal after a trip through JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class JobTable:
    """A jobs table as declared: names and words only, nothing read from a database yet.

    Args:
        name: the table's name.
        columns: Unstick's column keys and the table's own names; `id`, `state` and one time are required.
        states: Unstick's states and the table's own words; where one is written, the first.
        schema: the schema, where it isn't the connection's default.
        timezone: what naive times in it mean, as an IANA name.
        preset: the job system whose table it is, with what no column says.
        prefix: what stands before the names of that system's tables.
    """

    name: str
    columns: Mapping[ColumnKey, str]
    states: Mapping[JobState, tuple[StateValue, ...]]
    schema: str | None = None
    timezone: str = "UTC"
    preset: Preset | None = None
    prefix: str = ""

    @classmethod
    def from_model(
        cls,
        model: type[Any],
        *,
        columns: Mapping[ColumnKey, str | None] | None = None,
        states: Mapping[str, StateValue | tuple[StateValue, ...]] | None = None,
        timezone: str | None = None,
    ) -> Self:
        """Declare a SQLAlchemy model's table; what isn't told is guessed from its names.

        Args:
            model: a mapped class.
            columns: what the guess can't know or gets wrong; None says that the table has no such column.
            states: the model's words by Unstick's states, each one or several.
            timezone: what its naive times mean; UTC where nothing is said.

        Raises:
            ConfigurationError: the guess is in doubt; the message says what to pass.
        """
        told = {JobState(state): _several(words) for state, words in (states or {}).items()}
        table = sa.inspect(model).local_table
        proposal = propose(table_facts(table), columns=columns, states=told)
        doubts = [doubt.message for doubt in proposal.doubts if not _goes_without_saying(doubt)]
        if doubts:
            raise ConfigurationError(f"The mapping of {model.__name__} is in doubt. {' '.join(doubts)}")
        return cls(
            name=table.name,
            schema=table.schema,
            columns=proposal.columns,
            states=proposal.states,
            timezone=timezone or "UTC",
        )

    @classmethod
    def from_settings(cls, settings: SourceSettings) -> Self:
        """Declare what a `[sources.…]` section says; Unstick's own jobs table where it names none.

        Raises:
            ConfigurationError: there is no such preset, or it isn't for such a table, or the jobs are in no table.
        """
        if settings.is_behind_broker:
            raise ConfigurationError(
                "The jobs of this source are behind a broker, and this takes a jobs table: name a source that has one."
            )
        if settings.preset is not None:
            return cls.from_preset(load_preset(settings.preset), settings.table)
        if settings.table is None:
            return cls(name=_OWN_NAME, columns=_OWN_COLUMNS, states=_OWN_STATES)
        schema, _, name = settings.table.rpartition(".")
        return cls(
            name=name,
            schema=schema or None,
            columns=settings.columns,
            states=settings.states,
            timezone=settings.timezone,
        )

    @classmethod
    def from_preset(cls, preset: Preset, table: str | None = None) -> Self:
        """Declare a job system's table, which may have a schema or a prefix before its name."""
        schema, _, prefix = before_names(preset, table).rpartition(".")
        return cls(
            name=f"{prefix}{preset.table}",
            schema=schema or None,
            columns=preset.columns_by_name,
            states=preset.states,
            timezone=preset.timezone,
            preset=preset,
            prefix=prefix,
        )

    @property
    def computed(self) -> Mapping[ColumnKey, str]:
        """What no column says, as SQL."""
        return {} if self.preset is None else self.preset.computed

    @property
    def keys(self) -> frozenset[ColumnKey]:
        """What the table tells of a job."""
        return frozenset({*self.columns, *self.computed})

    @property
    def parted_by(self) -> tuple[ColumnKey, ...]:
        """What the primary key has besides the id, by which partitions go."""
        return () if self.preset is None or self.preset.parted_by is None else (self.preset.parted_by,)

    @property
    def full_name(self) -> str:
        """The name with its schema."""
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedTable:
    """A declared table held against the real one: typed columns, and what each can be asked."""

    declared: JobTable
    table: sa.Table
    dialect: Dialect
    times: Mapping[ColumnKey, TimeForm]
    leases: bool = False
    """Its `worker` may point at a lease in the same database, which then says whether the job is held."""
    plain: bool = True
    """It has no partitions and no children, so that an address is one row's."""
    triggered: bool = False
    """Triggers may change a row as it is written."""
    computed: Mapping[ColumnKey, sa.ColumnElement[Any]] = field(default_factory=dict)
    """What no column says."""
    read_only: str | None = None
    """Why nothing may be written to it."""
    look: Look | None = None
    """The look under which its jobs are judged, where more than their age has a say."""

    def judging(self, look: Look) -> "MappedTable":
        """Return this table as a look judges it."""
        return self if look.judges_all else replace(self, look=look)

    def has(self, key: ColumnKey) -> bool:
        """Tell whether the table says such a thing."""
        return key in self.declared.columns or key in self.computed

    def column(self, key: ColumnKey) -> sa.ColumnElement[Any]:
        """Return what says a thing: a real column, or what a preset computes."""
        return self.computed[key] if key in self.computed else self.stored(key)

    def columns(self, keys: Iterable[ColumnKey]) -> dict[ColumnKey, sa.ColumnElement[Any]]:
        """Return what says those things that the table says."""
        return {key: self.column(key) for key in keys if self.has(key)}

    def stored(self, key: ColumnKey) -> sa.Column[Any]:
        """Return the real column of a key; raise ConfigurationError where there is none to write to."""
        try:
            return self.table.c[self.declared.columns[key]]
        except KeyError:
            raise ConfigurationError(
                f"{self.declared.full_name} has no column of its own for {key!r}, which this needs."
            ) from None

    def told(self, sql: str, type_: sa.types.TypeEngine[Any], **places: str) -> sa.ColumnElement[Any]:
        """Return an expression that a preset tells, over a row of this table."""
        return _expression(sql, type_, {**places, **self.places})

    @cached_property
    def places(self) -> Mapping[str, str]:
        """What a preset's SQL may name of where its tables are."""
        return places_of(self.declared, self.dialect)

    def quoted(self, name: str) -> str:
        """Return a name as SQL writes it."""
        return self.dialect.sql.identifier_preparer.quote(name)

    @cached_property
    def looks_elsewhere(self) -> bool:
        """Tell whether other tables may have a say in what a write must find as it was seen."""
        return not self.fence.keys().isdisjoint(self.computed)

    def words(self, *states: JobState) -> list[StateValue]:
        """Return the table's own words for these states."""
        return [word for state in states for word in self.declared.states.get(state, ())]

    def word(self, state: JobState) -> StateValue:
        """Return the word written for a state; raise ConfigurationError where the mapping has none."""
        try:
            return self.declared.states[state][0]
        except (KeyError, IndexError):
            raise ConfigurationError(
                f"The mapping of {self.declared.full_name} has no word for {state.value!r}, so it can't be written; "
                f"name it under `states`."
            ) from None

    def nullable(self, key: ColumnKey) -> bool:
        """Tell whether a column can be emptied."""
        return bool(self.stored(key).nullable)

    def state_of(self, word: object) -> JobState | None:
        """Return Unstick's state for the table's own word, None where nobody mapped it.

        Blanks at the end and letter case don't count: some databases hold them equal when they compare.
        """
        return self._states_by_word.get(plain_word(word))

    @cached_property
    def _states_by_word(self) -> Mapping[str, JobState]:
        return {plain_word(word): state for state, words in self.declared.states.items() for word in words}

    @cached_property
    def fence(self) -> Mapping[ColumnKey, sa.ColumnElement[Any]]:
        """The columns a write is conditional on."""
        found = self.columns((*FENCE_KEYS, *self.declared.parted_by))
        return {key: column for key, column in found.items() if _is_exact(key, column)}

    @cached_property
    def judges(self) -> frozenset[JobState]:
        """The states in which this table's jobs can be judged by age."""
        queued = {"started_at", "enqueued_at", "scheduled_at"} & self.declared.keys
        running = {"started_at", "heartbeat_at"} & self.declared.keys
        judged = {JobState.QUEUED: queued, JobState.RUNNING: running}
        there = frozenset(state for state, by in judged.items() if by and self.words(state))
        return there if self.look is None else there & set(self.look.states)

    @cached_property
    def leading_time(self) -> ColumnKey:
        """The time by which an index leads to open jobs of a state, where there is the one that is advised."""
        return next(key for key in LEADING_TIMES if self.has(key))

    @cached_property
    def mixes_times(self) -> bool:
        """Tell whether the times a job is judged by are stored in different forms, and don't compare as they are."""
        return len({form for key, form in self.times.items() if key != "completed_at"}) > 1

    @cached_property
    def since_form(self) -> TimeForm:
        """The form of `statements.since_expression`."""
        judged = [form for key, form in self.times.items() if key != "completed_at"]
        return self.dialect.common_form if self.mixes_times else judged[0]

    @property
    def since_type(self) -> sa.types.TypeEngine[Any]:
        """The type of a value in that form."""
        return self.dialect.time_type(self.since_form)

    @cached_property
    def can_rule(self) -> bool:
        """Tell whether the database can say by itself what is written, and where.

        It needs times in UTC or brought to it, a wide enough error column, and rows that lie in one table.
        """
        narrow = self.error_length is not None and self.error_length < LONGEST_MESSAGE
        return self.declared.preset is None and self.plain and not narrow and self.since_form.is_utc

    @cached_property
    def error_length(self) -> int | None:
        """How many characters the error column takes, None where it doesn't say."""
        type_ = self.column("error").type if self.has("error") else None
        return type_.length if isinstance(type_, sa.String) else None

    @cached_property
    def newest_first(self) -> tuple[sa.ColumnElement[Any], str]:
        """The column whose index gives a bounded number of recent jobs, and how to say so."""
        key = self.stored("id")
        if isinstance(key.type, sa.Integer):
            return key, Phrase("newest by %(column)s", column=key.name)
        indexed = {index.columns[0].name for index in self.table.indexes if len(index.columns)}
        for time_key in ("enqueued_at", "started_at", "completed_at"):
            if self.declared.columns.get(time_key) in indexed:
                return self.column(time_key), Phrase("newest by %(column)s", column=self.declared.columns[time_key])
        return key, Phrase("a sample by %(column)s: no index tells which jobs are the newest", column=key.name)


_OWN_NAME = "jobs"
_OWN_COLUMNS: Mapping[ColumnKey, str] = {
    "id": "id",
    "state": "status",
    "kind": "job_type",
    "queue": "queue",
    "enqueued_at": "created_at",
    "scheduled_at": "scheduled_at",
    "started_at": "started_at",
    "heartbeat_at": "updated_at",
    "completed_at": "completed_at",
    "success": "success",
    "error": "error_message",
    "attempt": "attempt",
    "max_attempts": "max_attempts",
    "worker": "worker",
    "token": "token",
    "progress": "progress",
    "payload": "payload",
    "key": "idempotency_key",
}
_OWN_STATES: Mapping[JobState, tuple[StateValue, ...]] = {
    JobState.QUEUED: ("queued",),
    JobState.RUNNING: ("running",),
    JobState.SUCCEEDED: ("completed",),
    JobState.FAILED: ("failed",),
    JobState.SCHEDULED: ("scheduled",),
    JobState.CANCELLED: ("cancelled",),
}


def _several(words: StateValue | tuple[StateValue, ...]) -> tuple[StateValue, ...]:
    return words if isinstance(words, tuple) else (words,)


def _goes_without_saying(doubt: Doubt) -> bool:
    """Tell whether the documented default settles a doubt: naive times are UTC, `updated_at` is a sign of life."""
    return doubt.severity == "warning" and doubt.key in _SETTLED


_SETTLED = {"timezone", "heartbeat_at", "states", "states.queued", "states.running", "states.succeeded"}


def map_table(
    declared: JobTable,
    table: sa.Table,
    dialect: Dialect,
    *,
    leases: bool = False,
    plain: bool = True,
    triggered: bool = False,
) -> MappedTable:
    """Hold a declaration against the real table.

    Args:
        declared: names and words.
        table: the real table.
        dialect: its database.
        leases: Unstick's own table of leases is in the same database.
        plain: it has no partitions and no children.
        triggered: triggers may change a row as it is written.

    Raises:
        ConfigurationError: a column isn't there or can't mean what the mapping says.
    """
    _check_columns(declared, table)
    _check_shared(declared)
    zone = _zone(declared)
    times = {key: _time_form(declared, table, dialect, key, zone) for key in TIME_KEYS if key in declared.keys}
    leases = leases and "worker" in declared.columns and isinstance(table.c[declared.columns["worker"]].type, sa.String)
    mapped = MappedTable(
        declared=_typed_words(declared, table, dialect),
        table=table,
        dialect=dialect,
        times=times,
        leases=leases,
        plain=plain,
        triggered=triggered,
        computed=_computed(declared, dialect),
    )
    _check_key(mapped)
    _check_words(mapped)
    _check_success(mapped)
    _check_judged(mapped)
    _check_times(mapped)
    return mapped


def _computed(declared: JobTable, dialect: Dialect) -> dict[ColumnKey, sa.ColumnElement[Any]]:
    places = places_of(declared, dialect)
    return {key: _expression(sql, _computed_type(key, dialect), places) for key, sql in declared.computed.items()}


def _expression(sql: str, type_: sa.types.TypeEngine[Any], places: Mapping[str, str]) -> sa.ColumnElement[Any]:
    # In brackets, so that nothing around it binds closer than what is in it.
    return sa.type_coerce(text_clause(f"({sql})", places), type_)


def text_clause(sql: str, places: Mapping[str, str]) -> sa.TextClause:
    """Return a preset's SQL, of whose own colons none is a parameter."""
    return sa.text(fill(sql.replace(":", r"\:"), places))


def _computed_type(key: ColumnKey, dialect: Dialect) -> sa.types.TypeEngine[Any]:
    if key in TIME_KEYS:
        return dialect.time_type(dialect.common_form)
    return sa.BigInteger() if key in {"attempt", "max_attempts"} else sa.Text()


def places_of(declared: JobTable, dialect: Dialect) -> dict[str, str]:
    """Return what a preset's SQL may name of where its tables are, quoted: a database's own names may hold anything."""
    quote = dialect.sql.identifier_preparer.quote

    def name(own: str) -> str:
        whole = quote(own) if declared.schema is None else f"{quote(declared.schema)}.{quote(own)}"
        return whole.replace(":", r"\:")

    named = () if declared.preset is None else declared.preset.named
    return {"jobs": name(declared.name), **{f"schema.{own}": name(f"{declared.prefix}{own}") for own in named}}


def _check_columns(declared: JobTable, table: sa.Table) -> None:
    for key in ("id", "state"):
        if key not in declared.keys:
            raise ConfigurationError(f"The mapping of {declared.full_name} names no column for {key!r}.")
    for key, name in declared.columns.items():
        if name not in table.c:
            there = ", ".join(column.name for column in table.c if not column.system)
            raise ConfigurationError(
                f"Table {declared.full_name} has no column {name!r}, which the mapping names for {key!r}. "
                f"It has: {there}."
            )


def _check_shared(declared: JobTable) -> None:
    """Refuse two meanings of a column that is written: what is written for one would ruin the other.

    `started_at` and `enqueued_at` are no exception: a retry empties the one or sets it to now.
    """
    first: dict[str, ColumnKey] = {}
    for key, name in declared.columns.items():
        other = first.setdefault(name, key)
        if other != key and {other, key} & _WRITTEN_KEYS:
            raise ConfigurationError(
                f"The mapping of {declared.full_name} names column {name!r} for both {other!r} and {key!r}, and what "
                "is written for one would overwrite the other; leave one of them out."
            )


def _zone(declared: JobTable) -> tzinfo:
    if declared.timezone == "UTC":  # which needs no time zone database
        return UTC
    try:
        return ZoneInfo(declared.timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise ConfigurationError(
            f"The mapping of {declared.full_name} says timezone {declared.timezone!r}, which is no IANA name such as "
            f"'UTC' or 'Europe/Berlin'."
        ) from None


def _time_form(declared: JobTable, table: sa.Table, dialect: Dialect, key: ColumnKey, zone: tzinfo) -> TimeForm:
    if key not in declared.columns:
        return dialect.common_form
    column = table.c[declared.columns[key]]
    form = dialect.time_form(column, zone)
    if form is None:
        raise ConfigurationError(
            f"Column {column.name!r} of {declared.full_name} is {dialect.type_name(column.type)}, not a date and time, "
            f"so it can't be {key!r}; a preset of your own can compute it (docs/how-to/presets.md)."
        )
    return form


def _typed_words(declared: JobTable, table: sa.Table, dialect: Dialect) -> JobTable:
    """Give words from a file or the environment the form in which the state column's own compare with them."""
    if "state" not in declared.columns:
        return declared
    type_ = table.c[declared.columns["state"]].type
    if isinstance(type_, sa.CHAR) and dialect.name != "sqlite":  # which keeps such text as it came
        return replace(declared, states=_each_word(declared, _unpadded))
    if not isinstance(type_, sa.Integer):
        return declared
    try:
        return replace(declared, states=_each_word(declared, int))
    except ValueError:
        raise ConfigurationError(
            f"The states of {declared.full_name} are numbers, but the mapping names words for them."
        ) from None


def _each_word(declared: JobTable, form: Callable[[StateValue], StateValue]) -> dict[JobState, tuple[StateValue, ...]]:
    return {state: tuple(form(word) for word in words) for state, words in declared.states.items()}


def _unpadded(word: StateValue) -> str:
    """Leave out the blanks a CHAR column is filled up with: they don't count there, and elsewhere they do."""
    return str(word).rstrip(" ")


def plain_word(word: object) -> str:
    """Return a state's word without what some databases don't tell apart: letter case, and blanks at the end."""
    return str(word).rstrip().casefold()


def _check_key(mapped: MappedTable) -> None:
    key = mapped.stored("id")
    if not isinstance(key.type, sa.Integer | sa.String | sa.Uuid):
        raise ConfigurationError(
            f"Column {key.name!r} of {mapped.declared.full_name} is {mapped.dialect.type_name(key.type)}; "
            f"an id must be an integer, text or UUID."
        )
    unique = [set(index.columns.keys()) for index in mapped.table.indexes if index.unique]
    unique += [set(c.columns.keys()) for c in mapped.table.constraints if isinstance(c, sa.UniqueConstraint)]
    primary = set(mapped.table.primary_key.columns.keys())
    parted = {mapped.stored(each).name for each in mapped.declared.parted_by}
    if {key.name} not in [primary - parted, *unique]:
        raise ConfigurationError(
            f"Column {key.name!r} of {mapped.declared.full_name} is neither the primary key nor unique by itself, so a "
            f"write could hit another job; map `id` to one that is."
        )


def _check_words(mapped: MappedTable) -> None:
    taken: dict[str, JobState] = {}
    for state, words in mapped.declared.states.items():
        for word in words:
            other = taken.setdefault(plain_word(word), state)
            if other is not state:
                raise ConfigurationError(
                    f"The mapping of {mapped.declared.full_name} gives {word!r} two meanings: {other} and {state}."
                )
    known = getattr(mapped.column("state").type, "enums", None)
    unknown = [word for words in mapped.declared.states.values() for word in words if known and word not in known]
    if unknown:
        raise ConfigurationError(
            f"Column {mapped.declared.columns['state']!r} of {mapped.declared.full_name} can't hold {unknown[0]!r}; "
            f"it takes {', '.join(known or ())}."
        )


def _check_success(mapped: MappedTable) -> None:
    if mapped.has("success") and not isinstance(mapped.column("success").type, sa.Boolean | sa.Integer):
        column = mapped.stored("success")
        raise ConfigurationError(
            f"Column {column.name!r} of {mapped.declared.full_name} is {mapped.dialect.type_name(column.type)}; "
            f"`success` must be a boolean or an integer."
        )


def _check_judged(mapped: MappedTable) -> None:
    if not mapped.judges:
        raise ConfigurationError(
            f"The mapping of {mapped.declared.full_name} lets no job be judged: it needs the words for queued or "
            f"running jobs under `states`, and `enqueued_at`, `started_at` or `heartbeat_at` under `columns`."
        )


def _check_times(mapped: MappedTable) -> None:
    if mapped.mixes_times and mapped.dialect.name == "mysql":
        raise ConfigurationError(
            f"{mapped.declared.full_name} mixes TIMESTAMP columns, which are UTC, with DATETIME columns in "
            f"{mapped.declared.timezone}; MariaDB and MySQL can't be relied on to compare the two. Map only one kind."
        )


def _is_exact(key: ColumnKey, column: sa.ColumnElement[Any]) -> bool:
    if key in TIME_KEYS:
        return True
    return isinstance(column.type, _EXACT_TYPES) and not isinstance(column.type, sa.Float | sa.Double)
