"""A bench whose jobs can be snoozed and whose stories can be told, with ids of every type."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from tests.jobs import SqlBench, jobs_table, open_bench
from unstick.sql.connections import EngineConnections
from unstick.sql.snoozes import SqlSnoozes
from unstick.sql.story import story_readers

if TYPE_CHECKING:
    from tests.servers import Database
    from unstick.domain.policy import Policy
    from unstick.pipeline.watched import Watched

KEYS = ("numbers", "large", "uuids", "text")


def whole(bench: SqlBench, policy: Policy | None = None) -> Watched:
    """Return what `wiring.watch` would put together."""
    connections = EngineConnections(bench.engine)
    return replace(bench.watched(policy), snoozes=SqlSnoozes(connections), story_readers=story_readers(connections))


async def keyed_bench(database: Database, keys: str, **options: Any) -> tuple[SqlBench, list[Any]]:  # noqa: ANN401
    """Make a table with ids of a type, and say which ids to use; neighbours differ as little as they can."""
    types: dict[str, Any] = {
        "numbers": sa.Integer(),
        "large": sa.BigInteger(),
        "uuids": sa.Uuid() if database.backend == "postgresql" else sa.CHAR(36),
        "text": sa.String(60).with_variant(mysql.VARCHAR(60, collation="utf8mb4_bin"), "mysql", "mariadb"),
    }
    made: list[uuid.UUID] = [uuid.uuid5(uuid.NAMESPACE_DNS, str(number)) for number in range(4)]
    ids: dict[str, list[Any]] = {
        "numbers": [1, 2, 11, 12],
        "large": [2**53 + number for number in range(4)],
        "uuids": list(made) if database.backend == "postgresql" else [str(each) for each in made],
        "text": ["a-1", 'it\'s "50%_" \\ é', "a-1 b", "A-1"],
    }
    table = jobs_table(key=sa.Column("id", types[keys], primary_key=True, autoincrement=False))
    return await open_bench(database, table, **options), ids[keys]
