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
    """A bound on a ratio, or with a unit on the figure itself."""

    bound: float
    at_least: bool = False
    unit: str = ""

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the report: what was measured, and what it is against its counterpart of the same rounds."""

    measure: str
    database: str
    name: str
    values: Sequence[float]
    unit: str
    at: str = ""
    """The size it was measured at, where it is one of several."""
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
    def held(self) -> float:
        """What the goal is held against: the ratio, or with a unit the figure itself."""
        return self.value if self.ratio is None or (self.goal is not None and self.goal.unit) else self.ratio

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "ok" if self.goal.met(self.held) else "missed"

    def as_json(self) -> dict[str, Any]:
        said = asdict(self) | {"values": _rounded(self.values), "ratios": _rounded(self.ratios)}
        return {key: value for key, value in said.items() if value not in ("", (), [], None)}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Figure:
        goal = said.get("goal")
        return cls(**{"database": ""} | said | {"goal": None if goal is None else Goal(**goal)})


@dataclass(kw_only=True)
class Section:
    """What one measure came to, on all databases."""

    name: str
    about: str
    seconds: float = 0
    problem: str = ""
    """Why it came to nothing more, if it failed."""
    figures: list[Figure] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        figures = [figure.as_json() for figure in self.figures]
        about, seconds = " ".join(self.about.split()), round(self.seconds)
        return {"name": self.name, "about": about, "seconds": seconds, "problem": self.problem, "figures": figures}


@dataclass(kw_only=True)
class Report:
    """All that one run came to."""

    facts: dict[str, str]
    sections: list[Section] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in section.figures]

    def show(self, console: Console) -> None:
        for name, fact in self.facts.items():
            console.print(f"[bold]{name}[/] {fact}", highlight=False)
        table = Table("measure", "on", "what", "at", "figure", "spread", "ratio", "goal", "")
        for figure in self.figures:
            table.add_row(*_row(figure))
        console.print(table)

    def as_json(self) -> dict[str, Any]:
        return {"facts": self.facts, "sections": [section.as_json() for section in self.sections]}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Report:
        sections = [
            Section(**each | {"figures": [Figure.from_json(figure) for figure in each["figures"]]})
            for each in said["sections"]
        ]
        return cls(facts=said["facts"], sections=sections)


def _rounded(values: Sequence[float]) -> list[float]:
    """Keep what is more than chance."""
    return [float(f"{value:.4g}") for value in values]


def _row(figure: Figure) -> list[str]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f} {span(figure.ratios)} of {figure.against}"
    verdict = {"ok": "[green]ok[/]", "missed": "[red]missed[/]"}.get(figure.verdict, "")
    goal = "" if figure.goal is None else str(figure.goal)
    value = f"{say(figure.value)} {figure.unit}"
    spread = span(figure.values)
    return [figure.measure, figure.database, figure.name, figure.at, value, spread, ratio, goal, verdict]


def span(values: Sequence[float]) -> str:
    return f"({say(min(values))}-{say(max(values))})" if len(values) > 1 else ""


def say(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
