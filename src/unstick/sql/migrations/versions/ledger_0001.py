"""The ledger: audit log and recoveries."""

import sqlalchemy as sa
from alembic import op

from unstick.sql.tables import JobKey, Key, UtcDateTime

revision = "ledger_0001"
down_revision = None
branch_labels = ("ledger",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "unstick_audit",
        sa.Column("id", Key, primary_key=True),
        sa.Column("operation_id", Key, nullable=True),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("last_at", UtcDateTime, nullable=False),
        sa.Column("repeats", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=True, unique=True),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("role", sa.String(32), nullable=True),
        sa.Column("call", sa.String(64), nullable=False),
        sa.Column("parameters", sa.JSON, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
    )
    op.create_index("unstick_audit_at", "unstick_audit", ["at"])
    op.create_table(
        "unstick_recoveries",
        sa.Column("id", Key, primary_key=True),
        sa.Column("operation_id", Key, nullable=False),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("job_id", JobKey, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(32), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("pre_image", sa.Text, nullable=True),
        sa.Column("at", UtcDateTime, nullable=False),
    )
    op.create_index("unstick_recoveries_job", "unstick_recoveries", ["source", "job_id"], mysql_length={"job_id": 255})
    op.create_index("unstick_recoveries_at", "unstick_recoveries", ["at"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_table("unstick_recoveries")
    op.drop_table("unstick_audit")
