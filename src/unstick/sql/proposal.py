"""A guess of what a table's columns and status words mean, with every doubt about it.

Pure: facts go in, whether a model or a reflected database told them, and a proposal comes out.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from unstick.config import ColumnKey, StateValue
from unstick.domain.job import JobState

ColumnKind = Literal[
    "integer", "number", "text", "time", "naive_time", "date", "boolean", "json", "uuid", "binary", "other"
]  # fmt: skip
Severity = Literal["blocker", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """What is known of one column."""

    name: str
    kind: ColumnKind
    nullable: bool = True
    primary_key: bool = False
    """It is the primary key, or one column of it."""
    unique: bool = False
    """No two rows share a value: a primary key or unique index is on this column alone."""
    values: tuple[StateValue, ...] = ()
    """An enum's words, or the distinct values that were seen; empty where neither is known."""
    closed: bool = False
    """Nothing but `values` can be stored: an enum or a CHECK names them."""
    counts: Mapping[StateValue, int] = field(default_factory=dict)
    """How many of the rows that were read hold each value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFacts:
    """What is known of one index."""

    name: str
    columns: tuple[str, ...]
    """The columns it is ordered by; an expression stands as its text."""
    stored: tuple[str, ...] = ()
    """The columns it carries along without being ordered by them."""
    where: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """What is known of one table."""

    name: str
    schema: str | None = None
    columns: tuple[ColumnFacts, ...]
    indexes: tuple[IndexFacts, ...] = ()

    @property
    def spelling(self) -> str:
        """The table as configuration names it: `jobs`, or `billing.jobs`."""
        return self.name if self.schema is None else f"{self.schema}.{self.name}"

    def column(self, name: str | None) -> ColumnFacts | None:
        """Return the column of that name, or None where there is none."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Something the guess can't be sure of; the message says what, where, and what to do next."""

    severity: Severity
    """A blocker leaves a mapping that can't work; a warning leaves one to look at."""
    key: str
    """What it is about: a column key, `states`, `states.failed`, `timezone`, `index` or `sample`."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The mapping proposed for a table; in each state the first word is the one that is written."""

    columns: dict[ColumnKey, str]
    states: dict[JobState, tuple[StateValue, ...]]
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True, slots=True)
class _Clue:
    kinds: tuple[ColumnKind, ...]
    ranks: tuple[tuple[str, ...], ...]
    """Names as found in the field, best rank first; the names of one rank are equally good."""


def _clue(kinds: tuple[ColumnKind, ...], *ranks: str) -> _Clue:
    return _Clue(kinds, tuple(tuple(rank.split()) for rank in ranks))


_TIME: tuple[ColumnKind, ...] = ("time", "naive_time")
_WHOLE: tuple[ColumnKind, ...] = ("integer",)
_KEY: tuple[ColumnKind, ...] = ("integer", "text", "uuid")
_AMOUNT: tuple[ColumnKind, ...] = ("number", "integer")
_LAST_CHANGE = "updated_at modified_at updated modified last_updated last_updated_at last_modified last_modified_at"

_CLUES: Mapping[ColumnKey, _Clue] = {
    "id": _clue(_KEY, "id job_id task_id uuid"),
    "state": _clue(("text", "integer"), "status state", "job_status job_state task_status task_state"),
    "kind": _clue(
        ("text",),
        "job_type job_kind job_class job_name task_type task_name",
        "kind type task",
        "task_path entrypoint function handler",
        "name",
    ),
    "queue": _clue(("text",), "queue queue_name"),
    "enqueued_at": _clue(
        _TIME, "enqueued_at queued_at submitted_at", "created_at inserted_at", "created created_on date_created"
    ),
    "scheduled_at": _clue(
        _TIME,
        "scheduled_at scheduled_for run_at run_after available_at not_before execute_after next_run_at next_attempt_at",
    ),
    "started_at": _clue(
        _TIME,
        "started_at start_time",
        "attempted_at picked_at claimed_at processing_started_at performed_at",
        "locked_at taken_at started started_on",
    ),
    "heartbeat_at": _clue(
        _TIME,
        "heartbeat_at last_heartbeat_at last_heartbeat heartbeat last_seen_at",
        "touched_at",
        _LAST_CHANGE,
    ),
    "completed_at": _clue(
        _TIME,
        "completed_at finished_at ended_at finalized_at done_at",
        "end_time completed finished ended completed_on",
    ),
    "success": _clue(("boolean", "integer"), "success succeeded is_success"),
    "error": _clue(("text",), "error_message error_msg", "error last_error failure_reason", "exception traceback"),
    "attempt": _clue(_WHOLE, "attempt attempts attempt_count", "retry_count retries tries"),
    "max_attempts": _clue(_WHOLE, "max_attempts max_retries max_tries retry_limit"),
    "worker": _clue(
        _KEY,
        "worker worker_id worker_name",
        "locked_by taken_by claimed_by picked_by attempted_by",
        "hostname",
        "owner",
    ),
    "token": _clue(_KEY, "fencing_token lease_token lock_token", "token"),
    "progress": _clue(_AMOUNT, "progress progress_percent percent"),
    "payload": _clue(("json", "text"), "payload", "args arguments params parameters args_kwargs", "input input_data"),
    "tokens": _clue(_AMOUNT, "tokens_used total_tokens", "tokens token_count"),
    "cost": _clue(_AMOUNT, "cost_usd total_cost", "cost", "price"),
    "key": _clue(("text",), "idempotency_key", "dedupe_key unique_key queueing_lock"),
}
TIME_KEYS: tuple[ColumnKey, ...] = ("enqueued_at", "scheduled_at", "started_at", "heartbeat_at", "completed_at")

