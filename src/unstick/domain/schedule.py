"""When something that is done again and again is due."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol


class Schedule(Protocol):
    """Says when something is due again."""

    @property
    def apart(self) -> timedelta:
        """How far apart two times of it lie at most: who has waited three times as long has missed it."""

    def after(self, last: datetime) -> datetime:
        """Return when it is due next, if it was done last then."""


@dataclass(frozen=True, slots=True)
class Every:
    """Again when so much time has passed since the last time began."""

    apart: timedelta

    def after(self, last: datetime) -> datetime:
        """Return when it is due next."""
        return last + self.apart


ROUND_MAY_TAKE = timedelta(minutes=1)
"""How long an observation or a sweep may take at least, however often there is to be one."""
OBSERVE_EVERY = Every(timedelta(minutes=1))
CLEAN_EVERY = Every(timedelta(minutes=10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """How often a source is observed and swept."""

    observe: Schedule = OBSERVE_EVERY
    clean: Schedule = CLEAN_EVERY


MISSED_AFTER = 3
"""By how many intervals what should have been done again has been missed."""
