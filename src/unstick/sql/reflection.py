"""What a database really has: its jobs table's columns, types and keys, read once an engine."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.errors import ConfigurationError
from unstick.presets.preset import Preset, SchemaVersion
from unstick.sql import tables
from unstick.sql.connections import Connections
from unstick.sql.dialects import Address
from unstick.sql.engine import shown_url
from unstick.sql.mapping import JobTable, MappedTable, map_table, text_clause

_known: WeakKeyDictionary[sa.Engine, WeakKeyDictionary[JobTable, MappedTable]] = WeakKeyDictionary()


async def mapped_table(connections: Connections, connection: AsyncConnection, declared: JobTable) -> MappedTable:
    """Hold a declaration against the database's real table; what was read once is kept with the engine.

    Raises:
        ConfigurationError: the table isn't there, or the mapping doesn't fit it.
    """
    mapped = await _mapped(connections, connection, declared)
    preset = declared.preset
    if preset is None or preset.version is None:
        return mapped
    return replace(mapped, read_only=await unknown_version(connection, preset, preset.version, mapped.places))


async def unknown_version(
    connection: AsyncConnection, preset: Preset, version: SchemaVersion, places: Mapping[str, str]
) -> str | None:
    """Say that nobody has tried the version of a system's tables, by which a write could do anything."""
    found = str((await connection.execute(text_clause(version.sql, places))).scalar())
    if found in version.known:
        return None
    return (
        f"its tables of {preset.system} are of version {found}, and those that Unstick knows are "
        f"{', '.join(version.known)}."
    )


async def _mapped(connections: Connections, connection: AsyncConnection, declared: JobTable) -> MappedTable:
    known = _known.setdefault(connections.engine, WeakKeyDictionary())
    if declared not in known:
        table = await connection.run_sync(_reflect, declared)
        leases = await connection.run_sync(lambda sync: sa.inspect(sync).has_table(tables.leases.name))
        facts = _NO_FACTS if connections.dialect.name != "postgresql" else await _facts(connection, declared)
        mapped = map_table(declared, table, connections.dialect, leases=leases, **facts)
        if "worker" in declared.columns and not leases:
            return mapped  # and look again: the ledger may be made at any time, and with it leases that acquit
        known[declared] = mapped
    return known[declared]


def real_table(connection: sa.Connection, full_name: str) -> sa.Table:
    """Read a table's columns and keys.

    Raises:
        ConfigurationError: the table isn't there.
    """
    schema, _, name = full_name.rpartition(".")
    try:
        table = sa.Table(name, sa.MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False)
    except NoSuchTableError:
        there = sa.inspect(connection).get_table_names(schema or None)
        raise ConfigurationError(_no_table(connection.engine, full_name, there)) from None
    if connection.dialect.name in {"mysql", "mariadb"}:
        _tell_collations(connection, table)
    return table


def _reflect(connection: sa.Connection, declared: JobTable) -> sa.Table:
    table = real_table(connection, declared.full_name)
    if connection.dialect.name == "postgresql":
        table.append_column(sa.Column("ctid", Address(), system=True))  # a row's address
    return table


_NO_FACTS = {"plain": True, "triggered": False}
_FACTS = sa.text(
    "SELECT c.relkind = 'r' AND NOT c.relhassubclass AS plain, EXISTS (SELECT 1 FROM pg_trigger AS t"
    " WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 19 = 19"  # row, before, update
    " AND NOT starts_with(t.tgname, 'unstick_guard_')) AS triggered"  # which refuses, but changes nothing
    " FROM pg_class AS c WHERE c.oid = to_regclass(CAST(:name AS text))"
)


async def _facts(connection: AsyncConnection, declared: JobTable) -> dict[str, bool]:
    """Ask whether an address is one row's, and whether triggers change what is written."""
    quote = connection.dialect.identifier_preparer.quote
    name = ".".join(quote(part) for part in (declared.schema, declared.name) if part)
    row = (await connection.execute(_FACTS, {"name": name})).mappings().first()
    return dict(row) if row is not None else {"plain": False, "triggered": True}


_COLLATIONS = sa.text(
    "SELECT column_name, collation_name FROM information_schema.columns"
    " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name AND collation_name IS NOT NULL"
)


def _tell_collations(connection: sa.Connection, table: sa.Table) -> None:
    """Note each text column's collation, which reflection leaves out where it is a default."""
    for name, collation in connection.execute(_COLLATIONS, {"schema": table.schema, "name": table.name}):
        type_ = table.c[name].type
        if isinstance(type_, sa.String):
            type_.collation = collation


def _no_table(engine: sa.Engine, full_name: str, there: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(full_name.rpartition(".")[2], there, n=1)
    hint = (
        f"did you mean {nearest[0]!r}?" if nearest else f"it has: {', '.join(sorted(there)[:10]) or 'no table at all'}."
    )
    return f"There is no table {full_name!r} in {shown_url(engine.url)}; {hint}"
