"""Presets: what a data file can say of a job system's tables, and what holds whatever it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.renders import TestRenders as _Renders
from tests.servers import EACH_KIND
from unstick.config import Settings, load_settings
from unstick.domain.errors import ConfigurationError
from unstick.presets.preset import load_preset
from unstick.sql.mapping import JobTable
from unstick.wiring import open_worker

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


# What is said of a preset that can't be used


def written(tmp_path: Path, old: str, new: str) -> str:
    """Write the example with a change, and return its path."""
    file = tmp_path / "changed.toml"
    assert old in RENDERS_TOML
    file.write_text(RENDERS_TOML.replace(old, new, 1), encoding="utf-8")
    load_preset.cache_clear()
    return str(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"{detail}"', '"{detial}"', "`fail.0.set.problem`: has {detial} in it; it may have {detail}, {due}, {id}, "),
        ('"{jobs}.finished_ms IS NULL"', '"{now} > 1"', "`open`: has {now} in it; it may have {jobs}, {schema}"),
        (
            '"{jobs}.finished_ms IS NULL"',
            '"EXISTS (SELECT FROM {schema}.x)"',
            "`open`: has {schema} in it without the name",
        ),
        (
            'table = "renders"',
            'table = "main.renders"',
            "`table`: must name the table alone; its schema is `default_schema`",
        ),
        ("[[fail]]", '[[fail]]\nof = "queued"', "must tell one `fail`, or one for each of queued and running"),
        ('system = "our renders"', "", "`system`: Field required"),
        ('kind = "template"', 'sort = "template"', "`columns.sort"),
        ("[states]", "[states", "is no TOML"),
    ],
)
def test_a_wrong_preset_is_told_with_its_file_and_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = written(tmp_path, old, new)
    with pytest.raises(ConfigurationError, match=re.escape(said)) as told:
        load_preset(file)
    assert str(told.value).startswith(f"The preset {file} ")


def test_a_preset_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no preset 'procrastinte'; there are: .*, procrastinate, .*path"):
        load_preset("procrastinte")
    with pytest.raises(ConfigurationError, match=r"The preset \./nowhere\.toml can't be read: No such file"):
        load_preset("./nowhere.toml")


def test_a_preset_and_a_mapping_are_not_both_given(tmp_path: Path) -> None:
    file = tmp_path / "unstick.toml"
    file.write_text('[sources.main]\npreset = "procrastinate"\ncolumns.id = "id"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="must have either `preset`, or `columns` and `states`"):
        load_settings(file)


def test_with_a_preset_the_table_is_the_systems_own_under_its_schema_or_prefix() -> None:
    preset = load_preset("pgqueuer")
    declared = JobTable.from_preset(preset, "mail.eu_pgqueuer")
    assert (declared.schema, declared.name, declared.prefix) == ("mail", "eu_pgqueuer", "eu_")
    with pytest.raises(ConfigurationError, match=r"'jobs' is not the table of PgQueuer: .* such as 'jobs.pgqueuer'"):
        JobTable.from_preset(preset, "jobs")


async def test_what_a_system_has_workers_for_is_not_run_by_ours() -> None:
    settings = Settings.model_validate({"sources": {"main": {"url": "sqlite://", "preset": "django_tasks"}}})
    with pytest.raises(ConfigurationError, match="are run by the workers of their own system"):
        async with open_worker(settings):
            pass
