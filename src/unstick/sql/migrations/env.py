"""Run by alembic for each upgrade; the connection and dialect come from `unstick.sql.schema`."""

from alembic import context

from unstick.sql.schema import VERSION_TABLE

settings = context.config.attributes
if context.is_offline_mode():
    context.configure(
        dialect_name=settings["dialect"],
        version_table=VERSION_TABLE,
        literal_binds=True,
        output_buffer=settings["output"],
    )
else:
    context.configure(
        connection=settings["connection"],
        version_table=VERSION_TABLE,
        render_as_batch=True,
        transaction_per_migration=True,
    )
with context.begin_transaction():
    context.run_migrations()
