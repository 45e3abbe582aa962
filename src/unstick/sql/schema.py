"""Unstick's own tables in a database: at which revision they are, and how they get to the newest."""

import io
from collections.abc import Sequence
from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine

from unstick.sql.engine import WRITES

VERSION_TABLE = "unstick_alembic_version"
LEDGER = "ledger"
OWN_JOBS = "jobs"


def branches(*, own_jobs: bool, ledger: bool = True) -> tuple[str, ...]:
    """Return the branches a database needs: the ledger unless it is elsewhere, the jobs table where it is our own."""
    return (*([LEDGER] if ledger else []), *([OWN_JOBS] if own_jobs else []))


async def upgrade(engine: AsyncEngine, needed: Sequence[str]) -> None:
    """Bring these branches to their newest revision."""
    async with engine.connect() as connection:
        # On SQLite the look at what is there must hold the write lock already, or two that look at once both write.
        await connection.execution_options(**{WRITES: True})
        await connection.run_sync(_upgrade, needed)
        await connection.commit()


async def current(engine: AsyncEngine) -> tuple[str, ...]:
    """Return the revisions a database is at, none where it has no tables of ours."""
    async with engine.connect() as connection:
        return await connection.run_sync(_current)


async def missing(engine: AsyncEngine, needed: Sequence[str]) -> tuple[str, ...]:
    """Return the newest revisions of these branches that a database isn't at."""
    async with engine.connect() as connection:
        return await connection.run_sync(missing_from, needed)


def missing_from(connection: sa.Connection, needed: Sequence[str]) -> tuple[str, ...]:
    """Return the newest revisions of these branches that a connection's database isn't at."""
    at = _current(connection)
    return tuple(head for head in heads(needed) if head not in at)


def heads(needed: Sequence[str]) -> tuple[str, ...]:
    """Return the newest revision of each of these branches."""
    script = ScriptDirectory.from_config(_config())
    return tuple(revision.revision for branch in needed for revision in script.get_revisions(f"{branch}@head"))


def upgrade_script(dialect: str, needed: Sequence[str]) -> str:
    """Return the statements that make these branches' tables from nothing."""
    output = io.StringIO()
    config = _config()
    config.attributes.update(dialect=dialect, output=output)
    # One run, for each would make the version table anew; both branches are all there are.
    command.upgrade(config, "heads" if len(needed) > 1 else f"{needed[0]}@head", sql=True)
    return output.getvalue()


def _upgrade(connection: sa.Connection, needed: Sequence[str]) -> None:
    config = _config()
    config.attributes["connection"] = connection
    for branch in needed:
        command.upgrade(config, f"{branch}@head")


def _current(connection: sa.Connection) -> tuple[str, ...]:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return tuple(sorted(context.get_current_heads()))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("unstick.sql") / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
