"""How instants and durations are said to a person."""

from datetime import datetime, timedelta
from functools import lru_cache

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def say_duration(duration: timedelta) -> str:
    """Say a duration in its two largest units: `3 days 4 hours`, `12 minutes`, `40 seconds`."""
    seconds = duration.days * _DAY + duration.seconds
    # Seconds aren't said of long durations: rounded first, thousands of jobs share one remembered answer.
    return _say_seconds(seconds if seconds < 10 * _MINUTE else seconds - seconds % _MINUTE)


def say_instant(instant: datetime) -> str:
    """Say an aware UTC instant to the second: `2026-11-23 21:24:13 UTC`."""
    return f"{instant.isoformat(' ')[:19]} UTC"


def say_worker(name: str) -> str:
    """Say a worker's name as a person looks for it: `host:pid`, without the boot id that ours end in."""
    host, _, rest = name.partition(":")
    pid, _, boot_id = rest.partition(":")
    return f"{host}:{pid}" if pid.isdecimal() and boot_id else name


@lru_cache(maxsize=4096)
def _say_seconds(seconds: int) -> str:
    if seconds < _MINUTE:
        return _count(seconds, "second")
    if seconds < _HOUR:
        return _two(seconds // _MINUTE, "minute", seconds % _MINUTE, "second")
    if seconds < _DAY:
        return _two(seconds // _HOUR, "hour", seconds % _HOUR // _MINUTE, "minute")
    return _two(seconds // _DAY, "day", seconds % _DAY // _HOUR, "hour")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    said = _count(large, large_unit)
    return f"{said} {_count(small, small_unit)}" if small else said


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
