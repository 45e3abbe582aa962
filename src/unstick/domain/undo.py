"""Taking recoveries back: what is known of one, and what came of undoing it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import Action, Outcome, Recovery, Undo

GONE = "its row is gone"
CLAIMED = "it has been claimed since"
HELD = "somebody held its row; it was left alone"
UNDONE = "it was undone already"
OVERTAKEN = "a later recovery changed it"
UNRECORDED = "its record doesn't tell what was written to it"
IRREVERSIBLE = "its job system's own function did it, or more than its row was written, which can't be taken back"
UNFIT = "its record names columns that its table doesn't have any more"
"""Why a recovery could not be undone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undoable:
    """One applied recovery of one job, as its record would have it undone."""

    recovery_id: int
    operation_id: int
    job_id: JobId
    state: JobState
    """The state in which the recovery found the job."""
    action: Action
    reason: Reason
    pre_image: str | None
    """What it overwrote, as a JSON object by the source's own names."""
    post_image: str | None
    """What it wrote, likewise: what must still be there."""
    undone: bool = False
    overtaken: bool = False
    """Another recovery of the job came after it, and stands."""

    @property
    def detail(self) -> str:
        """Say what undoing it did."""
        return f"put back as operation {self.operation_id} found it"

    def came_to(self, outcome: Outcome, detail: str) -> Recovery:
        """Return the record of an undo that changed nothing."""
        return Recovery(
            job_id=self.job_id,
            state=self.state,
            action=Undo.UNDO,
            reason=self.reason,
            outcome=outcome,
            detail=detail,
            undoes=self.recovery_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoPage:
    """Recoveries of one operation, a bounded number of them."""

    recoveries: tuple[Undoable, ...]
    last: int | None
    """Where the next page begins: after this record; None at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoBatch:
    """Recoveries that are undone in one transaction, for one operation."""

    recoveries: Sequence[Undoable]
    operation_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoResult:
    """What came of a batch, by job."""

    applied: frozenset[JobId]
    refused: Mapping[JobId, str]
    """What the database said of each row it refused."""
    lost: Mapping[JobId, str]
    """Why each other one was left alone."""


def images(undoable: Undoable) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return what a recovery overwrote and what it wrote, by name; None where its record doesn't tell."""
    if undoable.pre_image is None or undoable.post_image is None:
        return None
    was, left = json.loads(undoable.pre_image), json.loads(undoable.post_image)
    return (was, left) if was.keys() == left.keys() else None
