from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import pytest

from unstick.config import ColumnKey
from unstick.domain.job import JobState
from unstick.sql.proposal import (
    _CLUES,
    _WORDS,
    ColumnFacts,
    ColumnKind,
    Doubt,
    Proposal,
    TableFacts,
    named,
    propose,
    state_meant,
)

if TYPE_CHECKING:
    from unstick.config import StateValue

WORDS = ("queued", "running", "completed", "failed")


def column(name: str, kind: ColumnKind, **more: object) -> ColumnFacts:
    return replace(ColumnFacts(name=name, kind=kind), **more)  # type: ignore[arg-type]


ID = column("id", "integer", primary_key=True, unique=True)


def status(*words: StateValue, name: str = "status") -> ColumnFacts:
    return column(name, "integer" if words and isinstance(words[0], int) else "text", values=words)


def table(*columns: ColumnFacts, schema: str | None = None) -> TableFacts:
    return TableFacts(name="jobs", schema=schema, columns=columns)


def jobs(*more: ColumnFacts, without: str = "", words: tuple[StateValue, ...] = WORDS) -> TableFacts:
    """A table that raises no doubt, with more columns or one less."""
    whole = (ID, status(*words), column("created_at", "time"), column("started_at", "time"))
    return table(*(each for each in whole if each.name != without), *more)


def doubts(proposal: Proposal, key: str) -> list[Doubt]:
    return [doubt for doubt in proposal.doubts if doubt.key == key]


def only(proposal: Proposal, key: str) -> Doubt:
    [doubt] = doubts(proposal, key)
    return doubt


def test_a_clear_table_raises_no_doubt() -> None:
    proposal = propose(jobs())
    assert proposal.doubts == ()
    assert proposal.columns == {
        "id": "id",
        "state": "status",
        "enqueued_at": "created_at",
        "started_at": "started_at",
    }
    assert proposal.states == {
        JobState.QUEUED: ("queued",),
        JobState.RUNNING: ("running",),
        JobState.SUCCEEDED: ("completed",),
        JobState.FAILED: ("failed",),
    }


def test_every_column_key_can_be_guessed() -> None:
    assert _CLUES.keys() == set(get_args(ColumnKey))


def test_no_name_means_two_keys_and_no_word_two_states() -> None:
    names = Counter(name for clue in _CLUES.values() for rank in clue.ranks for name in rank)
    words = Counter(word for words in _WORDS.values() for word in words)
    assert [name for name, count in (names + words).items() if count > 1 and names[name] != 1] == []
    assert [word for word, count in words.items() if count > 1] == []


@pytest.mark.parametrize(
    ("key", "name", "kind"),
    [
        ("state", "job_status", "text"),
        ("kind", "task_path", "text"),
        ("queue", "queue_name", "text"),
        ("enqueued_at", "inserted_at", "time"),
        ("scheduled_at", "run_after", "naive_time"),
        ("started_at", "attempted_at", "time"),
        ("heartbeat_at", "last_heartbeat", "time"),
        ("completed_at", "finished_at", "time"),
        ("success", "succeeded", "boolean"),
        ("success", "is_success", "integer"),
        ("error", "failure_reason", "text"),
        ("attempt", "retry_count", "integer"),
        ("max_attempts", "retry_limit", "integer"),
        ("worker", "locked_by", "uuid"),
        ("token", "lease_token", "integer"),
        ("progress", "progress_percent", "number"),
        ("payload", "args", "json"),
        ("tokens", "total_tokens", "integer"),
        ("cost", "cost_usd", "number"),
    ],
)
def test_a_name_from_the_field_is_understood(key: ColumnKey, name: str, kind: ColumnKind) -> None:
    assert propose(table(ID, column(name, kind))).columns[key] == name


@pytest.mark.parametrize("name", ["startedAt", "StartedAt", "STARTED_AT", "Started At"])
def test_a_name_is_understood_however_it_is_spelled_and_kept_as_it_stands(name: str) -> None:
    assert propose(jobs(column(name, "time"), without="started_at")).columns["started_at"] == name


