"""Beyond this machine: what costs that were measured here come to at a size that can't be tried here.

The tables of `docs/explanation/scale.md` are written anew with the record of a run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.heartbeats import JOBS_EACH
from benchmarks.report import Report, say
from benchmarks.scale import DECADE, MEASURE, YEAR
from unstick.domain.leadership import LEADS_FOR
from unstick.domain.work import BEAT_EVERY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.report import Figure

PAGE = Path("docs/explanation/scale.md")
_DAY = 86_400
_ASKED_EVERY = LEADS_FOR.total_seconds() / 3 * 0.9
"""How often a replica asks for a source's lease, or renews it: three times as often as it runs out, a little spread."""
PLACE = re.compile(r"(<!-- model -->\n).*?(<!-- /model -->)", re.DOTALL)
"""Of the tables, in the page."""


class NotMeasuredError(Exception):
    """A run didn't measure what the model needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What was measured, in seconds of the database and in bytes."""

    look: float
    """With a year's partitions."""
    look_at_a_partition: float
    """What each further partition adds to it."""
    asking: float
    """For a lease that many replicas want."""
    beat: float
    """Of one worker, for all of its jobs."""
    update: float
    """Of one job's own heartbeat column."""
    recovery: float
    recovery_kept: float
    recovery_written: float
    sweep_kept: float
    scan_of_a_million: float
    """Rows, one processor, read from memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large it all is."""

    rows: float = 1e9
    partitions: int = 36
    """By month, three years of them."""
    replicas: int = 100
    sweeps: float = 10_000
    """A day, of one source: one every nine seconds."""
    workers: float = 10_000
    jobs_a_worker: float = 10
    stuck: float = 100_000
    """A day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One cost at that size."""

    name: str
    grows_with: str
    share: float
    """Of one of the database's processors."""
    instead: str

    @property
    def headroom(self) -> float:
        """By how much it may grow until it takes a whole processor."""
        return 1 / self.share


def loads(constants: Constants, scale: Scale) -> list[Load]:
    """Return what keeps the database busy at a size, the dearest first: that one breaks first."""
    each_look = constants.look + constants.look_at_a_partition * (scale.partitions - YEAR)
    found = [
        Load(
            name="looks of sweeps", grows_with="sweeps and partitions", share=scale.sweeps * each_look / _DAY,
            instead="sweep less often; fewer, larger partitions; detach those that are old",
        ),
        Load(
            name="askings for the lease", grows_with="replicas and sources",
            share=scale.replicas / _ASKED_EVERY * constants.asking,
            instead="fewer replicas, three for one source",
        ),
        Load(
            name="heartbeats by lease", grows_with="workers",
            share=scale.workers / BEAT_EVERY.total_seconds() * constants.beat,
            instead="larger workers: one with a hundred jobs costs little more than one with ten",
        ),
        Load(
            name="recoveries", grows_with="stuck jobs", share=scale.stuck * constants.recovery / _DAY,
            instead="mend what gets so many stuck",
        ),
    ]  # fmt: skip
    return sorted(found, key=lambda load: load.share, reverse=True)


def avoided(constants: Constants, scale: Scale) -> list[Load]:
    """Return what it would cost to do it as it is often done, at the same size."""
    jobs = scale.workers * scale.jobs_a_worker
    return [
        Load(
            name="looks without the partial index", grows_with="sweeps and rows",
            share=scale.sweeps * scale.rows / 1e6 * constants.scan_of_a_million / _DAY, instead="the partial index",
        ),
        Load(
            name="a heartbeat column, an UPDATE a job", grows_with="running jobs",
            share=jobs / BEAT_EVERY.total_seconds() * constants.update, instead="leases",
        ),
    ]  # fmt: skip


def kept_a_year(constants: Constants, scale: Scale) -> Mapping[str, float]:
    """Return what Unstick's own tables grow by in a year, in GB, where nothing is pruned; and what is written ahead."""
    year = 365
    return {
        "records of recoveries": scale.stuck * constants.recovery_kept * year / 1e9,
        "records of sweeps with nothing stuck": scale.sweeps * constants.sweep_kept * year / 1e9,
        "written ahead for recoveries": scale.stuck * constants.recovery_written * year / 1e9,
    }


