"""A row that is inserted, or brought up to date where its key is there, in each database's own words."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite


def upsert(dialect: str, table: sa.Table, key: str, row: Mapping[str, Any], again: Mapping[str, Any]) -> sa.Insert:
    """Insert a row, or set `again` where its unique key is there: one statement, so that no two callers race."""
    if dialect == "mysql":
        return mysql.insert(table).values(row).on_duplicate_key_update(dict(again))
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).values(row).on_conflict_do_update(index_elements=[key], set_=dict(again))
