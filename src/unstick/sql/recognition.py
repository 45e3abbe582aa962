"""The job systems whose tables a database holds, told by the names of these and of their columns.

Nothing is written, and no row is read but those that name a version. Known weakness: a table that somebody made in a
system's likeness is taken for the system's; its version, which is asked for, tells most of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.presets.preset import Preset, before_names, load_preset, shipped
from unstick.sql.dialects import Dialect, dialect_for
from unstick.sql.mapping import JobTable, places_of
from unstick.sql.reflection import unknown_version
from unstick.sql.rescue import said_by_database


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """A job system that is there."""

    source: str
    """What the source is to be called."""
    preset: str
    """The name of its preset."""
    system: str
    table: str
    """Its jobs, as configuration names them."""
    is_plain: bool
    """The table is where its preset looks for it, so that configuration needn't name it."""
    beside: tuple[str, ...]
    """What the system's other tables are called, if they are there."""
    problem: str | None
    """Why its tables would only be read."""


async def recognise(connection: AsyncConnection, tables: Sequence[sa.Table]) -> tuple[Recognised, ...]:
    """Return the job systems among a database's tables."""
    dialect = dialect_for(connection.dialect)
    found = [
        await _recognised(connection, dialect, name, table, tables)
        for name in shipped()
        if dialect.name in load_preset(name).databases
        for table in tables
        if _is_of(table, load_preset(name))
    ]
    return tuple(_with_names(_told_apart(found)))


def _told_apart(found: Sequence[Recognised]) -> Sequence[Recognised]:
    """Leave out, of several systems whose tables have the same names, those of which it is no known version."""
    known = {each.table for each in found if each.problem is None}
    return [each for each in found if each.problem is None or each.table not in known]


def _is_of(table: sa.Table, preset: Preset) -> bool:
    """Tell whether it is the system's table of jobs: called so, and with every column that the preset names."""
    written = (name for write in (*preset.fail, *preset.retry) for name in write.set)
    needed = {*preset.columns_by_name.values(), *written}
    return table.name.endswith(preset.table) and needed <= set(table.c.keys())


async def _recognised(
    connection: AsyncConnection, dialect: Dialect, name: str, table: sa.Table, tables: Sequence[sa.Table]
) -> Recognised:
    preset, before = load_preset(name), table.fullname.removesuffix(load_preset(name).table)
    return Recognised(
        source=name,
        preset=name,
        system=preset.system,
        table=table.fullname,
        is_plain=before == before_names(preset, None),
        beside=(*(f"{before}{other}" for other in preset.other_tables), *_in_its_schema(preset, table, tables)),
        problem=await _problem(connection, dialect, preset, table),
    )


def _in_its_schema(preset: Preset, table: sa.Table, tables: Sequence[sa.Table]) -> list[str]:
    """Return what else is in a schema that the system has for itself: partitions of its jobs, say."""
    own = preset.default_schema is not None and table.schema == preset.default_schema
    return [each.fullname for each in tables if own and each.schema == table.schema]


async def _problem(connection: AsyncConnection, dialect: Dialect, preset: Preset, table: sa.Table) -> str | None:
    """Say why the system's tables would only be read."""
    if preset.version is None:
        return None
    places = places_of(JobTable.from_preset(preset, table.fullname), dialect)
    try:
        async with connection.begin_nested():
            return await unknown_version(connection, preset, preset.version, places)
    except DBAPIError as error:
        return f"the version of its tables can't be read: {said_by_database(error)}"


def _with_names(found: Sequence[Recognised]) -> Iterator[Recognised]:
    """Give each source a name of its own, where a system is there several times."""
    for place, each in enumerate(found):
        before = sum(other.preset == each.preset for other in found[:place])
        yield replace(each, source=f"{each.preset}_{before + 1}") if before else each