@pytest.mark.parametrize(
    ("key", "name", "kind"),
    [
        ("state", "status", "boolean"),
        ("started_at", "started_at", "integer"),
        ("error", "error", "json"),
        ("attempt", "attempts", "json"),
        ("success", "success", "text"),
        ("worker", "worker", "json"),
        ("completed_at", "completed", "boolean"),
    ],
)
def test_a_name_is_not_believed_against_what_the_column_holds(key: ColumnKey, name: str, kind: ColumnKind) -> None:
    assert key not in propose(table(ID, column(name, kind))).columns


def test_a_real_heartbeat_goes_before_the_time_of_the_last_change() -> None:
    facts = jobs(column("updated_at", "time"), column("last_heartbeat_at", "time"))
    assert propose(facts).columns["heartbeat_at"] == "last_heartbeat_at"
    assert propose(facts).doubts == ()


def test_the_time_of_the_last_change_taken_for_a_heartbeat_is_doubted() -> None:
    doubt = only(propose(jobs(column("updated_at", "time"))), "heartbeat_at")
    assert doubt.severity == "warning"
    assert "jobs.updated_at is taken for `heartbeat_at`" in doubt.message
    assert "only if the application moves it" in doubt.message


def test_what_was_said_is_neither_guessed_nor_doubted() -> None:
    facts = jobs(column("updated_at", "time"), column("touched_at", "time"))
    said = propose(facts, columns={"heartbeat_at": "updated_at"})
    assert said.columns["heartbeat_at"] == "updated_at"
    assert said.doubts == ()


def test_a_column_said_not_to_be_there_is_not_guessed() -> None:
    proposal = propose(jobs(column("updated_at", "time")), columns={"heartbeat_at": None})
    assert "heartbeat_at" not in proposal.columns
    assert proposal.doubts == ()


def test_a_column_said_to_mean_one_thing_is_not_guessed_to_mean_another() -> None:
    proposal = propose(jobs(), columns={"scheduled_at": "created_at"})
    assert proposal.columns["scheduled_at"] == "created_at"
    assert "enqueued_at" not in proposal.columns


def test_a_column_said_that_the_table_lacks_blocks() -> None:
    doubt = only(propose(jobs(), columns={"started_at": "begun"}), "started_at")
    assert (doubt.severity, "jobs has no column begun" in doubt.message) == ("blocker", True)


def test_a_table_in_a_schema_is_named_with_it() -> None:
    proposal = propose(table(ID, schema="billing"))
    assert "billing.jobs" in only(proposal, "state").message


class TestId:
    def test_the_primary_key_is_the_id_whatever_its_name(self) -> None:
        facts = jobs(column("key", "text", primary_key=True, unique=True), without="id")
        assert propose(facts).columns["id"] == "key"
        assert propose(facts).doubts == ()

    def test_a_unique_column_named_id_will_do(self) -> None:
        facts = jobs(column("job_id", "uuid", unique=True), without="id")
        assert propose(facts).columns["id"] == "job_id"
        assert propose(facts).doubts == ()

    def test_a_unique_key_goes_before_one_that_is_not(self) -> None:
        facts = jobs(column("id", "integer"), column("uuid", "uuid", unique=True), without="id")
        assert propose(facts).columns["id"] == "uuid"

    def test_an_id_that_is_not_unique_by_itself_blocks(self) -> None:
        facts = jobs(
            column("id", "integer", primary_key=True), column("tenant", "text", primary_key=True), without="id"
        )
        doubt = only(propose(facts), "id")
        assert (doubt.severity, "jobs.id is not unique by itself" in doubt.message) == ("blocker", True)

    def test_no_id_blocks(self) -> None:
        doubt = only(propose(jobs(without="id")), "id")
        assert (doubt.severity, "`columns.id`" in doubt.message) == ("blocker", True)

    def test_an_id_of_bytes_blocks(self) -> None:
        doubt = only(propose(jobs(column("id", "binary", primary_key=True, unique=True), without="id")), "id")
        assert (doubt.severity, "jobs.id is binary" in doubt.message) == ("blocker", True)


