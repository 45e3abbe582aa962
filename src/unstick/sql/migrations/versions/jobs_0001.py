"""Unstick's own jobs table, for those who bring none."""

import sqlalchemy as sa
from alembic import op

from unstick.sql.tables import Key, UtcDateTime

revision = "jobs_0001"
down_revision = None
branch_labels = ("jobs",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", Key, primary_key=True),
        sa.Column("job_type", sa.String(255), nullable=False),
        sa.Column("idempotency_key", sa.String(255), nullable=True, unique=True),
        sa.Column("queue", sa.String(255), nullable=False, server_default="default"),
        sa.Column("status", sa.String(16), nullable=False, server_default="queued"),
        sa.Column("payload", sa.JSON, nullable=True),
        sa.Column("progress", sa.Integer, nullable=True),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("max_attempts", sa.Integer, nullable=True),
        sa.Column("worker", sa.String(255), nullable=True),
        sa.Column("token", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_at", UtcDateTime, nullable=False, server_default=sa.func.current_timestamp()),
        sa.Column("scheduled_at", UtcDateTime, nullable=True),
        sa.Column("started_at", UtcDateTime, nullable=True),
        sa.Column("updated_at", UtcDateTime, nullable=True),
        sa.Column("completed_at", UtcDateTime, nullable=True),
        sa.Column("success", sa.Boolean, nullable=True),
        sa.Column("error_message", sa.Text, nullable=True),
    )
    unfinished = sa.text("completed_at IS NULL")
    op.create_index("jobs_open", "jobs", ["status", "started_at"], postgresql_where=unfinished, sqlite_where=unfinished)


def downgrade() -> None:
    op.drop_table("jobs")
