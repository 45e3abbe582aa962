"""What a decision, or its undo, would make of a job: pure, so that it can be recorded before it is done."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypedDict

from unstick.domain.job import JobState
from unstick.domain.recovery import Action, Decision
from unstick.systems.rq.kept import WRITTEN, Kept, Place, Status, attempt, parents, say_time, seconds

_YEAR_SECONDS = 365 * 24 * 3600
"""How long RQ keeps a job that failed, where the job itself says nothing."""
NOTHING_KEPT = "its failure_ttl is 0: RQ would delete it, and with it all trace of what became of it"


class Image(TypedDict):
    """What may be overwritten of a job, and where it is kept, as it is recorded."""

    fields: dict[str, str]
    place: str
    executions: dict[str, str]
    due: str | None
    error: str | None
    """Why it failed the last time."""
    dependents: list[str]
    """Who waits for it. What the recovery itself makes of them isn't part of the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A job with what its image says besides."""

    kept: Kept
    error: str | None
    dependents: tuple[str, ...]

    @property
    def image(self) -> Image:
        """Return what stands now."""
        return Image(
            fields=dict(zip(WRITTEN, self.kept.written, strict=True)),
            place=self.kept.place.value,
            executions=dict(self.kept.executions),
            due=self.kept.due,
            error=self.error,
            dependents=list(self.dependents),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """How a retry is to be put off, for which somebody has to bring the job into its queue then."""

    queues: frozenset[str] = field(default_factory=frozenset)
    """Those that a living scheduler serves."""


def changed(seen: Seen, decision: Decision, error: str, now: datetime, scheduling: Scheduling) -> Image:
    """Return what a job is to be after a decision."""
    if decision.action is Action.RETRY:
        return _queued_again(seen, decision, now, scheduling)
    written = {"status": Status.FAILED.value, "ended_at": say_time(now)}
    return _with(seen.image, written, Place.FAILED, error=error)


def _queued_again(seen: Seen, decision: Decision, now: datetime, scheduling: Scheduling) -> Image:
    begun = decision.suspect.state is JobState.RUNNING
    written = {
        "status": Status.QUEUED.value, "enqueued_at": say_time(now), "started_at": "", "ended_at": "",
        "last_heartbeat": "", "worker_name": "",
        "number_of_retries": str(attempt(seen.kept.fields) + 1) if begun else seen.image["fields"]["number_of_retries"],
    }  # fmt: skip
    if not decision.wait or seen.kept.queue not in scheduling.queues:
        return _with(seen.image, written, Place.QUEUE, error=seen.error)
    due = str(int((now + decision.wait).timestamp()))
    return _with(seen.image, written | {"status": Status.SCHEDULED.value}, Place.SCHEDULED, error=seen.error, due=due)


def _with(
    image: Image, written: Mapping[str, str], place: Place, *, error: str | None, due: str | None = None
) -> Image:
    return Image(
        fields=image["fields"] | dict(written),
        place=place.value,
        executions={},
        due=due,
        error=error,
        dependents=image["dependents"],
    )


def to_text(image: Image) -> str:
    """Write an image as it is recorded."""
    return json.dumps(image, sort_keys=True)


def from_text(text: str) -> Image:
    """Read what `to_text` wrote."""
    image: Image = json.loads(text)
    return image


def forgets_failures(kept: Kept) -> bool:
    """Tell whether RQ would delete the job as it fails."""
    return seconds(kept, "failure_ttl") == 0


def order(kept: Kept, now: Image, then: Image, at: datetime, *, undoing: bool = False) -> dict[str, object]:
    """Return what the script is told to make of a job: `now` it must be, `then` it is to become.

    Who is put back into a queue has lost its place there, and comes first.
    """
    failure_ttl = seconds(kept, "failure_ttl") or _YEAR_SECONDS
    ttl = failure_ttl if then["place"] == Place.FAILED else seconds(kept, "ttl") or -1
    error = then["error"] if then["place"] == Place.FAILED else now["error"]
    said: dict[str, object | None] = {
        "id": kept.id,
        "queue": kept.queue,
        "fields": list(WRITTEN),
        "was": [now["fields"][name] for name in WRITTEN],
        "from": now["place"],
        "to": then["place"],
        "set": {name: then["fields"][name] for name in WRITTEN if then["fields"][name] != now["fields"][name]},
        "executions": now["executions"],
        "gives_back": then["executions"],
        "execution": next(iter(now["executions"]), None),
        "worker": now["fields"]["worker_name"],
        "due": now["due"],
        "to_be_due": then["due"],
        "parents": list(parents(kept)),
        "dependents": now["dependents"] if undoing else [],
        "error": packed(error or ""),
        "first": undoing,
        "now": int(at.timestamp()),
        "kept_for": ttl if ttl > 0 and then["place"] != Place.STARTED else None,
        "forgotten_at": int(at.timestamp()) + failure_ttl if failure_ttl > 0 else failure_ttl,
    }
    return {name: value for name, value in said.items() if value is not None}


def packed(error: str) -> str:
    """Write an error as RQ does in a job's results."""
    return base64.b64encode(zlib.compress(error.encode(errors="surrogatepass"))).decode()


def unpacked(error: str) -> str | None:
    """Read an error as RQ wrote it; None where it can't be."""
    try:
        return zlib.decompress(base64.b64decode(error)).decode()
    except (ValueError, zlib.error):
        return None


def orders_text(orders: Sequence[Mapping[str, object]]) -> str:
    """Write orders for the script."""
    return json.dumps(orders)
