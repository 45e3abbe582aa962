"""How a column stores instants: what its values mean, and how an instant is written or compared there.

Inside Unstick every instant is aware UTC. An ambiguous local time (the hour a clock is set back) is read as
the later of the two, so that a job is never thought older than it is.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from sqlalchemy import ColumnElement, String, case, func, or_, type_coerce

Raw = object
"""A value as the driver gives and takes it."""
Time = ColumnElement[Any]


class _ComparedAsStored:
    """A form whose values the database orders by time as they stand, and which say no offset of their own."""

    __slots__ = ()

    def comparable(self, column: Time) -> Time:
        """Return the expression that orders this column by time."""
        return column

    def before(self, column: Time, horizon: Time, utc: Time) -> ColumnElement[bool]:
        """Hold where a stored value is surely before the horizon."""
        del utc
        return column < horizon


@dataclass(frozen=True, slots=True)
class AwareTime(_ComparedAsStored):
    """`timestamp with time zone` on PostgreSQL."""

    is_utc = True

    def read(self, raw: Raw) -> datetime | None:
        """Return what a stored value means."""
        return None if raw is None else _stored(raw).astimezone(UTC)

    def write(self, instant: datetime) -> Raw:
        """Return an instant as this column stores it."""
        return instant

    def horizon(self, instant: datetime) -> Raw:
        """Return the value below which stored ones are surely before an instant."""
        return instant

    def horizon_utc(self, instant: datetime) -> Raw:
        """Return the horizon for values that say their own offset, of which there are none here."""
        return self.horizon(instant)


@dataclass(frozen=True, slots=True)
class NaiveTime(_ComparedAsStored):
    """A date-time column without a zone; the mapping says which one is meant."""

    zone: tzinfo

    @property
    def is_utc(self) -> bool:
        """Tell whether stored values are UTC as they stand."""
        return str(self.zone) == "UTC"

    def read(self, raw: Raw) -> datetime | None:
        """Return what a stored value means."""
        return None if raw is None else self.meant(_stored(raw))

    def meant(self, local: datetime) -> datetime:
        """Return the latest instant a local time can mean."""
        return local.replace(tzinfo=self.zone, fold=1).astimezone(UTC)

    def write(self, instant: datetime) -> Raw:
        """Return an instant as this column stores it."""
        return instant.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def horizon(self, instant: datetime) -> datetime:
        """Return the value below which stored ones are surely before an instant."""
        local = instant.astimezone(self.zone)
        return local.replace(tzinfo=None, fold=0) - self._ambiguity(local)

    def horizon_utc(self, instant: datetime) -> Raw:
        """Return the horizon for values that say their own offset, of which there are none here."""
        return self.horizon(instant)

    def _ambiguity(self, local: datetime) -> timedelta:
        """Return how much a horizon in the first of two equal hours must give way to the second."""
        if local.fold == 1:
            return timedelta(0)
        earlier, later = local.utcoffset(), local.replace(fold=1).utcoffset()
        if earlier is None or later is None or earlier <= later:
            return timedelta(0)
        return earlier - later


@dataclass(frozen=True, slots=True)
class TextTime:
    """SQLite's times: text in any ISO 8601 spelling, with or without an offset, compared by what it means."""

    naive: NaiveTime

    @property
    def is_utc(self) -> bool:
        """Tell whether stored values are UTC, or say their own offset."""
        return self.naive.is_utc

    def read(self, raw: Raw) -> datetime | None:
        """Return what a stored value means; raise ValueError where it isn't a time."""
        if raw is None:
            return None
        said = datetime.fromisoformat(str(raw))
        return self.naive.meant(said) if said.tzinfo is None else said.astimezone(UTC)

    def write(self, instant: datetime) -> Raw:
        """Return an instant as this column stores it."""
        return f"{self.naive.write(instant)!s:.26}" if instant.microsecond else f"{self.naive.write(instant)!s}.000000"

    def horizon(self, instant: datetime) -> Raw:
        """Return the value below which stored ones are surely before an instant."""
        return self.naive.horizon(instant).isoformat(" ", "milliseconds")

    def comparable(self, column: Time) -> Time:
        """Return the expression that orders this column by time: `T` and a blank, `Z` and none compare equal."""
        return func.strftime("%Y-%m-%d %H:%M:%f", column)

    def horizon_utc(self, instant: datetime) -> Raw:
        """Return the horizon for values that say their own offset."""
        return instant.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")

    def before(self, column: Time, horizon: Time, utc: Time) -> ColumnElement[bool]:
        """Hold where a stored value is surely before the horizon: its own offset counts where it says one."""
        if self.is_utc:
            return self.comparable(column) < horizon
        text = type_coerce(column, String())
        says_offset = or_(text.like("%Z"), text.op("GLOB")("*[+-][0-9][0-9]:[0-9][0-9]"))
        return self.comparable(column) < case((says_offset, utc), else_=horizon)


TimeForm = AwareTime | NaiveTime | TextTime


def _stored(raw: Raw) -> datetime:
    if not isinstance(raw, datetime):
        raise TypeError(f"{raw!r} is not a date-time")
    return raw
