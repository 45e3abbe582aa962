"""How instants and durations are said to a person, and sentences that another language can say as well."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Self

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


Fact = str | int | float | datetime | timedelta


class Phrase(str):
    """English words that remember the facts in them, so that a page can say the same in its reader's language.

    Args:
        text: the words, with `%(name)s` where a fact belongs.
        facts: by name; an instant, a duration or another phrase is said as the language says it.
    """

    __slots__ = ("facts", "text")

    text: str
    facts: Mapping[str, Fact]

    def __new__(cls, text: str, **facts: Fact) -> Self:
        """Say it in English."""
        made = super().__new__(cls, text % {name: _in_english(fact) for name, fact in facts.items()})
        made.text, made.facts = text, facts
        return made


def _in_english(fact: Fact) -> str:
    match fact:
        case datetime():
            return say_instant(fact)
        case timedelta():
            return say_duration(fact)
        case _:
            return str(fact)


def keep_phrase(said: str) -> str:
    """Write a phrase as it is kept, with its facts; any other text is kept as it is."""
    return json.dumps(_kept(said)) if isinstance(said, Phrase) else said


def read_phrase(kept: str) -> str:
    """Read what `keep_phrase` wrote; what is no phrase is the text that was kept."""
    try:
        said = _fact(json.loads(kept))
    except (ValueError, KeyError, TypeError):
        return kept
    return said if isinstance(said, Phrase) else kept


def _kept(fact: Fact) -> object:
    match fact:
        case Phrase(text=text, facts=facts):
            return {"text": text, "facts": {name: _kept(each) for name, each in facts.items()}}
        case datetime():
            return {"at": fact.isoformat()}
        case timedelta():
            return {"seconds": fact.total_seconds()}
        case _:
            return fact


def _fact(kept: object) -> Fact:
    match kept:
        case {"text": str(text), "facts": dict(facts)}:
            return Phrase(text, **{name: _fact(each) for name, each in facts.items()})
        case {"at": str(at)}:
            return datetime.fromisoformat(at)
        case {"seconds": float(seconds)}:
            return timedelta(seconds=seconds)
        case str() | int() | float():
            return kept
        case _:
            return str(kept)


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
