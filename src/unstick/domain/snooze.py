"""Jobs that a person wants to be left alone for a time."""

from dataclasses import dataclass
from datetime import datetime

from unstick.domain.errors import InvalidRequestError
from unstick.domain.job import JobId

MAX_SNOOZES = 1_000
"""Jobs of one source that may be snoozed at a time: every look names them all."""
LONGEST_REASON = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Snooze:
    """A job that is no suspect until then."""

    source: str
    job_id: JobId
    until: datetime
    """By the source's own clock, as `at`."""
    reason: str
    by: str
    at: datetime


def requested_reason(said: str | None) -> str | None:
    """Return a reason on one line, as any database keeps it, and None for one that says nothing.

    Raises:
        InvalidRequestError: it is longer than the audit log takes.
    """
    text = " ".join((said or "").replace("\0", "\N{REPLACEMENT CHARACTER}").split())
    if len(text) > LONGEST_REASON:
        raise InvalidRequestError(f"A reason has at most {LONGEST_REASON} characters; this one has {len(text)}.")
    return text.encode("utf-8", "replace").decode() or None