class TestState:
    def test_no_state_blocks(self) -> None:
        doubt = only(propose(jobs(without="status")), "state")
        assert (doubt.severity, "`columns.state`" in doubt.message) == ("blocker", True)

    def test_of_two_states_the_one_with_known_words_is_taken_and_doubted(self) -> None:
        proposal = propose(jobs(status("de", "fr"), status(*WORDS, name="state"), without="status"))
        assert proposal.columns["state"] == "state"
        assert "status could be it too: pass `columns.state`" in only(proposal, "state").message

    def test_of_several_equally_good_names_the_first_is_taken_and_doubted(self) -> None:
        proposal = propose(jobs(column("run_at", "time"), column("next_run_at", "time")))
        assert proposal.columns["scheduled_at"] == "run_at"
        assert "next_run_at could be it too" in only(proposal, "scheduled_at").message

    def test_of_a_good_name_and_a_lesser_one_the_good_one_is_taken_without_doubt(self) -> None:
        proposal = propose(jobs(column("name", "text"), column("job_type", "text")))
        assert proposal.columns["kind"] == "job_type"
        assert proposal.doubts == ()


class TestTimes:
    def test_running_jobs_that_cannot_be_judged_are_doubted(self) -> None:
        doubt = only(propose(jobs(without="started_at")), "started_at")
        assert (doubt.severity, "its running jobs can't be judged" in doubt.message) == ("warning", True)

    def test_a_heartbeat_is_enough_to_judge_running_jobs(self) -> None:
        assert propose(jobs(column("heartbeat_at", "time"), without="started_at")).doubts == ()

    def test_queued_jobs_that_cannot_be_judged_are_doubted(self) -> None:
        doubt = only(propose(jobs(without="created_at")), "enqueued_at")
        assert (doubt.severity, "can't be judged" in doubt.message) == ("warning", True)

    def test_where_every_job_has_a_start_nothing_else_is_missed(self) -> None:
        facts = table(ID, status(*WORDS), column("started_at", "time", nullable=False))
        assert propose(facts).doubts == ()

    def test_where_a_start_may_be_missing_saying_that_there_is_no_enqueue_time_settles_it(self) -> None:
        facts = jobs(without="created_at")
        assert "or as None where none does" in only(propose(facts), "enqueued_at").message
        assert propose(facts, columns={"enqueued_at": None}).doubts == ()

    def test_no_time_at_all_blocks(self) -> None:
        doubt = only(propose(table(ID, status(*WORDS))), "started_at")
        assert doubt.severity == "blocker"

    def test_naive_times_are_doubted_all_in_one(self) -> None:
        facts = jobs(column("started_at", "naive_time"), column("completed_at", "naive_time"), without="started_at")
        doubt = only(propose(facts), "timezone")
        assert doubt.message == (
            "started_at, completed_at of jobs have no time zone: read as UTC unless `timezone` says otherwise"
        )

    @pytest.mark.parametrize(("kind", "said"), [("integer", "whole numbers"), ("number", "numbers"), ("text", "text")])
    def test_a_time_kept_as_something_else_is_doubted(self, kind: ColumnKind, said: str) -> None:
        proposal = propose(jobs(column("completed_at", kind)))
        assert "completed_at" not in proposal.columns
        assert (
            f"jobs.completed_at sounds like `completed_at` and holds {said}" in only(proposal, "completed_at").message
        )

    @pytest.mark.parametrize("name", ["completed", "finished"])
    def test_a_flag_is_not_doubted_for_not_being_a_time(self, name: str) -> None:
        assert propose(jobs(column(name, "integer"))).doubts == ()

    def test_a_number_beside_the_real_time_is_not_doubted(self) -> None:
        assert propose(jobs(column("queued_at", "integer"))).doubts == ()


