"""River's tables at migration 7, with SQL in the place of its workers and its scheduler."""

from pathlib import Path

from tests.systems.stand_in import InStatements


class River(InStatements):
    version = "migration 7"
    schema = Path(__file__).with_name("schema.sql")
    enqueued = """
        INSERT INTO river_job (kind, args) VALUES ('hold', jsonb_build_object('token', CAST(:token AS text)))
        RETURNING id
    """
    due = """
        UPDATE river_job SET state = 'available'
        WHERE args ->> 'token' = :token AND state = 'retryable' AND scheduled_at <= now()
    """
    taken = """
        UPDATE river_job SET state = 'running', attempt = attempt + 1, attempted_at = now(),
        attempted_by = array_append(attempted_by, 'client')
        WHERE args ->> 'token' = :token AND state = 'available' AND scheduled_at <= now() RETURNING id
    """
    finished = """
        UPDATE river_job SET state = 'completed', finalized_at = now() WHERE id = :id AND state = 'running'
    """
    told = """
        SELECT CAST(state AS text) AS state, attempt, errors[array_upper(errors, 1)] ->> 'error' AS error FROM river_job
        WHERE id = :id
    """


print(River().run())
