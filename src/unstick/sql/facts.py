"""What a SQLAlchemy table, declared or reflected, tells of itself."""

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeEngine

from unstick.config import StateValue
from unstick.sql.proposal import ColumnFacts, ColumnKind, IndexFacts, TableFacts

_KINDS: tuple[tuple[type[TypeEngine[Any]] | tuple[type[TypeEngine[Any]], ...], ColumnKind], ...] = (
    (sa.Enum, "text"),
    (sa.Boolean, "boolean"),
    (sa.Integer, "integer"),
    ((sa.Numeric, sa.Float), "number"),
    (sa.DateTime, "naive_time"),
    (sa.Date, "date"),
    (sa.Uuid, "uuid"),
    (sa.JSON, "json"),
    (sa.String, "text"),
    (sa.LargeBinary, "binary"),
)


def table_facts(table: sa.Table, dialect: str | None = None) -> TableFacts:
    """Return what a SQLAlchemy table, declared or reflected, tells of itself."""
    alone_unique = unique_alone(table)
    return TableFacts(
        name=table.name,
        schema=table.schema,
        columns=tuple(_column_facts(column, alone_unique, dialect) for column in table.columns),
        indexes=tuple(_index_facts(index) for index in sorted(table.indexes, key=lambda index: str(index.name))),
    )


def _column_facts(column: sa.Column[Any], alone_unique: frozenset[str], dialect: str | None) -> ColumnFacts:
    return ColumnFacts(
        name=column.name,
        kind=_kind(column.type, dialect),
        nullable=bool(column.nullable),
        primary_key=column.primary_key,
        unique=column.name in alone_unique,
        values=_declared_values(column),
        closed=bool(_declared_values(column)),
    )


def _kind(type_: TypeEngine[Any], dialect: str | None) -> ColumnKind:
    inner = underlying(type_)
    if isinstance(inner, mysql.TINYINT) and inner.display_width == 1:
        return "boolean"
    if isinstance(inner, sa.DateTime) and (inner.timezone or _is_instant(inner, dialect)):
        return "time"
    return next((kind for types, kind in _KINDS if isinstance(inner, types)), "other")


def underlying(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type that a domain or a decorator is made from."""
    if isinstance(type_, postgresql.DOMAIN):
        return underlying(type_.data_type)
    if isinstance(type_, sa.TypeDecorator) and not isinstance(type_, sa.Interval):
        return underlying(type_.impl_instance)
    return type_


def _is_instant(type_: sa.DateTime, dialect: str | None) -> bool:
    # MariaDB keeps a TIMESTAMP in UTC and gives it in the session's zone, which ours sets.
    return dialect in {"mysql", "mariadb"} and isinstance(type_, sa.TIMESTAMP)


def _declared_values(column: sa.Column[Any]) -> tuple[StateValue, ...]:
    type_ = underlying(column.type)
    if isinstance(type_, sa.Enum):
        return tuple(type_.enums)
    checks = (c for c in column.table.constraints if isinstance(c, sa.CheckConstraint))
    return next((words for check in checks if (words := _allowed(column.name, str(check.sqltext)))), ())


def _allowed(column: str, check: str) -> tuple[str, ...]:
    """Return the words a check constraint allows, where that is all it says of this column."""
    words = re.findall(r"'((?:[^']|'')*)'", check)
    bare = re.sub(r"'(?:[^']|'')*'", "?", check).lower()
    bare = re.sub(r"::[a-z ]+", "", bare)
    bare = re.sub(r'[\s()\[\]"`,]', "", bare)
    listed = "?" * len(words)
    said = (f"{column.lower()}in{listed}", f"{column.lower()}=anyarray{listed}")
    return tuple(word.replace("''", "'") for word in words) if words and bare in said else ()


def unique_alone(table: sa.Table) -> frozenset[str]:
    """Return the columns that are unique by themselves."""
    keys = [table.primary_key, *(c for c in table.constraints if isinstance(c, sa.UniqueConstraint))]
    held = [[column.name for column in key.columns] for key in keys]
    facts = [_index_facts(index) for index in table.indexes if index.unique]
    held += [list(index.columns) for index in facts if index.where is None]
    return frozenset(columns[0] for columns in held if len(columns) == 1)


def _index_facts(index: sa.Index) -> IndexFacts:
    options = index.dialect_options
    where = next((w for name in ("postgresql", "sqlite") if (w := options[name].get("where")) is not None), None)
    return IndexFacts(
        name=str(index.name),
        columns=tuple(e.name if isinstance(e, sa.Column) else str(e) for e in index.expressions),
        stored=tuple(str(name) for name in options["postgresql"].get("include") or ()),
        where=None if where is None else str(where),
    )
