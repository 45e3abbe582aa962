"""One observation that nobody asked for: what it found, or why it found nothing, is kept and told."""

import logging
from datetime import timedelta

from unstick.domain.errors import UnstickError
from unstick.domain.events import ObservationFailed, Observed
from unstick.domain.wording import say_duration
from unstick.pipeline.emitting import emit
from unstick.pipeline.ending import in_time
from unstick.pipeline.observing import observe
from unstick.pipeline.sweep import note_problem
from unstick.pipeline.watched import Watched

_log = logging.getLogger("unstick.runner")


async def observe_and_tell(watched: Watched, within: timedelta) -> Observed | None:
    """Observe a source, keep it and tell the listeners; None where that failed, which they are told as well."""
    try:
        observed = await in_time(_observe_and_keep(watched), within.total_seconds())
    except Exception as error:  # noqa: BLE001 - whatever it is, the watch goes on
        problem = f"no answer within {say_duration(within)}" if isinstance(error, TimeoutError) else str(error)
        trace(error)
        await emit(watched, ObservationFailed(source=watched.source.name, problem=problem))
        await note_problem(watched, problem)
        return None
    await emit(watched, observed)
    return observed


async def _observe_and_keep(watched: Watched) -> Observed:
    observed = await observe(watched)
    if watched.watches is not None:
        await watched.watches.note_observed(observed)
    return observed


def trace(error: Exception) -> None:
    """Write down where an error came from that isn't one of those expected."""
    if not isinstance(error, UnstickError | TimeoutError):
        _log.error("That is an error of Unstick's own", exc_info=error)
