"""The record of a run, and the page that tells of the newest one: generated, but for remarks written by hand."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import model
from benchmarks.charts import Bar, bars
from benchmarks.report import Figure, Report, Section, say, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

ROOT = Path(__file__).parents[1]
PAGE = Path("docs/reference/performance.md")
RESULTS = Path("benchmarks/results")
REMARKS = Path("benchmarks/remarks.toml")
IMAGES = Path("docs/images")
_CONTENDERS = re.compile(r"bare|floor|audit rows|ORM|minimal|, no sweep")
_LEAST_BARS = 3
_HEAD = """# Performance

Measured on {day} by `make bench`: all of it in one run, in which contenders took turns. A ratio is between neighbours
in time, and medians are shown, with the least and the greatest in brackets. Figures are of this machine, and drift by
tens of per cent; ratios hold. The record is `{record}`; `benchmarks/` has what was run. What is in italics was written
by hand, after looking at the figures.
"""


def record(report: Report, day: date) -> None:
    """Keep a run's figures, and write the page anew."""
    (ROOT / RESULTS).mkdir(exist_ok=True)
    (ROOT / RESULTS / f"{day}.json").write_text(as_text(report))
    write()


def as_text(report: Report) -> str:
    """Return a report as JSON with a line for each figure, so that two runs can be compared line by line."""
    said = report.as_json()
    sections = []
    for section in said["sections"]:
        figures = ",\n".join(json.dumps(figure, ensure_ascii=False) for figure in section.pop("figures"))
        sections.append(f'{json.dumps(section, ensure_ascii=False)[:-1]}, "figures": [\n{figures}\n]}}')
    return f'{{"facts": {json.dumps(said["facts"], indent=1)},\n"sections": [\n{",".join(sections)}\n]}}\n'


def write() -> None:
    """Write the page and its pictures by the newest record."""
    for path, text in pages(ROOT).items():
        (ROOT / path).write_text(text)


def pages(root: Path) -> dict[Path, str]:
    """Return what the page and its pictures should say, by their paths; nothing where there is no record."""
    newest = max((root / RESULTS).glob("*.json"), default=None)
    if newest is None:
        return {}
    report = Report.from_json(json.loads(newest.read_text()))
    remarks = tomllib.loads((root / REMARKS).read_text())
    pictures = {
        IMAGES / f"performance-{_slug(title)}.svg": bars(title, each)
        for section in report.sections
        for title, figures in _by_title(section).items()
        if (each := _bars(figures))
    }
    head = _HEAD.format(day=newest.stem, record=RESULTS / newest.name)
    body = [head, _facts(report), _goals(report), *(_section(each, remarks, pictures) for each in report.sections)]
    return {PAGE: "\n".join(body), **pictures, **model.pages(root, report)}


def _facts(report: Report) -> str:
    return _table(("", ""), [(name, fact) for name, fact in report.facts.items()])


def _goals(report: Report) -> str:
    held = [figure for figure in report.figures if figure.goal is not None]
    reached = sum(figure.verdict == "ok" for figure in held)
    rows = [(_where(figure), _held(figure), str(figure.goal), _verdict(figure)) for figure in held]
    said = f"\n## Goals\n\n{reached} of {len(held)} are reached.\n\n"
    return said + _table(("what", "figure", "goal", ""), rows)


def _where(figure: Figure) -> str:
    return ", ".join(word for word in (figure.measure, figure.database, figure.name, figure.at) if word)


def _held(figure: Figure) -> str:
    assert figure.goal is not None
    if figure.ratio is None or figure.goal.unit:
        return f"{say(figure.value)} {figure.unit}"
    return f"{figure.ratio:.2f} of {figure.against}"


def _verdict(figure: Figure) -> str:
    if figure.goal is None or figure.verdict == "ok":
        return "reached" if figure.goal is not None else ""
    bound, held = figure.goal.bound, figure.held
    by = (bound - held) / bound if figure.goal.at_least else (held - bound) / bound
    return f"**missed** by {100 * by:.0f} %"


def _section(section: Section, remarks: dict[str, str], pictures: dict[Path, str]) -> str:
    about = " ".join(section.about.split())
    lines = [f"\n## {section.name.capitalize()}\n\n{about} Took {section.seconds:.0f} s.\n"]
    lines += [f"The measure failed: {section.problem}\n"] if section.problem else []
    for title, figures in _by_title(section).items():
        lines.append(f"### {title[:1].upper()}{title[1:]}\n")
        path = IMAGES / f"performance-{_slug(title)}.svg"
        lines += [f"![{title}](../images/{path.name})\n"] if path in pictures else []
        lines.append(_figures(figures))
    if section.name in remarks:
        lines += [f"*{' '.join(paragraph.split())}*\n" for paragraph in remarks[section.name].strip().split("\n\n")]
    return "\n".join(lines)


def _by_title(section: Section) -> dict[str, list[Figure]]:
    titles: dict[str, list[Figure]] = {}
    for figure in section.figures:
        titles.setdefault(figure.measure, []).append(figure)
    return titles


def _figures(figures: Sequence[Figure]) -> str:
    """A row for each name and database, a column for each size."""
    places = list(dict.fromkeys(figure.at for figure in figures))
    rows: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        rows.setdefault((figure.database, figure.name), []).append(figure)
    head = ("on", "what", *(place or "figure" for place in places), "against")
    return _table(
        head, [(*key, *(_cell(each, place) for place in places), _against(each)) for key, each in rows.items()]
    )


def _cell(figures: Sequence[Figure], place: str) -> str:
    figure = next((each for each in figures if each.at == place), None)
    return "" if figure is None else f"{say(figure.value)} {figure.unit} {span(figure.values)}".strip()


def _against(figures: Sequence[Figure]) -> str:
    return "; ".join(_compared(figure) for figure in figures if figure.ratio is not None or figure.goal is not None)


def _compared(figure: Figure) -> str:
    ratio = (
        "" if figure.ratio is None else f"{figure.ratio:.2f} {span(figure.ratios)}".strip() + f" of {figure.against}"
    )
    goal = "" if figure.goal is None else f"{figure.goal}: {_verdict(figure)}"
    return ", ".join(part for part in (ratio, goal) if part)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines(head, rows)) + "\n"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _bars(figures: Sequence[Figure]) -> list[Bar]:
    """Return what a picture shows, none where units differ or there is too little to see."""
    each = {(figure.database, figure.name, figure.at): figure for figure in figures}
    if len({figure.unit for figure in figures}) > 1 or len(each) < _LEAST_BARS or min(f.value for f in figures) <= 0:
        return []
    return [
        Bar(
            label=", ".join(word for word in key if word),
            value=figure.value,
            said=f"{say(figure.value)} {figure.unit}",
            ours=_CONTENDERS.search(figure.name) is None,
        )
        for key, figure in each.items()
    ]


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
