"""Why a recovery can't be undone."""

from unstick.domain.recovery import Action
from unstick.domain.undo import CLAIMED, GONE, UNRECORDED, Undoable
from unstick.systems.rq.changes import Seen, from_text, to_text
from unstick.systems.rq.kept import Status

_LET_GO = "a job that waited for it was let go when it failed, and can't be called back"
_HELD = "a worker is at it"


def why_not(undoable: Undoable, seen: Seen | None) -> str | None:
    """Say why a recovery can't be undone; None where it can."""
    if seen is None:
        return GONE
    if undoable.post_image is None or undoable.pre_image is None:
        return UNRECORDED
    left = from_text(undoable.post_image)
    if not set(left["dependents"]) <= set(seen.dependents):
        return _LET_GO
    if to_text({**seen.image, "dependents": left["dependents"]}) == to_text(left):
        return None
    if undoable.action is Action.RETRY and seen.kept.status == Status.STARTED:
        return CLAIMED
    return f"it was changed since: status is now {seen.kept.status}"


def why_left(word: str) -> str:
    """Say why the script has left a job alone, by its word."""
    return {"let go": _LET_GO, "taken": CLAIMED, "held": _HELD}.get(word, "it was changed since")
