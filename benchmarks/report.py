"""Figures with the goals they are held against, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound on a ratio, or with a unit on the figure itself; `later` is the one aimed at in the end."""

    bound: float
    at_least: bool = False
    unit: str = ""
    later: float | None = None

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        later = "" if self.later is None else f" ({sign} {self.later:g} in the end)"
        return f"{sign} {self.bound:g}{self.unit}{later}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the report: what was measured, and what it is against its counterpart of the same rounds."""

    measure: str
    database: str
    name: str
    values: Sequence[float]
    unit: str
    against: str = ""
    ratios: Sequence[float] = ()
    goal: Goal | None = None

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        held = self.value if self.goal.unit or self.ratio is None else self.ratio
        return "ok" if self.goal.met(held) else "missed"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"value": self.value, "ratio": self.ratio, "verdict": self.verdict}


@dataclass(kw_only=True)
class Report:
    """All figures of one run."""

    facts: dict[str, str]
    figures: list[Figure] = field(default_factory=list)

    def show(self, console: Console) -> None:
        for name, fact in self.facts.items():
            console.print(f"[bold]{name}[/] {fact}", highlight=False)
        table = Table("measure", "on", "what", "figure", "spread", "ratio", "goal", "")
        for figure in self.figures:
            table.add_row(*_row(figure))
        console.print(table)

    def as_json(self) -> dict[str, Any]:
        return {"facts": self.facts, "figures": [figure.as_json() for figure in self.figures]}


def _row(figure: Figure) -> list[str]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f} {_span(figure.ratios)} of {figure.against}"
    verdict = {"ok": "[green]ok[/]", "missed": "[red]missed[/]"}.get(figure.verdict, "")
    goal = "" if figure.goal is None else str(figure.goal)
    value = f"{_say(figure.value)} {figure.unit}"
    return [figure.measure, figure.database, figure.name, value, _span(figure.values), ratio, goal, verdict]


def _span(values: Sequence[float]) -> str:
    return f"({_say(min(values))}-{_say(max(values))})" if len(values) > 1 else ""


def _say(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