def constants_of(report: Report) -> Constants:
    """Read what a run measured.

    Raises:
        NotMeasuredError: it lacks a figure that is needed.
    """
    scaled = [figure for figure in report.figures if figure.measure == MEASURE]
    busy = [figure for figure in report.figures if figure.measure.endswith("database busy")]
    looks = sorted(_named(scaled, f"a look, {YEAR} partitions"), key=lambda figure: _number(figure.at))
    small, large = looks[0].value / 1000, looks[-1].value / 1000

    def measured(name: str) -> float:
        return _named(scaled, name)[0].value

    def beating(name: str) -> float:
        """Return the seconds that one job's sign of life costs."""
        figure = _named(busy, name)[0]
        return figure.value / 100 * BEAT_EVERY.total_seconds() / _number(figure.measure)

    return Constants(
        look=large,
        look_at_a_partition=max(0.0, measured(f"a look, {DECADE} partitions") / 1000 - small) / (DECADE - YEAR),
        asking=measured("an asking for a lease, processor") / 1000,
        beat=beating("lease a worker") * JOBS_EACH,
        update=beating("UPDATE a job"),
        recovery=measured("a recovered job, processor") / 1000,
        recovery_kept=measured("a recovered job, kept"),
        recovery_written=measured("a recovered job, written ahead"),
        sweep_kept=measured("a sweep with nothing stuck, kept"),
        scan_of_a_million=measured("one scan of the whole table") / 1000 / (_number(looks[-1].at) / 1e6),
    )


def _named(figures: Iterable[Figure], name: str) -> list[Figure]:
    found = [figure for figure in figures if figure.name.startswith(name)]
    if not found:
        raise NotMeasuredError(f"The run has no figure {name!r}; it must have measured `scale` and `heartbeats`.")
    return found


def _number(said: str) -> float:
    """Return the number that is in a sentence."""
    return float(re.sub(r"[^0-9]", "", said))


def pages(root: Path, report: Report) -> dict[Path, str]:
    """Return what the page should say by a run's figures, by its path; nothing where the run didn't measure them."""
    measured = {section.name for section in report.sections if section.figures}
    return {PAGE: page((root / PAGE).read_text(), report)} if {"scale", "heartbeats"} <= measured else {}


def page(text: str, report: Report) -> str:
    """Return the page with its tables by a run's figures; all else is written by hand.

    Raises:
        NotMeasuredError: the run lacks a figure that is needed.
    """
    constants, size = constants_of(report), Scale()
    tables = "\n".join([_measured(constants), _modelled(constants, size), _kept(constants, size)])
    return PLACE.sub(lambda match: f"{match[1]}{tables}{match[2]}", text)


def _measured(constants: Constants) -> str:
    rows = [
        ("a look with nothing stuck, a year of partitions", f"{say(1000 * constants.look)} ms"),
        ("each further partition", f"{say(1000 * constants.look_at_a_partition)} ms"),
        ("an asking for the lease, among 100 replicas", f"{say(1000 * constants.asking)} ms"),
        ("a beat of a worker with 100 jobs", f"{say(1000 * constants.beat)} ms"),
        ("an UPDATE of one job's heartbeat", f"{say(1000 * constants.update)} ms"),
        ("a recovered job", f"{say(1000 * constants.recovery)} ms, {say(constants.recovery_kept)} B kept"),
        ("one scan of a million rows", f"{say(1000 * constants.scan_of_a_million)} ms"),
    ]
    return _table(("measured here", "of the database"), rows)


def _modelled(constants: Constants, size: Scale) -> str:
    rows = [
        (each.name, each.grows_with, f"{say(100 * each.share)} %", f"{say(each.headroom)} times as much", each.instead)
        for each in (*loads(constants, size), *avoided(constants, size))
    ]
    return _table(("modelled", "grows with", "of one processor", "until it takes a whole one", "what to do then"), rows)


def _kept(constants: Constants, size: Scale) -> str:
    rows = [(name, f"{say(gigabytes)} GB") for name, gigabytes in kept_a_year(constants, size).items()]
    return _table(("modelled", "a year"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
