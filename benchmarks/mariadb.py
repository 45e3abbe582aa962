"""MariaDB to measure on: a private server that survives a power cut."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from tests.servers import MariaDB

from benchmarks.databases import Database, Site
from benchmarks.drivers import connected
from benchmarks.filling import TABLE
from unstick.config import load_settings
from unstick.wiring import upgrade_database

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.filling import Backend

SETTINGS = {
    "innodb-flush-log-at-trx-commit": "1",
    "innodb-doublewrite": "1",
    "innodb-buffer-pool-size": "1G",
    "innodb-log-file-size": "2G",
}
_FILES = (".ibd", ".cfg")


class MariaSite(Site):
    backend: Backend = "mariadb"

    def __init__(self, directory: Path, server: MariaDB) -> None:
        super().__init__(directory)
        self._server = server

    @property
    def facts(self) -> dict[str, str]:
        with connected(self.backend, self._raw("mysql")) as run:
            [(version,)] = run("SELECT version()")
        return {"MariaDB": f"{version}, " + ", ".join(f"{name} {value}" for name, value in SETTINGS.items())}

    def _url(self, name: str) -> str:
        return self._server.url("asyncmy", name)

    def _raw(self, name: str) -> str:
        return f"{self._server.directory / 'socket'}?{name}"

    def _create(self, name: str) -> None:
        self._server.create(name)

    def _finish(self, database: Database) -> None:
        with database.connected() as run:
            run(f"ANALYZE TABLE {TABLE}")

    def _copy(self, source: str, name: str) -> None:
        """Copy the jobs table's own file, as the server's manual tells: row by row it would take longer than a run."""
        self._create(name)
        with connected(self.backend, self._raw(source)) as run:
            run(f"CREATE TABLE {name}.{TABLE} LIKE {TABLE}")
            run(f"ALTER TABLE {name}.{TABLE} DISCARD TABLESPACE")
            run(f"FLUSH TABLES {TABLE} FOR EXPORT")
            for suffix in _FILES:
                copied = shutil.copy(self._file(source, suffix), self._file(name, suffix))
                original = self._file(source, suffix).stat()
                shutil.chown(copied, original.st_uid, original.st_gid)
            run("UNLOCK TABLES")
            run(f"ALTER TABLE {name}.{TABLE} IMPORT TABLESPACE")
            run(f"ANALYZE TABLE {name}.{TABLE}")
        asyncio.run(upgrade_database(load_settings(self._database(name).config)))

    def _file(self, name: str, suffix: str) -> Path:
        return self._server.directory / "data" / name / f"{TABLE}{suffix}"

    def _warm(self, database: Database) -> None:
        with database.connected() as run:
            run(f"SELECT count(*), count(attempt) FROM {TABLE} FORCE INDEX (PRIMARY)")
            run(f"SELECT count(*) FROM {TABLE} FORCE INDEX ({TABLE}_open) WHERE status > ''")

    def _drop(self, name: str) -> None:
        self._server.drop(name)


class DurableMariaDB(MariaDB):
    """The tests' private server, but one that survives a power cut."""

    @classmethod
    def started(cls, run: Path) -> DurableMariaDB:
        server = cls(run, "mariadb")
        server.start()
        return server

    def command(self) -> list[str]:
        return [*super().command(), *(f"--{name}={value}" for name, value in SETTINGS.items())]
