"""Charts as figures that a template draws as SVG: axes with round steps, a title for each bar, and a table behind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 480, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 4, 10, 26
_TICKS = 4
_LABELS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One kind of figure of a chart."""

    key: str
    """Which colour and pattern it has: `failed`, `retried`, `late`."""
    label: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A part of a column."""

    key: str
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A line or a label of an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Columns over time."""

    series: tuple[Series, ...]
    times: tuple[datetime, ...]
    """When each column begins."""
    bars: tuple[Bar, ...]
    up: tuple[Tick, ...]
    along: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to see in it."""
        return not any(any(each.values) for each in self.series)

    @property
    def rows(self) -> list[tuple[datetime, list[int]]]:
        """The table behind it."""
        return [(at, [each.values[place] for each in self.series]) for place, at in enumerate(self.times)]


def columns(
    series: Sequence[Series], times: Sequence[datetime], say: Callable[[float], str], at: Callable[[datetime], str]
) -> Chart:
    """Draw series as stacked columns over time; `say` writes numbers, and `at` the times along the axis."""
    step = _step(max([1, *(sum(each.values[place] for each in series) for place in range(len(times)))]))
    most = step * _TICKS
    return Chart(
        series=tuple(series),
        times=tuple(times),
        bars=tuple(bar for place in range(len(times)) for bar in _column(series, times, place, most, say, at)),
        up=tuple(Tick(at=_y(step * tick, most), label=say(step * tick)) for tick in range(_TICKS + 1)),
        along=tuple(
            Tick(at=round(_x(place, len(times)), 1), label=at(times[place]))
            for place in range(0, len(times), max(1, len(times) // _LABELS))
        ),
    )


def _column(
    series: Sequence[Series],
    times: Sequence[datetime],
    place: int,
    most: int,
    say: Callable[[float], str],
    at: Callable[[datetime], str],
) -> list[Bar]:
    bars, below, width = [], 0, _x(1, len(times)) - _x(0, len(times))
    for each in series:
        value = each.values[place]
        if not value:
            continue
        top = _y(below + value, most)
        bars.append(
            Bar(
                key=each.key,
                x=round(_x(place, len(times)) + width * 0.14, 1),
                y=top,
                width=round(width * 0.72, 1),
                height=round(_y(below, most) - top, 1),
                title=f"{at(times[place])}: {say(value)} {each.label}",
            )
        )
        below += value
    return bars


def _step(most: int) -> int:
    """Return the smallest round step with which so many fit under the ticks."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if factor * size * _TICKS >= most:
                return factor * size
        size *= 10


def _x(place: int, number: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * place / number


def _y(value: float, most: float) -> float:
    return round(HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / most, 1)
