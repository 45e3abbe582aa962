"""Presets: what a data file can say of a job system's tables, and what holds whatever it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.renders import TestRenders as _Renders
from tests.servers import EACH_KIND
from unstick.presets.preset import load_preset

if TYPE_CHECKING:
    from tests.servers import Database

DATABASES = EACH_KIND
HOW_TO = (Path(__file__).parents[1] / "docs" / "how-to" / "presets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", HOW_TO, re.DOTALL | re.MULTILINE)
RENDERS_TOML = next(text for kind, text in BLOCKS if kind == "toml" and "renders" in text)


IN_SQL = {
    "sqlite": (),
    "postgresql": (
        (r"strftime\('[^']+', (\S+) / 1000.0, 'unixepoch'\)", r"to_timestamp(\1 / 1000.0)"),
        (r"CAST\(round\(\(julianday\((\S+)\) - .*?\) AS INTEGER\)", r"round(extract(epoch FROM \1) * 1000)"),
        ("PRAGMA user_version", "SELECT 7"),
    ),
    "mysql": (
        (r"strftime\('[^']+', (\S+) / 1000.0, 'unixepoch'\)", r"FROM_UNIXTIME(\1 / 1000)"),
        (r"CAST\(round\(\(julianday\((\S+)\) - .*?\) AS INTEGER\)", r"ROUND(UNIX_TIMESTAMP(\1) * 1000)"),
        ("PRAGMA user_version", "SELECT 7"),
    ),
}
"""The example's SQL for other databases than that of the page."""


def test_the_page_shows_the_example_that_is_run() -> None:
    shown = next(text for kind, text in BLOCKS if kind == "python")
    module = Path(__file__).with_name("renders.py").read_text(encoding="utf-8")
    assert module.partition('"""\n\n')[2] == shown


class TestTheHowTosExample(_Renders):
    """What is computed is read, judged, fenced, written and undone as a column is, by the page's own words."""

    @pytest.fixture
    def url(self, database: Database) -> str:
        return database.url

    @pytest.fixture
    def preset(self, database: Database, tmp_path: Path) -> str:
        text = RENDERS_TOML
        for pattern, sql in IN_SQL[database.backend]:
            text = re.sub(pattern, sql, text)
        file = tmp_path / "renders.toml"
        file.write_text(text.replace('["sqlite"]', f'["{database.backend}"]'), encoding="utf-8")
        load_preset.cache_clear()
        return str(file)
