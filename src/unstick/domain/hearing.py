"""What events say of the subjects of alerts."""

from unstick.domain.alert import Finding, Heard, Subject, Trouble
from unstick.domain.diagnosis import STUCK, Reason
from unstick.domain.events import (
    OTHERS,
    BrakeReleased,
    Held,
    ObservationFailed,
    Observed,
    PipelineEvent,
    SweepFailed,
    Swept,
    Trigger,
)
from unstick.domain.wording import say_instant

_WHY = {
    Reason.WORKER_GONE: "its worker is gone",
    Reason.LEASE_EXPIRED: "its worker's lease ran out",
    Reason.SILENT: "it runs and shows no sign of life",
    Reason.HUNG: "it beats, but makes no progress",
    Reason.NEVER_CLAIMED: "no worker has claimed it",
    Reason.OVERTAKEN: "jobs that came later were claimed before it",
    Reason.UNSERVED: "no worker lives that could claim it",
    Reason.MESSAGE_LOST: "the broker has no message for it",
    Reason.POISON: "it was recovered as often as the budget allows",
}


def heard(event: PipelineEvent) -> Heard | None:
    """Return what an event says of a source, None where it is about no subject of alerts."""
    match event:
        case Observed():
            return _observed(event)
        case ObservationFailed(source=source, problem=problem):
            finding = Finding(0, f"Source {source!r} can't be observed: {problem}")
            return _alone(source, Trouble.UNOBSERVED, finding)
        case Swept(trigger=Trigger.UNATTENDED, source=source, held=held):
            found = {} if held is None else {Subject(source, None, Trouble.BRAKE): _brake(source, held)}
            return Heard(source=source, found=found, speaks_of={Trouble.SWEEP_FAILED, Trouble.BRAKE})
        case BrakeReleased(source=source):
            return Heard(source=source, speaks_of={Trouble.BRAKE})
        case SweepFailed(trigger=Trigger.UNATTENDED, source=source, problem=problem):
            return _alone(source, Trouble.SWEEP_FAILED, Finding(0, f"The sweep of source {source!r} failed: {problem}"))
        case _:
            return None


def _alone(source: str, trouble: Trouble, finding: Finding) -> Heard:
    return Heard(source=source, found={Subject(source, None, trouble): finding}, speaks_of={trouble})


def _observed(event: Observed) -> Heard:
    source = event.source
    found = {
        Subject(source, _storable(queue), reason): Finding(
            number, _stuck(source, queue, reason, number, exact=event.exact)
        )
        for (queue, reason), number in event.stuck.items()
        if number
    }
    if event.held is not None:
        found[Subject(source, None, Trouble.BRAKE)] = _brake(source, event.held)
    if event.late_finishes:
        sentence = (
            f"{_jobs(event.late_finishes)} of source {source!r} that had been recovered finished after all within a "
            "day: see `unstick aftermath` and `unstick suggest`."
        )
        found[Subject(source, None, Trouble.LATE_FINISHES)] = Finding(event.late_finishes, sentence)
    # Where not every witness could be asked, or not every queue is told apart, one that wasn't found may be stuck.
    hidden = {reason for queue, reason in event.stuck if queue == OTHERS} if event.exact else STUCK
    speaks_of: set[Reason | Trouble] = {Trouble.UNOBSERVED, Trouble.BRAKE, Trouble.LATE_FINISHES}
    speaks_of |= STUCK - hidden
    return Heard(source=source, found=found, speaks_of=speaks_of, observation=True)


def _stuck(source: str, queue: str | None, reason: Reason, number: int, *, exact: bool) -> str:
    where = f"source {source!r}" if queue is None else f"queue {queue!r} of source {source!r}"
    least = "" if exact else "at least "
    why = _WHY.get(reason, reason.value)
    return f"{least}{_jobs(number)} of {where} {'is' if number == 1 else 'are'} stuck ({reason.value}: {why})."


def _brake(source: str, held: Held) -> Finding:
    sentence = (
        f"The brake holds unattended sweeps of source {source!r} since {say_instant(held.since)}: {held.suspects} jobs "
        f"were stuck at once. It looks like {held.cause}. Look into it; then `unstick brake --release --source "
        f"{source}`."
    )
    return Finding(held.suspects, sentence)


def _storable(queue: str | None) -> str | None:
    """Return a queue's name as any database keeps it."""
    return None if queue is None else queue.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