_SPELLED: Mapping[JobState, str] = {
    JobState.QUEUED: "queued pending waiting todo ready new enqueued available created submitted",
    JobState.RUNNING: "running processing in_progress started executing active doing working picked claimed",
    JobState.SUCCEEDED: "completed succeeded success successful done finished complete ok",
    JobState.FAILED: "failed error errored failure dead discarded crashed",
    JobState.SCHEDULED: "scheduled delayed retryable retry retrying deferred",
    JobState.CANCELLED: "cancelled canceled revoked aborted killed",
}
_WORDS: Mapping[JobState, tuple[str, ...]] = {state: tuple(words.split()) for state, words in _SPELLED.items()}
_CONTRACT_WORDS: Mapping[JobState, tuple[StateValue, ...]] = {
    JobState.QUEUED: ("queued",),
    JobState.RUNNING: ("running",),
    JobState.SUCCEEDED: ("completed",),
    JobState.FAILED: ("failed",),
}


@dataclass(frozen=True, slots=True)
class _Guess:
    """A guess under examination: the table, what was told beforehand, and what was made of them."""

    facts: TableFacts
    said_columns: Mapping[ColumnKey, str | None]
    said_states: Mapping[JobState, tuple[StateValue, ...]]
    columns: dict[ColumnKey, ColumnFacts]
    states: dict[JobState, tuple[StateValue, ...]]

    def at(self, column: ColumnFacts) -> str:
        return f"{self.facts.spelling}.{column.name}"


def propose(
    facts: TableFacts,
    *,
    columns: Mapping[ColumnKey, str | None] | None = None,
    states: Mapping[JobState, tuple[StateValue, ...]] | None = None,
) -> Proposal:
    """Guess a table's mapping.

    Args:
        facts: the table.
        columns: what is known already and not to be guessed; None says that the table has no such column.
        states: the words of states that are known already.
    """
    said_columns, said_states = columns or {}, states or {}
    mapped = _map_columns(facts, said_columns)
    guess = _Guess(facts, said_columns, said_states, mapped, _map_states(mapped.get("state"), said_states))
    doubts = tuple(doubt for look in _LOOKS for doubt in look(guess))
    names: dict[ColumnKey, str] = {key: mapped[key].name for key in get_args(ColumnKey) if key in mapped}
    return Proposal(columns=names, states=guess.states, doubts=doubts)


def blocker(key: str, message: str) -> Doubt:
    """Return a doubt that leaves the mapping unable to work."""
    return Doubt(severity="blocker", key=key, message=message)


def warning(key: str, message: str) -> Doubt:
    """Return a doubt that leaves something to look at."""
    return Doubt(severity="warning", key=key, message=message)


def named(facts: TableFacts, key: ColumnKey) -> tuple[ColumnFacts, ...]:
    """Return the columns whose name means this key, best first, whatever they hold."""
    order = [name for rank in _CLUES[key].ranks for name in rank]
    found = [column for column in facts.columns if _plain(column.name) in order]
    return tuple(sorted(found, key=lambda column: order.index(_plain(column.name))))


