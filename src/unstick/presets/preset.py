"""What a preset says: a job system's tables, its words, and how it is told that a job failed or is to run again.

SQL in a preset may name what is known only when it is used: `{jobs}`, the table of the jobs, for its columns
(`{jobs}.status`), and `{schema}`, right before the name of another table or a function of the system's. In a write
there are also `{id}`, `{state}`, `{reason}`, `{detail}`, `{now}` and `{due}`, both also for columns without a zone that
hold UTC (`{naive_now}`, `{naive_due}`), and `{stuck}` where the jobs that are written are read from.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from unstick.config import ColumnKey, Name, RegistrySettings, SourceSettings, StateValue, is_a_path, several_words
from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.domain.recovery import Action

Database = Literal["sqlite", "postgresql", "mysql"]

_PLACES = frozenset({"jobs", "schema"})
_WRITTEN = _PLACES | {"id", "state", "reason", "detail", "now", "due", "naive_now", "naive_due"}
_PLACE = re.compile(r"\{([a-z_]+)\}")
_OTHER = re.compile(r"\{schema\}(\w+)")
_NAMELESS = re.compile(r"\{schema\}(?!\w)")
_FILLED = re.compile(f"{_OTHER.pattern}|{_PLACE.pattern}")


def _names_only(known: frozenset[str]) -> AfterValidator:
    def check(sql: str) -> str:
        unknown = sorted(set(_PLACE.findall(sql)) - known)
        if unknown:
            raise ValueError(
                f"has {{{unknown[0]}}} in it; it may have {', '.join(f'{{{name}}}' for name in sorted(known))}"
            )
        if _NAMELESS.search(sql):
            raise ValueError("has {schema} in it without the name of a table or a function right after it")
        return sql

    return AfterValidator(check)


Sql = Annotated[Name, _names_only(_PLACES)]
"""SQL over a row of the jobs' table, or over none."""
Written = Annotated[Name, _names_only(_WRITTEN)]
"""SQL for a value that is written to one job."""
Statement = Annotated[Name, _names_only(_WRITTEN | {"stuck"})]
"""A whole statement about all jobs of a batch."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Computed(_Section):
    """What no column says, as SQL: text, a whole number for attempts, or an instant for a time."""

    sql: Sql


class SchemaVersion(_Section):
    """What tells one version of the system's tables from another; those that nobody has tried are only read."""

    sql: Sql
    """One value that names the version."""
    known: tuple[str, ...]


class Waiting(_Section):
    """Why a queued job isn't stuck, however long it waits."""

    reason: Literal["paused", "blocked"]
    sql: Sql
    """What it waits for, as text to follow a colon (`its queue mails is paused`); null where it doesn't."""


class Write(_Section):
    """How a job is marked failed, or queued again."""

    of: Literal["queued", "running"] | None = None
    """For jobs of this state alone."""
    set: dict[Name, Written]
    """What the job's row is to hold by the table's own names: written, or, where there is a `call`, left by it."""
    call: Statement | None = None
    """A statement that has the system's own function do it instead; each job's row must be as `set` says then."""
    each: tuple[Statement, ...] = ()
    """Statements on other tables, before the write, each of which must change one row for each job."""
    also: tuple[Statement, ...] = ()
    """Statements on other tables, before the write, which may change any number of rows."""
    wake: tuple[Statement, ...] = ()
    """What tells the system's workers of it, after the write."""

    def is_of(self, state: JobState) -> bool:
        """Tell whether it is for jobs of a state."""
        return self.of in (None, state.value)

    @property
    def is_undoable(self) -> bool:
        """Tell whether the jobs' rows are all that it changes."""
        return self.call is None and not self.each and not self.also


