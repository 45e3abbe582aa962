"""The page of job systems: a row for each system and database, and one service over five, as a run has seen them."""

from __future__ import annotations

import os
import re
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unstick.presets.preset import Preset

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "systems.md"
RECORD = "RECORD_SYSTEMS"
"""With this variable set, a run writes its rows into the page."""
_HEAD = "|---|---|---|---|---|---|---|\n"
_SERVICE_HEAD = "| what its own system says in the end |\n|---|---|---|---|---|\n"
_DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}


def show(
    preset: Preset, name: str, version: str, backend: str, workers: str, seen: Sequence[str], *, undoable: bool
) -> None:
    """Demand that the page has this row, or write it."""
    row = " | ".join((
        f"{preset.system} {version}",
        f"`{name}`",
        _DATABASES[backend],
        workers,
        _life(preset),
        ", ".join(seen),
        "yes" if undoable else "no: it writes more than the job's row",
    ))  # fmt: skip
    line = f"| {row} |\n"
    if RECORD in os.environ:
        _write(line, f"| `{name}` | {_DATABASES[backend]} |")
    shown = PAGE.read_text(encoding="utf-8")
    assert line in shown, f"{PAGE.name} lacks {line}write it with `make systems`"


def rows() -> list[str]:
    """Return the page's rows."""
    lines = PAGE.read_text(encoding="utf-8").partition(_HEAD)[2].splitlines(keepends=True)
    return list(takewhile(lambda line: line.startswith("|"), lines))


def _life(preset: Preset) -> str:
    if preset.registry is not None:
        return f"`{preset.registry.table}`"
    if "heartbeat_at" in preset.columns:
        return "a heartbeat in its row"
    return "age alone" if "started_at" in preset.columns else "nothing: its lock runs out"


def _write(line: str, key: str) -> None:
    """Put a row in its place, in place of the one of the same preset and database."""
    before, head, after = PAGE.read_text(encoding="utf-8").partition(_HEAD)
    others = rows()
    after = after[len("".join(others)) :]
    kept = sorted([*(row for row in others if key not in row), line], key=str.casefold)
    PAGE.write_text(before + head + "".join(kept) + after, encoding="utf-8")


def configuration() -> str:
    """Return the configuration of one service over several systems."""
    (found,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return str(found)


def show_service(seen: Sequence[Sequence[str]]) -> None:
    """Demand that the page has these rows of what a service did, and no others, or write them."""
    lines = "".join(f"| {' | '.join(row)} |\n" for row in seen)
    before, head, after = PAGE.read_text(encoding="utf-8").partition(_SERVICE_HEAD)
    shown = "".join(takewhile(lambda line: line.startswith("|"), after.splitlines(keepends=True)))
    if RECORD in os.environ:
        PAGE.write_text(before + head + lines + after[len(shown) :], encoding="utf-8")
        return
    assert shown == lines, f"{PAGE.name} says otherwise; write it with `make systems`"
