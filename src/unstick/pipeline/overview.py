"""What is the case with a source now, at a bounded cost: counted anew where that is cheap, else as last observed."""

from dataclasses import dataclass
from datetime import timedelta

from unstick.domain.brake import Brake
from unstick.domain.events import Observed
from unstick.domain.health import Check, WatchRecord, checks_of
from unstick.domain.schedule import Timetable
from unstick.pipeline.observing import observe
from unstick.pipeline.watched import Watched

MOST_OBSERVED = 5_000
"""With more open jobs a source is not counted for everyone who looks: the runner's last observation is told."""
FRESH = timedelta(minutes=10)
"""An observation that is older tells little, and is made anew whatever it costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What is the case with a source."""

    observed: Observed
    just_now: bool
    """Otherwise it is the last observation that was made."""
    age: timedelta
    """How old it is, by the source's clock or the ledger's."""
    watch: WatchRecord | None
    checks: tuple[Check, ...]
    """How the watch over it goes; none where nobody is to watch it."""
    brake: Brake | None
    """What holds its unattended sweeps."""
    unmapped: tuple[str, ...]
    """Words of open jobs that its mapping gives no meaning."""


async def overview(watched: Watched, timetable: Timetable | None) -> Overview:
    """Tell what is the case with a source."""
    name = watched.source.name
    watch = None if watched.watches is None else await watched.watches.find(name)
    observed, age = _kept(watch)
    if observed is None:
        observed, age = await observe(watched), timedelta(0)
    brake = None if watched.brakes is None else await watched.brakes.find(name)
    return Overview(
        observed=observed,
        just_now=not age,
        age=age,
        watch=watch,
        checks=() if timetable is None else checks_of(watch, timetable),
        brake=brake if brake is not None and brake.is_held else None,
        unmapped=await watched.unmapped_words(),
    )


def _kept(watch: WatchRecord | None) -> tuple[Observed | None, timedelta]:
    """Return the last observation and its age, where it is to be told in place of a new one."""
    if watch is None or watch.observed is None or watch.observed_at is None:
        return None, timedelta(0)
    age = max(watch.at - watch.observed_at, timedelta(microseconds=1))
    is_large = sum(watch.observed.open_jobs.values()) > MOST_OBSERVED
    return (watch.observed, age) if is_large and age < FRESH else (None, timedelta(0))