class Preset(_Section):
    """A job system's tables, for the SQL source to read."""

    system: Name
    """Its name as people write it."""
    databases: tuple[Database, ...]
    default_schema: Name | None = None
    """Where its tables are unless `table` of a source says otherwise; None is the connection's own schema."""
    table: Name
    columns: dict[ColumnKey, Name | Computed]
    states: dict[JobState, tuple[StateValue, ...]]
    parted_by: ColumnKey | None = None
    """What the table's primary key has besides `id`, for its partitions go by it, where ids are unique all the same."""
    open: Sql | None = None
    """A condition that an index serves, which holds for every job that isn't over."""
    timezone: str = "UTC"
    version: SchemaVersion | None = None
    registry: RegistrySettings | None = None
    """Its table of workers, without a schema."""
    waiting: tuple[Waiting, ...] = ()
    blocks: Sql | None = None
    """The ids of queued jobs that wait for a running one, as text (`4, 7`); null where none does."""
    fail: tuple[Write, ...] = ()
    retry: tuple[Write, ...] = ()

    @field_validator("table")
    @classmethod
    def _without_schema(cls, table: str) -> str:
        """A name is quoted whole, so that a schema in it would name nothing."""
        if "." in table:
            raise ValueError("must name the table alone; its schema is `default_schema`")
        return table

    @field_validator("states", mode="before")
    @classmethod
    def _one_or_several(cls, states: object) -> object:
        return several_words(states)

    @model_validator(mode="after")
    def _one_write_each(self) -> "Preset":
        """Refuse two ways of doing the same to a job, and none."""
        for name, writes in (("fail", self.fail), ("retry", self.retry)):
            told = [write.of for write in writes]
            if told and sorted(map(str, told)) not in (["None"], ["queued", "running"]):
                raise ValueError(f"must tell one `{name}`, or one for each of queued and running")
        return self

    def write(self, action: Action, state: JobState) -> Write | None:
        """Return how it is done to jobs of a state, None where the mapping tells all that is to be written."""
        told = {Action.MARK_FAILED: self.fail, Action.RETRY: self.retry}[action]
        return next((each for each in told if each.is_of(state)), None)

    @property
    def other_tables(self) -> frozenset[str]:
        """The system's tables besides that of the jobs, as far as they are named, without a schema."""
        return self.named if self.registry is None else self.named | {self.registry.table}

    @property
    def named(self) -> frozenset[str]:
        """What its SQL names besides the table of the jobs, without a schema: other tables, and functions."""
        return frozenset(_OTHER.findall(self.model_dump_json()))

    @property
    def columns_by_name(self) -> dict[ColumnKey, str]:
        """What is a column."""
        return {key: column for key, column in self.columns.items() if isinstance(column, str)}

    @property
    def computed(self) -> dict[ColumnKey, str]:
        """What is SQL."""
        return {key: column.sql for key, column in self.columns.items() if isinstance(column, Computed)}


def shipped() -> tuple[str, ...]:
    """Return the names of the presets that come with Unstick."""
    return tuple(sorted(file.name.removesuffix(".toml") for file in _files()))


@cache
def load_preset(name: str) -> Preset:
    """Read a preset: one of those that come with Unstick by its name, or a file by its path (`./our.toml`).

    Raises:
        ConfigurationError: there is none of that name, or the file says what no preset can.
    """
    if is_a_path(name):
        return _read(name, Path(name))
    file = next((file for file in _files() if file.name == f"{name}.toml"), None)
    if file is None:
        raise ConfigurationError(
            f"There is no preset {name!r}; there are: {', '.join(shipped())}. One of your own is named by its path, "
            "such as ./our.toml."
        )
    return _read(name, file)


def registry_of(settings: SourceSettings) -> RegistrySettings | None:
    """Return a source's table of workers: the one its section names, or else its preset's."""
    if settings.registry is not None or settings.preset is None:
        return settings.registry
    preset = load_preset(settings.preset)
    if preset.registry is None:
        return None
    before = before_names(preset, settings.table)
    return preset.registry.model_copy(update={"table": f"{before}{preset.registry.table}"})


def before_names(preset: Preset, table: str | None) -> str:
    """Return what stands before the names of a system's tables: a schema with its dot, a prefix, or both.

    Raises:
        ConfigurationError: the table isn't the preset's with something before it.
    """
    if table is None:
        return "" if preset.default_schema is None else f"{preset.default_schema}."
    if not table.endswith(preset.table):
        raise ConfigurationError(
            f"{table!r} is not the table of {preset.system}: with a preset, `table` names {preset.table!r} with the "
            f"schema or the prefix it has here, such as 'jobs.{preset.table}'."
        )
    return table.removesuffix(preset.table)


def fill(sql: str, places: Mapping[str, str]) -> str:
    """Put SQL in the places of a preset's; `{schema}` and the name after it are one place, called `schema.NAME`."""
    return _FILLED.sub(lambda match: places[f"schema.{match[1]}" if match[1] else match[2]], sql)


def _files() -> Iterator[Traversable]:
    return (file for file in files("unstick.presets").iterdir() if file.name.endswith(".toml"))


def _read(name: str, file: Path | Traversable) -> Preset:
    try:
        said: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The preset {name} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"The preset {name} is no TOML: {error}.") from None
    try:
        return Preset(**said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place, verdict = ".".join(str(step) for step in first["loc"]), first["msg"].removeprefix("Value error, ")
    raise ConfigurationError(f"The preset {name} can't be used: {f'`{place}`: ' if place else ''}{verdict}.")
