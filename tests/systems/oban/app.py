"""Oban's table at migration 14, with SQL in the place of its producers and its stager."""

from pathlib import Path

from tests.systems.stand_in import InStatements


class Oban(InStatements):
    version = "migration 14"
    schema = Path(__file__).with_name("schema.sql")
    enqueued = """
        INSERT INTO oban_jobs (worker, args, max_attempts)
        VALUES ('Hold', jsonb_build_object('token', CAST(:token AS text)), 1) RETURNING id
    """
    due = """
        UPDATE oban_jobs SET state = 'available' WHERE args ->> 'token' = :token
        AND state IN ('scheduled', 'retryable') AND scheduled_at <= timezone('UTC', now())
    """
    taken = """
        UPDATE oban_jobs SET state = 'executing', attempt = attempt + 1,
        attempted_at = timezone('UTC', now()), attempted_by = ARRAY['node', 'uuid']
        WHERE args ->> 'token' = :token AND state = 'available' AND attempt < max_attempts RETURNING id
    """
    finished = """
        UPDATE oban_jobs SET state = 'completed', completed_at = timezone('UTC', now()) WHERE id = :id
    """
    told = """
        SELECT CAST(state AS text) AS state, attempt, errors[array_upper(errors, 1)] ->> 'error' AS error FROM oban_jobs
        WHERE id = :id
    """


print(Oban().run())