class TestWords:
    @pytest.mark.parametrize(
        ("word", "state"),
        [
            ("QUEUED", JobState.QUEUED),
            ("READY", JobState.QUEUED),
            ("todo", JobState.QUEUED),
            ("In Progress", JobState.RUNNING),
            ("in-progress", JobState.RUNNING),
            ("inProgress", JobState.RUNNING),
            ("JobStatus.RUNNING", JobState.RUNNING),
            ("SUCCESSFUL", JobState.SUCCEEDED),
            ("ok", JobState.SUCCEEDED),
            ("discarded", JobState.FAILED),
            ("retryable", JobState.SCHEDULED),
            ("canceled", JobState.CANCELLED),
            ("aborted", JobState.CANCELLED),
            ("paused", None),
            ("", None),
            (3, None),
        ],
    )
    def test_a_word_from_the_field_is_understood(self, word: StateValue, state: JobState | None) -> None:
        assert state_meant(word) is state

    def test_stored_spellings_are_kept(self) -> None:
        states = propose(jobs(words=("READY", "RUNNING", "FAILED", "SUCCESSFUL"))).states
        assert states == {
            JobState.QUEUED: ("READY",),
            JobState.RUNNING: ("RUNNING",),
            JobState.SUCCEEDED: ("SUCCESSFUL",),
            JobState.FAILED: ("FAILED",),
        }

    def test_where_no_word_is_known_the_common_ones_are_taken_and_doubted(self) -> None:
        proposal = propose(jobs(words=()))
        assert proposal.states[JobState.FAILED] == ("failed",)
        assert proposal.states[JobState.SUCCEEDED] == ("completed",)
        assert "taken to be 'queued', 'running', 'completed', 'failed'" in only(proposal, "states").message

    def test_where_the_needed_words_were_said_none_is_doubted(self) -> None:
        said: dict[JobState, tuple[StateValue, ...]] = {
            JobState.QUEUED: ("q",),
            JobState.RUNNING: ("r",),
            JobState.FAILED: ("f",),
        }
        proposal = propose(jobs(words=()), states=said)
        assert {state: proposal.states[state] for state in said} == said
        assert proposal.doubts == ()

    @pytest.mark.parametrize(
        ("words", "assumed"), [(("queued", "running", "completed"), "failed"), (("QUEUED", "RUNNING"), "FAILED")]
    )
    def test_the_word_for_a_failure_no_row_had_yet_is_assumed_with_a_warning(
        self, words: tuple[StateValue, ...], assumed: str
    ) -> None:
        proposal = propose(jobs(words=words))
        assert proposal.states[JobState.FAILED] == (assumed,)
        assert only(proposal, "states.failed").severity == "warning"

    def test_no_word_for_failed_blocks_where_no_other_word_can_be_stored(self) -> None:
        closed = replace(status("queued", "running", "completed"), closed=True)
        proposal = propose(table(ID, closed, column("created_at", "time"), column("started_at", "time")))
        doubt = only(proposal, "states.failed")
        assert (doubt.severity, JobState.FAILED in proposal.states) == ("blocker", False)
        assert "among 'queued', 'running', 'completed'" in doubt.message

    @pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
    def test_no_word_for_an_open_state_is_a_warning(self, state: JobState) -> None:
        words = tuple(word for word in WORDS if word != state)
        assert only(propose(jobs(words=words)), f"states.{state}").severity == "warning"

    def test_no_word_for_any_open_state_blocks_once(self) -> None:
        proposal = propose(jobs(words=("completed", "failed")))
        assert [(doubt.severity, doubt.key) for doubt in proposal.doubts] == [("blocker", "states")]
        assert "no known word for queued or for running among 'completed', 'failed'" in proposal.doubts[0].message

    def test_no_word_for_what_is_neither_sought_nor_written_is_no_doubt(self) -> None:
        assert propose(jobs(words=("queued", "running", "failed"))).doubts == ()

    def test_each_word_nobody_mapped_is_named_with_its_count(self) -> None:
        held = column("status", "text", values=(*WORDS, "paused", "limbo"), counts={"paused": 12})
        messages = [doubt.message for doubt in doubts(propose(jobs(held, without="status")), "states")]
        assert len(messages) == 2
        assert "jobs.status can be 'paused' in 12 of the rows read" in messages[0]
        assert "jobs.status can be 'limbo', which means no state we know" in messages[1]

    def test_a_word_that_was_said_is_mapped_and_taken_from_where_it_was_guessed(self) -> None:
        said: dict[JobState, tuple[StateValue, ...]] = {JobState.SCHEDULED: ("pending",)}
        proposal = propose(jobs(words=(*WORDS, "pending")), states=said)
        assert proposal.states[JobState.QUEUED] == ("queued",)
        assert proposal.states[JobState.SCHEDULED] == ("pending",)
        assert proposal.doubts == ()

    def test_of_several_words_that_could_be_written_the_commonest_name_is_first_and_doubted(self) -> None:
        proposal = propose(jobs(words=("pending", *WORDS)))
        assert proposal.states[JobState.QUEUED] == ("queued", "pending")
        assert "retry writes 'queued'" in only(proposal, "states.queued").message

    def test_of_several_words_that_are_only_read_none_is_doubted(self) -> None:
        proposal = propose(jobs(words=("active", "done", *WORDS)))
        assert proposal.states[JobState.RUNNING] == ("running", "active")
        assert proposal.doubts == ()

    def test_codes_that_nobody_explained_block_once(self) -> None:
        proposal = propose(jobs(words=(0, 1, 2)))
        doubt = only(proposal, "states")
        assert (doubt.severity, "the codes 0, 1, 2" in doubt.message) == ("blocker", True)
        assert (proposal.states, len(proposal.doubts)) == ({}, 1)

    def test_codes_that_were_explained_are_not_doubted_but_for_those_left_out(self) -> None:
        said: dict[JobState, tuple[StateValue, ...]] = {
            JobState.QUEUED: (0,),
            JobState.RUNNING: (1,),
            JobState.FAILED: (3,),
        }
        assert propose(jobs(words=(0, 1, 3)), states=said).doubts == ()
        assert "can be 2" in only(propose(jobs(words=(0, 1, 2, 3)), states=said), "states").message


