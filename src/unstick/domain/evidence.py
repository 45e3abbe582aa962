"""What was seen of a job, by whom and when."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Holding(StrEnum):
    """A witness's word on whether a worker still owns the attempt."""

    HELD = "held"
    RELEASED = "released"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One thing a witness saw; `at` is the time it speaks of, None where it never happened."""

    witness: str
    holding: Holding
    at: datetime | None
    value: str | None = None
    """What it said in its own words: a worker's name, `HTTP 503`, `no answer within 2 seconds`."""
