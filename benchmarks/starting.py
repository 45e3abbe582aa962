"""How long it takes until there is something to use."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.filling import Filling
from benchmarks.measures import ROOT, environment
from benchmarks.report import Figure, Goal
from benchmarks.service import unstick_serve

if TYPE_CHECKING:
    from benchmarks.databases import Site
    from benchmarks.measures import Sizes

_LIBRARY = "from unstick import AdminService, JobTable, configure"
_IMPORTED = {
    "import unstick": "import unstick",
    "import AdminService": _LIBRARY,
    "the same, where a host has imported FastAPI and SQLAlchemy": _LIBRARY,
}
_HOST = "import fastapi, sqlalchemy.ext.asyncio, sqlalchemy.orm"
_TIMED = """
import time
{before}
begin = time.perf_counter()
{imported}
print(time.perf_counter() - begin)
"""


def starting(site: Site, sizes: Sizes) -> list[Figure]:
    """Seconds to import the library in a new process, and from the start of `unstick serve` to its first answer."""
    if site.backend != "postgresql":
        return []
    imported: dict[str, list[float]] = {name: [] for name in _IMPORTED}
    served: list[float] = []
    with site.fresh(Filling(finished=sizes.histories[0], stuck=sizes.fewer_stuck)) as database:
        for _ in range(sizes.starts):
            for name, statement in _IMPORTED.items():
                imported[name].append(_import(statement, _HOST if "host" in name else ""))
            with unstick_serve(database.config) as service:
                served.append(service.seconds)
    return [
        *(
            Figure(
                measure="start", database="", name=name, unit="s", values=seconds, goal=Goal(bound=0.3, unit=" s")
            )
            for name, seconds in imported.items()
        ),
        Figure(
            measure="start", database=site.backend, name="unstick serve, to its first answer", unit="s", values=served,
            goal=Goal(bound=2, unit=" s"),
        ),
    ]  # fmt: skip


def _import(statement: str, before: str) -> float:
    program = _TIMED.format(before=before, imported=statement)
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, check=True).stdout)
