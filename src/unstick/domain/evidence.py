"""What was seen of a job, by whom and when."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Holding(StrEnum):
    """A witness's word on whether a worker still owns the attempt."""

    HELD = "held"
    RELEASED = "released"
    UNKNOWN = "unknown"


PROGRESS = "progress"
"""The witness whose time says since when a job's progress stands still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One thing a witness saw; `at` is the time it speaks of, None where it never happened."""

    witness: str
    holding: Holding
    at: datetime | None
    value: str | None = None
    """What it said in its own words: a worker's name, `HTTP 503`, `no answer within 2 seconds`."""


def weigh(words: Sequence[Evidence]) -> Evidence | None:
    """Return the word that decides: one that acquits before one that convicts, None where nobody knows."""
    for holding in (Holding.HELD, Holding.RELEASED):
        for word in words:
            if word.holding is holding:
                return word
    return None