def state_meant(word: StateValue) -> JobState | None:
    """Return the state that a status word means, or None where it is a code or no word we know."""
    if isinstance(word, int):
        return None
    return next((state for state, words in _WORDS.items() if _plain_word(word) in words), None)


def is_last_change(name: str) -> bool:
    """Tell whether a column of this name holds when the row changed last, whoever changed it."""
    return _plain(name) in _LAST_CHANGE.split()


def not_read_as_time(facts: TableFacts, key: ColumnKey, column: ColumnFacts) -> str:
    """Say that a column named like a time can't be used as one, why, and what to do."""
    holds = _NOT_TIMES.get(column.kind, "values of another type")
    return (
        f"{facts.spelling}.{column.name} sounds like `{key}` and holds {holds}, which isn't read as time: give the "
        "table a real time column for it"
    )


def sounds_like_time(name: str) -> bool:
    """Tell whether a name is most likely a time's: a column `completed` that isn't a time is most likely a flag."""
    return _plain(name).endswith(("_at", "_on", "_for", "_time", "_after", "_before", "heartbeat"))


def _plain(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+", "_", name).lower()


def _plain_word(word: str) -> str:
    # A Python enum that was stored by str() keeps its class: `JobStatus.RUNNING`.
    return _plain(word.rpartition(".")[2].strip())


def _map_columns(facts: TableFacts, said: Mapping[ColumnKey, str | None]) -> dict[ColumnKey, ColumnFacts]:
    taken = {name for name in said.values() if name is not None}
    guessed = {key: _best(facts, key) for key in _CLUES if key not in said}
    mapped = {key: column for key, column in guessed.items() if column is not None and column.name not in taken}
    told = {key: facts.column(name) for key, name in said.items()}
    return mapped | {key: column for key, column in told.items() if column is not None}


def _best(facts: TableFacts, key: ColumnKey) -> ColumnFacts | None:
    if key == "id":
        return _best_id(facts)
    candidates = _candidates(facts, key)
    return max(candidates, key=_words_known, default=None) if key == "state" else next(iter(candidates), None)


def _candidates(facts: TableFacts, key: ColumnKey) -> list[ColumnFacts]:
    """Return the equally good columns for a key, in the order of preference."""
    clue = _CLUES[key]
    fitting = [column for column in named(facts, key) if column.kind in clue.kinds]
    ranks = ([column for column in fitting if _plain(column.name) in rank] for rank in clue.ranks)
    return next((rank for rank in ranks if rank), [])


def _best_id(facts: TableFacts) -> ColumnFacts | None:
    whole_keys = [column for column in facts.columns if column.primary_key and column.unique]
    candidates = [*whole_keys, *named(facts, "id")]
    return next((column for column in candidates if column.unique), candidates[0] if candidates else None)


def _words_known(column: ColumnFacts) -> int:
    return sum(state_meant(word) is not None for word in column.values)


def _map_states(
    column: ColumnFacts | None, said: Mapping[JobState, tuple[StateValue, ...]]
) -> dict[JobState, tuple[StateValue, ...]]:
    taken = {word for words in said.values() for word in words}
    guessed = {state: tuple(word for word in words if word not in taken) for state, words in _words(column).items()}
    merged = guessed | dict(said)
    return {state: merged[state] for state in JobState if merged.get(state)}


def _words(column: ColumnFacts | None) -> Mapping[JobState, tuple[StateValue, ...]]:
    if column is None or column.kind != "text":
        return {}
    if not column.values:
        return _CONTRACT_WORDS
    found = {state: _spellings(column.values, words) for state, words in _WORDS.items()}
    known = sum(bool(words) for words in found.values())
    if found[JobState.FAILED] or column.closed or known < _ENOUGH_WORDS:
        return found
    return found | {JobState.FAILED: _assumed_failed(column)}


_ENOUGH_WORDS = 2
"""States whose words are known before another's is assumed: one, such as `active`, could be a customer's."""


def _assumed_failed(column: ColumnFacts) -> tuple[StateValue, ...]:
    """Return the word for a failure that no row has had yet, in the letter case of the others."""
    shouted = all(str(value).isupper() for value in column.values)
    return ("FAILED" if shouted else "failed",)


def _spellings(values: tuple[StateValue, ...], words: tuple[str, ...]) -> tuple[StateValue, ...]:
    """Return the values that are one of the words, as they are stored, in the order of the words."""
    plain = {value: _plain_word(value) for value in values if isinstance(value, str)}
    found = [value for value in plain if plain[value] in words]
    return tuple(sorted(found, key=lambda value: words.index(plain[value])))


# Each of the looks below yields the doubts of one kind; the order here is the order in which they are told.


def _doubt_columns_said(guess: _Guess) -> Iterator[Doubt]:
    for key, name in guess.said_columns.items():
        if name is not None and guess.facts.column(name) is None:
            yield blocker(key, f"{guess.facts.spelling} has no column {name}: name one that it has in `columns.{key}`")


def _doubt_id(guess: _Guess) -> Iterator[Doubt]:
    column = guess.columns.get("id")
    if column is None:
        if "id" not in guess.said_columns:
            yield blocker("id", f"{guess.facts.spelling} has no column that names a job: pass `columns.id`")
    elif column.kind not in _KEY:
        yield blocker(
            "id",
            f"{guess.at(column)} is {column.kind}, and an id is a number, a text or a UUID: pass another `columns.id`",
        )
    elif not column.unique:
        yield blocker(
            "id",
            f"{guess.at(column)} is not unique by itself, so a write meant for one job could hit several: "
            "pass a unique column as `columns.id`, or put a unique index on it",
        )


def _doubt_state(guess: _Guess) -> Iterator[Doubt]:
    if "state" not in guess.columns and "state" not in guess.said_columns:
        yield blocker("state", f"{guess.facts.spelling} has no column that tells a job's state: pass `columns.state`")


def _doubt_rivals(guess: _Guess) -> Iterator[Doubt]:
    for key, column in guess.columns.items():
        rivals = [rival.name for rival in _candidates(guess.facts, key) if rival.name != column.name]
        if key not in guess.said_columns and key != "id" and rivals:
            others = " and ".join(rivals)
            yield warning(
                key,
                f"{guess.at(column)} is taken for `{key}`, and {others} could be it too: pass `columns.{key}`",
            )


def _doubt_times(guess: _Guess) -> Iterator[Doubt]:
    # A column that was said and isn't there is a doubt of its own.
    known = guess.columns.keys() | {key for key, name in guess.said_columns.items() if name is not None}
    if not known & set(TIME_KEYS):
        yield blocker(
            "started_at",
            f"{guess.facts.spelling} has no time of a job that could be read: pass `columns.started_at`, or "
            "where times are numbers write a preset of your own (docs/how-to/presets.md)",
        )
        return
    if not {"started_at", "heartbeat_at"} & known:
        yield warning(
            "started_at",
            f"{guess.facts.spelling} has neither `started_at` nor `heartbeat_at`, so its running jobs can't be judged: "
            "pass `columns.started_at` where another column tells it",
        )
    if not {"enqueued_at", "scheduled_at"} & known and not _starts_tell_all(guess):
        yield warning(
            "enqueued_at",
            f"{guess.facts.spelling} has neither `enqueued_at` nor `scheduled_at`, so a queued job that never started "
            "can't be judged: pass `columns.enqueued_at` where another column tells it, or as None where none does",
        )


def _starts_tell_all(guess: _Guess) -> bool:
    """Tell whether `started_at` is known to be there in every queued job, or somebody said that it must do."""
    started = guess.columns.get("started_at")
    return "enqueued_at" in guess.said_columns or (started is not None and not started.nullable)


def _doubt_unreadable_times(guess: _Guess) -> Iterator[Doubt]:
    for key in TIME_KEYS:
        for column in named(guess.facts, key) if key not in guess.columns.keys() | guess.said_columns.keys() else ():
            if column.kind not in _TIME and sounds_like_time(column.name):
                yield warning(key, not_read_as_time(guess.facts, key, column))


def _doubt_time_zones(guess: _Guess) -> Iterator[Doubt]:
    naive = [guess.columns[key] for key in TIME_KEYS if key in guess.columns]
    names = [column.name for column in naive if column.kind == "naive_time"]
    if names:
        have = "has" if len(names) == 1 else "have"
        yield warning(
            "timezone",
            f"{', '.join(names)} of {guess.facts.spelling} {have} no time zone: read as UTC unless `timezone` says "
            "otherwise",
        )


def _doubt_heartbeat(guess: _Guess) -> Iterator[Doubt]:
    column = guess.columns.get("heartbeat_at")
    if column is not None and "heartbeat_at" not in guess.said_columns and is_last_change(column.name):
        yield warning(
            "heartbeat_at",
            f"{guess.at(column)} is taken for `heartbeat_at`: it is a sign of life only if the application moves it "
            "while a job runs; leave `columns.heartbeat_at` out if it doesn't",
        )


def _doubt_words(guess: _Guess) -> Iterator[Doubt]:
    column = guess.columns.get("state")
    if column is None:
        return
    if column.kind == "integer" and not guess.said_states:
        codes = f"the codes {_listed(column.values)}" if column.values else "codes"
        yield blocker(
            "states",
            f"{guess.at(column)} holds {codes}, and nothing tells what they mean: pass `states`, one code or several "
            "for each",
        )
        return
    yield from _doubt_guessed_words(guess, column)
    yield from _doubt_missing_words(guess, column)
    yield from _doubt_assumed_words(guess, column)
    yield from _doubt_written_words(guess, column)
    yield from _doubt_unmapped_words(guess, column)


def _doubt_guessed_words(guess: _Guess, column: ColumnFacts) -> Iterator[Doubt]:
    if not column.values and not guess.said_states.keys() >= _NEEDED.keys():
        taken = ", ".join(f"{words[0]!r}" for words in guess.states.values())
        yield warning(
            "states",
            f"nothing tells which words {guess.at(column)} uses: taken to be {taken}; pass `states` to correct it",
        )


def _doubt_missing_words(guess: _Guess, column: ColumnFacts) -> Iterator[Doubt]:
    known = f" among {_listed(column.values)}" if column.values else ""
    missing = [state for state in _NEEDED if state not in guess.states]
    if set(missing) >= _OPEN:
        missing = [state for state in missing if state not in _OPEN]
        yield blocker(
            "states",
            f"{guess.at(column)} has no known word for queued or for running{known}, so no stuck job can be found: "
            "pass `states.queued` and `states.running`",
        )
    for state in missing:
        doubt = blocker if state is JobState.FAILED else warning
        yield doubt(
            f"states.{state}",
            f"{guess.at(column)} has no known word for {state}{known}, so {_NEEDED[state]}: pass `states.{state}`",
        )


def _doubt_assumed_words(guess: _Guess, column: ColumnFacts) -> Iterator[Doubt]:
    failed = guess.states.get(JobState.FAILED, ())
    if column.values and not set(failed) & set(column.values) and JobState.FAILED not in guess.said_states and failed:
        yield warning(
            "states.failed",
            f"{guess.at(column)} holds no word for failed yet, so {failed[0]!r} is what mark_failed would write: pass "
            "`states.failed` if the application has another",
        )


def _doubt_written_words(guess: _Guess, column: ColumnFacts) -> Iterator[Doubt]:
    for state, action in ((JobState.QUEUED, "retry"), (JobState.FAILED, "mark_failed")):
        words = guess.states.get(state, ())
        if len(words) > 1 and state not in guess.said_states:
            yield warning(
                f"states.{state}",
                f"{_listed(words)} of {guess.at(column)} all mean {state}, and {action} writes {words[0]!r}: "
                f"pass `states.{state}` to put another first",
            )


def _doubt_unmapped_words(guess: _Guess, column: ColumnFacts) -> Iterator[Doubt]:
    mapped = {word for words in guess.states.values() for word in words}
    for word in column.values:
        if word not in mapped:
            count = f" in {column.counts[word]} of the rows read" if word in column.counts else ""
            yield warning(
                "states",
                f"{guess.at(column)} can be {word!r}{count}, which means no state we know: jobs in it are never looked "
                "at unless `states` names it",
            )


_LOOKS = (
    _doubt_columns_said,
    _doubt_id,
    _doubt_state,
    _doubt_rivals,
    _doubt_times,
    _doubt_unreadable_times,
    _doubt_time_zones,
    _doubt_heartbeat,
    _doubt_words,
)
_NEEDED: Mapping[JobState, str] = {
    JobState.QUEUED: "jobs nobody claims are never found, and none can be retried",
    JobState.RUNNING: "jobs that stopped halfway are never found",
    JobState.FAILED: "there is nothing to write on a stuck job",
}
_OPEN = frozenset({JobState.QUEUED, JobState.RUNNING})
_NOT_TIMES: Mapping[ColumnKind, str] = {
    "integer": "whole numbers",
    "number": "numbers",
    "text": "text",
    "date": "dates without a time of day",
    "boolean": "true or false",
}


def _listed(values: tuple[StateValue, ...]) -> str:
    return ", ".join(repr(value) for value in values)