def test_the_first_users_table_is_understood_whole() -> None:
    facts = TableFacts(
        name="ai_generation_jobs",
        columns=(
            column("id", "uuid", primary_key=True, unique=True),
            column("user_id", "uuid"),
            column("job_type", "text"),
            column("status", "text", values=WORDS),
            column("progress", "integer"),
            column("input_data", "json"),
            column("result", "json"),
            column("success", "boolean"),
            column("error_message", "text"),
            column("tokens_used", "integer"),
            column("cost_usd", "number"),
            column("created_at", "time"),
            column("started_at", "time"),
            column("updated_at", "time"),
            column("completed_at", "time"),
        ),
    )
    proposal = propose(facts)
    assert proposal.columns == {
        "id": "id",
        "state": "status",
        "kind": "job_type",
        "enqueued_at": "created_at",
        "started_at": "started_at",
        "heartbeat_at": "updated_at",
        "completed_at": "completed_at",
        "success": "success",
        "error": "error_message",
        "progress": "progress",
        "payload": "input_data",
        "tokens": "tokens_used",
        "cost": "cost_usd",
    }
    assert [doubt.key for doubt in proposal.doubts] == ["heartbeat_at"]


def test_columns_named_for_a_key_are_found_whatever_they_hold() -> None:
    facts = jobs(column("startTime", "integer"))
    assert [each.name for each in named(facts, "started_at")] == ["started_at", "startTime"]
