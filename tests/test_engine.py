"""Engines from plain URLs: what is said where one can't be opened."""

import sys

import pytest

from unstick.domain.errors import ConfigurationError
from unstick.sql.engine import open_engine


@pytest.mark.parametrize(
    ("url", "driver", "package"),
    [
        ("postgresql://host/app", "psycopg", "'unstick[postgres]'"),
        ("postgresql+asyncpg://host/app", "asyncpg", "asyncpg"),
        ("mariadb://host/app", "asyncmy", "'unstick[mysql]'"),
        ("mysql+aiomysql://host/app", "aiomysql", "aiomysql"),
    ],
)
def test_a_missing_driver_is_told_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, url: str, driver: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)  # which Python's import takes for one that isn't installed
    with pytest.raises(ConfigurationError) as caught:
        open_engine(url)
    assert str(caught.value).endswith(f"isn't installed. Install it with: pip install {package}")
