"""What differs between the databases, in one place."""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.engine import Dialect as SqlDialect
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.types import TypeEngine, UserDefinedType

from unstick.domain.errors import ConfigurationError
from unstick.sql.times import AwareTime, NaiveTime, TextTime, TimeForm

STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 5_000

Restore = Callable[[], Awaitable[object]]
Seen = Mapping[str, TypeEngine[Any]]
"""The names and types of the rows a batch hands to the database."""


class Dialect(ABC):
    """One database's way of doing what every source needs."""

    name: ClassVar[str]
    batch_size: int
    """Jobs a statement: large enough that round trips don't count, small enough that the host's writers don't wait."""
    one_statement: ClassVar[bool] = False
    """A batch is locked, changed and recorded in one statement."""
    settings_end_with_a_failure: ClassVar[bool] = False
    """What we set is undone by the rollback of whatever failed."""

    def __init__(self, compiled_for: SqlDialect) -> None:
        self.sql = compiled_for

    @abstractmethod
    async def enter(self, connection: AsyncConnection) -> datetime:
        """Bound what this transaction may cost the host, and return the database's clock."""

    @abstractmethod
    async def clock(self, connection: AsyncConnection) -> datetime:
        """Return the database's clock, and set nothing."""

    async def up_since(self, connection: AsyncConnection) -> datetime | None:
        """Return since when the database has been up, None where there is no server to ask."""
        del connection
        return None

    @abstractmethod
    def time_form(self, column: sa.Column[Any], zone: tzinfo) -> TimeForm | None:
        """Return how a column stores instants, or None where it doesn't."""

    @abstractmethod
    def rows(self, seen: Seen) -> sa.TextualSelect:
        """Return a select that yields the rows bound as JSON to `:unstick_seen`, under these names and types."""

    @abstractmethod
    def json_object(self, values: Mapping[str, sa.ColumnElement[Any]]) -> sa.ColumnElement[str]:
        """Return an expression for a JSON object as text."""

    @abstractmethod
    def json_rows(self, *values: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return an expression for a JSON array of arrays as text, one for each row of a group."""

    @abstractmethod
    def exact(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return a column as text that is compared to the letter, whatever its collation."""

    def as_name(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Return a column as text that can be looked up in an index of our own tables."""
        return self.exact(column)

    @abstractmethod
    def seconds_between(self, start: sa.ColumnElement[Any], end: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
        """Return the seconds from one time column to another."""

    def unindexed(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return a column for a condition that no index is to serve; only SQLite needs to be told."""
        return column

    def comparable(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return a value in a form that knows when two are equal; PostgreSQL's `json` alone doesn't."""
        return column

    def is_time(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Hold where a time column holds a time or nothing; some databases let it hold something else."""
        del column
        return sa.true()

    def without_zone(self, time: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return a time in UTC in a form that has no zone."""
        return time

    def is_held(self, error: DBAPIError) -> bool:
        """Tell whether a write found a row held by somebody and didn't wait any longer."""
        del error
        return False

    def is_slow(self, error: DBAPIError) -> bool:
        """Tell whether a statement took longer than a guest's may; half as many rows may take half as long."""
        del error
        return False

    def cast_type(self, type_: TypeEngine[Any]) -> TypeEngine[Any] | None:
        """Return a type to which a cast gives what a column of this type would give back, None where there is none."""
        del type_
        return None

    def keeps_waiting(self, error: DBAPIError) -> bool:
        """Tell whether a read was given up for waiting too long, for somebody's lock or for its own end."""
        return self.is_held(error) or self.is_slow(error)

    def forbids(self, error: DBAPIError) -> bool:
        """Tell whether the role may not do what it tried."""
        del error
        return False

    def is_text(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Hold where a text column holds text or nothing; only SQLite's can hold anything else."""
        del column
        return sa.true()

    @property
    @abstractmethod
    def common_form(self) -> TimeForm:
        """The form that times of different forms are brought to."""

    @abstractmethod
    def in_utc(self, expression: sa.ColumnElement[Any], form: TimeForm) -> sa.ColumnElement[Any]:
        """Bring a time to the common form."""

    @abstractmethod
    def time_type(self, form: TimeForm) -> TypeEngine[Any]:
        """Return the type of values in a form."""

    @abstractmethod
    def said(self, since: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Say a time in UTC to the second, as `say_instant` does."""

    @abstractmethod
    def refuses_row(self, error: DBAPIError) -> bool:
        """Tell whether a single row's content caused an error: a constraint, a trigger, a value too long.

        What is transient is never a row's fault.
        """

    async def borrow(self, connection: AsyncConnection) -> Restore:
        """Set a host's own connection up for our work, and return what puts it back."""
        del connection
        return _nothing_to_restore

    async def check_each_row(self, connection: AsyncConnection) -> None:
        """Have constraints checked row by row, where they could be put off until the commit."""
        del connection

    async def take_write_lock(self, connection: AsyncConnection) -> None:
        """Take a database-wide write lock before the first read, where the database has only such a lock."""
        del connection

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """Tell whether what was written can be taken back."""
        raw = (await connection.get_raw_connection()).dbapi_connection
        return raw is not None and not self.sql.detect_autocommit_setting(raw)

    def is_transient(self, error: DBAPIError) -> bool:
        """Tell whether the same transaction may well succeed if it is tried again."""
        del error
        return False

    def type_name(self, type_: TypeEngine[Any]) -> str:
        """Return a type's name in SQL."""
        return self.sql.type_compiler_instance.process(type_)


class PostgresDialect(Dialect):
    """PostgreSQL: one statement a batch."""

    name = "postgresql"
    batch_size = 5_000
    one_statement = True
    settings_end_with_a_failure = True

    _ROW_CLASSES = ("0A", "21", "22", "23", "27", "2F", "38", "39", "44", "54", "P0")
    """SQLSTATE classes a single row can cause: data, constraints, and whatever a trigger of its table runs into."""
    _SERVERS_FAULT = ("53", "55", "57", "58", "72")
    _TRANSIENT = ("40001", "40P01")

    async def borrow(self, connection: AsyncConnection) -> Restore:
        """Note the limits in force: the transaction that ours end with may be the host's, and longer than our work."""
        theirs = (await connection.execute(_POSTGRES_LIMITS)).mappings().one()

        async def restore() -> object:
            return await connection.execute(_POSTGRES_RESTORE, dict(theirs))

        return restore

    async def enter(self, connection: AsyncConnection) -> datetime:
        """Set what a guest goes by for this transaction only, and read the clock in the same round trip."""
        row = (await connection.execute(_POSTGRES_ENTER)).one()
        return AwareTime().read(row[0]) or _no_clock()

    async def clock(self, connection: AsyncConnection) -> datetime:
        """Read it."""
        return (
            AwareTime().read((await connection.execute(sa.text("SELECT statement_timestamp()"))).scalar())
            or _no_clock()
        )

    async def up_since(self, connection: AsyncConnection) -> datetime | None:
        """Return when the server started."""
        return AwareTime().read((await connection.execute(sa.text("SELECT pg_postmaster_start_time()"))).scalar())

    async def check_each_row(self, connection: AsyncConnection) -> None:
        """Check deferred constraints at once, within this transaction."""
        await connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))

    def time_form(self, column: sa.Column[Any], zone: tzinfo) -> TimeForm | None:
        """Return the form by the column's own type."""
        if not isinstance(column.type, sa.DateTime):
            return None
        return AwareTime() if column.type.timezone else NaiveTime(zone)

    def rows(self, seen: Seen) -> sa.TextualSelect:
        """Expand JSON arrays by position."""
        fields = ", ".join(
            f'{self._field(place, type_)} AS "{name}"' for place, (name, type_) in enumerate(seen.items())
        )
        return _textual(f"SELECT {fields} FROM jsonb_array_elements(CAST(:unstick_seen AS jsonb)) AS s(value)", seen)

    def _field(self, place: int, type_: TypeEngine[Any]) -> str:
        if not isinstance(type_, sa.ARRAY):
            return f"CAST(value ->> {place} AS {self.type_name(type_)})"
        # An array is an array in JSON, too, which no cast takes for one.
        expand = "jsonb_array_elements" if isinstance(type_.item_type, sa.JSON) else "jsonb_array_elements_text"
        items = f"SELECT e FROM {expand}(value -> {place}) WITH ORDINALITY AS items(e, n) ORDER BY n"
        array = f"CAST(ARRAY({items}) AS {self.type_name(type_)})"
        return f"CASE jsonb_typeof(value -> {place}) WHEN 'array' THEN {array} END"

    def json_object(self, values: Mapping[str, sa.ColumnElement[Any]]) -> sa.ColumnElement[str]:
        """Build the object."""
        return sa.cast(sa.func.json_build_object(*_pairs(values)), sa.Text)

    def json_rows(self, *values: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Build the rows."""
        return sa.cast(sa.func.json_agg(sa.func.json_build_array(*values)), sa.Text)

    def exact(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Leave types and collations with comparisons of their own behind, such as citext."""
        return sa.cast(column, sa.Text).collate("C")

    def as_name(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Keep to the database's collation, which is that of our own tables' indexes."""
        return sa.cast(column, sa.Text)

    def seconds_between(self, start: sa.ColumnElement[Any], end: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
        """Subtract."""
        return sa.cast(sa.extract("epoch", end - start), sa.Double)

    def comparable(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Compare JSON by what it says, not by how it is spelt."""
        plain = isinstance(column.type, sa.JSON) and not isinstance(column.type, postgresql.JSONB)
        return sa.cast(column, postgresql.JSONB) if plain else column

    def is_time(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Leave out minus infinity and times before Christ, which Python doesn't know."""
        return sa.or_(column.is_(None), column > sa.literal_column("'0001-01-02'"))

    def without_zone(self, time: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Bring aware times to UTC."""
        aware = isinstance(time.type, sa.DateTime) and time.type.timezone
        return sa.func.timezone(sa.literal("UTC", sa.Text), time, type_=sa.DateTime()) if aware else time

    def is_held(self, error: DBAPIError) -> bool:
        """A lock that wasn't to be had in time."""
        return _sqlstate(error) == "55P03"

    def cast_type(self, type_: TypeEngine[Any]) -> TypeEngine[Any] | None:
        """Any type does."""
        return type_

    def is_slow(self, error: DBAPIError) -> bool:
        """The statement timeout, and no administrator's cancellation."""
        return _sqlstate(error) == "57014" and "statement timeout" in str(error.orig)

    def forbids(self, error: DBAPIError) -> bool:
        """Insufficient privilege."""
        return _sqlstate(error) == "42501"

    @property
    def common_form(self) -> TimeForm:
        """Aware."""
        return AwareTime()

    def in_utc(self, expression: sa.ColumnElement[Any], form: TimeForm) -> sa.ColumnElement[Any]:
        """Read a naive time in the zone it means."""
        if isinstance(form, NaiveTime):
            return sa.func.timezone(sa.literal(str(form.zone), sa.Text), expression, type_=sa.DateTime(timezone=True))
        return expression

    def time_type(self, form: TimeForm) -> TypeEngine[Any]:
        """With or without a zone."""
        return sa.DateTime(timezone=isinstance(form, AwareTime))

    def said(self, since: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Write it out."""
        return sa.func.to_char(self.without_zone(since), sa.literal("YYYY-MM-DD HH24:MI:SS", sa.Text), type_=sa.Text)

    def refuses_row(self, error: DBAPIError) -> bool:
        """Judge by SQLSTATE."""
        code = _sqlstate(error)
        if code == "42501":  # a policy or a trigger says so of a row; of the table it is nobody's fault but the role's
            return "row-level security" in str(error.orig) or _is_from_a_function(error)
        user_defined = len(code) == _SQLSTATE_LENGTH and (code[0] in "56789" or code[0] in "IJKLMNOQRSTUVWYZ")
        return code[:2] in self._ROW_CLASSES or (user_defined and code[:2] not in self._SERVERS_FAULT)

    def is_transient(self, error: DBAPIError) -> bool:
        """Serialization failures and deadlocks."""
        return _sqlstate(error) in self._TRANSIENT


class MysqlDialect(Dialect):
    """MariaDB 10.6 and later, and what MySQL 8 shares with it."""

    name = "mysql"
    batch_size = 1_000

    _NOT_A_ROWS_FAULT = frozenset({
        1020, 1040, 1044, 1045, 1053, 1054, 1064, 1102, 1142, 1143, 1146, 1158, 1159, 1160, 1161, 1180, 1192, 1205,
        1213, 1227, 1267, 1290, 1317, 1412, 1792, 1969, 2006, 2013, 2014, 2055, 3024,
    })  # fmt: skip
    """Access, unknown names, syntax, timeouts, deadlocks, lost connections: no single row causes these."""

    async def borrow(self, connection: AsyncConnection) -> Restore:
        """Read TIMESTAMP columns as UTC, and wait no longer than a guest may, while we work."""
        version = str((await connection.execute(sa.text("SELECT VERSION()"))).scalar_one())
        ours = mysql_guest_settings(version)
        names = ", ".join(f"@@session.{name}" for name in ours)
        theirs = (await connection.execute(sa.text(f"SELECT {names}"))).one()
        assign = sa.text("SET " + ", ".join(f"{name} = :{name}" for name in ours))
        await connection.execute(assign, ours)

        async def restore() -> object:
            return await connection.execute(assign, dict(zip(ours, theirs, strict=True)))

        return restore

    async def enter(self, connection: AsyncConnection) -> datetime:
        """Read the clock; the limits were set with the connection."""
        return await self.clock(connection)

    async def up_since(self, connection: AsyncConnection) -> datetime | None:
        """Return when the server started, by its own count of seconds."""
        uptime = (await connection.execute(sa.text("SHOW GLOBAL STATUS LIKE 'Uptime'"))).one()
        # Cut to whole seconds it may say one too late, and a pass just after the start would seem to be before it.
        return await self.clock(connection) - timedelta(seconds=int(uptime[1]) + 1)

    async def clock(self, connection: AsyncConnection) -> datetime:
        """Read it in UTC, whatever the session's zone."""
        raw = (await connection.execute(sa.text("SELECT UTC_TIMESTAMP(6)"))).scalar_one()
        return NaiveTime(UTC).read(raw) or _no_clock()

    def time_form(self, column: sa.Column[Any], zone: tzinfo) -> TimeForm | None:
        """TIMESTAMP is an instant that our sessions read as UTC; DATETIME means what the mapping says."""
        if isinstance(column.type, sa.TIMESTAMP):
            return NaiveTime(UTC)
        return NaiveTime(zone) if isinstance(column.type, sa.DateTime) else None

    def rows(self, seen: Seen) -> sa.TextualSelect:
        """Expand JSON arrays by position."""
        definitions = ", ".join(
            f"`{name}` {self._row_type(type_)} PATH '$[{i}]'" for i, (name, type_) in enumerate(seen.items())
        )
        return _textual(f"SELECT * FROM JSON_TABLE(:unstick_seen, '$[*]' COLUMNS ({definitions})) AS s", seen)

    def is_time(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Leave out dates with zeros in them, whose age is NULL."""
        return sa.or_(column.is_(None), sa.and_(sa.func.month(column) > 0, sa.func.dayofmonth(column) > 0))

    def _row_type(self, type_: TypeEngine[Any]) -> str:
        if isinstance(type_, sa.DateTime):
            return "DATETIME(6)"
        if isinstance(type_, sa.Integer):
            return "BIGINT UNSIGNED" if getattr(type_, "unsigned", False) else "BIGINT"
        if isinstance(type_, sa.Numeric):
            return self.type_name(type_)
        # What doesn't fit would be cut without a word, and be written so.
        length = getattr(type_, "length", None) if isinstance(type_, sa.String) else 0
        fits = length is not None and length <= _MYSQL_ROW_LENGTH
        text = f"VARCHAR({_MYSQL_ROW_LENGTH})" if fits else "LONGTEXT"
        collation = getattr(type_, "collation", None)
        if collation is not None:  # what is compared must be of one collation
            return f"{text} CHARACTER SET {collation.partition('_')[0]} COLLATE {collation}"
        return text

    def json_object(self, values: Mapping[str, sa.ColumnElement[Any]]) -> sa.ColumnElement[str]:
        """Build the object."""
        return sa.func.json_object(*_pairs(values), type_=sa.Text)

    def json_rows(self, *values: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Build the rows."""
        return sa.func.json_arrayagg(sa.func.json_array(*values), type_=sa.Text)

    def exact(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Compare by code point, as the binary collation of the widest character set does."""
        return sa.func.convert(column.op("USING")(sa.text("utf8mb4")), type_=sa.Text).collate("utf8mb4_bin")

    def seconds_between(self, start: sa.ColumnElement[Any], end: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
        """Subtract."""
        microseconds = sa.func.timestampdiff(sa.text("MICROSECOND"), start, end)
        return sa.type_coerce(sa.cast(microseconds, sa.Double) / sa.literal(1e6, sa.Double), sa.Double)

    @property
    def common_form(self) -> TimeForm:
        """Naive UTC."""
        return NaiveTime(UTC)

    def in_utc(self, expression: sa.ColumnElement[Any], form: TimeForm) -> sa.ColumnElement[Any]:
        """Leave it as it is: a mapping that would need it is refused."""
        del form
        return expression

    def time_type(self, form: TimeForm) -> TypeEngine[Any]:
        """To the microsecond."""
        del form
        return mysql.DATETIME(fsp=6)

    def said(self, since: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Write it out."""
        return sa.func.date_format(since, sa.literal("%Y-%m-%d %H:%i:%S", sa.Text), type_=sa.Text)

    def refuses_row(self, error: DBAPIError) -> bool:
        """Judge by error number: SIGNAL and CHECK arrive as operational errors here."""
        return isinstance(error, IntegrityError | DataError) or _errno(error) not in self._NOT_A_ROWS_FAULT

    def cast_type(self, type_: TypeEngine[Any]) -> TypeEngine[Any] | None:
        """Times do, with their fraction; nothing can be cast to a TIMESTAMP."""
        return mysql.DATETIME(fsp=type_.fsp) if isinstance(type_, mysql.DATETIME | mysql.TIMESTAMP) else None

    def keeps_waiting(self, error: DBAPIError) -> bool:
        """A metadata or row lock that wasn't to be had in time, or a statement that took too long."""
        return _errno(error) == _MYSQL_LOCK_WAIT or self.is_slow(error)

    def is_slow(self, error: DBAPIError) -> bool:
        """MariaDB's and MySQL's own limits on a statement's time."""
        return _errno(error) in {1969, 3024}

    def forbids(self, error: DBAPIError) -> bool:
        """Of a database, a table or a column."""
        return _errno(error) in {1044, 1142, 1143}

    def is_transient(self, error: DBAPIError) -> bool:
        """Deadlocks, and MariaDB's record-changed-since-last-read."""
        return _errno(error) in {1020, 1213}


class SqliteDialect(Dialect):
    """SQLite 3.38 and later."""

    name = "sqlite"
    batch_size = 1_000

    async def take_write_lock(self, connection: AsyncConnection) -> None:
        """Write nothing, as the first statement: a read first would make the later write fail as too old (K7)."""
        await connection.execute(sa.text("UPDATE unstick_audit SET repeats = repeats WHERE 1 = 0"))

    async def is_in_transaction(self, connection: AsyncConnection) -> bool:
        """Ask the driver, after the first write: the mode it is in says nothing, for a host may begin by hand."""
        raw: Any = (await connection.get_raw_connection()).driver_connection
        return bool(raw.in_transaction)

    def keeps_waiting(self, error: DBAPIError) -> bool:
        """A file that somebody has to themselves for longer than the busy timeout."""
        return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY

    async def enter(self, connection: AsyncConnection) -> datetime:
        """Read the clock."""
        return await self.clock(connection)

    async def clock(self, connection: AsyncConnection) -> datetime:
        """Read it: it is the machine's, as the database tells it."""
        raw = (await connection.execute(sa.text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')"))).scalar_one()
        return TextTime(NaiveTime(UTC)).read(raw) or _no_clock()

    def time_form(self, column: sa.Column[Any], zone: tzinfo) -> TimeForm | None:
        """Any column that isn't declared a number may hold text times."""
        if isinstance(column.type, sa.Integer | sa.Float | sa.Boolean | sa.LargeBinary):
            return None
        return TextTime(NaiveTime(zone))

    def rows(self, seen: Seen) -> sa.TextualSelect:
        """Expand JSON arrays by position."""
        fields = ", ".join(f'{self._field(i, type_)} AS "{name}"' for i, (name, type_) in enumerate(seen.items()))
        return _textual(f"SELECT {fields} FROM json_each(:unstick_seen)", seen)

    def _field(self, place: int, type_: TypeEngine[Any]) -> str:
        value = f"json_extract(value, '$[{place}]')"
        # A decimal comes as text, and text equals no number where the column's own affinity isn't asked.
        return f"CAST({value} AS NUMERIC)" if isinstance(type_, sa.Numeric) else value

    def json_object(self, values: Mapping[str, sa.ColumnElement[Any]]) -> sa.ColumnElement[str]:
        """Build the object."""
        return sa.func.json_object(*_pairs(values), type_=sa.Text)

    def json_rows(self, *values: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Build the rows."""
        return sa.func.json_group_array(sa.func.json_array(*values), type_=sa.Text)

    def exact(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Compare byte by byte."""
        return sa.type_coerce(column, sa.Text).collate("BINARY")

    def seconds_between(self, start: sa.ColumnElement[Any], end: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
        """Subtract."""
        return (sa.func.julianday(end) - sa.func.julianday(start)) * sa.literal(86_400.0, sa.Double)

    def unindexed(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Write `+column`, which SQLite serves from no index."""
        return UnaryExpression(column, operator=custom_op("+"), type_=column.type)

    def is_time(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Take only text that begins like a date: SQLite itself reads numbers and times of day as instants, too.

        GLOB alone takes bytes for the text that they spell, unless SQLite was built with LIKE_DOESNT_MATCH_BLOBS,
        as Debian's is: no test notices there.
        """
        raw = sa.type_coerce(column, sa.String)
        dated = raw.op("GLOB")("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*")
        return sa.or_(raw.is_(None), sa.and_(sa.func.typeof(raw) == "text", dated))

    @property
    def common_form(self) -> TimeForm:
        """Text in UTC."""
        return TextTime(NaiveTime(UTC))

    def in_utc(self, expression: sa.ColumnElement[Any], form: TimeForm) -> sa.ColumnElement[Any]:
        """Leave text as it is: one mapping has one zone here."""
        del form
        return expression

    def time_type(self, form: TimeForm) -> TypeEngine[Any]:
        """Text."""
        del form
        return sa.String()

    def said(self, since: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
        """Write it out."""
        return sa.func.strftime("%Y-%m-%d %H:%M:%S", since, type_=sa.Text)

    def refuses_row(self, error: DBAPIError) -> bool:
        """Constraints and RAISE(ABORT) are both integrity errors here; bytes where text belongs are not."""
        return isinstance(error, IntegrityError) or "JSON cannot hold BLOB values" in str(error.orig)

    def is_text(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Ask for the value's own type."""
        return sa.func.typeof(sa.type_coerce(column, sa.String)).in_(("text", "null"))


class Address(UserDefinedType[str]):
    """Where PostgreSQL keeps a version of a row (`tid`)."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name."""
        return "tid"


_SQLSTATE_LENGTH = 5
_DIALECTS: tuple[type[Dialect], ...] = (PostgresDialect, MysqlDialect, SqliteDialect)
_POSTGRES_ENTER = sa.text(
    "SELECT statement_timestamp(),"
    f" set_config('statement_timeout', '{STATEMENT_TIMEOUT_MS}', true),"
    f" set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true),"
    # Our statements are many conditions over few rows: compiling one takes a hundred times as long as running it. It is
    # done by the threshold, for asyncpg sets `jit` itself and would leave it off for good.
    " set_config('jit_above_cost', '-1', true)"
)
_POSTGRES_LIMITS = sa.text(
    "SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,"
    " current_setting('jit_above_cost') AS compile"
)
_POSTGRES_RESTORE = sa.text(
    "SELECT set_config('statement_timeout', CAST(:statement AS text), true),"
    " set_config('lock_timeout', CAST(:lock AS text), true),"
    " set_config('jit_above_cost', CAST(:compile AS text), true)"
)


def mysql_guest_settings(version: str) -> dict[str, str | float]:
    """Return the session settings of a guest; MariaDB and MySQL bound a statement by different ones."""
    lock_seconds = LOCK_TIMEOUT_MS // 1000
    settings: dict[str, str | float] = {
        "time_zone": "+00:00",
        "innodb_lock_wait_timeout": lock_seconds,
        "lock_wait_timeout": lock_seconds,
        "group_concat_max_len": 2**30,  # MariaDB cuts JSON arrays off there, too, and says nothing
    }
    if "MariaDB" in version:
        return settings | {"max_statement_time": STATEMENT_TIMEOUT_MS / 1000}
    return settings | {"max_execution_time": STATEMENT_TIMEOUT_MS}


def dialect_for(compiled_for: SqlDialect) -> Dialect:
    """Return our side of a SQLAlchemy dialect.

    Raises:
        ConfigurationError: the database isn't supported.
    """
    for known in _DIALECTS:
        if known.name == ("mysql" if compiled_for.name == "mariadb" else compiled_for.name):
            return known(compiled_for)
    raise ConfigurationError(f"{compiled_for.name} isn't supported; SQLite, PostgreSQL and MariaDB/MySQL are.")


def _textual(statement: str, seen: Seen) -> sa.TextualSelect:
    return sa.text(statement).columns(*(sa.column(name, type_) for name, type_ in seen.items()))


def _pairs(values: Mapping[str, sa.ColumnElement[Any]]) -> list[Any]:
    return [part for name, value in values.items() for part in (_written_out(name), value)]


def _written_out(name: str) -> sa.ColumnElement[str]:
    """Return a name as part of the statement's text, in the dialect's own quoting."""
    return sa.literal(name, sa.String(), literal_execute=True)


def _sqlstate(error: DBAPIError) -> str:
    """Return the SQLSTATE, which psycopg has on its errors and asyncpg on the one beneath its adapter's."""
    for candidate in (error.orig, getattr(error.orig, "__cause__", None)):
        code = getattr(candidate, "sqlstate", None)
        if isinstance(code, str):
            return code
    return ""


def _is_from_a_function(error: DBAPIError) -> bool:
    """Tell whether PostgreSQL names a function an error came from."""
    cause = getattr(error.orig, "__cause__", None)
    return bool(getattr(getattr(error.orig, "diag", None), "context", None) or getattr(cause, "context", None))


def _errno(error: DBAPIError) -> int:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


_MYSQL_LOCK_WAIT = 1205
_MYSQL_ROW_LENGTH = 1024


async def _nothing_to_restore() -> None:
    """Leave the connection as it is."""


def _no_clock() -> datetime:
    raise ConfigurationError("The database didn't tell its time.")
